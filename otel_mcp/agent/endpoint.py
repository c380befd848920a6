"""Client of an endpoint for OpenAI's chat completions, which may hang, fail, and answer too much or nonsense."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation
from pydantic import BaseModel, Field

from otel_mcp.agent.question import SCHEMA, Question
from otel_mcp.settings import PREFIX, Settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

TIMEOUT: Final = 20.0
"""Seconds that a whole answer may take."""
MAX_ANSWER: Final = 64 * 1024
"""Bytes of an answer."""
MIN_PAUSE: Final = 60.0
MAX_PAUSE: Final = 3600.0
"""Seconds without a question after a failure: first and at most; each failure doubles them."""


class AnswerTooLarge(Exception):
    """The answer has too many bytes."""


class SchemaRefused(Exception):
    """The endpoint does not support a schema for the answer: from now on it is asked without one."""


class _Message(BaseModel):
    content: str


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)


class Endpoint:
    """Asks one model, one question after another, behind a circuit breaker."""

    def __init__(self, settings: Settings) -> None:
        self._model = settings.agent_model or ""
        self._url = settings.agent_url
        self._with_schema = True
        self._pause = MIN_PAUSE
        self._closed_until = 0.0

    @property
    def is_paused(self) -> bool:
        """Whether the endpoint failed recently and is not asked."""
        return time.monotonic() < self._closed_until

    async def ask(self, question: Question) -> str:
        """Return the text of the model's answer.

        Raises:
            SchemaRefused: the question should be asked again.
            Exception: no answer; the endpoint `is_paused` for a while.
        """
        try:
            with suppress_instrumentation():
                async with asyncio.timeout(TIMEOUT):
                    body = await self._post(question)
            text = _Completion.model_validate_json(body).choices[0].message.content
        except SchemaRefused:
            raise
        except Exception as error:
            self._rest(_asked_pause(error))
            raise
        self._pause = MIN_PAUSE
        return text

    def refuse(self) -> None:
        """Pause the endpoint because its answer was useless."""
        self._rest(None)

    def _rest(self, asked: float | None) -> None:
        pause = self._pause if asked is None else max(asked, MIN_PAUSE)
        self._closed_until = time.monotonic() + min(pause, MAX_PAUSE)
        self._pause = min(self._pause * 2, MAX_PAUSE)

    async def _post(self, question: Question) -> bytes:
        client = await asyncio.to_thread(self._client)  # Importing the library takes a second or two.
        from openai import BadRequestError, UnprocessableEntityError

        options: dict[str, Any] = {}
        if self._with_schema:
            schema = {"name": "advice", "strict": True, "schema": SCHEMA}
            options["response_format"] = {"type": "json_schema", "json_schema": schema}
        completions: Any = client.chat.completions
        async with client:
            try:
                async with completions.with_streaming_response.create(
                    model=self._model,
                    messages=[
                        {"role": "system", "content": question.system},
                        {"role": "user", "content": question.user},
                    ],
                    **options,
                ) as response:
                    body = bytearray()
                    async for chunk in response.iter_bytes():
                        body += chunk
                        if len(body) > MAX_ANSWER:
                            raise AnswerTooLarge
                    return bytes(body)
            except (BadRequestError, UnprocessableEntityError):
                if not self._with_schema:
                    raise
                self._with_schema = False
                raise SchemaRefused from None

    def _client(self) -> AsyncOpenAI:
        """Make a client for one question, since the next may run on another event loop.

        A configured URL gets the configured key only, never ``OPENAI_API_KEY``.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        key = os.environ.get(f"{PREFIX}AGENT_KEY") or (None if self._url else os.environ.get("OPENAI_API_KEY"))
        # Redirects and the bodies of errors are not read: they are unbounded.
        http = DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [_close_unless_fine]})
        return AsyncOpenAI(api_key=key or "none", base_url=self._url, timeout=TIMEOUT, max_retries=0, http_client=http)


async def _close_unless_fine(response: Any) -> None:
    if not response.is_success:
        await response.aclose()


def _asked_pause(error: Exception) -> float | None:
    """Return the seconds that an error response asks to wait; ``None`` = it does not say."""
    response: Any = getattr(error, "response", None)
    if response is None:
        return None
    if response.status_code in {401, 403, 404}:
        return MAX_PAUSE  # Does not go away by itself.
    try:
        return float(int(response.headers.get("retry-after", "")))
    except ValueError:
        return None

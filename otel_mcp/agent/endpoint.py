"""An endpoint that speaks OpenAI's chat completions, which may hang, fail, flood and answer nonsense."""

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

PATIENCE: Final = 20.0
"""Seconds that an answer may take, all of it."""
LARGEST: Final = 64 * 1024
"""Bytes of an answer."""
FIRST_PAUSE: Final = 60.0
LONGEST_PAUSE: Final = 3600.0
"""Seconds without a question after a failure: first, and at most. It doubles from one to the next."""


class AnswerTooLarge(Exception):
    """More bytes than an answer may have."""


class SchemaRefused(Exception):
    """The endpoint takes no schema for the answer: from now on it is asked without one."""


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
        self._pause = FIRST_PAUSE
        self._closed_until = 0.0

    @property
    def is_paused(self) -> bool:
        """Whether it has failed not long ago, and is left alone."""
        return time.monotonic() < self._closed_until

    async def ask(self, question: Question) -> str:
        """Return the text of the model's answer.

        Raises:
            SchemaRefused: the same question is to be asked again.
            Exception: there is none; until a pause is over, `is_paused`.
        """
        try:
            with suppress_instrumentation():
                async with asyncio.timeout(PATIENCE):
                    body = await self._post(question)
            text = _Completion.model_validate_json(body).choices[0].message.content
        except SchemaRefused:
            raise
        except Exception as error:
            self._rest(_asked_pause(error))
            raise
        self._pause = FIRST_PAUSE
        return text

    def refuse(self) -> None:
        """Take note that its answer was of no use."""
        self._rest(None)

    def _rest(self, asked: float | None) -> None:
        pause = self._pause if asked is None else max(asked, FIRST_PAUSE)
        self._closed_until = time.monotonic() + min(pause, LONGEST_PAUSE)
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

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
                        if len(body) > LARGEST:
                            raise AnswerTooLarge
                    return bytes(body)
            except (BadRequestError, UnprocessableEntityError):
                if not self._with_schema:
                    raise
                self._with_schema = False
                raise SchemaRefused from None

    def _client(self) -> AsyncOpenAI:
        """Make a client for one question: the loop of the next may be another one.

        A URL of the settings gets the key of the settings alone, not one that belongs to somebody else.
        """
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        key = os.environ.get(f"{PREFIX}AGENT_KEY") or (None if self._url else os.environ.get("OPENAI_API_KEY"))
        # Neither a redirect nor the text of an error is read: they have no bounds.
        http = DefaultAsyncHttpxClient(follow_redirects=False, event_hooks={"response": [_close_unless_fine]})
        return AsyncOpenAI(api_key=key or "none", base_url=self._url, timeout=PATIENCE, max_retries=0, http_client=http)


async def _close_unless_fine(response: Any) -> None:
    if not response.is_success:
        await response.aclose()


def _asked_pause(error: Exception) -> float | None:
    """Return how long a refusal asks to wait, in seconds; ``None`` = it does not say."""
    response: Any = getattr(error, "response", None)
    if response is None:
        return None
    if response.status_code in {401, 403, 404}:
        return LONGEST_PAUSE  # Nothing that passes by itself.
    try:
        return float(int(response.headers.get("retry-after", "")))
    except ValueError:
        return None

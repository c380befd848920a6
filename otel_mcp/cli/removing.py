"""``otel-mcp rm``: end one session, for all replicas."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from otel_mcp.cli.document import Document
from otel_mcp.cli.listing import client
from otel_mcp.cli.output import text_of
from otel_mcp.cli.reading import Reader
from otel_mcp.cli.showing import choose
from otel_mcp.cli.store import configured, run
from otel_mcp.cli.terminal import Code, Failure, Terminal

if TYPE_CHECKING:
    from otel_mcp.settings import Settings


def remove(terminal: Terminal, redis_url: str | None, given: str, yes: bool) -> None:
    """End the session and remove its document; what was said of it stands in telemetry.

    Raises:
        Failure: there is no such session, several, or nobody who could be asked.
    """
    settings = configured(redis_url)
    if not yes and not sys.stdin.isatty():
        raise Failure(Code.USAGE, "nobody is there to be asked", "--yes ends the session without asking")
    document = run(_find(settings, given), settings)
    if not yes and not _confirmed(document):
        raise Failure(Code.NOT_FOUND, "nothing was done")
    if not run(_end(settings, document), settings):
        raise Failure(Code.NOT_FOUND, f"the session {text_of(document.session_id)} is gone, or is not ours")
    terminal.data(text_of(document.session_id))
    terminal.flush()
    terminal.say("ended; a replica reports it with its next sweep")


async def _find(settings: Settings, given: str) -> Document:
    reader = Reader(settings)
    document = await choose(reader, given)
    await reader.aclose()
    return document


async def _end(settings: Settings, document: Document) -> bool:
    from otel_mcp.store.redis.store import RedisStore

    # Only the service that a session is of may end it.
    store = RedisStore(settings.model_copy(update={"service_name": document.service or settings.service_name}))
    try:
        return await store.end(document.session_id)
    finally:
        await store.aclose()


def _confirmed(document: Document) -> bool:
    import typer

    calls = f"{document.call_count} call{'' if document.call_count == 1 else 's'}"
    question = f"End session {text_of(document.session_id)} ({client(document)}, {calls})?"
    return typer.confirm(question, err=True)

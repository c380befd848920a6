"""What the server lists: its names, what they cost the model that reads them, and when they change.

Users may be shown different catalogues, and a catalogue may come in pages, each perhaps from another replica. Read
are the bytes that clients got; what is kept of them are names, sizes and digests.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from time import monotonic
from typing import Any, Final, NamedTuple, cast

from pydantic_core import from_json, to_json

from otel_mcp import semconv
from otel_mcp.bounded import BoundedNames, remember
from otel_mcp.model.call import Call
from otel_mcp.wire.catalogue import MOST_TOOLS, Definition, Page, digest_of
from otel_mcp.wire.jsonrpc import field_of, listed_names

logger = logging.getLogger("otel_mcp")

MAX_TOOLS: Final = 200
_MAX_PAGES: Final = 128
"""Pages of listings that are not complete."""
_MAX_CATALOGUES: Final = 16
"""Maximum number of catalogues, which may differ by user or mounted server."""
_MAX_SHOWN: Final = 100
"""Maximum number of names in one attribute of an event."""
_MAX_NOTED: Final = 1000
"""Maximum number of tools in a summary for other processes."""
_LATELY: Final = 3600.0
"""Seconds after which a catalogue counts as outdated if only others were listed since."""
_NEWS: Final = 10
"""Rate limit: new catalogues, and reported changes, per hour; some servers list another catalogue each time."""

_TAKEN: Final = (
    ("claude-code", 50_000),
    ("copilot", 20 * 1024),
    ("visual studio code", 8 * 1024),
    ("codex", 40_000),
    ("gemini-cli", 40_000),
    ("qwen-code", 25_000),
    ("opencode", 50 * 1024),
    ("goose", 200_000),
)
"""How much of one result hosts pass to their model before they cut it or save it to a file, in characters or bytes, by
a part of their names. Sources: ``docs/context.md``."""


class Catalogue(NamedTuple):
    """The complete list of tools that one client got."""

    digest: bytes
    size: int
    """Bytes of the definitions."""
    tools: Mapping[str, Definition]

    def summary(self, keyed: Callable[[bytes], str]) -> str:
        """Return the summary for other processes, as JSON: keyed hash and size of each tool, and the total size."""
        tools = {name: [keyed(tool.digest), tool.size] for name, tool in list(self.tools.items())[:_MAX_NOTED]}
        return to_json({"hash": keyed(self.digest), "size": self.size, "tools": tools}).decode()


class Catalogues:
    """Collects the names that the server lists, and the catalogues that clients got recently."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.tools = BoundedNames(MAX_TOOLS)
        self.prompts = BoundedNames(MAX_TOOLS)
        self._all_listed = False
        """Whether the server has listed all its tools."""
        self._pages: OrderedDict[tuple[str, str | None], Page] = OrderedDict()
        """Pages of listings that take several, by who got them and by their cursors."""
        self._shared: OrderedDict[str | None, Page | None] = OrderedDict()
        """The page of each cursor where all got the same; ``None`` where they did not."""
        self._whole: OrderedDict[tuple[tuple[bytes, int], ...], Catalogue] = OrderedDict()
        """Catalogues, by digests and sizes of their pages."""
        self._known: OrderedDict[bytes, tuple[Catalogue, float]] = OrderedDict()
        """The catalogues, with when each was listed last."""
        self._noted: OrderedDict[bytes, float] = OrderedDict()
        """When each catalogue was shared with other processes, or will be."""
        self._met: list[float] = []
        """Times of new catalogues within the last hour."""
        self._reported: list[float] = []
        """Times of reported changes within the last hour."""
        self._warned = -_LATELY
        self.waiting: OrderedDict[bytes, Catalogue] = OrderedDict()
        """Catalogues that have to be shared with other processes."""
        self.wake: Callable[[], None] = lambda: None
        """Called when a catalogue has to be shared."""
        self.keyed: Callable[[bytes], str] = bytes.hex
        """Hashes digests with the key of all replicas."""

    def learn(self, method: str, result: object) -> None:
        """Learn the names that the server itself lists, where `method` asked for its tools or prompts."""
        if method == "tools/list":
            names = listed_names(result, "tools")
            self.tools.learn(names)
            # The last page completes the list.
            if names and not field_of(result, "nextCursor"):
                self._all_listed = True
        elif method == "prompts/list":
            self.prompts.learn(listed_names(result, "prompts"))

    def is_unlisted(self, call: Call) -> bool:
        """Return whether the server has listed its tools without this name."""
        if not self._all_listed or call.trusted_name or self.tools.is_full or call.target is None:
            return False
        return len(call.target) <= BoundedNames.MAX_LENGTH and call.target not in self.tools.known

    def listed(self, cursor: str | None, page: Page, owner: str) -> int | None:
        """Take what a finished ``tools/list`` of a client has listed.

        Args:
            cursor: by which it was asked for.
            page: the answer.
            owner: names the client.

        Returns:
            The size of the whole catalogue where that is complete, in bytes.
        """
        if page.tools is None:
            return page.size
        pages = [page]
        if cursor is not None or page.next_cursor is not None:
            remember(self._pages, (owner, cursor), page, _MAX_PAGES)
            if self._shared.setdefault(cursor, page) != page:
                self._shared[cursor] = None
            remember(self._shared, cursor, self._shared[cursor], _MAX_PAGES)
            pages = self._chain(owner) if page.next_cursor is None else []
        if not pages:
            return None
        if sum(len(part.tools or ()) for part in pages) <= MOST_TOOLS:
            self._meet(self._put_together(pages))
        return sum(part.size for part in pages)

    def _put_together(self, pages: list[Page]) -> Catalogue:
        key = tuple((part.digest, part.size) for part in pages)
        if (whole := self._whole.get(key)) is None:
            tools = [tool for part in pages for tool in part.tools or ()]
            digest = pages[0].digest if len(pages) == 1 else digest_of(tools)
            whole = Catalogue(digest, sum(part.size for part in pages), {tool.name: tool for tool in tools})
        remember(self._whole, key, whole, _MAX_CATALOGUES)
        return whole

    def _chain(self, owner: str) -> list[Page]:
        """Collect the pages of a listing; for a page that another replica answered, use another client's."""
        pages: list[Page] = []
        cursor: str | None = None
        while len(pages) < _MAX_PAGES:
            page = self._pages.get((owner, cursor)) or self._shared.get(cursor)
            if page is None:
                return []
            pages.append(page)
            if page.next_cursor is None:
                return pages
            cursor = page.next_cursor
        return []

    def _meet(self, met: Catalogue) -> None:
        now = self._clock()
        remember(self._known, met.digest, (met, now), _MAX_CATALOGUES)
        self._known.move_to_end(met.digest)
        for digest, (_, at) in list(self._known.items()):
            if at < now - _LATELY:
                del self._known[digest]
        if self._noted.get(met.digest, -_LATELY) > now - _LATELY:
            return
        if met.digest not in self._noted and not self._is_within(self._met):
            return
        remember(self._noted, met.digest, now, _MAX_PAGES)
        remember(self.waiting, met.digest, met, _MAX_CATALOGUES)
        self.wake()

    def may_report(self) -> bool:
        """Return whether the rate limit allows to report a change now, and count it."""
        return self._is_within(self._reported)

    def _is_within(self, times: list[float]) -> bool:
        """Add the current time to times of the last hour; false = the limit `_NEWS` is reached, logged once."""
        now = self._clock()
        times[:] = [at for at in times if at > now - _LATELY]
        if len(times) < _NEWS:
            times.append(now)
            return True
        if self._warned <= now - _LATELY:
            self._warned = now
            logger.warning(
                "otel_mcp: the tools were listed in more than %d different ways within an hour: further changes are "
                "not reported for a while. Clients cannot keep a catalogue in their caches that always changes",
                _NEWS,
            )
        return False

    def summaries(self) -> list[tuple[str, str]]:
        """Return keyed digest and summary of each catalogue to share."""
        return [(self.keyed(met.digest), met.summary(self.keyed)) for met in list(self.waiting.values())]

    def noted(self, digest: str) -> None:
        """Stop sharing a catalogue, since it is in the store now."""
        for content in [content for content in list(self.waiting) if self.keyed(content) == digest]:
            self.waiting.pop(content, None)

    def count(self) -> int | None:
        """Count the tools of all recent catalogues; ``None`` before the first."""
        known = list(self._known.values())
        return len({name for met, _ in known for name in met.tools}) if known else None

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each tool's definition at its last listing; tools beyond the bound are one sum."""
        latest = {name: tool.size for met, _ in list(self._known.values()) for name, tool in met.tools.items()}
        sizes: dict[str, int] = {}
        for name, size in latest.items():
            label = name if name in self.tools.known else semconv.OTHER
            sizes[label] = sizes.get(label, 0) + size
        return sizes

    def own_limit(self, name: str | None) -> int | None:
        """Return the maximum characters of a result that a tool declares for hosts."""
        found = (met.tools.get(name or "") for met, _ in reversed(list(self._known.values())))
        return next((tool.limit for tool in found if tool is not None), None)


def taken_by(client: str) -> int | None:
    """Return the default maximum of a result for the host of that name, in bytes."""
    name = client.lower()
    return next((most for part, most in _TAKEN if part in name), None)


def change(now: str, before: Iterable[str]) -> dict[str, Any] | None:
    """Compare the summary of a new catalogue with those that were known before.

    Returns:
        The attributes of the event, against the one that differs least; ``None`` where there is none,
        or no difference.
    """
    new = _tools_of(from_json(now))
    others = [from_json(other) for other in before]
    if not others:
        return None
    old = min(others, key=lambda other: len(new.items() ^ _tools_of(other).items()))
    was, met = _tools_of(old), from_json(now)
    named = {
        semconv.CATALOGUE_ADDED: new.keys() - was.keys(),
        semconv.CATALOGUE_REMOVED: was.keys() - new.keys(),
        semconv.CATALOGUE_CHANGED: {name for name in new.keys() & was.keys() if new[name] != was[name]},
    }
    if not any(named.values()):
        return None
    return {
        **{name: sorted(tools)[:_MAX_SHOWN] for name, tools in named.items() if tools},
        semconv.CATALOGUE_HASH: met["hash"],
        semconv.CATALOGUE_PREVIOUS_HASH: old["hash"],
        semconv.CATALOGUE_SIZE: met["size"],
        semconv.CATALOGUE_PREVIOUS_SIZE: old["size"],
    }


def _tools_of(summary: Any) -> dict[str, str]:
    return {name: cast(str, digest) for name, (digest, _) in summary["tools"].items()}

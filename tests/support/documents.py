"""Reads session documents out of Redis, as any program could that knows the key and the JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import redis


@dataclass(frozen=True)
class Document:
    """One session document with the seconds that it has left."""

    key: str
    fields: dict[str, Any]
    expires_in: int

    @property
    def tools(self) -> list[str]:
        """The tools that were called, oldest first."""
        return [call["tool_name"] for call in self.fields["tool_calls"]]


class Documents:
    """The session documents of one Redis."""

    def __init__(self, url: str) -> None:
        # redis-py types every answer for its synchronous and its asyncio client at once.
        self._redis = cast("Any", redis.Redis).from_url(url, decode_responses=True, encoding_errors="replace")

    def get(self, session_id: str) -> Document | None:
        """The document at ``mcp_session:<id>``."""
        key = f"mcp_session:{session_id}"
        text = self._redis.get(key)
        return None if text is None else Document(key, json.loads(text), self._redis.ttl(key))

    def of_service(self, service: str) -> list[Document]:
        """Every document that names this service."""
        found = (self.get(key.removeprefix("mcp_session:")) for key in self._redis.scan_iter("mcp_session:*"))
        return [document for document in found if document is not None and document.fields.get("service") == service]

    def field(self, session_id: str, name: str) -> int:
        """A number that the document tells; 0 where there is none."""
        document = self.get(session_id)
        return 0 if document is None else int(document.fields[name])

    def count(self, session_id: str) -> int:
        """The number of tool calls that the document tells."""
        return self.field(session_id, "tool_call_count")

    def keys(self) -> list[str]:
        """Every key there is."""
        return sorted(self._redis.keys("*"))

    def everything(self) -> str:
        """The text of every value, whatever its kind."""
        return "\n".join(f"{key} {value}" for key in self.keys() for value in self._texts(key))

    def close(self) -> None:
        """Close the connection."""
        self._redis.close()

    def _texts(self, key: str) -> Iterator[str]:
        match self._redis.type(key):
            case "string":
                yield str(self._redis.get(key))
            case "hash":
                yield str(self._redis.hgetall(key))
            case "zset":
                yield str(self._redis.zrange(key, 0, -1, withscores=True))
            case "set":
                yield str(self._redis.smembers(key))
            case "list":
                yield str(self._redis.lrange(key, 0, -1))
            case "stream":
                yield str(self._redis.xrange(key))
            case other:
                raise AssertionError(f"{key} is a {other}, which nobody here can read")

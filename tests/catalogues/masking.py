"""Takes the prose out of a catalogue, and leaves every byte of it where it was: escapes, spaces, order and lengths."""

from __future__ import annotations

import re
from typing import Final

_TOKEN: Final = re.compile(r'"(?P<text>[^"\\]*(?:\\.[^"\\]*)*)"(?P<key>\s*:)?|[\[\]{}]', re.DOTALL)
_SIGN: Final = re.compile(r"\\u(?P<hex>[0-9a-fA-F]{4})|\\.|[^\W\d_]|[0-9]", re.DOTALL)
_PLAIN: Final = re.compile(r"[\w.:/-]{1,40}")
KEPT: Final = frozenset({
    *("jsonrpc", "name", "nextCursor", "resultType", "cacheScope"),
    *("type", "format", "$ref", "$schema", "required", "mimeType", "contentEncoding"),
})  # fmt: skip
"""Keys whose values are no prose."""


def mask(text: str) -> str:
    """Mask the letters and digits of all texts in a JSON document but names and the words of schemas.

    Each becomes another one of as many bytes; escapes stay escapes.
    """
    written: list[str] = []
    at, keys = 0, [""]
    for token in _TOKEN.finditer(text):
        written.append(text[at : token.start()])
        at = token.end()
        sign = token[0]
        if sign in ("[", "{"):
            keys.append(keys[-1])
        elif sign in ("]", "}"):
            keys.pop()
        elif token["key"]:
            keys[-1] = token["text"]
        elif keys[-1] not in KEPT and not (keys[-1] == "enum" and _PLAIN.fullmatch(token["text"])):
            sign = f'"{_SIGN.sub(_other, token["text"])}"'
        written.append(sign)
    return "".join([*written, text[at:]])


def _other(found: re.Match[str]) -> str:
    sign = found[0]
    if found["hex"] is not None:
        code = int(found["hex"], 16)
        if not chr(code).isalpha():
            return sign
        return r"\u0078" if code < 0x80 else r"\u00e4" if code < 0x800 else r"\u4e2d"
    if sign.startswith("\\"):
        return sign
    if sign.isascii():
        return "0" if sign.isdigit() else "X" if sign.isupper() else "x"
    return {2: "ä", 3: "中", 4: "\U00020000"}[len(sign.encode())]

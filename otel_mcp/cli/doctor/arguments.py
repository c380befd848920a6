"""Find the app and the number of workers among the arguments of a server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

_APP: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(.*\))?\Z")
_MODULE: Final = re.compile(r"[A-Za-z_][\w]*(\.[A-Za-z_]\w*)*\Z")
_WORKERS: Final = {
    "uvicorn": (("--workers",), ("UVICORN_WORKERS", "WEB_CONCURRENCY")),
    "gunicorn": (("--workers", "-w"), ("WEB_CONCURRENCY",)),
    "hypercorn": (("--workers", "-w"), ()),
    "granian": (("--workers",), ("GRANIAN_WORKERS",)),
}
_DEFAULT_ATTRIBUTE: Final = {"gunicorn": "application", "hypercorn": "app", "granian": "app"}
_FOLDER: Final = {
    "uvicorn": ("--app-dir",),
    "gunicorn": ("--chdir", "--pythonpath"),
    "granian": ("--working-dir",),
    "hypercorn": (),
}
SERVERS: Final = frozenset(_WORKERS)
"""Servers of ASGI apps that we know."""


@dataclass(frozen=True, slots=True)
class App:
    """What a server is to import."""

    module: str | None = None
    attribute: str = ""
    file: str | None = None
    factory: bool = False
    folder: str | None = None

    def __str__(self) -> str:
        return ":".join(part for part in (self.file or self.module, self.attribute) if part)


def workers_of(server: str, arguments: Sequence[str], env: Mapping[str, str]) -> int:
    """How many processes a server starts."""
    flags, variables = _WORKERS[server]
    texts = (option(arguments, *flags), *(env.get(variable) for variable in variables))
    return next((int(text) for text in texts if text and text.isdecimal()), 1)


def option(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option, written in any of the usual ways."""
    for at, word in enumerate(arguments):
        for name in names:
            if word == name:
                return arguments[at + 1] if at + 1 < len(arguments) else None
            if name.startswith("--") and word.startswith(name + "="):
                return word[len(name) + 1 :]
            if not name.startswith("--") and word.startswith(name) and not word.startswith("--"):
                return word[len(name) :]
    return None


def app_of(server: str, arguments: Sequence[str]) -> App | None:
    """The app that a server is to import; `None` = none is found."""
    before = ["", *arguments]
    places = [word for at, word in enumerate(arguments) if before[at] not in {"-b", "--bind", "-k", "--worker-class"}]
    named = next((word for word in places if _APP.match(word)), None)
    folder = option(arguments, *_FOLDER.get(server, ())) or os.getcwd()
    if named is None:
        bare = arguments[-1] if arguments and server in _DEFAULT_ATTRIBUTE else ""
        if not _MODULE.match(bare) or (len(arguments) > 1 and arguments[-2].startswith("-")):
            return None
        return App(bare, _DEFAULT_ATTRIBUTE[server], folder=folder)
    module, _, attribute = named.partition(":")
    called = attribute.endswith("()")
    if "(" in attribute and not called:
        return None
    return App(module, attribute.removesuffix("()"), factory=called or "--factory" in arguments, folder=folder)


def file_of(arguments: Sequence[str]) -> App | None:
    """The app of ``fastmcp run server.py:mcp`` and ``mcp run server.py:mcp``."""
    named = next((word for word in arguments if word.endswith(".py") or ".py:" in word), None)
    if named is None:
        return None
    file, _, attribute = named.partition(".py:")
    return App(file=file if file.endswith(".py") else file + ".py", attribute=attribute, folder=os.getcwd())

"""Parse the command that starts a server, without running it: its wrappers, interpreter, app, number of workers."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

AUTO_DIRECTORY: Final = "opentelemetry/instrumentation/auto_instrumentation"
"""The end of the entry that `opentelemetry-instrument` and the Kubernetes operator add to PYTHONPATH."""
_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*\Z")
_APP: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(.*\))?\Z")
_RUNNERS: Final = frozenset({"uv", "poetry", "pdm", "pipenv", "hatch"})  # By ``uv run PROGRAM``, for example.
_PLAIN_WRAPPERS: Final = frozenset({"exec", "nohup", "tini", "dumb-init", "--"})


class _Server(NamedTuple):
    """How an ASGI server is started, and what it imports."""

    attribute: str | None
    """Default name of the app in its module."""
    modules: tuple[str, ...]
    """Modules that we patch, which the server imports before the app."""
    variables: tuple[str, ...] = ()
    """Environment variables for the number of workers."""
    folder: tuple[str, ...] = ()
    """Options for the folder to import from."""


SERVERS: Final[Mapping[str, _Server]] = {
    "uvicorn": _Server(
        None, ("uvicorn.config", "uvicorn.server"), ("UVICORN_WORKERS", "WEB_CONCURRENCY"), ("--app-dir",)
    ),
    "gunicorn": _Server(
        "application", ("gunicorn.workers.gasgi", "uvicorn.config"), ("WEB_CONCURRENCY",), ("--chdir", "--pythonpath")
    ),
    "hypercorn": _Server("app", ("hypercorn.app_wrappers",)),
    "granian": _Server("app", ("granian.asgi",), ("GRANIAN_WORKERS",), ("--working-dir",)),
}


@dataclass(frozen=True, slots=True)
class App:
    """The app that a server imports."""

    module: str | None = None
    attribute: str = ""
    file: str | None = None
    factory: bool = False
    folder: str | None = None

    def __str__(self) -> str:
        return ":".join(part for part in (self.file or self.module, self.attribute) if part)


@dataclass(slots=True)
class Launch:
    """How a server is started."""

    env: dict[str, str]
    """The environment of the process, with the assignments and flags of the command."""
    program: list[str] = field(default_factory=list[str])
    """The command without its wrappers."""
    given: bool = False
    """Whether there is a command."""
    missing: str | None = None
    """A program that is not found."""
    interpreter: str | None = None
    wrapper_interpreter: str | None = None
    """The interpreter of `opentelemetry-instrument`."""
    flags: tuple[str, ...] = ()
    """Flags of the interpreter, from the command or a shebang."""
    server: str | None = None
    app: App | None = None
    workers: int = 1
    transport: str | None = None
    """``stdio`` if the command does not serve HTTP."""
    unknown: str | None = None
    """Why the app cannot be imported."""

    @property
    def bypassing_flag(self) -> str | None:
        """A flag by which the interpreter ignores `sitecustomize` or PYTHONPATH."""
        return next((flag for flag in self.flags if re.match("-[A-Za-z]*[IES]", flag)), None)

    @property
    def auto_directory(self) -> str | None:
        """The entry of PYTHONPATH that loads the instrumentation."""
        return next((path for path in _paths(self.env) if is_auto(path)), None)

    @property
    def shadowing(self) -> str | None:
        """A `sitecustomize.py` that Python finds before the instrumentation's."""
        for entry in _paths(self.env):
            if entry == self.auto_directory:
                return None
            if (found := Path(entry, "sitecustomize.py")).is_file():
                return str(found)
        return None

    @property
    def env_file(self) -> str | None:
        """A file of environment variables that the server reads itself."""
        return option(self.program, "--env-file") if self.server == "uvicorn" else None

    @property
    def late_variables(self) -> list[str]:
        """OpenTelemetry variables in `env_file`, which the server reads after the SDK has been configured."""
        if self.env_file is None or not Path(self.env_file).is_file():
            return []
        lines = Path(self.env_file).read_text("utf-8", "replace").splitlines()
        names = {line.strip().removeprefix("export ").partition("=")[0].strip() for line in lines}
        return sorted(name for name in names if name.startswith("OTEL_"))

    @property
    def initialises(self) -> bool:
        """Whether the interpreter loads the instrumentation at start."""
        return self.auto_directory is not None and self.shadowing is None and self.bypassing_flag is None


def _paths(env: Mapping[str, str]) -> list[str]:
    return [entry for entry in env.get("PYTHONPATH", "").split(os.pathsep) if entry]


def is_auto(path: str) -> bool:
    """Return whether an entry of PYTHONPATH loads the instrumentation."""
    return Path(path).as_posix().rstrip("/").endswith(AUTO_DIRECTORY)


def read(words: Sequence[str], env: Mapping[str, str]) -> Launch:
    """Parse the words of a command; an empty command gives an unknown launch."""
    launch, rest = Launch(dict(env), given=bool(words)), list(words)
    while rest and (step := _unwrapped(launch, rest)) is not None:
        rest = step
    launch.program = rest
    path = shutil.which(rest[0], path=launch.env.get("PATH")) if rest else None
    if not words:
        launch.unknown = "no command was given"
    elif not rest:
        launch.unknown = launch.unknown or "the command names no program"
    elif path is None:
        launch.missing, launch.unknown = rest[0], f"{rest[0]} is not found"
    else:
        _program(launch, path, rest)
    return launch


def _unwrapped(launch: Launch, words: list[str]) -> list[str] | None:
    """Remove one wrapper and apply its effect on the environment; return the rest, ``None`` = there is no wrapper."""
    name, rest = Path(words[0]).name, words[1:]
    if _ASSIGNMENT.match(words[0]):
        variable, _, launch.env[variable] = words[0].partition("=")
        return rest
    if name in _PLAIN_WRAPPERS:
        return rest
    if name == "env":
        while rest and rest[0].startswith("-"):
            if rest[0] in {"-i", "-", "--ignore-environment"}:
                launch.env.clear()
            elif rest[0] in {"-u", "--unset"} and len(rest) > 1:
                launch.env.pop(rest.pop(1), None)
            rest = rest[1:]
        return rest
    if name in _RUNNERS and rest[:1] == ["run"]:
        return rest[2:] if rest[1:2] == ["--"] else rest[1:]
    return _instrumented(launch, words) if name == "opentelemetry-instrument" else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _instrumented(launch: Launch, words: list[str]) -> list[str]:
    """Apply the flags of `opentelemetry-instrument`, each of which sets an environment variable."""
    from opentelemetry.instrumentation import auto_instrumentation

    path = shutil.which(words[0], path=launch.env.get("PATH"))
    if path is None:
        launch.missing = words[0]
    else:
        launch.wrapper_interpreter = _shebang(path)[0]
    parser = _Parser(add_help=False)
    points = metadata.entry_points(group="opentelemetry_environment_variables")
    for variable in sorted({name for point in points for name in dir(point.load()) if name.startswith("OTEL_")}):
        parser.add_argument("--" + re.sub(r"OTEL_(PYTHON_)?", "", variable).lower(), dest=variable)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    try:
        parsed = vars(parser.parse_args(words[1:]))
    except ValueError:
        launch.unknown = "opentelemetry-instrument would not accept these flags"
        return []
    rest: list[str] = parsed.pop("command")
    launch.env.update({variable: value for variable, value in parsed.items() if value is not None})
    paths = _paths(launch.env)
    if os.getcwd() not in paths:
        paths.insert(0, os.getcwd())
    launch.env["PYTHONPATH"] = os.pathsep.join([str(Path(auto_instrumentation.__file__).parent), *paths])
    return rest


def _shebang(path: str) -> tuple[str | None, tuple[str, ...]]:
    """Return the interpreter of a script and its flags; ``None`` = not a Python script."""
    with open(path, "rb") as script:
        lines = [line.decode("utf-8", "replace").strip() for line in script.read(1024).split(b"\n")[:3]]
    if not lines or not lines[0].startswith("#!"):
        return None, ()
    if lines[0] == "#!/bin/sh" and len(lines) > 1 and lines[1].startswith("'''exec'"):
        lines[0] = "#!" + shlex.split(lines[1])[1]  # This is how pip writes an interpreter path that is too long.
    words = lines[0][2:].split()
    if Path(words[0]).name == "env":
        words = [word for word in words[1:] if word != "-S"]
        words[:1] = [shutil.which(words[0]) or words[0]] if words else []
    is_python = words and _PYTHON.match(Path(words[0]).name)
    return (words[0], tuple(words[1:])) if is_python else (None, ())


def _program(launch: Launch, path: str, words: list[str]) -> None:
    name = Path(words[0]).name
    if not _PYTHON.match(name):
        launch.interpreter, launch.flags = _shebang(path)
        _server(launch, name, words[1:])
        return
    launch.interpreter = path
    index = 1
    while index < len(words) and words[index].startswith("-") and words[index] not in {"-m", "-c", "-"}:
        index += 2 if words[index] in {"-X", "-W"} else 1
    launch.flags = tuple(words[1:index])
    if words[index : index + 1] == ["-m"] and index + 1 < len(words):
        _server(launch, words[index + 1], words[index + 2 :])
    else:
        launch.unknown = "running a script would start its server"


def _server(launch: Launch, name: str, arguments: list[str]) -> None:
    known = SERVERS.get(name)
    if name in {"fastmcp", "mcp"} and arguments[:1] == ["run"]:
        launch.server, launch.app = name, _file(arguments[1:])
        transport = option(arguments, "--transport", "-t") or launch.env.get("FASTMCP_TRANSPORT", "stdio")
        launch.transport = transport if transport == "stdio" else None
        launch.unknown = None if launch.app else f"no Python file was found among the arguments of {name} run"
        return
    launch.app = _app(known, arguments)
    if known is not None:
        texts = (option(arguments, "--workers", "-w"), *(launch.env.get(variable) for variable in known.variables))
        launch.workers = next((int(text) for text in texts if text and text.isdecimal()), 1)
        launch.unknown = None if launch.app else f"no app was found among the arguments of {name}"
    elif launch.app is None:
        launch.unknown = f"{name} is not a known server"
    launch.server = name if known is not None or launch.app is not None else None


def option(arguments: Sequence[str], *names: str) -> str | None:
    """Return the value of an option: ``--name value``, ``--name=value``, ``-n value`` or ``-nvalue``."""
    for index, word in enumerate(arguments):
        for name in names:
            if word == name:
                return arguments[index + 1] if index + 1 < len(arguments) else None
            if name.startswith("--") and word.startswith(name + "="):
                return word[len(name) + 1 :]
            if not name.startswith("--") and word.startswith(name) and not word.startswith("--"):
                return word[len(name) :]
    return None


def _app(server: _Server | None, arguments: Sequence[str]) -> App | None:
    """Find the app among the arguments of a server."""
    pairs = zip(["", *arguments], arguments, strict=False)
    words = (word for before, word in pairs if before not in {"-b", "--bind", "-k", "--worker-class"})
    named = next((word for word in words if _APP.match(word)), None)
    folder = option(arguments, *(server.folder if server else ())) or os.getcwd()
    if named is None:
        bare = arguments[-1] if arguments and server and server.attribute else ""
        if not all(part.isidentifier() for part in bare.split(".")) or (
            len(arguments) > 1 and arguments[-2].startswith("-")
        ):
            return None
        return App(bare, (server and server.attribute) or "", folder=folder)
    module, _, attribute = named.partition(":")
    called = attribute.endswith("()")
    if "(" in attribute and not called:
        return None
    return App(module, attribute.removesuffix("()"), factory=called or "--factory" in arguments, folder=folder)


def _file(arguments: Sequence[str]) -> App | None:
    """Find the app among the arguments of ``fastmcp run`` and ``mcp run``, such as ``server.py:mcp``."""
    named = next((word for word in arguments if word.endswith(".py") or ".py:" in word), None)
    if named is None:
        return None
    file, _, attribute = named.partition(".py:")
    return App(file=file if file.endswith(".py") else file + ".py", attribute=attribute, folder=os.getcwd())

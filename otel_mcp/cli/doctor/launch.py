"""Read a command line as the shell and the server would: who starts whom, which app, how many workers.

Nothing is run. What is not understood is said, not guessed.
"""

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
from typing import Final, NoReturn

from otel_mcp.cli.doctor.arguments import SERVERS, App, app_of, file_of, option, workers_of

AUTO_DIRECTORY: Final = "opentelemetry/instrumentation/auto_instrumentation"
"""What `opentelemetry-instrument` and the Kubernetes operator put on PYTHONPATH."""

_ASSIGNMENT: Final = re.compile(r"[A-Za-z_]\w*=")
_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*\Z")
_RUNNERS: Final = {"uv": "run", "poetry": "run", "pdm": "run", "pipenv": "run", "hatch": "run"}
_PLAIN_WRAPPERS: Final = frozenset({"exec", "nohup", "tini", "dumb-init", "--"})
_BYPASSES: Final = re.compile(r"-[A-Za-z]*[IES]")


@dataclass(slots=True)
class Launch:
    """How a server is started."""

    env: dict[str, str]
    """The environment of the process, after assignments and flags of the command."""
    program: list[str] = field(default_factory=list[str])
    """The words from the program on that runs the server."""
    given: bool = False
    missing: str | None = None
    """A command that is not found."""
    interpreter: str | None = None
    wrapper_interpreter: str | None = None
    """Whose `opentelemetry-instrument` it is."""
    flags: tuple[str, ...] = ()
    """Flags of the interpreter, from the command or a script's first line."""
    server: str | None = None
    app: App | None = None
    workers: int = 1
    transport: str | None = None
    """``stdio`` where the command serves no HTTP."""
    unknown: str | None = None
    """Why the app is not imported."""

    @property
    def bypassing_flag(self) -> str | None:
        """A flag that keeps the interpreter from loading `sitecustomize`, or from reading PYTHONPATH."""
        return next((flag for flag in self.flags if _BYPASSES.match(flag)), None)

    @property
    def auto_directory(self) -> str | None:
        """The entry of PYTHONPATH that brings the instrumentation."""
        for entry in self.env.get("PYTHONPATH", "").split(os.pathsep):
            if Path(entry).as_posix().rstrip("/").endswith(AUTO_DIRECTORY):
                return entry
        return None

    @property
    def shadowing(self) -> str | None:
        """A `sitecustomize.py` that Python finds before that of the instrumentation."""
        for entry in self.env.get("PYTHONPATH", "").split(os.pathsep):
            if entry == self.auto_directory:
                return None
            if entry and (found := Path(entry, "sitecustomize.py")).is_file():
                return str(found)
        return None

    @property
    def env_file(self) -> str | None:
        """A file of variables that the server reads by itself."""
        return option(self.program, "--env-file") if self.server == "uvicorn" else None

    @property
    def late_variables(self) -> list[str]:
        """Variables of OpenTelemetry in that file: by then the SDK has read its own."""
        if self.env_file is None or not Path(self.env_file).is_file():
            return []
        lines = Path(self.env_file).read_text("utf-8", "replace").splitlines()
        names = [line.strip().removeprefix("export ").partition("=")[0].strip() for line in lines]
        return sorted({name for name in names if name.startswith("OTEL_")})

    @property
    def initialises(self) -> bool:
        """Whether the interpreter loads the instrumentation at start."""
        return self.auto_directory is not None and self.shadowing is None and self.bypassing_flag is None


def read(words: Sequence[str], env: Mapping[str, str]) -> Launch:
    """Read the words of a command; none at all is a command that is not known."""
    launch = Launch(dict(env))
    if not words:
        launch.unknown = "no command was given"
        return launch
    launch.given = True
    rest = list(words)
    while rest:
        step = _unwrapped(launch, rest)
        if step is None:
            break
        rest = step
    launch.program = rest
    if not rest:
        launch.unknown = launch.unknown or "the command names no program"
        return launch
    path = shutil.which(rest[0], path=launch.env.get("PATH"))
    if path is None:
        launch.missing = rest[0]
        launch.unknown = f"{rest[0]} is not found"
        return launch
    _program(launch, path, rest)
    return launch


def _unwrapped(launch: Launch, words: list[str]) -> list[str] | None:
    """Take one wrapper off, and do to the environment what it would do; `None` = there is none."""
    name = Path(words[0]).name
    if _ASSIGNMENT.match(words[0]):
        variable, _, value = words[0].partition("=")
        launch.env[variable] = value
        return words[1:]
    if name in _PLAIN_WRAPPERS:
        return words[1:]
    if name == "env":
        return _env(launch, words[1:])
    if name in _RUNNERS and words[1:2] == [_RUNNERS[name]]:
        return words[3:] if words[2:3] == ["--"] else words[2:]
    if name == "opentelemetry-instrument":
        return _instrumented(launch, words)
    return None


def _env(launch: Launch, words: list[str]) -> list[str]:
    while words and words[0].startswith("-"):
        if words[0] in {"-i", "-", "--ignore-environment"}:
            launch.env.clear()
        elif words[0] in {"-u", "--unset"} and len(words) > 1:
            launch.env.pop(words.pop(1), None)
        words = words[1:]
    return words


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _instrumented(launch: Launch, words: list[str]) -> list[str]:
    """Apply the flags of `opentelemetry-instrument`, each of which is an environment variable."""
    path = shutil.which(words[0], path=launch.env.get("PATH"))
    if path is None:
        launch.missing = words[0]
    else:
        launch.wrapper_interpreter = _shebang(path)[0]
    parser = _Parser(add_help=False)
    for variable in sorted(_variables()):
        parser.add_argument("--" + re.sub(r"OTEL_(PYTHON_)?", "", variable).lower(), dest=variable)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    try:
        parsed = vars(parser.parse_args(words[1:]))
    except ValueError:
        launch.unknown = "opentelemetry-instrument would not accept these flags"
        return []
    rest: list[str] = parsed.pop("command")
    launch.env.update({variable: value for variable, value in parsed.items() if value is not None})
    paths = [entry for entry in launch.env.get("PYTHONPATH", "").split(os.pathsep) if entry]
    if os.getcwd() not in paths:
        paths.insert(0, os.getcwd())
    launch.env["PYTHONPATH"] = os.pathsep.join([_auto_directory(), *paths])
    return rest


def _auto_directory() -> str:
    from opentelemetry.instrumentation import auto_instrumentation

    return str(Path(auto_instrumentation.__file__).parent)


def _variables() -> set[str]:
    found: set[str] = set()
    for point in metadata.entry_points(group="opentelemetry_environment_variables"):
        found.update(name for name in dir(point.load()) if name.startswith("OTEL_"))
    return found


def _shebang(path: str) -> tuple[str | None, tuple[str, ...]]:
    """The interpreter of a script and its flags; `None` where it is no Python script."""
    with open(path, "rb") as script:
        lines = [line.decode("utf-8", "replace").strip() for line in script.read(1024).split(b"\n")[:3]]
    if not lines or not lines[0].startswith("#!"):
        return None, ()
    if lines[0] == "#!/bin/sh" and len(lines) > 1 and lines[1].startswith("'''exec'"):
        lines[0] = "#!" + shlex.split(lines[1])[1]  # How pip writes a path that is too long for a first line.
    words = lines[0][2:].split()
    if Path(words[0]).name == "env":
        words = [word for word in words[1:] if word != "-S"]
        words[:1] = [shutil.which(words[0]) or words[0]] if words else []
    if not words or not _PYTHON.match(Path(words[0]).name):
        return None, ()
    return words[0], tuple(words[1:])


def _program(launch: Launch, path: str, words: list[str]) -> None:
    name = Path(words[0]).name
    if not _PYTHON.match(name):
        launch.interpreter, launch.flags = _shebang(path)
        _server(launch, name, words[1:])
        return
    launch.interpreter = path
    at = 1
    while at < len(words) and words[at].startswith("-") and words[at] not in {"-m", "-c", "-"}:
        at += 2 if words[at] in {"-X", "-W"} else 1
    launch.flags = tuple(words[1:at])
    if words[at : at + 1] == ["-m"] and at + 1 < len(words):
        _server(launch, words[at + 1], words[at + 2 :])
    else:
        launch.unknown = "a script serves by itself when it is run, so it was not"


def _server(launch: Launch, name: str, arguments: list[str]) -> None:
    if name in {"fastmcp", "mcp"} and arguments[:1] == ["run"]:
        launch.server, launch.app = name, file_of(arguments[1:])
        transport = option(arguments, "--transport", "-t") or launch.env.get("FASTMCP_TRANSPORT", "stdio")
        launch.transport = transport if transport == "stdio" else None
        if launch.app is None:
            launch.unknown = f"no Python file was found among the arguments of {name} run"
        return
    launch.app = app_of(name, arguments)
    if name in SERVERS:
        launch.server, launch.workers = name, workers_of(name, arguments, launch.env)
        if launch.app is None:
            launch.unknown = f"no app was found among the arguments of {name}"
    elif launch.app is not None:
        launch.server = name
    else:
        launch.unknown = f"{name} is not one of the servers that are understood here"

"""How a command line is read: which app, whose interpreter, how many workers, and what reaches the process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from otel_mcp.cli.doctor.launch import App, Launch, read

BIN = Path(sys.executable).parent


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def launch(command: str, **env: str) -> Launch:
    return read(command.split(), {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **env})


@pytest.mark.parametrize(
    ("command", "app", "workers"),
    [
        ("uvicorn app:app", "app:app", 1),
        ("uvicorn shop.asgi:create --factory --host 0.0.0.0 --workers 3", "shop.asgi:create", 3),
        ("uvicorn --port=80 --workers=2 app:server.app", "app:server.app", 2),
        ("python -m uvicorn app:app", "app:app", 1),
        ("python -X dev -W error -m uvicorn app:app --workers 4", "app:app", 4),
        ("gunicorn -k uvicorn_worker.UvicornWorker -w4 -b localhost:8000 app:app", "app:app", 4),
        ("gunicorn --bind unix:app app:create() -w 2", "app:create", 2),
        ("gunicorn -k asgi app", "app:application", 1),
        ("hypercorn -w 2 app:app", "app:app", 2),
        ("granian --interface asgi --workers 5 app:app", "app:app", 5),
        ("fastmcp run server.py --transport http", "server.py", 1),
        ("fastmcp run shop/server.py:mcp -t http --port 80", "shop/server.py:mcp", 1),
        ("mcp run server.py:mcp --transport streamable-http", "server.py:mcp", 1),
        ("env -u HOME A=1 uvicorn app:app", "app:app", 1),
        ("A=1 B=2 uvicorn app:app", "app:app", 1),
        ("uv run uvicorn app:app", "app:app", 1),
        ("poetry run -- uvicorn app:app", "app:app", 1),
        ("exec opentelemetry-instrument uvicorn app:app", "app:app", 1),
        ("opentelemetry-instrument --service_name shop uvicorn app:app --workers 2", "app:app", 2),
    ],
)
def test_app_and_workers(command: str, app: str, workers: int) -> None:
    found = launch(command)

    assert str(found.app) == app
    assert found.workers == workers
    assert found.unknown is None


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("", "no command was given"),
        ("python main.py", "running a script would start its server"),
        ("python -c pass", "running a script would start its server"),
        ("python -m http.server", "http.server is not a known server"),
        ("nosuch app:app", "nosuch is not found"),
        ("opentelemetry-instrument", "the command names no program"),
        (
            "opentelemetry-instrument --nosuch 1 uvicorn app:app",
            "opentelemetry-instrument would not accept these flags",
        ),
        ("uvicorn --reload", "no app was found among the arguments of uvicorn"),
        ("gunicorn app:create(debug=True)", "no app was found among the arguments of gunicorn"),
        ("fastmcp run fastmcp.json", "no Python file was found among the arguments of fastmcp run"),
        ("sh -c uvicorn", "sh is not a known server"),
    ],
)
def test_commands_that_are_not_understood_are_reported(command: str, why: str) -> None:
    found = launch(command)

    assert found.app is None
    assert found.unknown == why


def test_workers_from_the_environment() -> None:
    assert launch("uvicorn app:app", WEB_CONCURRENCY="3").workers == 3
    assert launch("gunicorn app:app", WEB_CONCURRENCY="3").workers == 3
    assert launch("uvicorn app:app --workers 2", WEB_CONCURRENCY="3").workers == 2
    assert launch("WEB_CONCURRENCY=4 uvicorn app:app").workers == 4


def test_folder_and_factory_of_the_app(here: Path) -> None:
    assert launch("uvicorn app:app").app == App("app", "app", folder=str(here))
    assert launch("uvicorn --app-dir src app:make --factory").app == App("app", "make", factory=True, folder="src")
    assert launch("gunicorn --chdir src app:make()").app == App("app", "make", factory=True, folder="src")


def test_flags_of_the_wrapper_are_variables() -> None:
    found = launch(
        "opentelemetry-instrument --traces_exporter console --exporter_otlp_endpoint=http://c uvicorn app:app"
    )

    assert found.env["OTEL_TRACES_EXPORTER"] == "console"
    assert found.env["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://c"


def test_interpreter_of_a_script_and_its_flags(here: Path) -> None:
    script = here / "uvicorn"
    script.write_text(f"#!{sys.executable} -sE\n")
    script.chmod(0o755)
    long = here / "gunicorn"
    long.write_text(f'#!/bin/sh\n\'\'\'exec\' "{sys.executable}" "$0" "$@"\n')
    long.chmod(0o755)

    plain, flagged = launch("uvicorn app:app"), launch(f"opentelemetry-instrument {script} app:app")

    assert (plain.interpreter, plain.flags) == (str(sys.executable), ())
    assert (flagged.interpreter, flagged.bypassing_flag) == (sys.executable, "-sE")
    assert launch(f"{long} app:app").interpreter == sys.executable


@pytest.mark.parametrize(
    ("command", "initialises"),
    [
        ("opentelemetry-instrument uvicorn app:app", True),
        ("opentelemetry-instrument python -u -m uvicorn app:app", True),
        ("uvicorn app:app", False),
        ("opentelemetry-instrument python -I -m uvicorn app:app", False),
        ("opentelemetry-instrument python -sE -m uvicorn app:app", False),
        ("opentelemetry-instrument python -S -m uvicorn app:app", False),
        ("opentelemetry-instrument env PYTHONPATH=/src uvicorn app:app", False),
        ("env PYTHONPATH=/src opentelemetry-instrument uvicorn app:app", True),
        ("opentelemetry-instrument env -i uvicorn app:app", False),
    ],
)
def test_whether_the_instrumentation_reaches_the_process(command: str, initialises: bool) -> None:
    assert launch(command).initialises is initialises


def test_operator_puts_the_instrumentation_on_the_path(here: Path) -> None:
    auto = "/otel-auto-instrumentation-python/opentelemetry/instrumentation/auto_instrumentation"
    (here / "sitecustomize.py").write_text("")

    first = launch("uvicorn app:app", PYTHONPATH=f"{auto}{os.pathsep}{here}")
    shadowed = launch("uvicorn app:app", PYTHONPATH=f"{here}{os.pathsep}{auto}")

    assert first.initialises
    assert not shadowed.initialises
    assert shadowed.shadowing == str(here / "sitecustomize.py")


def test_stdio_is_noticed() -> None:
    assert launch("fastmcp run server.py").transport == "stdio"
    assert launch("mcp run server.py").transport == "stdio"
    assert launch("fastmcp run server.py", FASTMCP_TRANSPORT="http").transport is None

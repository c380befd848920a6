"""How the command line starts and ends."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from otel_mcp.cli.app import run
from otel_mcp.version import __version__

LONG_TO_IMPORT = ("redis", "opentelemetry", "pydantic_settings", "otel_mcp.settings", "asyncio", "rich")
"""Pydantic is not among them: recent versions of typer import it themselves for the options of a command."""


def test_help_version_and_usage_import_nothing_that_takes_long() -> None:
    script = (
        "import json, sys\n"
        "from otel_mcp.cli import main\n"
        "for arguments in (['--version'], ['--help'], ['sessions', '--help'], ['show']):\n"
        "    try:\n        main(arguments)\n"
        "    except SystemExit:\n        print(json.dumps(sorted(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    listed = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[")]

    assert len(listed) == 4
    assert "otel_mcp.cli.app" in listed[0]
    assert [name for name in LONG_TO_IMPORT if name in listed[-1]] == []


def test_a_list_imports_nothing_that_draws() -> None:
    script = (
        "import sys\nfrom otel_mcp.cli import main\n"
        "try:\n    main(['sessions', '--redis-url', 'redis://127.0.0.1:1'])\n"
        "except SystemExit as ended:\n    print(int(ended.code), 'redis' in sys.modules, 'rich' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "3 True False\n"


def test_version_is_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr() == (f"otel-mcp {__version__}\n", "")


@pytest.mark.parametrize("arguments", [["nosuch"], ["sessions", "--nosuch"], ["show"], ["sessions", "--color", "pink"]])
def test_usage_errors_are_talk_and_exit_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: otel-mcp" in err

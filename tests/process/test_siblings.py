"""Other instrumentors in the same process: a broken one harms us as little as we would harm it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.process.conftest import Servers
from tests.support.clients import LEGACY, MODERN, connect
from tests.support.documents import Documents
from tests.support.servers import BIN, PROMPT, SDK, Launch
from tests.support.telemetry import server_spans
from tests.support.waiting import wait_until

pytestmark = pytest.mark.process

SITE_PACKAGES = next(path for path in sys.path if path.endswith("site-packages"))
INSTRUMENTOR = """
import sys
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

class Instrumentor(BaseInstrumentor):
    def instrumentation_dependencies(self):
        return ()
    def _instrument(self, **kwargs):
        {body}
    def _uninstrument(self, **kwargs):
        pass
"""
RAISES = 'raise {error}("this sibling is broken")'
INSTRUMENTED = (BIN / "opentelemetry-instrument",)
SAYS_SO = 'print("{name} is loaded", file=sys.stderr)'


def _install(folder: Path, name: str, body: str) -> None:
    """Put a distribution with one instrumentor into a folder, as pip would leave it."""
    (folder / f"{name}.py").write_text(INSTRUMENTOR.format(body=body))
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[opentelemetry_instrumentor]\n{name} = {name}:Instrumentor\n")


@pytest.fixture
def siblings(tmp_path: Path) -> Path:
    """A folder with two distributions, to which a broken one may be added."""
    for name in ("a_sibling", "z_sibling"):
        _install(tmp_path, name, SAYS_SO.format(name=name))
    return tmp_path


def _python(code: str, path: str, *, command: Sequence[Path] = INSTRUMENTED, **environment: str) -> str:
    """What a program writes to stderr, instrumented unless another command is named; it must end well."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run(
        [*command, sys.executable, "-c", code],
        env={**inherited, "PYTHONPATH": path, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none",
             "OTEL_LOGS_EXPORTER": "none", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def _loaded(output: str) -> set[str]:
    return {line.split()[0] for line in output.splitlines() if line.endswith(" is loaded")}


PROBE = """
import sys
from otel_mcp import MCPInstrumentor
import uvicorn.config
if MCPInstrumentor().is_instrumented_by_opentelemetry and hasattr(uvicorn.config.Config.load, "__wrapped__"):
    print("otel_mcp is loaded", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("order", "error"),
    [("broken-first", "ImportError"), ("broken-first", "RuntimeError"), ("ours-first", "RuntimeError")],
)
def test_broken_sibling_does_not_keep_ours_from_loading(siblings: Path, order: str, error: str) -> None:
    _install(siblings, "b_broken", RAISES.format(error=error))
    folders = [str(siblings)] if order == "broken-first" else [SITE_PACKAGES, str(siblings)]

    loaded = _loaded(_python(PROBE, os.pathsep.join(folders)))

    assert "otel_mcp" in loaded
    if error == "ImportError":
        assert loaded == {"a_sibling", "z_sibling", "otel_mcp"}


def test_with_a_broken_sibling_others_load_as_without_us(siblings: Path) -> None:
    _install(siblings, "b_broken", RAISES.format(error="RuntimeError"))
    folders = os.pathsep.join((SITE_PACKAGES, str(siblings)))

    alone = _loaded(_python("", folders, OTEL_PYTHON_DISABLED_INSTRUMENTATIONS="otel_mcp"))

    assert _loaded(_python("", folders)) == alone


SABOTAGE = """
import sys
import otel_mcp.{module}
def broken(*args, **kwargs):
    raise RuntimeError("sabotage")
setattr(otel_mcp.{module}, "{name}", broken)
from opentelemetry.instrumentation.auto_instrumentation import initialize
initialize()
import starlette.applications, uvicorn.config
print("the program is loaded", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("current", "configure"),
        ("integrations.patching", "register_post_import_hook"),
        ("integrations.http", "starlette"),
    ],
)
def test_failure_of_ours_aborts_neither_others_nor_the_program(siblings: Path, module: str, name: str) -> None:
    sabotage = SABOTAGE.format(module=module, name=name)
    written = _python(sabotage, os.pathsep.join((SITE_PACKAGES, str(siblings))), command=())

    assert _loaded(written) == {"a_sibling", "z_sibling", "the"}
    assert "Failed to auto initialize" not in written


@pytest.mark.anyio
async def test_a_server_with_a_broken_sibling_is_observed(
    servers: Servers, documents: Documents, siblings: Path
) -> None:
    _install(siblings, "b_broken", RAISES.format(error="RuntimeError"))
    environment = {**PROMPT, "PYTHONPATH": str(siblings)}
    launch = Launch(SDK, "with-a-broken-one", "uvicorn app:app --port={port}", environment=environment)
    with servers.running(launch) as server:
        for mode in (LEGACY, MODERN):
            async with connect(server.url, name=f"any-{mode}", mode=mode) as caller:
                await caller.call("add", a=1, b=2)
            assert caller.wire.public_ids
            session_id = caller.session_id
            assert wait_until(lambda session_id=session_id: documents.count(session_id) == 1)
        assert wait_until(lambda: len(server_spans(server.telemetry, "tools/call")) == 2)
        assert all("session.id" in span.attributes for span in server_spans(server.telemetry, "tools/call"))

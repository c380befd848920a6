"""Broken environments, each with one thing wrong: the doctor names that thing and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.demo.otlp_receiver import OtlpReceiver
from otel_mcp.cli.app import run
from otel_mcp.cli.doctor.inspection import Inspection, Inventory, Loaded
from otel_mcp.cli.doctor.launch import read
from otel_mcp.cli.doctor.redis import acl
from otel_mcp.cli.doctor.report import as_json
from otel_mcp.cli.doctor.server import seams
from otel_mcp.settings import Settings
from otel_mcp.store.base import ProducerId
from otel_mcp.store.redis.store import RedisStore
from tests.support.doctor import Environment, Shared, only, unwell
from tests.support.stores import Server, delta, facts, flush, free_port


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver() as receiver:
        yield receiver


@pytest.fixture
def environment(
    tmp_path: Path, valkey_url: str, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> Environment:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("otel_mcp.cli.doctor.Inspection", Shared)
    return Environment(
        tmp_path,
        {
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_PYTHON_MCP_REDIS_URL": valkey_url,
        },
    )


@pytest.mark.parametrize(
    "app",
    [
        "from mcp.server import MCPServer\napp = MCPServer('shop').streamable_http_app()",
        "import sys\nprint(repr(sys.stdin.read()))\nasync def app(scope, receive, send):\n    pass",
    ],
    ids=["sdk", "bare"],
)
def test_healthy_environment_has_no_finding(environment: Environment, receiver: OtlpReceiver, app: str) -> None:
    environment.app(app)

    findings = environment.diagnose()

    assert unwell(findings) == []
    assert "patches" in only(findings, "seams").found
    assert not receiver.telemetry.spans()
    assert not receiver.telemetry.logs()


def test_sdk_that_is_disabled(environment: Environment) -> None:
    environment.variables["OTEL_SDK_DISABLED"] = "true"

    findings = environment.diagnose()

    assert unwell(findings) == [("sdk", "FAIL")]
    assert only(findings, "sdk").mend == "unset OTEL_SDK_DISABLED"


def test_exporter_whose_package_is_missing(environment: Environment) -> None:
    environment.variables["OTEL_METRICS_EXPORTER"] = "prometheus"

    findings = environment.diagnose()

    assert unwell(findings) == [("exporters", "FAIL")]
    assert only(findings, "exporters").mend == "python -m pip install opentelemetry-exporter-prometheus"


def test_flag_of_the_command_counts_like_its_variable(environment: Environment) -> None:
    environment.command = "opentelemetry-instrument --traces_exporter none uvicorn app:app"

    findings = environment.diagnose()

    assert unwell(findings) == [("exporters", "warn")]
    assert only(findings, "exporters").mend == "export OTEL_TRACES_EXPORTER=otlp"


def test_endpoint_that_refuses(environment: Environment) -> None:
    environment.variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{free_port()}"

    findings = environment.diagnose()

    assert unwell(findings) == [("endpoint", "FAIL")]
    assert only(findings, "endpoint").found.endswith("refuses connections: nothing listens there")


def test_grpc_exporter_at_an_http_port(environment: Environment) -> None:
    environment.variables["OTEL_EXPORTER_OTLP_PROTOCOL"] = "grpc"

    findings = environment.diagnose()

    assert unwell(findings) == [("endpoint", "FAIL")]
    assert only(findings, "endpoint").mend == "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
    assert only(findings, "endpoint").found.startswith("traces, metrics, logs: ")


def test_instrumentation_that_is_disabled_by_name(environment: Environment) -> None:
    environment.variables["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "redis, otel_mcp,urllib3"

    findings = environment.diagnose()

    assert unwell(findings) == [("disabled", "FAIL"), ("seams", "skip")]
    assert only(findings, "disabled").mend == "export OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=redis,urllib3"


SIBLING = """
    from opentelemetry.instrumentation.instrumentor import BaseInstrumentor

    class Instrumentor(BaseInstrumentor):
        def instrumentation_dependencies(self):
            return ()
        def _instrument(self, **kwargs):
            raise RuntimeError("hunter2")
        def _uninstrument(self, **kwargs):
            pass
"""


def test_sibling_that_raises(environment: Environment) -> None:
    points = "[opentelemetry_instrumentor]\nbroken = broken_sibling_module:Instrumentor\n"
    environment.distribution("broken-sibling", SIBLING, points)

    findings = environment.diagnose()

    assert unwell(findings) == [("siblings", "FAIL")]
    sibling = only(findings, "siblings")
    assert "broken-sibling 1.0 raises" in sibling.found
    assert "RuntimeError at " in sibling.found
    assert sibling.mend == "export OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=broken"
    environment.variables["OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"] = "broken"
    assert unwell(environment.diagnose()) == []


def test_pins_that_conflict_and_a_second_instrumentation_of_mcp(environment: Environment) -> None:
    environment.distribution(
        "opentelemetry-instrumentation-mcp",
        SIBLING.replace('raise RuntimeError("hunter2")', "pass"),
        "[opentelemetry_instrumentor]\nmcp = opentelemetry_instrumentation_mcp_module:Instrumentor\n",
        "Requires-Dist: opentelemetry-api (==1.0)\n",
        "0.62.4",
    )

    findings = environment.diagnose()

    assert unwell(findings) == [("versions", "warn"), ("siblings", "warn")]
    assert "needs opentelemetry-api==1.0, but opentelemetry-api 1." in only(findings, "versions").found
    assert "0.62.4 makes a second span" in next(
        one.found for one in findings if one.status == "warn" and one.check == "siblings"
    )


def test_command_that_does_not_load_the_instrumentation(environment: Environment) -> None:
    environment.command = "uvicorn app:app"

    findings = environment.diagnose()

    assert unwell(findings) == [("start", "FAIL"), ("seams", "skip")]
    assert only(findings, "start").mend == "opentelemetry-instrument uvicorn app:app"


def test_app_that_loads_the_instrumentation_itself(environment: Environment) -> None:
    environment.command = "uvicorn app:app"
    environment.app("""
        from otel_mcp import MCPInstrumentor
        MCPInstrumentor().instrument()
        from starlette.applications import Starlette
        app = Starlette()
    """)

    assert unwell(environment.diagnose()) == []


def test_app_that_puts_the_original_back(environment: Environment) -> None:
    environment.app("""
        from starlette.applications import Starlette
        Starlette.__call__ = Starlette.__call__.__wrapped__
        app = Starlette()
    """)

    findings = environment.diagnose()

    assert unwell(findings) == [("seams", "FAIL")]
    assert "starlette.applications: Starlette.__call__" in only(findings, "seams").found


def test_bare_app_on_a_server_that_no_seam_knows(environment: Environment) -> None:
    server = environment.folder / "daphne"
    server.write_text(f"#!{Path(environment.variables['PATH'].split(':')[0], 'python')}\n")
    server.chmod(0o755)
    environment.command = f"opentelemetry-instrument {server} app:app"

    findings = environment.diagnose()

    assert unwell(findings) == [("seams", "FAIL")]
    assert (only(findings, "seams").mend or "").startswith("app = MCPMiddleware(app)")
    environment.app("from starlette.applications import Starlette\napp = Starlette()")
    assert unwell(environment.diagnose()) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import nosuch_module", "app:app cannot be imported (ModuleNotFoundError: nosuch_module at "),
        ("raise ValueError('hunter2')", "app:app cannot be imported (ValueError at "),
        ("import os\nos._exit(3)", "the dry run failed (the process ended by itself)"),
    ],
)
def test_app_that_cannot_be_imported(environment: Environment, text: str, found: str) -> None:
    environment.app(text)

    seams = only(environment.diagnose(), "seams")

    assert seams.status in {"FAIL", "warn"}
    assert seams.found.startswith(found)
    assert "hunter2" not in seams.found


def test_app_that_takes_too_long_to_import(environment: Environment) -> None:
    environment.app("import threading\nthreading.Event().wait()")
    launch = read(environment.command.split(), environment.variables)

    async def look() -> tuple[Inventory, Loaded]:
        async with Inspection(launch) as inspection:
            # Only what hangs is short of time, so that a busy machine changes nothing.
            inventory = await inspection.inventory(60)
            return inventory, await inspection.load([], set(), 1.5)

    inventory, loaded = asyncio.run(look())

    (finding,) = seams(loaded, inventory, launch, is_loaded=True)
    assert finding.status == "warn"
    assert finding.found.endswith(" took too long")


def test_workers_without_redis_and_without_a_hash_key(environment: Environment) -> None:
    del environment.variables["OTEL_PYTHON_MCP_REDIS_URL"]
    environment.command += " --workers 4"

    findings = environment.diagnose()

    assert unwell(findings) == [("redis", "warn"), ("hash-key", "FAIL")]
    assert (only(findings, "hash-key").mend or "").startswith("export OTEL_PYTHON_MCP_HASH_KEY=")
    environment.variables["OTEL_PYTHON_MCP_HASH_KEY"] = "hunter2"
    assert unwell(environment.diagnose()) == [("redis", "warn")]


def test_one_session_a_call(environment: Environment, valkey_url: str) -> None:
    now = time.time()
    asyncio.run(_write(valkey_url, environment.service, [
        delta(1, of=facts(f"{environment.service}-{number}", now, client_name="langchain"), at=now)
        for number in range(12)
    ]))  # fmt: skip

    findings = environment.diagnose()

    assert unwell(findings) == [("sessions", "warn")]
    assert only(findings, "sessions").found.startswith("langchain: 12 sessions for 12 calls in the last hour")


async def _write(url: str, service: str, deltas: list[object]) -> None:
    store, process = RedisStore(Settings(redis_url=url, service_name=service)), ProducerId()
    await store.apply([flush(process, one) for one in deltas])  # type: ignore[arg-type]
    await store.aclose()


def test_settings_that_cannot_be_used_or_do_not_exist(environment: Environment) -> None:
    environment.variables["OTEL_PYTHON_MCP_SESSION_TTL"] = "an hour"
    environment.variables["OTEL_PYTHON_MCP_REDIS_URI"] = "redis://:hunter2@cache"

    findings = environment.diagnose()

    assert unwell(findings) == [("settings", "warn")] * 2
    assert [finding.mend for finding in findings if finding.check == "settings"] == [
        "unset OTEL_PYTHON_MCP_SESSION_TTL",
        'export OTEL_PYTHON_MCP_REDIS_URL="$OTEL_PYTHON_MCP_REDIS_URI"',
    ]


def test_namesake_in_our_place(environment: Environment) -> None:
    python = environment.folder / "other" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # An interpreter that has nothing but the namesake: isolated from every site-packages.
    environment.distribution("otel-mcp")
    real = Path(environment.variables["PATH"].split(":")[0], "python").resolve()
    python.write_text(f'#!/bin/sh\nexec {real} -S "$@"\n')
    python.chmod(0o755)
    environment.command = f"opentelemetry-instrument {python} -m uvicorn app:app"

    package = only(environment.diagnose(), "package")

    assert package.status == "FAIL"
    assert "another project" in package.found
    assert f"{python} -m pip uninstall -y otel-mcp && " in (package.mend or "")


def test_no_secret_is_shown(environment: Environment) -> None:
    environment.variables |= {
        "OTEL_PYTHON_MCP_REDIS_URL": f"redis://someone:hunter2@127.0.0.1:{free_port()}/0?password=hunter2",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://someone:hunter2@127.0.0.1:{free_port()}",
        "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20hunter2,hunter2",
        "OTEL_PYTHON_MCP_HASH_KEY": "hunter2",
    }

    report = as_json(environment.diagnose())

    assert "hunter2" not in report
    assert {"redis", "endpoint", "exporters"} <= {one["check"] for one in json.loads(report)["findings"]}


def test_check_that_fails_itself_stops_no_other(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> list[object]:
        raise RuntimeError("hunter2")

    monkeypatch.setattr("otel_mcp.cli.doctor.server.sdk", broken)

    findings = environment.diagnose()

    assert unwell(findings) == [("sdk", "warn")]
    assert only(findings, "sdk").found == "the check itself failed: RuntimeError"


def exit_code(*arguments: str) -> int:
    try:
        return run(arguments)
    except SystemExit as ended:
        return int(ended.code or 0)


def test_exit_code_and_streams(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.variables.items():
        monkeypatch.setenv(name, value)
    command = ["--timeout", "60", "--", *environment.command.split()]
    assert exit_code("doctor", *command) == 0
    out, err = capsys.readouterr()
    assert {line.split("\t")[0] for line in out.splitlines()} == {"ok"}
    assert err.startswith("nothing stops telemetry")

    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    assert exit_code("doctor", "-o", "json", *command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "otel-mcp/doctor/1"
    assert report["summary"]["warn"] == 1
    assert exit_code("doctor", "--strict", *command) == 1
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert exit_code("doctor", *command) == 1
    assert exit_code("doctor", "-o", "yaml") == 2


def test_redis_with_what_a_server_needs_and_no_more(environment: Environment) -> None:
    server = Server()
    try:
        client = server.client()
        client.execute_command("ACL", "SETUSER", "shop", "on", ">right")
        client.execute_command(*acl("shop", "").removeprefix("redis-cli ").replace("'", "").split())
        environment.variables["OTEL_PYTHON_MCP_REDIS_URL"] = f"redis://shop:right@127.0.0.1:{server.port}"
        findings = environment.diagnose()
        asyncio.run(_write(environment.variables["OTEL_PYTHON_MCP_REDIS_URL"], environment.service, [
            delta(1, of=facts("a", time.time()), at=time.time())
        ]))  # fmt: skip
        assert client.exists("mcp_session:a")
    finally:
        server.close()

    assert unwell(findings) == [("sessions", "skip")]


def test_redis_that_is_hung_holds_nothing_up(environment: Environment) -> None:
    server = Server()
    try:
        server.hang()
        environment.variables["OTEL_PYTHON_MCP_REDIS_URL"] = server.url
        findings = environment.diagnose()
    finally:
        server.resume()
        server.close()

    assert unwell(findings) == [("redis", "FAIL")]
    assert "does not answer" in only(findings, "redis").found

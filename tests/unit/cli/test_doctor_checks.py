"""What the checks conclude from what they are given: packages, exporters, traffic, settings, and the report."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from otel_mcp.cli.doctor import ORDER, exporters, server, traffic
from otel_mcp.cli.doctor.inspection import Distribution, Inventory, Loaded
from otel_mcp.cli.doctor.launch import App, Launch, read
from otel_mcp.cli.doctor.report import DOCS, INSTALL, Finding, as_json, as_lines, summary
from otel_mcp.cli.document import Document, parse
from otel_mcp.cli.terminal import Terminal
from otel_mcp.settings import Settings
from tests.support.doctor import unwell

ROOT = Path(__file__).parents[3]
REQUIRES = (
    "redis[hiredis]>=6.0",
    "pydantic>=2.7",
    "mcp>=1.9; extra == 'instruments-any'",
    "starlette>=0.37; extra == 'instruments-any'",
    "rich>=13.7; extra == 'cli'",
)
HEALTHY = {
    "otel-mcp-sessions": Distribution(version="0.1.0", requires=REQUIRES),
    "redis": Distribution(version="8.0", requires=()),
    "pydantic": Distribution(version="2.11", requires=()),
    "mcp": Distribution(version="2.3.0", requires=()),
}
POINTS = {
    "opentelemetry_instrumentor": [("otel_mcp", "otel_mcp.instrumentor:MCPInstrumentor", "otel-mcp-sessions")],
    "opentelemetry_distro": [("distro", "", "")],
    "opentelemetry_configurator": [("configurator", "", "")],
    "opentelemetry_traces_exporter": [("otlp_proto_grpc", "", ""), ("otlp_proto_http", "", ""), ("console", "", "")],
    "opentelemetry_metrics_exporter": [("otlp_proto_grpc", "", ""), ("otlp_proto_http", "", "")],
    "opentelemetry_logs_exporter": [("otlp_proto_grpc", "", ""), ("otlp_proto_http", "", "")],
    "opentelemetry_propagator": [("tracecontext", "", ""), ("baggage", "", "")],
    "opentelemetry_traces_sampler": [("always_on", "", ""), ("traceidratio", "", ""), ("always_off", "", "")],
}


def inventory(points: dict[str, list[tuple[str, str, str]]] | None = None, **distributions: str | None) -> Inventory:
    """A healthy environment but for the versions that are given; `None` = not installed."""
    held = dict(HEALTHY)
    for name, version in distributions.items():
        if version is None:
            del held[name]
        else:
            held[name] = Distribution(version=version, requires=held[name]["requires"] if name in held else ())
    return Inventory("/venv/bin/python", "3.12.1", held, {**POINTS, **(points or {})}, "otel_mcp/__init__.py")


@pytest.mark.parametrize(
    ("distributions", "status", "words"),
    [
        ({}, "ok", "mcp 2.3.0; all requirements are met"),
        ({"redis": "5.0"}, "FAIL", "redis 5.0, but otel-mcp-sessions needs redis[hiredis]>=6.0"),
        ({"pydantic": None}, "FAIL", "pydantic is not installed"),
        ({"mcp": "1.8.1"}, "warn", "mcp 1.8.1, but only mcp>=1.9 is supported"),
        ({"mcp": "2.4.0rc1"}, "ok", "mcp 2.4.0rc1"),
        ({"mcp": None}, "warn", "none of mcp, starlette is installed"),
        ({"mcp": None, "starlette": "1.0"}, "ok", "starlette 1.0"),
    ],
)
def test_floors_of_versions(distributions: dict[str, str | None], status: str, words: str) -> None:
    (finding,) = server.versions(inventory(**cast("Any", distributions)))

    assert finding.status == status
    assert words in finding.found


def test_package_that_is_not_installed() -> None:
    nothing = Inventory("/venv/bin/python", "3.12.1", {}, {}, None)
    checkout = Inventory("/venv/bin/python", "3.12.1", {}, {}, "/src/otel_mcp/__init__.py")
    over = Inventory(
        "p", "3", {**HEALTHY, "otel-mcp": Distribution(version="1", requires=(), provides_module=True)}, POINTS, None
    )

    missing, in_checkout, overwritten, fine = (
        next(server.package(each, Launch({}))) for each in (nothing, checkout, over, inventory())
    )

    assert missing.mend == "python -m pip install 'otel-mcp-sessions[otlp]'  # in a checkout: '.[otlp]'"
    assert "no entry point for opentelemetry-instrument" in in_checkout.found
    assert "has overwritten the module" in overwritten.found
    assert fine.status == "ok"


def test_wrapper_and_server_of_different_environments() -> None:
    launch = Launch({}, ["uvicorn", "app:app"], interpreter="/a/bin/python", wrapper_interpreter="/b/bin/python")

    (finding,) = server.package(inventory(), launch)

    assert finding.found == "opentelemetry-instrument belongs to /b/bin/python, but uvicorn runs in /a/bin/python"
    assert finding.mend == (
        "/a/bin/python -m pip install opentelemetry-distro && /a/bin/opentelemetry-instrument uvicorn ..."
    )


@pytest.mark.parametrize(
    ("variables", "status", "mend"),
    [
        ({}, "ok", None),
        ({"OTEL_TRACES_EXPORTER": "none"}, "warn", "export OTEL_TRACES_EXPORTER=otlp"),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}, "FAIL",
         "export OTEL_TRACES_EXPORTER=otlp OTEL_METRICS_EXPORTER=otlp"),
        ({"OTEL_LOGS_EXPORTER": "none"}, "ok", None),
        ({"OTEL_LOGS_EXPORTER": "none", "OTEL_PYTHON_MCP_AUDIT": "events"}, "warn", "export OTEL_LOGS_EXPORTER=otlp"),
        ({"OTEL_PYTHON_MCP_AUDIT": "events"}, "ok", None),
        ({"OTEL_TRACES_EXPORTER": "otlp,none"}, "FAIL", "export OTEL_TRACES_EXPORTER=otlp"),
        ({"OTEL_TRACES_EXPORTER": "jaeger"}, "FAIL", "export OTEL_TRACES_EXPORTER=otlp"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "FAIL", "python -m pip install opentelemetry-exporter-zipkin"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"}, "FAIL", "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http"}, "FAIL",
         "export OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf"),
        ({"OTEL_PROPAGATORS": "tracecontext,b3"}, "FAIL", "unset OTEL_PROPAGATORS"),
        ({"OTEL_PROPAGATORS": "none"}, "ok", None),
        ({"OTEL_PYTHON_CONFIGURATOR": "aws"}, "FAIL", "unset OTEL_PYTHON_CONFIGURATOR"),
        ({"OTEL_TRACES_SAMPLER": "nosuch"}, "warn", "unset OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_SAMPLER": "always_off"}, "warn", "unset OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, "warn", "unset OTEL_TRACES_SAMPLER"),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, "ok", None),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "token"}, "FAIL", "export OTEL_EXPORTER_OTLP_HEADERS=NAME=VALUE,NAME=VALUE"),
        ({"OTEL_EXPORTER_OTLP_HEADERS": "a=b,c=d%20e"}, "ok", None),
        ({"OTEL_PYTHON_DISTRO": "distro"}, "ok", None),
        ({"OTEL_CONFIG_FILE": "otel.yaml"}, "FAIL", "python -m pip install opentelemetry-configuration"),
    ],
)  # fmt: skip
def test_exporters_and_what_belongs_to_them(variables: dict[str, str], status: str, mend: str | None) -> None:
    findings = exporters.read(variables, inventory()).findings

    assert {finding.status for finding in findings} == {status}
    assert {finding.mend for finding in findings} == {mend}


def test_exporters_that_are_not_installed() -> None:
    assert exporters.read({}, inventory({"opentelemetry_configurator": []})).findings[0].mend == INSTALL
    none = inventory({f"opentelemetry_{signal}_exporter": [] for signal in exporters.SIGNALS})
    assert {finding.mend for finding in exporters.read({}, none).findings} == {INSTALL}


def test_exporter_of_the_other_protocol_is_installed() -> None:
    only_http = {f"opentelemetry_{signal}_exporter": [("otlp_proto_http", "", "")] for signal in exporters.SIGNALS}

    findings = exporters.read({}, inventory(only_http)).findings

    assert {finding.mend for finding in findings} == {"export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"}


def test_distro_that_is_not_installed_sets_no_exporter() -> None:
    findings = exporters.read({"OTEL_PYTHON_DISTRO": "aws"}, inventory()).findings

    assert [finding.status for finding in findings] == ["FAIL", "warn"]


def test_targets_are_those_of_the_exporters() -> None:
    targets = exporters.read(
        {
            "OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:secret@otlp.example.com/otlp/",
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://logs:4317",
            "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "grpc",
        },
        inventory(),
    ).targets

    assert [(target.signal, target.protocol, target.place, target.base, target.secure) for target in targets] == [
        ("traces", "http", "https://otlp.example.com/otlp/v1/traces", "https://otlp.example.com/otlp", True),
        ("metrics", "http", "https://otlp.example.com/otlp/v1/metrics", "https://otlp.example.com/otlp", True),
        ("logs", "grpc", "http://logs:4317", "http://logs:4317", False),
    ]


@pytest.mark.parametrize(
    ("variables", "mend"),
    [
        ({"OTEL_SDK_DISABLED": " True "}, "unset OTEL_SDK_DISABLED"),
        ({"OTEL_PYTHON_EXCLUDED_URLS": "health,mcp"}, "unset OTEL_PYTHON_EXCLUDED_URLS"),
        ({"OTEL_PYTHON_MCP_EXCLUDED_URLS": ".*"}, "unset OTEL_PYTHON_MCP_EXCLUDED_URLS"),
        ({"OTEL_PYTHON_MCP_EXCLUDED_URLS": "health"}, None),
        ({"OTEL_SDK_DISABLED": "false"}, None),
    ],
)
def test_what_is_switched_off(variables: dict[str, str], mend: str | None) -> None:
    (finding,) = server.sdk(variables)

    assert finding.mend == mend
    assert (finding.status == "ok") is (mend is None)


@pytest.mark.parametrize(
    ("names", "mend"),
    [
        ("otel_mcp", "unset OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"),
        ("*", "unset OTEL_PYTHON_DISABLED_INSTRUMENTATIONS"),
        ("redis, *", "export OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=redis"),
        ("redis,otel_mcp_other", None),
        ("", None),
    ],
)
def test_names_that_are_disabled(names: str, mend: str | None) -> None:
    (finding,) = server.disabled({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": names})

    assert finding.mend == mend
    assert (finding.status == "ok") is (mend is None)


@pytest.mark.parametrize(
    ("command", "mend"),
    [
        ("opentelemetry-instrument python -I -m uvicorn app:app", "opentelemetry-instrument python -m uvicorn app:app"),
        ("env SECRET=hunter2 python main.py", "opentelemetry-instrument python main.py"),
        ("opentelemetry-instrument env PYTHONPATH=/src python main.py", "opentelemetry-instrument python main.py"),
        ("opentelemetry-instrument --nosuch 1 python main.py", "opentelemetry-instrument --help"),
        ("fastmcp run server.py", "opentelemetry-instrument fastmcp run server.py --transport http"),
        ("nosuch app:app", None),
    ],
)
def test_commands_that_do_not_load_the_instrumentation(command: str, mend: str | None) -> None:
    launch = read(command.split(), {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"})

    (finding,) = server.start(launch, Loaded(instrumented=launch.app is None))

    assert (finding.status, finding.mend) == ("FAIL", mend)
    assert "hunter2" not in str(finding)


def test_script_that_loads_the_instrumentation_itself(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("from otel_mcp import MCPInstrumentor\n")
    launch = read([sys.executable, str(tmp_path / "main.py")], dict(os.environ))

    (finding,) = server.start(launch, Loaded(instrumented=True))
    assert finding.status == "skip"


def test_a_command_that_only_the_interpreters_folder_has_is_found() -> None:
    (finding,) = server.start(read(["uvicorn", "app:app"], {"PATH": "/nosuch"}), None)

    assert finding.mend == f'export PATH={Path(sys.executable).parent}:"$PATH"'


def test_sdk_in_none_of_its_known_shapes() -> None:
    launch = Launch({}, ["uvicorn"], given=True, server="uvicorn", app=App("app", "app"))
    loaded = Loaded(app={"app": "Starlette", "bases": []}, instrumented=True, seams=[
        ("mcp.server.runner", "ServerRunner._compose_server_middleware", "absent"),
        ("mcp.server.lowlevel.server", "Server._handle_request", "absent"),
        ("starlette.applications", "Starlette.__call__", "attached"),
    ])  # fmt: skip

    (finding,) = server.seams(loaded, inventory(), launch, is_loaded=True)

    assert finding.status == "FAIL"
    assert finding.found.startswith("the MCP SDK 2.3.0 has none of the methods that we patch")
    loaded.seams[0] = ("mcp.server.runner", "ServerRunner._compose_server_middleware", "attached")
    assert unwell(list(server.seams(loaded, inventory(), launch, is_loaded=True))) == []


@pytest.mark.parametrize(
    ("error", "missing", "mend"),
    [
        ("ModuleNotFoundError", "fastapi.routing", "python -m pip install fastapi"),
        ("ModuleNotFoundError", "shop", "cd THE_FOLDER_OF/shop/asgi.py"),
        ("ImportError", "pydantic._internal", None),
        ("KeyError", "", None),
    ],
)
def test_imports_that_fail(error: str, missing: str, mend: str | None) -> None:
    launch = Launch({}, given=True, server="uvicorn", app=App("shop.asgi", "app"))
    loaded = Loaded(app={"app": None, "error": error, "missing": missing, "where": "app.py:3"})

    (finding,) = server.seams(loaded, inventory(), launch, is_loaded=True)

    assert (finding.status, finding.mend) == ("FAIL", mend)
    assert "at app.py:3" in finding.found


@pytest.mark.parametrize(
    ("kind", "status"), [("raises", "FAIL"), ("distro", "FAIL"), ("import", "warn"), ("conflict", "warn")]
)
def test_siblings_that_do_not_load(kind: str, status: str) -> None:
    facts = {"sibling": "x", "kind": kind, "dist": "x 1.0", "error": "E", "where": "f:1", "why": "asgi 1.0"}

    (finding,) = server.siblings(Loaded(siblings=[facts]), inventory(), {"other"})

    assert finding.status == status
    assert kind == "distro" or finding.mend == "export OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=other,x"


def _documents(client: str, sessions: int, calls: int, ago: float = 60, **more: Any) -> list[dict[str, Any]]:
    created = datetime.fromtimestamp(time.time() - ago, UTC).isoformat().replace("+00:00", "Z")
    return [{"client_name": client, "created_at": created, "tool_call_count": calls, **more} for _ in range(sessions)]


def _parsed(documents: list[dict[str, Any]]) -> list[Document]:
    read = (parse(json.dumps({"session_id": "x", **document}).encode()) for document in documents)
    return [document for document in read if document is not None]


@pytest.mark.parametrize(
    ("documents", "clients"),
    [
        (_documents("adapter", 12, 1), ["adapter"]),
        (_documents("adapter", 10, 1) + _documents("other", 30, 1) + _documents("chat", 50, 4), ["other", "adapter"]),
        (_documents("adapter", 9, 1), []),
        (_documents("adapter", 50, 2), []),
        (_documents("adapter", 50, 1, ago=4000), []),
        (_documents("probe", 50, 0), []),
        (_documents("adapter", 50, 1, ended={"at": "", "reason": "replaced"}), []),
        ([{"client_name": None, "created_at": None}, {"tool_call_count": "1"}, {}], []),
    ],
)
def test_hosts_that_open_a_session_a_call(documents: list[dict[str, Any]], clients: list[str]) -> None:
    findings = traffic.sessions(_parsed(documents))

    assert [finding.found.split(":")[0] for finding in findings if finding.status == "warn"] == clients


@pytest.mark.parametrize(
    ("program", "variables", "trusted", "mend"),
    [
        ("uvicorn app:app", {}, (), None),
        ("uvicorn app:app --forwarded-allow-ips=*", {}, (), "10.0.0.0/8"),
        ("uvicorn app:app --forwarded-allow-ips 10.1.0.0/16", {}, (), "10.1.0.0/16"),
        ("uvicorn app:app --proxy-headers", {}, (), "10.0.0.0/8"),
        ("gunicorn app:app", {"FORWARDED_ALLOW_IPS": "10.9.0.1"}, (), "10.9.0.1"),
        ("uvicorn app:app --forwarded-allow-ips=*", {}, ("10.0.0.0/8",), None),
    ],
)
def test_proxy_that_is_not_trusted(
    program: str, variables: dict[str, str], trusted: tuple[str, ...], mend: str | None
) -> None:
    launch = Launch(variables, program.split(), given=True)

    (finding,) = traffic.proxy(Settings(trusted_proxies=trusted), launch, None)

    assert finding.mend == (mend and f"export OTEL_PYTHON_MCP_TRUSTED_PROXIES={mend}")


@pytest.mark.parametrize(("sources", "status"), [(["none"], "warn"), (["none", "header"], "ok"), ([], "ok")])
def test_sessions_that_all_have_no_source(sources: list[str], status: str) -> None:
    documents = _parsed([{"source": source} for source in sources])

    (finding,) = traffic.proxy(Settings(), Launch({}), documents)

    assert finding.status == status


def _settings(env: dict[str, str]) -> list[Finding]:
    return list(traffic.settings(env, *traffic.read(env)))


def test_settings_are_those_of_the_given_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_MCP_REDIS_PREFIX", "mine:")
    env = {"OTEL_SERVICE_NAME": "shop", "OTEL_PYTHON_MCP_SESSION_TTL": "60"}

    settings, _ = traffic.read(env)

    assert (settings.redis_prefix, settings.session_ttl, settings.service_name) == ("", 60, "shop")
    assert [finding.found for finding in _settings(env)] == ["service shop, 1 setting of ours"]


def test_a_setting_of_few_forms_is_mended_with_one_of_them() -> None:
    env = {"OTEL_SERVICE_NAME": "shop", "OTEL_PYTHON_MCP_AUDIT": "true", "OTEL_PYTHON_MCP_TENANT": "x-org-id"}

    assert [finding.mend for finding in _settings(env)] == [
        "export OTEL_PYTHON_MCP_AUDIT=events",
        "export OTEL_PYTHON_MCP_TENANT=header:NAME",
    ]


def test_quotes_that_are_part_of_a_value() -> None:
    findings = _settings({"OTEL_SERVICE_NAME": "'shop'", "OTEL_EXPORTER_OTLP_HEADERS": '"a=hunter2"', "A": "'b'"})

    assert [finding.status for finding in findings] == ["warn", "warn"]
    assert findings[1].mend == 'export OTEL_SERVICE_NAME="${OTEL_SERVICE_NAME:1:-1}"'
    assert "hunter2" not in str(findings)


def test_variables_that_come_too_late(tmp_path: Path) -> None:
    (tmp_path / "env").write_text(
        "A=1\nexport OTEL_SERVICE_NAME=shop\n# OTEL_X=1\nOTEL_PYTHON_MCP_REDIS_URL=redis://:hunter2@h\n"
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = f"opentelemetry-instrument uvicorn app:app --env-file {tmp_path / 'env'}"

    (finding,) = server.start(read(command.split(), {"PATH": path}), None)

    assert finding.status == "warn"
    assert finding.found.startswith("OTEL_PYTHON_MCP_REDIS_URL, OTEL_SERVICE_NAME of --env-file are read after")
    assert finding.mend == f"set -a; . {tmp_path / 'env'}; set +a"


FINDINGS = [
    Finding("ok", "fine", check="package"),
    Finding("FAIL", "off", "unset B", "sdk"),
    Finding("warn", "a\tb\x1b[31m", "export A=1", "redis"),
]


def test_lines_for_a_pipe_and_for_a_person(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    as_lines(Terminal(), FINDINGS)
    assert capsys.readouterr().out.splitlines() == [
        f"ok\tpackage\tfine\t\t{DOCS}#package",
        f"FAIL\tsdk\toff\tunset B\t{DOCS}#sdk",
        f"warn\tredis\ta\ufffdb\ufffd[31m\texport A=1\t{DOCS}#redis",
    ]

    screen = io.StringIO()
    monkeypatch.setattr(screen, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", screen)
    as_lines(Terminal("never"), FINDINGS)
    assert screen.getvalue().splitlines() == [
        "ok    package      fine",
        "FAIL  sdk          off",
        "                   unset B",
        "warn  redis        a\ufffdb\ufffd[31m",
        "                   export A=1",
    ]
    as_lines(Terminal("always"), FINDINGS)
    assert "\x1b[31mFAIL \x1b[0m" in screen.getvalue()


def test_summary_counts() -> None:
    assert summary(FINDINGS) == f"1 stops telemetry, 1 warning; {DOCS} explains each check"
    assert summary(FINDINGS[:1]) == "nothing stops telemetry (1 check)"


def test_every_check_has_a_section_in_the_documentation() -> None:
    headings = re.findall(r"^### (.+)$", (ROOT / DOCS).read_text(), re.MULTILINE)

    assert headings == list(ORDER)


def test_report_is_json_with_a_schema() -> None:
    report = json.loads(as_json(FINDINGS))

    assert report["healthy"] is False
    assert report["summary"] == {"ok": 1, "warn": 1, "fail": 1, "skip": 0}
    assert report["findings"][1] == {
        "check": "sdk", "status": "fail", "found": "off", "mend": "unset B", "docs": f"{DOCS}#sdk",
    }  # fmt: skip

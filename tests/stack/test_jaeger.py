"""Jaeger's configuration: whole, on loopback, and every rule able to say no."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from . import collector
from .lane import builds


def jaeger_problems(config: dict[str, Any]) -> Iterator[str]:
    """Look at `collector/config/jaeger.yaml`: storage that exists, read where it is written, on loopback."""
    extensions = config["extensions"]
    storage = extensions["jaeger_storage"]
    reads = extensions["jaeger_query"]["storage"]
    (pipeline,) = config["service"]["pipelines"].values()
    writes = config["exporters"]["jaeger_storage_exporter"]["trace_storage"]
    if reads["traces"] != writes or writes not in storage["backends"]:
        yield f"traces are written to {writes} and read from {reads['traces']}"
    if reads.get("metrics") not in storage["metric_backends"]:
        yield f"there are no metrics in {reads.get('metrics')}"
    for backend in storage["metric_backends"].values():
        asked = backend["prometheus"]
        if asked != {
            "endpoint": "${env:PROMETHEUS_URL:-http://prometheus:9090}",
            "normalize_calls": True,
            "normalize_duration": True,
        }:
            yield f"metrics are asked for as {asked}"
    if set(config["service"]["extensions"]) != set(extensions):
        yield f"started: {config['service']['extensions']}"
    if (pipeline["receivers"], pipeline["exporters"]) != (["otlp"], ["jaeger_storage_exporter"]):
        yield f"traces go from {pipeline['receivers']} to {pipeline['exporters']}"
    ports = {
        "JAEGER_HEALTH_PORT:-13133": extensions["healthcheckv2"]["http"],
        "JAEGER_QUERY_GRPC_PORT:-16685": extensions["jaeger_query"]["grpc"],
        "JAEGER_QUERY_PORT:-16686": extensions["jaeger_query"]["http"],
        "JAEGER_OTLP_PORT:-4317": config["receivers"]["otlp"]["protocols"]["grpc"],
    }
    for port, listening in ports.items():
        if listening["endpoint"] != f"${{env:JAEGER_HOST:-127.0.0.1}}:${{env:{port}}}":
            yield f"listens on {listening['endpoint']}"


def test_jaeger_is_whole() -> None:
    assert list(jaeger_problems(collector.read("jaeger.yaml"))) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("trace_storage: memory", "trace_storage: badger", "written to badger and read from memory"),
        ("metrics: span_metrics", "metrics: prometheus", "no metrics in prometheus"),
        ("normalize_calls: true", "normalize_calls: false", "metrics are asked for"),
        ("${env:JAEGER_HOST:-127.0.0.1}:${env:JAEGER_QUERY_PORT", "0.0.0.0:${env:JAEGER_QUERY_PORT", "listens on 0.0"),
        ("[healthcheckv2, jaeger_storage, jaeger_query]", "[jaeger_storage, jaeger_query]", "started:"),
        ("JAEGER_OTLP_PORT:-4317", "JAEGER_OTLP_PORT:-4318", "listens on"),
    ],
)
def test_a_mistake_in_jaegers_configuration_is_found(old: str, new: str, complaint: str) -> None:
    text = (collector.FOLDER / "jaeger.yaml").read_text(encoding="utf-8")
    assert old in text
    assert any(complaint in problem for problem in jaeger_problems(yaml.safe_load(text.replace(old, new))))


def test_jaeger_itself_takes_it() -> None:
    """With the Jaeger that the lane has built; without it, the lane is where this is proven."""
    program = builds.jaeger().path
    if not program.exists():
        pytest.skip("no Jaeger has been built here: python -m tests.stack.lane.builds")
    command = [program, "validate", f"--config=file:{collector.FOLDER / 'jaeger.yaml'}"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr

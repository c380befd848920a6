"""The Collector's configurations: whole, safe, and every rule able to say no."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("yaml")


from . import collector
from .lane import builds

Spoil = Callable[[dict[str, Any]], object]
ALL = [collector.merged(*names) for names in collector.VARIANTS.values()]


@pytest.mark.parametrize("variant", collector.VARIANTS)
def test_a_configuration_is_whole(variant: str) -> None:
    assert list(collector.config_problems(collector.merged(*collector.VARIANTS[variant]))) == []


def test_what_is_built_is_what_is_configured() -> None:
    assert list(collector.manifest_problems(collector.read("builder.yaml"), ALL)) == []


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_a_manifest_that_differs_is_found(change: str) -> None:
    manifest = collector.read("builder.yaml")
    if change == "one less":
        manifest["processors"].pop()
        complaint = "processors: tailsampling is configured but not built"
    else:
        manifest["processors"].append({"gomod": "example.org/processor/batchprocessor v1"})
        complaint = "processors: batch is built but not configured"
    assert complaint in list(collector.manifest_problems(manifest, ALL))


def test_every_file_is_combined_somewhere() -> None:
    combined = {name for names in collector.VARIANTS.values() for name in names}
    others = {"builder.yaml", "jaeger.yaml"}
    assert {path.name for path in collector.FOLDER.glob("*.yaml")} == combined | others


def _received(config: dict[str, Any]) -> dict[str, Any]:
    return config["service"]["pipelines"]["traces/received"]


MISTAKES: dict[str, tuple[Spoil, str]] = {
    "misspelt component": (lambda c: _received(c)["exporters"].append("span_metric"), "there is no span_metric"),
    "limiter not first": (lambda c: _received(c)["processors"].reverse(), "memory_limiter is not first"),
    "no redaction": (lambda c: _received(c)["processors"].remove("redaction"), "no redaction"),
    "metrics after sampling": (
        lambda c: _received(c)["processors"].append("tail_sampling"),
        "count what is left after sampling",
    ),
    "open to the network": (
        lambda c: c["receivers"]["otlp"]["protocols"]["grpc"].update(endpoint="0.0.0.0:4317"),
        "is reachable from other machines",
    ),
    "no queue": (lambda c: c["exporters"]["otlp_grpc/jaeger"].pop("sending_queue"), "without a batching queue"),
    "unused": (
        lambda c: c["exporters"].update({"otlp_http/spare": {"sending_queue": {"batch": {}}}}),
        "in no pipeline",
    ),
    "unobserved": (lambda c: c["service"].pop("telemetry"), "nobody observes the Collector"),
    "no health check": (lambda c: c["service"].update(extensions=[]), "no health check"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    spoil, complaint = MISTAKES[mistake]
    config = copy.deepcopy(collector.merged("config.yaml", "tail-sampling.yaml"))
    spoil(config)
    assert any(complaint in problem for problem in collector.config_problems(config))


def test_jaeger_listens_on_loopback_unless_told_otherwise() -> None:
    text = (collector.FOLDER / "jaeger.yaml").read_text(encoding="utf-8")
    endpoints = re.findall(r"endpoint: (.*)", text)
    assert len(endpoints) == 5
    ours = [endpoint for endpoint in endpoints if "PROMETHEUS_URL" not in endpoint]
    assert all(endpoint.startswith("${env:JAEGER_HOST:-127.0.0.1}:") for endpoint in ours)


@pytest.mark.parametrize("variant", collector.VARIANTS)
def test_the_collector_itself_takes_it(variant: str) -> None:
    """With the Collector that the lane has built; without it, the lane is where this is proven."""
    program = builds.collector().path
    if not program.exists():
        pytest.skip("no Collector has been built here: python -m tests.stack.lane.builds")
    files = [f"--config={collector.FOLDER / name}" for name in collector.VARIANTS[variant]]
    checked = subprocess.run(
        [program, "validate", *files], env=os.environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr

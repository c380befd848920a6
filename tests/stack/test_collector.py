"""The Collector's configurations: whole, safe, and every rule able to say no."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from . import collector
from .lane import builds, pipelines

Spoil = Callable[[dict[str, Any]], object]
MANIFEST = collector.MANIFEST.read_text(encoding="utf-8")
ALL = [collector.merged(*names) for names in collector.VARIANTS.values()]


@pytest.mark.parametrize("variant", collector.VARIANTS)
def test_a_configuration_is_whole(variant: str) -> None:
    assert list(collector.config_problems(collector.merged(*collector.VARIANTS[variant]))) == []


def test_the_built_collector_has_every_configured_component() -> None:
    assert list(collector.manifest_problems(yaml.safe_load(MANIFEST), ALL)) == []


@pytest.mark.parametrize("change", ["one less", "one more"])
def test_a_manifest_that_differs_is_found(change: str) -> None:
    manifest = yaml.safe_load(MANIFEST)
    if change == "one less":
        manifest["processors"].pop()
        complaint = "processors: transform is configured but not built"
    else:
        manifest["processors"].append({"gomod": "example.org/processor/batchprocessor v1"})
        complaint = "processors: batch is built but not configured"
    assert complaint in list(collector.manifest_problems(manifest, ALL))


def test_every_file_is_combined_somewhere() -> None:
    combined = {name for names in collector.VARIANTS.values() for name in names}
    others = {"jaeger.yaml", "kustomization.yaml"}
    assert {path.name for path in collector.FOLDER.glob("*.yaml")} == combined | others


def _received(config: dict[str, Any]) -> dict[str, Any]:
    return config["service"]["pipelines"]["traces/received"]


SAMPLING = ("config.yaml", "tail-sampling.yaml")
GATEWAY = ("gateway.yaml",)
SCRAPED = ("to-scrape.yaml",)
QUEUE = ("config.yaml", "persistent-queue.yaml")
TIER = (*SAMPLING, "sampler-tier.yaml")
FILE = ("to-file.yaml",)


def _policy(config: dict[str, Any], kind: str) -> dict[str, Any]:
    policies = config["processors"]["tail_sampling"]["policies"]
    return next(policy[kind] for policy in policies if policy["type"] == kind)


def _prometheus(config: dict[str, Any]) -> dict[str, Any]:
    return config["exporters"]["otlp_http/prometheus"]


def _reader(config: dict[str, Any]) -> dict[str, Any]:
    return config["service"]["telemetry"]["metrics"]["readers"][0]


MISTAKES: dict[str, tuple[tuple[str, ...], Spoil, str]] = {
    "misspelt component": (
        SAMPLING,
        lambda c: _received(c)["exporters"].append("span_metric"),
        "there is no span_metric",
    ),
    "limiter not first": (SAMPLING, lambda c: _received(c)["processors"].reverse(), "memory_limiter is not first"),
    "no redaction": (SAMPLING, lambda c: _received(c)["processors"].remove("redaction"), "no redaction"),
    "texts of errors": (
        SAMPLING,
        lambda c: _received(c)["processors"].remove("transform/errors"),
        "texts of errors pass",
    ),
    "no redaction of events": (
        SAMPLING,
        lambda c: c["service"]["pipelines"]["logs"]["processors"].remove("redaction"),
        "logs: no redaction",
    ),
    "redaction that drops": (
        SAMPLING,
        lambda c: c["processors"]["redaction"].update(allow_all_keys=False),
        "drops attributes",
    ),
    "redaction of ids": (SAMPLING, lambda c: c["processors"]["redaction"]["ignored_keys"].pop(), "redaction ignores"),
    "metrics after sampling": (
        SAMPLING,
        lambda c: _received(c)["processors"].append("tail_sampling"),
        "count what is left after sampling",
    ),
    "open to the network": (
        SAMPLING,
        lambda c: c["receivers"]["otlp"]["protocols"]["grpc"].update(endpoint="0.0.0.0:4317"),
        "is reachable from other machines",
    ),
    "gateway open to the network": (
        GATEWAY,
        lambda c: c["extensions"]["health_check"].update(endpoint="0.0.0.0:13133"),
        "is reachable from other machines",
    ),
    "series open to the network": (
        SCRAPED,
        lambda c: c["exporters"]["prometheus"].update(endpoint="0.0.0.0:9464"),
        "is reachable from other machines",
    ),
    "no queue": (SAMPLING, lambda c: c["exporters"]["otlp_grpc/jaeger"].pop("sending_queue"), "a batching queue"),
    "unused": (
        SAMPLING,
        lambda c: c["exporters"].update({"otlp_http/spare": {"sending_queue": {"batch": {}}}}),
        "in no pipeline",
    ),
    "unobserved": (SAMPLING, lambda c: c["service"].pop("telemetry"), "nobody observes the Collector"),
    "nameless": (SAMPLING, lambda c: c["service"]["telemetry"].pop("resource"), "does not say who it is"),
    "rarely observed": (SAMPLING, lambda c: _reader(c)["periodic"].update(interval=60000), "another interval"),
    "no health check": (SAMPLING, lambda c: c["service"].update(extensions=[]), "no health check"),
    "wrong path": (
        SAMPLING,
        lambda c: _prometheus(c).update(endpoint="http://prometheus:9090/api/v1/otpl"),
        "otlp_http/prometheus goes to",
    ),
    "wrong store": (GATEWAY, lambda c: c["receivers"]["redis"].update(endpoint="redis:6379"), "redis goes to"),
    "out of order": (GATEWAY, lambda c: _prometheus(c)["sending_queue"].update(num_consumers=10), "out of order"),
    "milliseconds": (
        SAMPLING,
        lambda c: c["connectors"]["span_metrics"]["histogram"].update(unit="ms"),
        "does not count seconds",
    ),
    "renamed series": (
        SAMPLING,
        lambda c: c["connectors"]["span_metrics/kept"].update(namespace="traces.span.metrics"),
        "its series are called",
    ),
    "nanoseconds": (SAMPLING, lambda c: c["receivers"]["redis"].update(collection_interval=10), "interval is 10"),
    "store not scraped": (
        QUEUE,
        lambda c: c["service"]["pipelines"]["metrics"]["receivers"].remove("redis"),
        "receiver redis is configured but in no pipeline",
    ),
    "numbers that go nowhere": (
        TIER,
        lambda c: c["service"]["pipelines"]["metrics"]["receivers"].remove("span_metrics"),
        "span_metrics is among no pipeline's receivers",
    ),
    "limit that never bites": (
        GATEWAY,
        lambda c: c["processors"]["memory_limiter"].update(limit_percentage=100),
        "memory_limiter:",
    ),
    "misspelt storage": (
        QUEUE,
        lambda c: c["exporters"]["otlp_grpc/jaeger"]["sending_queue"].update(storage="file_storage/queues"),
        "there is no file_storage/queues",
    ),
    "storage not started": (QUEUE, lambda c: c["service"]["extensions"].pop(), "not started"),
    "failures dropped": (
        SAMPLING,
        lambda c: _policy(c, "status_code").update(status_codes=["OK"]),
        "failures are not kept",
    ),
    "slow at will": (SAMPLING, lambda c: _policy(c, "latency").update(threshold_ms=1500), "no boundary"),
    "misspelt session": (
        SAMPLING,
        lambda c: _policy(c, "ottl_condition").update(span=['span.name == "session"']),
        "sessions are not kept",
    ),
    "more than pings dropped": (
        SAMPLING,
        lambda c: _policy(c, "drop")["drop_sub_policy"][0]["string_attribute"].update(values=["ping", "tools/call"]),
        "dropped:",
    ),
    "sampling left out": (
        TIER,
        lambda c: c["service"]["pipelines"]["traces/stored"].pop("processors"),
        "nothing is sampled",
    ),
    "split traces": (GATEWAY, lambda c: c["exporters"]["load_balancing"].update(routing_key="service"), "are split"),
    "one sampler": (
        GATEWAY,
        lambda c: c["exporters"]["load_balancing"]["resolver"]["static"]["hostnames"].pop(),
        "nothing to balance",
    ),
    "other names for scraping": (
        SCRAPED,
        lambda c: c["exporters"]["prometheus"].update(translation_strategy="NoTranslation"),
        "have other names",
    ),
    "no exemplars for scraping": (
        SCRAPED,
        lambda c: c["exporters"]["prometheus"].pop("enable_open_metrics"),
        "have no exemplars",
    ),
    "counters without total": (
        FILE,
        lambda c: _reader(c)["pull"]["exporter"]["prometheus"].update(without_type_suffix=True),
        "lack _total",
    ),
    "file without a limiter": (FILE, lambda c: c["service"]["pipelines"]["traces"].pop("processors"), "is not first"),
    "file that is not written": (
        FILE,
        lambda c: c["service"]["pipelines"]["traces"].update(exporters=["files"]),
        "there is no files",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    files, spoil, complaint = MISTAKES[mistake]
    config = copy.deepcopy(collector.merged(*files))
    spoil(config)
    assert any(complaint in problem for problem in collector.config_problems(config))


@pytest.mark.parametrize("secret", pipelines.SECRETS)
def test_every_secret_is_masked(secret: str) -> None:
    """The lane has the Collector do it; this tells at once which expression was broken."""
    redaction = collector.read("config.yaml")["processors"]["redaction"]
    value = pipelines.SECRETS[secret]
    by_key = any(re.search(pattern, secret) for pattern in redaction["blocked_key_patterns"])
    assert by_key or any(re.search(pattern, value) for pattern in redaction["blocked_values"])


def test_harmless_values_match_nothing() -> None:
    redaction = collector.read("config.yaml")["processors"]["redaction"]
    for key, value in pipelines.HARMLESS.items():
        assert not any(re.search(pattern, key) for pattern in redaction["blocked_key_patterns"])
        is_ignored = key in redaction["ignored_keys"]
        assert is_ignored or not any(re.search(pattern, value) for pattern in redaction["blocked_values"])


def test_versions_of_the_manifest_are_those_that_are_built() -> None:
    assert f"builder@{builds.BUILDER} " in MANIFEST
    assert f"v{yaml.safe_load(MANIFEST)['dist']['version']}" == builds.BUILDER


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("redactionprocessor v0.161.0", "redactionprocessor v0.160.0", "is v0.160.0, not v0.161.0"),
        ("exporter/debugexporter", "exporters/debugexporter", "is no module"),
        ("envprovider v1.67.0", "envprovider v1.66.0", "providers are of"),
        ("extension/healthcheckextension", "extension/healthextension", "healthcheck is configured but not built"),
    ],
)
def test_a_mistake_in_the_manifest_is_found(old: str, new: str, complaint: str) -> None:
    assert old in MANIFEST
    manifest = yaml.safe_load(MANIFEST.replace(old, new))
    assert any(complaint in problem for problem in collector.manifest_problems(manifest, ALL))


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

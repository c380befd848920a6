"""What the values in the Collector's configurations must be, where the Collector itself would take any."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from otel_mcp import semconv as names

Config = dict[str, Any]
PROMETHEUS: Final = "${env:PROMETHEUS_URL:-http://prometheus:9090}/api/v1/otlp"
ENDPOINTS: Final = {
    "otlp_grpc/jaeger": "${env:JAEGER_ENDPOINT:-jaeger:4317}",
    "otlp_http/prometheus": PROMETHEUS,
    "redis": "${env:REDIS_ENDPOINT:-valkey:6379}",
}
"""Where things are sent and asked for: the names and ports of docker-compose.yml."""
LINKS: Final = {
    *(names.SESSION_ID, names.SESSION_PREVIOUS_ID, names.MCP_SESSION_ID, names.GEN_AI_CONVERSATION_ID),
    *("service.instance.id", names.CALL_ARGUMENTS_HASH, names.TASK_ID),
    *(names.CATALOGUE_HASH, names.CATALOGUE_PREVIOUS_HASH),
}
"""Ids and hashes that things are found together by: masked, they lead nowhere."""
_TIMES: Final = re.compile(r"(interval|ttl|timeout|wait|expiration|elapsed_time)$")
_TIME: Final = re.compile(r"(\$\{env:\w+:-)?\d+(ms|s|m|h)\}?")


def sends_to_what_is_there(config: Config) -> Iterator[str]:
    """Addresses are the services', and can be changed from outside."""
    for kind in ("exporters", "receivers"):
        for name, component in config[kind].items():
            if name in ENDPOINTS and component["endpoint"] != ENDPOINTS[name]:
                yield f"{name} goes to {component['endpoint']}"
    for reader in _readers(config):
        if "periodic" in reader:
            own = reader["periodic"]["exporter"]["otlp"]
            if own != {"protocol": "http/protobuf", "endpoint": f"{PROMETHEUS}/v1/metrics"}:
                yield f"its own metrics go to {own}"


def says_its_units(config: Config) -> Iterator[str]:
    """A time without a unit is nanoseconds."""
    for path, value in _leaves(config):
        if _TIMES.search(path) and "telemetry" not in path and not _TIME.fullmatch(str(value)):
            yield f"{path} is {value!r}"


def masks_content_and_no_links(config: Config) -> Iterator[str]:
    """Redaction keeps attributes that it knows nothing against, and ids."""
    redaction = config.get("processors", {}).get("redaction")
    if redaction is None:
        return
    if redaction.get("allow_all_keys") is not True:
        yield "redaction drops attributes that it does not know"
    if set(redaction.get("ignored_keys") or ()) != LINKS:
        yield f"redaction ignores {redaction.get('ignored_keys')}"
    for name, pipeline in config["service"]["pipelines"].items():
        if name.startswith("logs") and "redaction" not in pipeline.get("processors", ()):
            yield f"{name}: no redaction"


def drops_the_texts_of_errors(config: Config) -> Iterator[str]:
    """The SDK and FastMCP put them on their spans, and they may repeat what a tool was given."""
    for name, pipeline in config["service"]["pipelines"].items():
        processors = pipeline.get("processors", ())
        if name.startswith("traces") and "redaction" in processors and "transform/errors" not in processors:
            yield f"{name}: texts of errors pass"


def makes_the_series_that_are_asked_for(config: Config) -> Iterator[str]:
    """Dashboards ask for seconds, by these names."""
    for name, connector in (config.get("connectors") or {}).items():
        if name.startswith("span_metrics"):
            if connector.get("histogram", {}).get("unit") != "s":
                yield f"{name} does not count seconds"
            if connector.get("namespace") != ("traces.kept" if name.endswith("/kept") else None):
                yield f"{name}: its series are called {connector.get('namespace')}"
            if not connector.get("aggregation_cardinality_limit"):
                yield f"{name}: nothing bounds its series"
    exporter = config["exporters"].get("prometheus")
    if exporter is not None and exporter.get("translation_strategy") != "UnderscoreEscapingWithSuffixes":
        yield "series for scraping have other names"
    if exporter is not None and exporter.get("enable_open_metrics") is not True:
        yield "series for scraping have no exemplars"


def connects_both_ends(config: Config) -> Iterator[str]:
    """A connector is fed by one pipeline and feeds another."""
    pipelines = config["service"]["pipelines"].values()
    for name in config.get("connectors") or ():
        for end in ("receivers", "exporters"):
            if not any(name in pipeline[end] for pipeline in pipelines):
                yield f"{name} is among no pipeline's {end}"
    # A tier that gets traces only leaves the rest to the one before it.
    others = "otlp" in config["service"]["pipelines"].get("metrics", {"receivers": ["otlp"]})["receivers"]
    for name in config["receivers"] if others else ():
        if not any(name in pipeline["receivers"] for pipeline in pipelines):
            yield f"receiver {name} is configured but in no pipeline"
    for name in config.get("extensions") or ():
        if name not in config["service"]["extensions"]:
            yield f"extension {name} is configured but not started"


def keeps_its_order_and_its_queues(config: Config) -> Iterator[str]:
    """Samples go one batch after another; a queue on disk has a disk."""
    for name, exporter in config["exporters"].items():
        queue = exporter.get("sending_queue") or {}
        if name == "otlp_http/prometheus" and queue.get("num_consumers") != 1:
            yield f"{name} sends several batches at once: samples come out of order"
        storage = queue.get("storage")
        if storage is not None and storage not in (config.get("extensions") or {}):
            yield f"{name}: there is no {storage}"
        if queue and queue.get("batch", {}).get("max_size", 0) > queue.get("queue_size", 0):
            yield f"{name}: a batch is larger than the queue"
    limiter = config.get("processors", {}).get("memory_limiter", {})
    if not 0 < limiter.get("spike_limit_percentage", 0) < limiter.get("limit_percentage", 0) <= 90:
        yield f"memory_limiter: {limiter}"


def samples_by_what_is_emitted(config: Config) -> Iterator[str]:
    """The policies of sampling name attributes, spans and boundaries that exist."""
    sampling = config.get("processors", {}).get("tail_sampling")
    if sampling is None:
        return
    policies = {policy["type"]: policy[policy["type"]] for policy in sampling["policies"]}
    if policies.get("status_code") != {"status_codes": ["ERROR"]}:
        yield "failures are not kept"
    if policies.get("latency", {}).get("threshold_ms", 0) / 1000 not in names.OPERATION_BUCKETS:
        yield "what is slow is no boundary of the histogram"
    if policies.get("ottl_condition", {}).get("span") != [f'span.name == "{names.SPAN_SESSION}"']:
        yield "sessions are not kept"
    dropped = [policy["string_attribute"] for policy in policies.get("drop", {}).get("drop_sub_policy", ())]
    if dropped != [{"key": names.MCP_METHOD_NAME, "values": ["ping"]}]:
        yield f"dropped: {dropped}"
    if "probabilistic" not in policies:
        yield "no share of the rest is kept"
    if "tail_sampling" not in config["service"]["pipelines"]["traces/stored"].get("processors", ()):
        yield "nothing is sampled"


def balances_whole_traces(config: Config) -> Iterator[str]:
    """A gateway sends all of a trace to one of several."""
    balancer = config["exporters"].get("load_balancing")
    if balancer is None:
        return
    if balancer.get("routing_key") != "traceID":
        yield f"traces are split by {balancer.get('routing_key')}"
    if len(set(balancer["resolver"]["static"]["hostnames"])) < 2:
        yield "there is nothing to balance"


def watches_itself(config: Config) -> Iterator[str]:
    """It says who it is, in the series that dashboards ask for."""
    telemetry = config["service"].get("telemetry", {})
    if not telemetry.get("resource", {}).get("service.name", "").startswith("otelcol-mcp"):
        yield "it does not say who it is"
    for reader in _readers(config):
        pull = reader.get("pull", {}).get("exporter", {}).get("prometheus")
        if pull is not None and pull.get("without_type_suffix") is not False:
            yield "its own counters lack _total"
        if "periodic" in reader and reader["periodic"].get("interval") != 10000:
            yield "its own metrics come at another interval than the servers'"


def _readers(config: Config) -> list[Config]:
    return config["service"].get("telemetry", {}).get("metrics", {}).get("readers") or []


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}")
    elif not isinstance(value, list):
        yield path, value


RULES: Final[tuple[Callable[[Config], Iterator[str]], ...]] = (
    sends_to_what_is_there,
    says_its_units,
    masks_content_and_no_links,
    drops_the_texts_of_errors,
    makes_the_series_that_are_asked_for,
    connects_both_ends,
    keeps_its_order_and_its_queues,
    samples_by_what_is_emitted,
    balances_whole_traces,
    watches_itself,
)

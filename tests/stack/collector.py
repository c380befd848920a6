"""The Collector's configurations as data, and what is wrong with them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import yaml

from .collector_rules import RULES
from .lane.paths import ROOT

FOLDER: Final = ROOT / "collector" / "config"
MANIFEST: Final = ROOT / "collector" / "builder.yaml"
KINDS: Final = ("receivers", "processors", "connectors", "exporters", "extensions")
VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    "one machine": ("config.yaml",),
    "one machine, with logs": ("config.yaml", "to-loki.yaml"),
    "sampling": ("config.yaml", "tail-sampling.yaml"),
    "queue on disk": ("config.yaml", "persistent-queue.yaml"),
    "sampling, queue on disk": ("config.yaml", "tail-sampling.yaml", "persistent-queue.yaml"),
    "gateway": ("gateway.yaml",),
    "gateway before a cluster": ("gateway.yaml", "redis-cluster.yaml"),
    "behind the gateway": ("config.yaml", "tail-sampling.yaml", "sampler-tier.yaml"),
    "for a Prometheus that scrapes": ("to-scrape.yaml",),
    "instead of Jaeger": ("to-file.yaml",),
}
"""Every way that the files are meant to be combined."""
# What the modules are called, where it is not their type without underscores.
_MODULES: Final = {"otlp_grpc": "otlp", "otlp_http": "otlphttp"}
_PATHS: Final = re.compile(
    r"(go\.opentelemetry\.io/collector|github\.com/open-telemetry/opentelemetry-collector-contrib)"
    r"/(receiver|processor|connector|exporter|extension)/[a-z/]+"
)
BEHIND: Final = {"servicegraphconnector", "loadbalancingexporter"}
"""Modules of an earlier release, on purpose."""

Config = dict[str, Any]


def read(name: str) -> Config:
    """Return one file."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def merged(*names: str) -> Config:
    """Return several files as the Collector merges them: maps are joined, lists are replaced."""
    result: Config = {}
    for name in names:
        result = _join(result, read(name))
    return result


def _join(old: Any, new: Any) -> Any:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: _join(old.get(key), value) for key, value in new.items()}}
    return new


def used(config: Config) -> Config:
    """Return a configuration without the components that no pipeline has: they are never started."""
    pipelines = config["service"]["pipelines"].values()
    named = {name for pipeline in pipelines for kind in KINDS for name in pipeline.get(kind) or ()}
    named |= set(config["service"].get("extensions") or ())
    parts = {kind: {name: part for name, part in (config.get(kind) or {}).items() if name in named} for kind in KINDS}
    return config | parts


def types(config: Config, kind: str) -> set[str]:
    """Return the types of a kind of components: `otlp_grpc/jaeger` is an `otlp_grpc`."""
    return {name.partition("/")[0] for name in config.get(kind) or ()}


def built(manifest: Config, kind: str) -> set[str]:
    """Return the names of the modules that a manifest lists, without their kind."""
    suffix = kind.removesuffix("s")
    paths = (entry["gomod"].split()[0].rpartition("/")[2] for entry in manifest.get(kind) or ())
    return {path.removesuffix(suffix) for path in paths}


def module(kind_of_component: str) -> str:
    """Return what the module of a type is called."""
    return _MODULES.get(kind_of_component, kind_of_component.replace("_", ""))


def manifest_problems(manifest: Config, configs: list[Config]) -> Iterator[str]:
    """Compare what is built with what is configured."""
    yield from _version_problems(manifest)
    for kind in KINDS:
        used = {module(name) for config in configs for name in types(config, kind)}
        there = built(manifest, kind)
        # The storage extensions live in a folder of their own and drop their suffix.
        yield from (f"{kind}: {name} is configured but not built" for name in sorted(used - there))
        yield from (f"{kind}: {name} is built but not configured" for name in sorted(there - used))


def _version_problems(manifest: Config) -> Iterator[str]:
    """Modules are of one release, but for those that say why not."""
    release = str(manifest["dist"]["version"])
    for kind in KINDS:
        for entry in manifest[kind]:
            path, _, version = entry["gomod"].partition(" ")
            if not _PATHS.match(path):
                yield f"{path} is no module of the Collector's"
            if version != f"v{release}" and path.rpartition("/")[2] not in BEHIND:
                yield f"{path} is {version}, not v{release}"
    providers = {entry["gomod"].partition(" ")[2] for entry in manifest["providers"]}
    if len(providers) != 1:
        yield f"providers are of {sorted(providers)}"


def config_problems(config: Config) -> Iterator[str]:
    """Look at one configuration, merged."""
    service = config["service"]
    connectors = set(config.get("connectors") or ())
    used: dict[str, set[str]] = {kind: set() for kind in KINDS}
    used["extensions"].update(service.get("extensions") or ())
    for name, pipeline in service["pipelines"].items():
        for kind in ("receivers", "processors", "exporters"):
            for component in pipeline.get(kind) or ():
                if kind != "processors" and component in connectors:
                    used["connectors"].add(component)
                elif component in (config.get(kind) or ()):
                    used[kind].add(component)
                else:
                    yield f"{name}: there is no {component} among the {kind}"
        yield from _pipeline_problems(name, pipeline)
    for kind in ("connectors", "exporters", "processors"):
        for component in set(config.get(kind) or ()) - used[kind]:
            yield f"{component} is configured but in no pipeline"
    yield from _listening_problems(config)
    for name, exporter in config["exporters"].items():
        if name.startswith("otlp") and "batch" not in (exporter.get("sending_queue") or {}):
            yield f"{name} sends without a batching queue"
    if not service.get("telemetry", {}).get("metrics", {}).get("readers"):
        yield "nobody observes the Collector"
    if "health_check" not in used["extensions"]:
        yield "no health check"
    yield from (problem for rule in RULES for problem in rule(config))


def _pipeline_problems(name: str, pipeline: Config) -> Iterator[str]:
    processors = pipeline.get("processors") or []
    if "otlp" not in pipeline["receivers"]:
        return
    if not processors or processors[0] != "memory_limiter":
        yield f"{name}: memory_limiter is not first"
    # A gateway leaves it to the Collectors behind it; a file is written behind one that has done it.
    stores = not {"load_balancing", "debug", "file"} & set(pipeline["exporters"])
    if name.startswith("traces") and stores and "redaction" not in processors:
        yield f"{name}: no redaction"
    if "tail_sampling" in processors and "span_metrics" in pipeline["exporters"]:
        yield f"{name}: span metrics count what is left after sampling"


def _listening_problems(config: Config) -> Iterator[str]:
    scraped = config["exporters"].get("prometheus")
    listening = [*config["receivers"]["otlp"]["protocols"].values(), config["extensions"]["health_check"]]
    hosts = [served["endpoint"].rpartition(":$")[0] for served in (*listening, *filter(None, [scraped]))]
    readers = config["service"].get("telemetry", {}).get("metrics", {}).get("readers") or ()
    hosts += [reader["pull"]["exporter"]["prometheus"]["host"] for reader in readers if "pull" in reader]
    for host in hosts:
        if host != "${env:COLLECTOR_HOST:-127.0.0.1}":
            yield f"{host or 'an endpoint'} is reachable from other machines by default"

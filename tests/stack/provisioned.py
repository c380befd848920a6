"""What Grafana and Prometheus read at their start; each rule yields its problems."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

import yaml

from grafana.boards import contract
from grafana.boards.names import label
from otel_mcp import semconv

from . import composed, dashboards, gate
from .lane.paths import ROOT

FOLDER: Final = ROOT / "grafana" / "provisioning"
DATASOURCES: Final = FOLDER / "datasources" / "datasources.yaml"
LOGS: Final = FOLDER / "datasources" / "loki.yaml"
DASHBOARDS: Final = FOLDER / "dashboards" / "dashboards.yaml"
PROMETHEUS: Final = ROOT / "grafana" / "prometheus.yaml"
SCRAPED: Final = ROOT / "grafana" / "prometheus-scrape.yaml"
_OURS: Final = {name: f"otel-mcp-{name}" for name in ("prometheus", "jaeger", "loki")}


def datasource_problems(text: str) -> Iterator[str]:
    """Look at the data sources: one of each kind, each linked to the others."""
    sources = {source["type"]: source for source in yaml.safe_load(text)["datasources"]}
    asked = {
        variable["query"]
        for board in dashboards.load().values()
        for variable in dashboards.variables(board).values()
        if variable["type"] == "datasource"
    } - {"loki"}
    if set(sources) != asked or asked != set(_OURS) - {"loki"}:
        yield f"there is {sorted(sources)} where dashboards ask {sorted(asked)}"
        return
    yield from _address_problems(sources)
    if [source.get("isDefault") for source in sources.values()].count(True) != 1:
        yield "not one of them is the default"
    yield from _escape_problems(text)
    yield from _exemplar_problems(sources["prometheus"]["jsonData"])
    yield from _trace_problems(sources["jaeger"]["jsonData"]["tracesToMetrics"])
    if (links := sources["jaeger"]["jsonData"]["tracesToLogsV2"])["datasourceUid"] != _OURS["loki"]:
        yield f"traces lead to {links['datasourceUid']}"
    for tag in links["tags"]:
        if tag["value"] != label(tag["key"]):
            yield f"{tag['key']} is not {tag['value']} in Loki"


def log_source_problems(text: str) -> Iterator[str]:
    """Look at the data source of logs: its records lead to their trace and their session."""
    sources = {source["type"]: source for source in yaml.safe_load(text)["datasources"]}
    if set(sources) != {"loki"}:
        yield f"there is {sorted(sources)}"
        return
    yield from _address_problems(sources)
    yield from _escape_problems(text)
    fields = {field["matcherRegex"]: field for field in sources["loki"]["jsonData"]["derivedFields"]}
    known = {"trace_id", label(semconv.SESSION_ID)}
    if set(fields) != known or any(field["matcherType"] != "label" for field in fields.values()):
        yield f"records lead on by {sorted(fields)}"
    elif fields["trace_id"].get("datasourceUid") != _OURS["jaeger"]:
        yield f"records lead to {fields['trace_id'].get('datasourceUid')}"
    variables = dashboards.variables(dashboards.load()["session"])
    for url in (field["url"] for field in fields.values() if field["url"].startswith("/d/")):
        if set(re.findall(r"var-(\w+)=", url)) - set(variables):
            yield f"records lead to {url}"


def _address_problems(sources: dict[str, Any]) -> Iterator[str]:
    for kind, source in sources.items():
        if source["uid"] != _OURS[kind]:
            yield f"{kind} is known as {source['uid']}"
        if source["url"] != f"${{{kind.upper()}_URL}}":
            yield f"{kind} is at {source['url']}"
        if (source.get("access"), source.get("editable")) != ("proxy", False):
            yield f"{kind} is reached from the browser, or can be edited"


def _escape_problems(text: str) -> Iterator[str]:
    known = set(composed.read()["services"]["grafana"]["environment"])
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for name in set(re.findall(r"(?<!\$)\$\{?(\w+)", "\n".join(lines))) - known:
        yield f"Grafana reads ${name} as a variable of its own, and there is none"


def _exemplar_problems(options: dict[str, Any]) -> Iterator[str]:
    seconds = int(composed.read()["services"]["server"]["environment"]["OTEL_METRIC_EXPORT_INTERVAL"]) // 1000
    if options.get("timeInterval") != f"{seconds}s":
        yield f"servers export each {seconds} s, Grafana counts on {options.get('timeInterval')}"
    links = options["exemplarTraceIdDestinations"]
    if {link["name"] for link in links} != {"trace_id"}:
        yield f"exemplars are found by {[link['name'] for link in links]}"
    if [link.get("datasourceUid") for link in links if "datasourceUid" in link] != [_OURS["jaeger"]]:
        yield "exemplars lead to no data source"
    variables = dashboards.variables(dashboards.load()["session"])
    for url in (link["url"] for link in links if "url" in link):
        board, _, query = url.partition("?")
        if board != "/d/otel-mcp-session" or set(re.findall(r"var-(\w+)=", query)) - set(variables):
            yield f"exemplars lead to {url}"
        if "$${__value.raw}" not in url and "${__value.raw}" not in url:
            yield f"{url} says nothing of the exemplar"


def _trace_problems(links: dict[str, Any]) -> Iterator[str]:
    if links["datasourceUid"] != _OURS["prometheus"]:
        yield f"traces lead to {links['datasourceUid']}"
    for tag in links["tags"]:
        if tag["value"] != label(tag["key"]):
            yield f"{tag['key']} is not {tag['value']} in Prometheus"
        if tag["value"] not in contract.OPERATION_DURATION.labels:
            yield f"no series has {tag['value']}"
    for query in links["queries"]:
        expr = re.sub(r"\$+__tags", 'service_name="x"', query["query"])
        expr = re.sub(r"\$+__rate_interval", "1m", expr)
        yield from gate.unknown_names(query["name"], expr)


def provider_problems(text: str) -> Iterator[str]:
    """Look at where dashboards come from: the folder that is mounted, edited nowhere else."""
    (provider,) = yaml.safe_load(text)["providers"]
    if (provider["type"], provider["folderUid"]) != ("file", "otel-mcp"):
        yield f"{provider['type']} into {provider['folderUid']}"
    if provider.get("allowUiUpdates") is not False or provider.get("disableDeletion") is not True:
        yield "they can be changed in the browser"
    grafana = composed.read()["services"]["grafana"]
    mounts = dict(volume.split(":")[1::-1] for volume in grafana["volumes"])
    path = provider["options"]["path"]
    if path not in mounts or (ROOT / mounts[path]).resolve() != dashboards.FOLDER:
        yield f"nothing is mounted at {path}"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    if home.removeprefix(f"{path}/").removesuffix(".json") not in dashboards.load():
        yield f"the first page is {home}"


def prometheus_problems(text: str) -> Iterator[str]:
    """Look at Prometheus's configuration, pushed to or scraping."""
    config = yaml.safe_load(text)
    interval = f"{int(composed.read()['services']['server']['environment']['OTEL_METRIC_EXPORT_INTERVAL']) // 1000}s"
    if config["global"].get("evaluation_interval") != interval:
        yield f"rules are evaluated each {config['global'].get('evaluation_interval')}"
    found = [path for pattern in config.get("rule_files") or () for path in (ROOT / "grafana").glob(pattern)]
    if set(found) != set((ROOT / "grafana" / "alerts").glob("*.yaml")):
        yield f"rules are read from {config.get('rule_files')}"
    yield from _push_problems(config) if "otlp" in config else _scrape_problems(config, interval)


def _push_problems(config: dict[str, Any]) -> Iterator[str]:
    otlp = config["otlp"]
    promoted = frozenset(label(name) for name in otlp.get("promote_resource_attributes") or ())
    if promoted != contract.RESOURCE_LABELS:
        yield f"promoted: {sorted(promoted ^ contract.RESOURCE_LABELS)} too many or missing"
    if otlp.get("translation_strategy") != "UnderscoreEscapingWithSuffixes":
        yield f"series are named {otlp.get('translation_strategy')}"
    if otlp.get("keep_identifying_resource_attributes") is not True:
        yield "target_info does not say whose it is"
    window = config.get("storage", {}).get("tsdb", {}).get("out_of_order_time_window", "0s")
    if not re.fullmatch(r"[1-9]\d*m", window):
        yield f"what comes {window} late is refused"


def _scrape_problems(config: dict[str, Any], interval: str) -> Iterator[str]:
    (job,) = config["scrape_configs"]
    if job.get("honor_labels") is not True:
        yield "job and instance are the Collector's"
    if config["global"].get("scrape_interval") != interval:
        yield f"scraped each {config['global'].get('scrape_interval')}"
    served = yaml.safe_load((ROOT / "collector" / "config" / "to-scrape.yaml").read_text(encoding="utf-8"))
    configured = f"{served['exporters']['prometheus']} {served['service']['telemetry']}"
    ports = set(re.findall(r"_PORT:-(\d+)", configured))
    targets = [target for group in job["static_configs"] for target in group["targets"]]
    if {target.rpartition(":")[2] for target in targets} != ports:
        yield f"{targets} are scraped, {sorted(ports)} are offered"
    constant = served["exporters"]["prometheus"]["resource_constant_labels"]["included"]
    promoted = frozenset(label(name) for name in constant)
    if promoted != contract.RESOURCE_LABELS:
        yield f"labels: {sorted(promoted ^ contract.RESOURCE_LABELS)} too many or missing"

"""What collector/kubernetes must keep to, beyond what the API server asks; each rule yields what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Final

import yaml

from otel_mcp.settings import PREFIX

from . import collector, composed, dashboards
from . import manifest_network as network
from .lane.paths import ROOT
from .manifests import Manifest, Objects, Workload, references

CLIENTS: Final = {"otel-mcp": "client"}
"""The label of namespaces whose servers use what is here."""
EXTRA: Final = {
    # The other protocol of OTLP.
    ("mcp-server", "collector-gateway", 4317),
    ("valkey-cluster-create", "valkey-cluster", 6379),
    ("valkey-cluster", "valkey-cluster", 6379),
    ("valkey-cluster", "valkey-cluster", 16379),
}
"""Flows that no address with its port asks for."""
GRAFANA: Final = {("grafana", "jaeger", 16686)}
"""What an existing Grafana asks for instead of one of its own."""
TOO_LARGE: Final = 256 * 1024
"""Bytes that `kubectl apply` may write into its annotation."""
_OWN: Final = {"POD_NAME", "POD_NAMESPACE", "POD_IP", "NODE_NAME", "GOMEMLIMIT"}


def images_are_those_of_compose(objects: Objects) -> Iterator[str]:
    """What is tested there runs here: the same versions."""
    services = composed.read()["services"].values()
    tested = {service["image"] for service in services} | {"quay.io/" + services_image("prometheus")}
    for name, workload in objects.workloads().items():
        image = workload.container["image"]
        example = image.partition(":")[0] == services_image("server")
        if image not in tested and not (example and re.fullmatch(r".*:\d+\.\d+\.\d+", image)):
            yield f"{name}: {image} is not what is tested"


def services_image(name: str) -> str:
    """Return a service's image in docker-compose.yml; Prometheus's is in two registries."""
    return composed.read()["services"][name]["image"].replace("prom/prometheus", "prometheus/prometheus")


def pods_are_bounded_and_ready(objects: Objects) -> Iterator[str]:
    """Beyond the restricted standard: no token, a read-only root, a number as user, limits, probes, time to end."""
    for name, workload in objects.workloads().items():
        if workload.kind == "Prometheus":
            continue
        spec, container = workload.spec, workload.container
        if spec.get("automountServiceAccountToken") is not False or spec.get("enableServiceLinks") is not False:
            yield f"{name}: gets a token, or variables of Services"
        if not container["securityContext"].get("readOnlyRootFilesystem"):
            yield f"{name}: may write to its root"
        if not isinstance(spec["securityContext"].get("runAsUser"), int):
            yield f"{name}: its user is no number"
        resources = container["resources"]
        if "memory" not in resources.get("limits", {}) or not {"cpu", "memory"} <= resources.get("requests", {}).keys():
            yield f"{name}: takes what it wants"
        yield from _ending_problems(workload)
        if workload.kind != "Job" and not {"readinessProbe", "livenessProbe"} <= container.keys():
            yield f"{name}: nobody asks whether it is well"
        for probe in (container.get("readinessProbe"), container.get("livenessProbe"), container.get("startupProbe")):
            port = (probe or {}).get("httpGet", (probe or {}).get("tcpSocket", {})).get("port")
            if port is not None and port not in workload.ports:
                yield f"{name}: is asked on {port}, which it has not"


def _ending_problems(workload: Workload) -> Iterator[str]:
    pause = workload.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    graceful = re.search(r"--timeout-graceful-shutdown=(\d+)", " ".join(workload.command))
    given = workload.spec.get("terminationGracePeriodSeconds", 30)
    if given < pause + int(graceful[1] if graceful else 0) + 10:
        yield f"{workload.name}: {given} s are too few to end in"
    if workload.kind == "Deployment" and workload.replicas > 1 and not pause:
        yield f"{workload.name}: stops listening while it is still asked"


def references_lead_somewhere(objects: Objects) -> Iterator[str]:
    """ConfigMaps, Services, pods of Services and budgets that are named are there; a Secret may be missing."""
    workloads = objects.workloads().values()
    for workload in workloads:
        yield from (f"{workload.name}: no {it}" for it in references(workload) if it not in objects.of("ConfigMap"))
        for variable in workload.container.get("env") or ():
            secret = variable.get("valueFrom", {}).get("secretKeyRef")
            if secret and secret.get("optional") is not True:
                yield f"{workload.name}: does not start without the Secret {secret['name']}"
        files = objects.files(workload)
        for path in re.findall(r"=(?:file:)?(/etc/[\w./-]+)", "\n".join(workload.command)):
            if path not in files:
                yield f"{workload.name}: nothing is mounted at {path}"
    selected: list[Manifest] = [service["selector"] for service in objects.services().values()]
    budgets: list[Manifest] = [
        one["spec"]["selector"]["matchLabels"] for one in objects.of("PodDisruptionBudget").values()
    ]
    selected += budgets + [
        one["spec"]["podSelector"].get("matchLabels") or {} for one in objects.of("NetworkPolicy").values()
    ]
    for labels in selected:
        if not any(labels.items() <= workload.labels.items() for workload in workloads):
            yield f"no pod has {labels}"
    for workload in workloads:
        if workload.replicas > 1 and not any(labels.items() <= workload.labels.items() for labels in budgets):
            yield f"{workload.name}: all its pods may be evicted at once"


def who_asks_is_let_in_and_nobody_else(objects: Objects) -> Iterator[str]:
    """The policies allow what addresses ask for, and nothing beyond it."""
    wanted, nowhere = network.wanted(objects)
    yield from nowhere
    there = objects.workloads()
    wanted |= {flow for flow in EXTRA if flow[0] in there}
    allowed = network.allowed(objects)
    yield from (f"{source} cannot reach {target}:{port}" for source, target, port in sorted(wanted - allowed))
    yield from (f"{source} may reach {target}:{port}" for source, target, port in sorted(allowed - wanted))
    store = "valkey-cluster" if "valkey-cluster" in there else "valkey"
    expected = {("proxy", 8080), ("collector-gateway", 4317), ("collector-gateway", 4318), (store, 6379)}
    for labels, outside in ((CLIENTS, expected), ({}, set[tuple[str, int]]())):
        if (found := network.allowed_from(objects, labels)) != outside:
            yield f"from namespaces with {labels} one may reach {sorted(found ^ outside)} or not"
    monitoring = network.allowed_from(objects, {"kubernetes.io/metadata.name": "monitoring"})
    if monitoring != (set() if "grafana" in there else {flow[1:] for flow in GRAFANA}):
        yield f"from the namespace of an existing Grafana one may reach {sorted(monitoring)}"


def servers_are_set_as_in_compose(objects: Objects) -> Iterator[str]:
    """The same variables with the same values, but for what is a cluster's own; and every variable has a reader."""
    server = objects.workloads()["mcp-server"]
    attributes = dict(pair.split("=", 1) for pair in server.environment["OTEL_RESOURCE_ATTRIBUTES"].split(","))
    if not {"service.instance.id", "service.version", "k8s.pod.name", "k8s.namespace.name"} <= attributes.keys():
        yield f"mcp-server: knows of itself only {sorted(attributes)}"
    if (
        "$(" in server.environment["OTEL_RESOURCE_ATTRIBUTES"]
        or "mcp-server-0" not in attributes["service.instance.id"]
    ):
        yield f"mcp-server: calls itself {attributes['service.instance.id']}"
    keys = [one["name"] for one in server.container["env"] if "secretKeyRef" in one.get("valueFrom", {})]
    if keys != [f"{PREFIX}HASH_KEY"]:
        yield f"mcp-server: has the secrets {keys}"
    if f"{PREFIX}HASH_KEY" in server.environment:
        yield "mcp-server: its key is written down"
    of_its_own = {"OTEL_RESOURCE_ATTRIBUTES", f"{PREFIX}TRUSTED_PROXIES", f"{PREFIX}REDIS_URL"}
    for name, value in composed.read()["services"]["server"]["environment"].items():
        if name not in of_its_own and server.environment.get(name) != value:
            yield f"mcp-server: {name} is {server.environment.get(name)}, and {value} in docker-compose.yml"
    if server.replicas < 2 or server.command[0] != "opentelemetry-instrument":
        yield "mcp-server: one replica, or nothing that instruments it"
    known = composed.known_variables()
    for workload in objects.workloads().values():
        yield from (
            f"{workload.name}: nobody reads {name}" for name in workload.environment if name not in known | _OWN
        )


def collectors_are_whole(objects: Objects) -> Iterator[str]:
    """Each runs one of the tested combinations, as it is in the folder, reachable, under a name of its own."""
    for name, workload in objects.workloads().items():
        if not (used := tuple(workload.configurations)):
            continue
        if used not in collector.VARIANTS.values():
            yield f"{name}: nobody tests {used}"
        for path, text in objects.files(workload).items():
            if text != (collector.FOLDER / path.rpartition("/")[2]).read_text(encoding="utf-8"):
                yield f"{name}: {path} is another one"
        if workload.environment.get("COLLECTOR_HOST") != "0.0.0.0":
            yield f"{name}: listens to itself only"
        if f"--config=yaml:service::telemetry::resource::service.instance.id: {name}-0" not in workload.command:
            yield f"{name}: has no name of its own"


def prometheus_is_set_as_everywhere(objects: Objects) -> Iterator[str]:
    """The Operator's words for grafana/prometheus.yaml and the flags of docker-compose.yml."""
    for name, one in objects.of("Prometheus").items():
        wanted = prometheus_settings()
        found = {key: one["spec"].get(key) for key in wanted}
        if found != wanted:
            yield f"{name}: {found} instead of {wanted}"
        if not one["spec"].get("serviceMonitorSelector"):
            yield f"{name}: the Operator writes no configuration for it"
        if one["spec"]["evaluationInterval"] != _prometheus()["global"]["evaluation_interval"]:
            yield f"{name}: evaluates rules at another interval"
        chosen: Manifest = one["spec"]["ruleSelector"]["matchLabels"]
        for rule, of in objects.of("PrometheusRule").items():
            if not chosen.items() <= of["metadata"]["labels"].items():
                yield f"{name}: does not choose {rule}"


def prometheus_settings() -> Manifest:
    """Return what a Prometheus object must say to be the one of grafana/prometheus.yaml."""
    config = _prometheus()
    words = {"translation_strategy", "keep_identifying_resource_attributes", "promote_resource_attributes"}
    command = "\n".join(composed.read()["services"]["prometheus"]["command"])
    features = re.search(r"--enable-feature=(\S+)", command)
    return {
        "enableOTLPReceiver": "--web.enable-otlp-receiver" in command,
        "enableFeatures": features[1].split(",") if features else [],
        "otlp": {_camel(word): config["otlp"][word] for word in words},
        "tsdb": {"outOfOrderTimeWindow": config["storage"]["tsdb"]["out_of_order_time_window"]},
    }


def _prometheus() -> Manifest:
    return yaml.safe_load((ROOT / "grafana" / "prometheus.yaml").read_text(encoding="utf-8"))


def _camel(word: str) -> str:
    first, *others = word.split("_")
    return first + "".join(other.title() for other in others)


def dashboards_and_alerts_are_all_there(objects: Objects) -> Iterator[str]:
    """Every file of grafana/dashboards and grafana/alerts, as it is, where a sidecar and the Operator look."""
    maps = [
        one
        for one in objects.of("ConfigMap").values()
        if one["metadata"].get("labels", {}).get("grafana_dashboard") == "1"
    ]
    found: dict[str, Any] = {name: json.loads(text) for one in maps for name, text in one["data"].items()}
    if found != {f"{name}.json": board for name, board in dashboards.load().items()}:
        yield f"dashboards: {sorted(found)}"
    grafana = objects.workloads().get("grafana")
    if grafana and not {f"/etc/grafana/dashboards/{name}" for name in found} <= objects.files(grafana).keys():
        yield "grafana: does not see every dashboard"
    rules = {name: one["spec"] for name, one in objects.of("PrometheusRule").items()}
    alerts = sorted((ROOT / "grafana" / "alerts").glob("*.yaml"))
    if rules != {f"otel-mcp-{path.stem}": yaml.safe_load(path.read_text(encoding="utf-8")) for path in alerts}:
        yield f"rules: {sorted(rules)}"


def kubectl_can_apply_it(objects: Objects) -> Iterator[str]:
    """What was applied last is an annotation of each object, and has a limit."""
    for one in objects.all:
        if len(json.dumps(one)) > TOO_LARGE * 0.9:
            yield f"{one['metadata']['name']}: is too large for `kubectl apply`"


RULES: Final[tuple[Callable[[Objects], Iterator[str]], ...]] = (
    images_are_those_of_compose,
    pods_are_bounded_and_ready,
    references_lead_somewhere,
    who_asks_is_let_in_and_nobody_else,
    servers_are_set_as_in_compose,
    collectors_are_whole,
    prometheus_is_set_as_everywhere,
    dashboards_and_alerts_are_all_there,
    kubectl_can_apply_it,
)


def problems(objects: Objects) -> list[str]:
    """Return everything that is wrong with them."""
    return [problem for rule in RULES for problem in rule(objects)]

"""Who reaches whom in collector/kubernetes: what addresses ask for, and what NetworkPolicies allow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, Final

import yaml

from . import collector
from .manifests import NAMESPACE, Manifest, Objects, Workload

Flow = tuple[str, str, int]
"""Who, whom, on which port."""
ELSEWHERE: Final = {"prometheus-operated.monitoring:9090"}
"""What an overlay expects of the cluster."""
_ADDRESS: Final = re.compile(r"(?<![\w.-])([a-z][a-z0-9.-]*):(\d{4,5})\b")
_LABELS: Final = {"kubernetes.io/metadata.name": NAMESPACE}


def wanted(objects: Objects) -> tuple[set[Flow], list[str]]:
    """Return the flows that the pods' variables, commands and files ask for, and the addresses that lead nowhere."""
    flows: set[Flow] = set()
    nowhere: list[str] = []
    services, workloads = objects.services(), objects.workloads()
    for name, workload in workloads.items():
        for host, port in set(_ADDRESS.findall("\n".join(_texts(objects, workload)))):
            if host == "localhost" or f"{host}:{port}" in ELSEWHERE:
                continue
            pod, _, service = host.rpartition(".")
            spec = services.get(service)
            listening = list(_behind(spec, int(port), workloads)) if spec else []
            if not listening or (pod and not _is_pod_of(pod, listening, spec or {})):
                nowhere.append(f"{name}: nothing listens on {host}:{port}")
            flows |= {(name, other, inside) for other, inside in listening}
    return flows, nowhere


def allowed(objects: Objects) -> set[Flow]:
    """Return the flows between pods of the namespace that the policies allow."""
    policies = [policy["spec"] for policy in objects.of("NetworkPolicy").values()]
    workloads = objects.workloads()
    return {
        (source, target, port)
        for source, target in product(workloads, workloads)
        for port_name, port in workloads[target].ports.items()
        if _passes(policies, "Ingress", workloads[target], workloads[source], port_name, port)
        and _passes(policies, "Egress", workloads[source], workloads[target], port_name, port)
    }


def allowed_from(objects: Objects, namespace: Mapping[str, str]) -> set[tuple[str, int]]:
    """Return the pods and ports that the pods of another namespace with such labels may reach."""
    policies = [policy["spec"] for policy in objects.of("NetworkPolicy").values()]
    return {
        (target.name, port)
        for target in objects.workloads().values()
        for port_name, port in target.ports.items()
        if _passes(policies, "Ingress", target, None, port_name, port, namespace)
    }


def _texts(objects: Objects, workload: Workload) -> Iterator[str]:
    yield from workload.command
    yield from (text for path, text in objects.files(workload).items() if path.endswith(".conf"))
    text = "\n".join(objects.files(workload).values())
    if names := workload.configurations:
        text = yaml.safe_dump(collector.used(collector.merged(*names)), width=10_000)
    for name, value in workload.environment.items():
        # Collectors, Jaeger and Grafana share variables, and each reads its own.
        if not text or re.search(rf"\$\{{(env:)?{name}\b", text):
            yield value


def _behind(service: Manifest, port: int, workloads: Mapping[str, Workload]) -> Iterator[tuple[str, int]]:
    for served in service["ports"]:
        if served["port"] == port:
            for name, workload in workloads.items():
                if service["selector"].items() <= workload.labels.items() and served["targetPort"] in workload.ports:
                    yield name, workload.ports[served["targetPort"]]


def _is_pod_of(pod: str, listening: list[tuple[str, int]], service: Manifest) -> bool:
    return service.get("clusterIP") == "None" and any(re.fullmatch(rf"{name}-\d+", pod) for name, _ in listening)


def _passes(
    policies: list[Manifest],
    direction: str,
    subject: Workload,
    peer: Workload | None,
    port_name: str,
    port: int,
    namespace: Mapping[str, str] = _LABELS,
) -> bool:
    """Return whether the policies for one end of a connection allow it; where there is none, everything is."""
    here = [
        policy
        for policy in policies
        if direction in policy["policyTypes"] and _selects(policy["podSelector"], subject.labels)
    ]
    if not here:
        return True
    key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    return any(
        _is_among(rule.get(peers), peer, namespace) and _has_port(rule.get("ports"), port_name, port)
        for policy in here
        for rule in policy.get(key) or ()
    )


def _is_among(peers: list[Manifest] | None, peer: Workload | None, namespace: Mapping[str, str]) -> bool:
    return peers is None or any(_is(one, peer, namespace) for one in peers)


def _is(one: Manifest, peer: Workload | None, namespace: Mapping[str, str]) -> bool:
    if "namespaceSelector" in one:
        if not _selects(one["namespaceSelector"], namespace):
            return False
    elif namespace is not _LABELS:
        return False
    return "podSelector" not in one or (peer is not None and _selects(one["podSelector"], peer.labels))


def _has_port(ports: list[Manifest] | None, name: str, number: int) -> bool:
    return ports is None or any(one["port"] in (name, number) for one in ports)


def _selects(selector: Manifest, labels: Mapping[str, Any]) -> bool:
    return (selector.get("matchLabels") or {}).items() <= labels.items() and all(
        one["operator"] == "In" and labels.get(one["key"]) in one["values"]
        for one in selector.get("matchExpressions") or ()
    )

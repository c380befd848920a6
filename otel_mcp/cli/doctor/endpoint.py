"""Ask an OTLP endpoint what it speaks, without sending telemetry.

Over HTTP an export request with nothing in it is posted, with the configured headers, so that a wrong path or a wrong
token shows. Over gRPC only the greeting of HTTP/2 is exchanged. Where the answer is not of the protocol that is
configured, the other ones are tried at the same address.
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
_CONNECT: Final = 2.0
_ANSWER: Final = 1.5
_REST: Final = 0.2
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The preface of HTTP/2 and an empty frame of settings."""
_SETTINGS: Final = 4
_HTTPS_ON_HTTP: Final = b"HTTPS"
"""Servers of TLS that understand a plain request say in their answer what they wanted."""
_REFUSED: Final = "refuses connections: nobody listens there"


class Answer(NamedTuple):
    """What an address answers."""

    spoken: Spoken
    secure: bool
    status: int = 0


class _Unreachable(Exception):
    """Nobody answers there; the text is ours."""


class _Distrusted(Exception):
    """The certificate is not believed."""


async def check(targets: Sequence[Target]) -> list[Finding]:
    """Ask each endpoint once, and report it once for all of its signals."""
    groups: dict[tuple[str, ...], list[Target]] = {}
    for target in targets:
        # Over gRPC all signals go to one address, whatever the path.
        place = target.place if target.protocol == "http" else urlsplit(target.url).netloc or target.url
        groups.setdefault((target.protocol, place, str(target.secure)), []).append(target)
    asked = await asyncio.gather(*(_check(group[0]) for group in groups.values()))
    return merged(
        (target.signal, finding) for finding, group in zip(asked, groups.values(), strict=True) for target in group
    )


async def _check(target: Target) -> Finding:
    certificate = f"export {target.variable.replace('ENDPOINT', 'CERTIFICATE')}=/path/to/ca.pem"
    scheme = urlsplit(target.url).scheme if "://" in target.url else ""
    if target.protocol == "http" and scheme not in {"http", "https"}:
        return fail(f"{target.variable} has no http:// or https://", export(target.variable, f"http://{target.base}"))
    if target.protocol == "grpc" and scheme not in {"", "http", "https"}:
        return skip(f"an address of gRPC's scheme {scheme} was not asked")
    try:
        parts = urlsplit(target.url if "://" in target.url else f"//{target.url}")
        host = parts.hostname or ""
        port = parts.port or (443 if target.secure else 4317 if target.protocol == "grpc" else 80)
    except ValueError:  # The port is no number.
        host, port = "", 0
    if not host:
        return fail(f"{target.variable} is no URL", export(target.variable, "http://HOST:4317"))
    proxies = getproxies()
    if (proxies.get("https" if target.secure else "http") or proxies.get("all")) and not proxy_bypass(host):
        return skip(f"{host}:{port} is reached through a proxy, and was not asked")
    try:
        if target.secure:
            _tls(target, "http", verify=True)
    except (OSError, ValueError):  # Errors of TLS are errors of the operating system.
        named = f"{target.variable.replace('ENDPOINT', 'CERTIFICATE')}, or the client's certificate or key,"
        return fail(f"{named} names a file that cannot be read", certificate)
    try:
        return _judged(target, await _asked(target, host, port))
    except _Unreachable as error:
        return fail(f"{target.base} {error}", export(target.variable, f"http://COLLECTOR:{port}"))
    except _Distrusted:
        return fail(f"the certificate of {host}:{port} is not trusted", certificate)


async def _asked(target: Target, host: str, port: int) -> Answer:
    """Ask as configured; where the answer is of something else, find out of what."""
    first = await _try(target, host, port, target.protocol, secure=target.secure)
    if first.spoken == target.protocol:
        return first
    other: Spoken = "http" if target.protocol == "grpc" else "grpc"
    further: tuple[tuple[Spoken, bool], ...] = (
        (other, target.secure),
        (target.protocol, not target.secure),
        (other, not target.secure),
    )
    tries = (_try(target, host, port, spoken, secure=secure, curious=True) for spoken, secure in further)
    answers = await asyncio.gather(*tries, return_exceptions=True)
    for answer, (spoken, _) in zip(answers, further, strict=True):
        if isinstance(answer, Answer) and answer.spoken == spoken:
            return answer
    return first


async def _try(target: Target, host: str, port: int, spoken: Spoken, *, secure: bool, curious: bool = False) -> Answer:
    """Ask once over one connection. `curious` = only to find out what is spoken: no token goes out."""
    context = _tls(target, spoken, verify=not curious) if secure else None
    lines = [f"POST {urlsplit(target.url).path or '/'} HTTP/1.1", f"host: {host}:{port}"]
    lines += ["content-type: application/x-protobuf", "content-length: 0", "connection: close"]
    for name, value in () if curious else target.headers.items():
        if not {"\r", "\n"} & {*name, *value}:
            lines.append(f"{name}: {value}")
    request = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
    answer = await _exchange(host, port, context, _GREETING if spoken == "grpc" else request)
    if answer[:5] == b"HTTP/":
        status = int(answer[9:12]) if answer[9:12].isdigit() else 0
        wants_tls = status == 400 and not secure and _HTTPS_ON_HTTP in answer
        return Answer("other" if wants_tls else "http", secure, status)
    is_grpc = len(answer) >= 9 and answer[3] == _SETTINGS and answer[5:9] == bytes(4)
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


async def _exchange(host: str, port: int, context: ssl.SSLContext | None, data: bytes) -> bytes:
    """Send `data`, and return how the answer begins; nothing where the other side only hangs up."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), _CONNECT)
    except TimeoutError:
        raise _Unreachable(f"does not answer within {_CONNECT:g} s") from None
    except (socket.gaierror, UnicodeError):
        raise _Unreachable("names a host that is not known") from None
    except ssl.SSLCertVerificationError:
        raise _Distrusted from None
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        if context is None:
            raise _Unreachable("hangs up") from None
        return b""
    except OSError as error:
        # Of several addresses of one host, each refused, the text is the only sign.
        is_refused = isinstance(error, ConnectionRefusedError) or "refuse" in str(error)
        raise _Unreachable(_REFUSED if is_refused else "cannot be reached") from None
    answer = b""
    try:
        writer.write(data)
        while len(answer) < 512:
            # Of what follows the head of an HTTP answer only the first words are of interest.
            patience = _REST if b"\r\n\r\n" in answer else _ANSWER
            part = await asyncio.wait_for(reader.read(512), patience)
            answer += part
            if not part or (len(answer) >= 12 and answer[:5] != b"HTTP/"):
                break
    except OSError:  # A timeout is one as well.
        pass
    finally:
        writer.transport.abort()  # To close TLS in order takes some servers long.
    return answer


def _judged(target: Target, answer: Answer) -> Finding:
    """Compare what is spoken with what is configured."""
    have = "gRPC" if target.protocol == "grpc" else "HTTP"
    base = target.base.rpartition("://")[2]
    if answer.spoken == "other":
        found = f"{target.base} takes connections, but does not speak {have}"
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
        found = f"{target.base} speaks no TLS, but the exporter does"
        return fail(found, insecure if is_plain else export(target.variable, f"http://{base}"))
    return _status(target, answer.status, f"{have}{' over TLS' if answer.secure else ''}")


def _status(target: Target, status: int, how: str) -> Finding:
    if target.protocol == "grpc":
        return ok(f"{target.base} answers, {how}")
    if status in {401, 403}:
        what = "refuses the credentials in the headers" if target.headers else "wants credentials"
        variable = target.variable.replace("ENDPOINT", "HEADERS")
        return fail(f"{target.base} {what} ({status})", f"export {variable}=authorization=Bearer%20TOKEN")
    if status in {404, 405} or 300 <= status < 400:
        parts = urlsplit(target.place)
        root = f"{'https' if status < 400 else parts.scheme}://{parts.netloc}"
        # The variable of one signal holds the whole path, the common one none.
        url = root if target.variable == COMMON else f"{root}/v1/{target.signal}"
        return fail(f"{target.place} is not where OTLP is taken ({status})", export(target.variable, url))
    if status == 415:
        return fail(f"{target.base} does not take protobuf (415)", export(target.variable, "http://COLLECTOR:4318"))
    if status >= 500 or status in {0, 429}:
        return warn(f"{target.base} answers, but is in trouble ({status})")
    return ok(f"{target.base} answers, {how}")

"""Ask an OTLP endpoint what it speaks, without sending telemetry.

Over HTTP an export request with nothing in it is posted, with the configured
headers, so that a wrong path or a wrong token shows. Over gRPC only the greeting
of HTTP/2 is exchanged. Where the answer is not of the protocol that is
configured, the other ones are tried at the same address.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from otel_mcp.cli.doctor.exporters import Target
from otel_mcp.cli.doctor.finding import Finding, export, fail, merged, ok, skip, warn

Spoken = Literal["grpc", "http", "other"]

_CONNECT: Final = 2.0
_ANSWER: Final = 1.5
_REST: Final = 0.2
_GREETING: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The preface of HTTP/2 and an empty frame of settings."""
_SETTINGS: Final = 4
_HTTPS_ON_HTTP: Final = b"HTTPS"
"""Servers of TLS that understand a plain request say in their answer what they wanted."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an address said."""

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
        key = (target.protocol, place, str(target.secure))
        groups.setdefault(key, []).append(target)
    asked = await asyncio.gather(*(_check(group[0]) for group in groups.values()))
    return merged(
        (target.signal, finding) for finding, group in zip(asked, groups.values(), strict=True) for target in group
    )


def _address(target: Target) -> tuple[str, int]:
    parts = urlsplit(target.url if "://" in target.url else f"//{target.url}")
    if not parts.hostname:
        raise _Unreachable("no host")
    return parts.hostname, parts.port or (443 if target.secure else 4317 if target.protocol == "grpc" else 80)


async def _check(target: Target) -> Finding:
    scheme = urlsplit(target.url).scheme if "://" in target.url else ""
    if target.protocol == "http" and scheme not in {"http", "https"}:
        return fail("endpoint", f"{target.variable} has no http:// or https://", _set(target, f"http://{target.base}"))
    if target.protocol == "grpc" and scheme not in {"", "http", "https"}:
        return skip("endpoint", f"an address of gRPC's scheme {scheme} was not asked")
    try:
        host, port = _address(target)
    except (ValueError, _Unreachable):  # The port is no number, or there is no host.
        return fail("endpoint", f"{target.variable} is no URL", _set(target, "http://HOST:4317"))
    if _is_proxied(target, host):
        return skip("endpoint", f"{host}:{port} is reached through a proxy, and was not asked")
    if (unreadable := _unreadable(target)) is not None:
        return unreadable
    try:
        return _judged(target, await _asked(target, host, port))
    except _Unreachable as error:
        return fail("endpoint", f"{target.base} {error}", _set(target, f"http://COLLECTOR:{port}"))
    except _Distrusted:
        variable = target.variable.replace("ENDPOINT", "CERTIFICATE")
        mend = f"export {variable}=/path/to/ca.pem"
        return fail("endpoint", f"the certificate of {host}:{port} is not trusted", mend)


def _unreadable(target: Target) -> Finding | None:
    """A certificate or key that is named and cannot be used."""
    if not target.secure:
        return None
    try:
        _tls(target, "http", verify=True)
    except (OSError, ValueError):  # Errors of TLS are errors of the operating system.
        variable = target.variable.replace("ENDPOINT", "CERTIFICATE")
        found = f"{variable}, or the client's certificate or key, names a file that cannot be read"
        return fail("endpoint", found, f"export {variable}=/path/to/ca.pem")
    return None


def _is_proxied(target: Target, host: str) -> bool:
    proxies = getproxies()
    scheme = "https" if target.secure else "http"
    return bool(proxies.get(scheme) or proxies.get("all")) and not proxy_bypass(host)


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
    for spoken, secure in further:
        with suppress(_Unreachable, _Distrusted):
            answer = await _try(target, host, port, spoken, secure=secure, curious=True)
            if answer.spoken == spoken:
                return answer
    return first


async def _try(target: Target, host: str, port: int, spoken: Spoken, *, secure: bool, curious: bool = False) -> Answer:
    """One connection, one question. `curious` = only to find out what is spoken: no token goes out."""
    context = _tls(target, spoken, verify=not curious) if secure else None
    data = _GREETING if spoken == "grpc" else _request(target, host, port, with_headers=not curious)
    answer = await _exchange(host, port, context, data)
    if answer[:5] == b"HTTP/":
        status = int(answer[9:12]) if answer[9:12].isdigit() else 0
        wants_tls = status == 400 and not secure and _HTTPS_ON_HTTP in answer
        return Answer("other" if wants_tls else "http", secure, status)
    if len(answer) >= 9 and answer[3] == _SETTINGS and answer[5:9] == bytes(4):
        return Answer("grpc", secure)
    return Answer("other", secure)


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


def _request(target: Target, host: str, port: int, *, with_headers: bool) -> bytes:
    path = urlsplit(target.url).path or "/"
    lines = [f"POST {path} HTTP/1.1", f"host: {host}:{port}", "content-type: application/x-protobuf"]
    lines += ["content-length: 0", "connection: close"]
    if with_headers:
        lines += [f"{name}: {value}" for name, value in target.headers.items() if _is_plain(name + value)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def _is_plain(text: str) -> bool:
    return "\r" not in text and "\n" not in text


async def _exchange(host: str, port: int, context: ssl.SSLContext | None, data: bytes) -> bytes:
    """Send `data`, and return how the answer begins; nothing where the other side only hangs up."""
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), _CONNECT)
    except asyncio.TimeoutError:
        raise _Unreachable(f"does not answer within {_CONNECT:g} s") from None
    except (socket.gaierror, UnicodeError):
        raise _Unreachable("names a host that is not known") from None
    except ssl.SSLCertVerificationError:
        raise _Distrusted from None
    except (ssl.SSLError, ConnectionResetError, BrokenPipeError):
        if context is None:
            raise _Unreachable("hangs up") from None
        return b""
    except ConnectionRefusedError:
        raise _Unreachable("refuses connections: nobody listens there") from None
    except OSError as error:
        # Several addresses of one host, each refused.
        refused = "refuse" in str(error)
        raise _Unreachable("refuses connections: nobody listens there" if refused else "cannot be reached") from None
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
    except (asyncio.TimeoutError, OSError):
        pass
    finally:
        writer.close()
        with suppress(OSError, asyncio.TimeoutError):
            await asyncio.wait_for(writer.wait_closed(), _ANSWER)
    return answer


def _judged(target: Target, answer: Answer) -> Finding:
    """Compare what is spoken with what is configured."""
    if answer.spoken == "other":
        spoken = "gRPC" if target.protocol == "grpc" else "HTTP"
        return fail("endpoint", f"{target.base} takes connections, but does not speak {spoken}",
                    _set(target, "http://COLLECTOR:4317"))  # fmt: skip
    if answer.spoken != target.protocol:
        return _wrong_protocol(target, answer)
    if answer.secure != target.secure:
        return _wrong_security(target, answer)
    if target.protocol == "grpc":
        return ok("endpoint", f"{target.base} answers, gRPC{' over TLS' if answer.secure else ''}")
    return _status(target, answer.status)


def _wrong_protocol(target: Target, answer: Answer) -> Finding:
    have, need = ("gRPC", "HTTP") if target.protocol == "grpc" else ("HTTP", "gRPC")
    value = "http/protobuf" if answer.spoken == "http" else "grpc"
    if target.protocol_variable.endswith("_EXPORTER"):
        value = "otlp_proto_http" if answer.spoken == "http" else "otlp_proto_grpc"
    found = f"{target.base} speaks {need}, but the exporter speaks {have}"
    return fail("endpoint", found, export(target.protocol_variable, value))


def _wrong_security(target: Target, answer: Answer) -> Finding:
    base = target.base.partition("://")[2] if "://" in target.base else target.base
    if answer.secure:
        return fail("endpoint", f"{target.base} speaks TLS, but the exporter does not", _set(target, f"https://{base}"))
    found = f"{target.base} speaks no TLS, but the exporter does"
    if target.place.startswith("http://"):
        return fail("endpoint", found, export(target.variable.replace("ENDPOINT", "INSECURE"), "true"))
    return fail("endpoint", found, _set(target, f"http://{base}"))


def _status(target: Target, status: int) -> Finding:
    if status in {401, 403}:
        variable = target.variable.replace("ENDPOINT", "HEADERS")
        what = "refuses the credentials in the headers" if target.headers else "wants credentials"
        mend = f"export {variable}=authorization=Bearer%20TOKEN"
        return fail("endpoint", f"{target.base} {what} ({status})", mend)
    if status in {404, 405} or 300 <= status < 400:
        return fail(
            "endpoint", f"{target.place} is not where OTLP is taken ({status})", _set(target, _base(target, status))
        )
    if status == 415:
        return fail("endpoint", f"{target.base} does not take protobuf (415)", _set(target, "http://COLLECTOR:4318"))
    if status >= 500 or status == 429 or status == 0:
        return warn("endpoint", f"{target.base} answers, but is in trouble ({status})")
    return ok("endpoint", f"{target.base} answers, HTTP{' over TLS' if target.secure else ''}")


def _base(target: Target, status: int) -> str:
    """Where the path ought to be: the signal's own variable holds it whole, the common one without it."""
    parts = urlsplit(target.place)
    scheme = "https" if 300 <= status < 400 else parts.scheme
    root = f"{scheme}://{parts.netloc}"
    if target.variable == "OTEL_EXPORTER_OTLP_ENDPOINT":
        return root
    return f"{root}/v1/{target.signal}"


def _set(target: Target, url: str) -> str:
    return export(target.variable, url)

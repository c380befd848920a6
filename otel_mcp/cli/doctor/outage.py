"""Name the reason for which Redis cannot be used, and where its URL is wrong."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from typing import Final
from urllib.parse import urlsplit

from redis import exceptions as redis

from otel_mcp.cli.doctor.finding import Finding, export, fail
from otel_mcp.settings import PREFIX

URL: Final = f"{PREFIX}REDIS_URL"
_DENIED: Final = ("NOAUTH", "WRONGPASS", "Authentication required", "username-password pair")
"""What a client of a cluster passes on of an error that says no more by its class."""


def place(url: str) -> str:
    """The URL of a Redis without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def template(url: str, *, scheme: str | None = None) -> str:
    """The URL with placeholders where user and password belong."""
    parts = urlsplit(url)
    userinfo = "USER:PASSWORD@" if "@" in parts.netloc else ""
    return f"{scheme or parts.scheme}://{userinfo}{parts.netloc.rpartition('@')[2]}{parts.path}"


async def named(url: str, error: BaseException) -> Finding:
    """Name the reason, in words of our own: the text of an error may repeat the password."""
    text = str(error)
    if isinstance(error, redis.AuthenticationError) or any(sign in text for sign in _DENIED):
        wants = "does not take this user and password" if "@" in url else "wants a password"
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        mend = export(URL, f"{parts.scheme}://USER:PASSWORD@{host}{parts.path}")
        return fail("redis", f"{place(url)} {wants}", mend)
    if "Cluster mode is not enabled" in text or "cluster support disabled" in text:
        mend = export(URL, template(url, scheme=urlsplit(url).scheme.partition("+")[0]))
        return fail("redis", f"{place(url)} is no Cluster, and the URL says that it is", mend)
    if isinstance(error, redis.MovedError) or "MOVED" in text[:8]:
        mend = export(URL, template(url, scheme=urlsplit(url).scheme + "+cluster"))
        return fail("redis", f"{place(url)} is a node of a Cluster, and the URL does not say so", mend)
    if "No master found" in text:
        return fail(
            "redis", "the sentinels know no master of that name", export(URL, "redis+sentinel://HOST:26379/NAME/0")
        )
    if (found := await _tls_mismatch(url, text)) is not None:
        return found
    return fail("redis", f"{place(url)} {_reason(error, text)}", export(URL, template(url)) + "  # where Redis is")


def _reason(error: BaseException, text: str) -> str:
    if "LOADING" in text:
        return "is still loading its data"
    if "Name or service not known" in text or "nodename nor servname" in text or "name resolution" in text:
        return "names a host that is not known"
    if "refused" in text or "Connect call failed" in text:
        return "refuses connections: nobody listens there"
    if "DB index" in text:
        return "has no database of that number"
    if "max number of clients" in text:
        return "has as many clients as it may have"
    if "protected mode" in text:
        return "is in protected mode: it lets nobody in over the network"
    if isinstance(error, (redis.TimeoutError, asyncio.TimeoutError)):
        return "does not answer within 0.5 s"
    return f"cannot be used ({type(error).__name__})"


async def _tls_mismatch(url: str, text: str) -> Finding | None:
    """A server that wants TLS hangs up on a plain client, and the other way round."""
    parts = urlsplit(url)
    if parts.scheme not in {"redis", "rediss"} or parts.hostname is None:
        return None
    if "CERTIFICATE_VERIFY_FAILED" in text:
        mend = export(URL, f"{template(url)}?ssl_ca_certs=/path/to/ca.pem")
        return fail("redis", f"the certificate of {place(url)} is not trusted", mend)
    with suppress(OSError, ValueError, asyncio.TimeoutError):
        port = parts.port or 6379
        if parts.scheme == "redis" and await _speaks(parts.hostname, port, secure=True):
            mend = export(URL, template(url, scheme="rediss"))
            return fail("redis", f"{place(url)} speaks TLS, and the URL does not say so", mend)
        if parts.scheme == "rediss" and await _speaks(parts.hostname, port, secure=False):
            mend = export(URL, template(url, scheme="redis"))
            return fail("redis", f"{place(url)} speaks no TLS, and the URL says that it does", mend)
    return None


async def _speaks(host: str, port: int, *, secure: bool) -> bool:
    context: ssl.SSLContext | None = None
    if secure:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port, ssl=context), 1)
    try:
        writer.write(b"PING\r\n")
        answer = await asyncio.wait_for(reader.read(16), 1)
        return secure or answer[:1] in {b"+", b"-"}
    finally:
        writer.close()

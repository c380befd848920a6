"""The example server's image and the proxy before it: what they must do, and every rule able to say no."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import composed
from .lane.paths import ROOT

DOCKERFILE = (ROOT / "examples" / "Dockerfile").read_text(encoding="utf-8")
PROXY = (ROOT / "examples" / "proxy.conf").read_text(encoding="utf-8")


def image_problems(text: str) -> Iterator[str]:
    """Look at a Dockerfile: pinned, small steps, no root, started without a change of code."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    bases = [line.partition(" ")[2] for line in lines if line.startswith("FROM ")]
    if len(bases) != 1 or not re.fullmatch(r"python:3\.1[0-3]\.\d+-slim-\w+", bases[0]):
        yield f"built on {bases}"
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    if not {"pyproject.toml", "README.md", "LICENSE", "otel_mcp", "examples"} <= set(copied):
        yield f"copies only {copied}"
    yield from (f"{source} is not there to copy" for source in copied if not (ROOT / source).exists())
    installs = " ".join(line for line in lines if line.startswith("RUN pip install"))
    if '".[otlp]"' not in installs or '"mcp>=2.3"' not in installs or "uvicorn" not in installs:
        yield f"installs {installs}"
    command = next((line for line in reversed(lines) if line.startswith("CMD ")), "")
    if lines[-2:-1] != ["USER app"] or lines[-1] != command:
        yield "runs as root"
    found = re.fullmatch(r'CMD \["opentelemetry-instrument", "uvicorn", "([\w.]+):app", (.*)\]', command)
    if found is None:
        yield f"starts {command}"
    elif not (ROOT / f"{found[1].replace('.', '/')}.py").exists():
        yield f"there is no {found[1]}"
    elif found[2] != '"--host", "0.0.0.0", "--port", "8000"':
        yield f"listens on {found[2]}"


def proxy_problems(text: str) -> Iterator[str]:
    """Look at nginx's configuration: it neither buffers, nor hides the client, nor lets strangers in."""
    services = composed.read()["services"]
    (alias,) = services["server"]["networks"]["proxied"]["aliases"]
    bare = re.sub(r"#.*", "", text)
    directives = [" ".join(line.split()) for line in re.findall(r"[^;{}]+(?=;)", bare)]
    for wanted in (
        f"server {alias}:8000",
        "keepalive_timeout 4s",
        "listen 8080",
        "listen 8080 default_server",
        "return 421",
        "server_name localhost 127.0.0.1 proxy",
        "proxy_pass http://mcp",
        "proxy_http_version 1.1",
        'proxy_set_header Connection ""',
        "proxy_set_header Host localhost:8000",
        "proxy_set_header X-Forwarded-For $remote_addr",
        "proxy_set_header X-Forwarded-Proto $scheme",
        "proxy_buffering off",
        "proxy_read_timeout 1h",
    ):
        if directives.count(wanted) != 1:
            yield f"{wanted}: {directives.count(wanted)} times"
    # Its image runs without rights to write anywhere else.
    for path in re.findall(r"(?:pid|_temp_path) (\S+)", " ".join(directives)):
        if not path.startswith("/tmp/"):
            yield f"writes to {path}"


def test_the_image_keeps_every_rule() -> None:
    assert list(image_problems(DOCKERFILE)) == []


def test_the_proxy_keeps_every_rule() -> None:
    assert list(proxy_problems(PROXY)) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("python:3.13.7-slim-bookworm", "python:latest", "built on"),
        ("COPY examples examples", "COPY example examples", "example is not there"),
        ("COPY otel_mcp otel_mcp\n", "", "copies only"),
        ('".[otlp]"', '"."', "installs"),
        ("USER app\n", "", "runs as root"),
        ('"opentelemetry-instrument", ', "", "starts"),
        ("examples.demo.server:app", "examples.demo.servers:app", "there is no"),
        ('"8000"', '"8080"', "listens on"),
    ],
)
def test_a_mistake_in_the_image_is_found(old: str, new: str, complaint: str) -> None:
    assert old in DOCKERFILE
    assert any(complaint in problem for problem in image_problems(DOCKERFILE.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("proxy_buffering off", "proxy_buffering on"),
        ("X-Forwarded-For $remote_addr", "X-Forwarded-For $proxy_add_x_forwarded_for"),
        ("return 421;", ""),
        ("listen 8080 default_server", "listen 8080"),
        ("server upstream:8000", "server server:8000"),
        ("proxy_http_version 1.1", "proxy_http_version 1.0"),
        ("proxy_read_timeout 1h", "proxy_read_timeout 60s"),
        ("keepalive_timeout 4s", "keepalive_timeout 60s"),
        ("pid /tmp/nginx.pid", "pid /run/nginx.pid"),
    ],
)
def test_a_mistake_in_the_proxy_is_found(old: str, new: str) -> None:
    assert old in PROXY
    assert list(proxy_problems(PROXY.replace(old, new)))


def test_nginx_itself_takes_it(tmp_path: Path) -> None:
    """Where there is one: the lane's proxy is started with it in any case."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        pytest.skip("no nginx on this machine")
    config = tmp_path / "proxy.conf"
    # Nobody knows the replicas' name here.
    config.write_text(PROXY.replace("server upstream:8000", "server 127.0.0.1:8000").replace("/tmp/", f"{tmp_path}/"))
    command = [nginx, "-t", "-e", "stderr", "-c", config, "-g", "daemon off;"]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stderr

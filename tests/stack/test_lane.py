"""The lane's way on where a program cannot be built; the lane itself is in `.ci/stack`."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from .lane import builds, standins

needs_go = pytest.mark.skipif(
    shutil.which("go") is None and not Path("/usr/local/go/bin/go").exists(), reason="no go on this machine"
)


@needs_go
def test_a_build_that_fails_says_so(tmp_path: Path) -> None:
    go = builds.Go(tmp_path, 60, time.monotonic(), {"GOPROXY": "off", "GOMODCACHE": str(tmp_path / "none")})
    with pytest.raises(builds.NotBuilt, match="GOPROXY=off"):
        go("mod", "download", "-json", "example.org/nothing@v1.0.0")


@needs_go
def test_a_build_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(builds.NotBuilt, match="1 minutes were not enough"):
        builds.Go(tmp_path, 60, time.monotonic() - 61)("version")


def _span(trace_id: str, name: str, **attributes: Any) -> dict[str, Any]:
    written = [{"key": key, "value": {"stringValue": value}} for key, value in attributes.items()]
    return {"traceId": trace_id, "spanId": "1", "name": name, "attributes": written}


def _line(service: str, *spans: dict[str, Any]) -> str:
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": list(spans)}]}]})


def test_a_file_of_traces_is_asked_as_jaeger_is(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    lines = (
        _line("shop", _span("a", "tools/call add", session="s1"), _span("b", "ping", session="s2")),
        _line("shop", _span("a", "SELECT")),
        _line("other", _span("c", "tools/call add", session="s1")),
    )
    path.write_text("\n".join(lines), encoding="utf-8")
    traces = standins.TraceFile(path)

    def ids(**wanted: Any) -> list[str]:
        return [trace["traceID"] for trace in traces.search("shop", **wanted)]

    assert ids(tags={"session": "s1"}) == ["a"]
    assert ids(operation="ping") == ["b"]
    assert ids(operation="ping", tags={"session": "s1"}) == []
    assert [span["operationName"] for span in traces.trace("a")] == ["tools/call add", "SELECT"]
    assert standins.TraceFile(tmp_path / "none").trace("a") == []


def test_the_addresses_are_put_into_the_scrape_configuration(tmp_path: Path) -> None:
    text = standins.scrape_config(tmp_path, "127.0.0.1:1", "127.0.0.1:2").read_text(encoding="utf-8")
    assert "collector-to-scrape" not in text
    assert "- 127.0.0.1:1\n" in text
    assert "- 127.0.0.1:2\n" in text

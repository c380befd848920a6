"""``python -m tests.catalogues [WORD...]``: installs real servers, lists their tools, and compares what we measured.

Without words, those that are quick to install; ``all`` = all of them. After the word ``record`` the answers become the
recordings of `tests/replay/catalogues`, with their prose masked.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence

from examples.demo.otlp_receiver import OtlpReceiver
from tests.catalogues.masking import mask
from tests.catalogues.servers import SERVERS, Listed
from tests.catalogues.visiting import Answered, served, visit
from tests.matrix.serving import ServerFailed
from tests.replay.listings import FOLDER, by_label, bytes_of, definitions, name_of
from tests.support.waiting import wait_until


def main(words: Sequence[str]) -> int:
    """Returns the number of servers of which something is wrong."""
    records, wanted = "record" in words, [word for word in words if word not in ("record", "all")]
    wrong = 0
    for server in SERVERS:
        if not (all(word in server.name for word in wanted) and (words or server.quick)):
            continue
        try:
            answers, problems = measured(server)
            if records:
                record(server, answers)
        except (ServerFailed, subprocess.CalledProcessError) as failure:
            answers, problems = [], str(failure).splitlines()
        tools = definitions(answers[0].frame[1]) if answers else []
        figures = f"{len(tools)} tools, {bytes_of(tools):,} B in {len(answers)} ways"
        print(f"{'FAIL' if problems else 'ok  '} {server.name} {server.version}: {figures}", *problems, sep="\n     ")
        wrong += bool(problems)
    return wrong


def measured(server: Listed) -> tuple[list[Answered], list[str]]:
    """List the tools of a server in every way; returns the answers, and where our measurements differ from them."""
    with OtlpReceiver() as receiver:
        environment = {
            "OTEL_SERVICE_NAME": "catalogues",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRIC_EXPORT_INTERVAL": "500",
        }
        with served(server, environment) as port:
            answers = visit(port, modern="mcp == 2.3.0" in server.pins)
            expected = _expected(answers)
            found: dict[str, object] = {}

            def agrees() -> bool:
                found.update(_found(receiver))
                return found == expected

            wait_until(agrees, deadline=10, interval=0.2)
    return answers, [
        f"{what}: {_difference(found.get(what), count)}" for what, count in expected.items() if found.get(what) != count
    ]


def _difference(measured: object, on_wire: object) -> str:
    if isinstance(measured, dict) and isinstance(on_wire, dict):
        keys = {key for key in measured.keys() | on_wire.keys() if measured.get(key) != on_wire.get(key)}
        measured, on_wire = ({key: each.get(key) for key in keys} for each in (measured, on_wire))
    return f"{measured} measured, {on_wire} on the wire"


def _expected(answers: Sequence[Answered]) -> dict[str, object]:
    clients: dict[str, int] = {}
    for answer in answers:
        clients[answer.client] = clients.get(answer.client, 0) + bytes_of(definitions(answer.frame[1]))
    last = [tool for each in answers if each.client == answers[-1].client for tool in definitions(each.frame[1])]
    sizes = by_label(last)
    return {
        "bytes by client": clients,
        "listings": len(clients),
        "bytes by tool": sizes,
        "tools": float(len(set(map(name_of, last)))),
        "tools that begin at zero": dict.fromkeys(sizes.keys() - {"_OTHER"}, 0.0),
    }


def _found(receiver: OtlpReceiver) -> dict[str, object]:
    sizes = receiver.telemetry.points("otel_mcp.catalogue.size")
    tools = receiver.telemetry.points("otel_mcp.tool.definition.size")
    return {
        "bytes by client": {str(point.attributes["otel_mcp.client.name"]): int(point.sum) for point in sizes},
        "listings": sum(point.count for point in sizes),
        "bytes by tool": {str(point.attributes["gen_ai.tool.name"]): int(point.value) for point in tools},
        "tools": receiver.telemetry.latest("otel_mcp.catalogue.tools"),
        "tools that begin at zero": {
            str(point.attributes["gen_ai.tool.name"]): point.value
            for point in receiver.telemetry.points("otel_mcp.tool.calls")
        },
    }


def record(server: Listed, answers: Sequence[Answered]) -> None:
    """Keep what a server has answered, each text of JSON once, without its prose."""
    texts: list[str] = []
    entries: list[dict[str, object]] = []
    for answer in answers:
        before, text, after = answer.frame
        masked = mask(text)
        if masked not in texts:
            texts.append(masked)
        way = answer.client.replace("client", "2025-11-25", 1) if answer.client.startswith("client") else answer.client
        entry = {"way": way, "content_type": answer.content_type, "frame": (before, after)}
        entries.append({**entry, "text": texts.index(masked)})
    facts = {"package": server.package, "version": server.version, "pins": server.pins, "source": server.source}
    stored = json.dumps({**facts, "answers": entries, "texts": texts}, ensure_ascii=False, indent=1)
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{server.name}.json.gz").write_bytes(gzip.compress(stored.encode(), mtime=0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

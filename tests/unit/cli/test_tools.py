"""``otel-mcp tools``: the calls of each tool, from the documents."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.cli.conftest import NOW, Cli
from tests.unit.cli.stories import call, session, shop, write


def test_tools_are_counted_from_the_documents(cli: Cli, redis_url: str) -> None:
    made_up = session("x", [call("frob", NOW - 9, failure="unknown_tool")] * 2, began=NOW - 10)
    write(redis_url, [*shop(NOW), made_up])

    result = cli("tools", columns=80, NO_COLOR="1")

    assert result.out.splitlines() == [
        "TOOL         CALLS  WRONG  FAILED     P50     P95    BYTES  LISTED  NOTE",
        "find_orders     11      0       0  3.3 ms  3.3 ms  2.94 kB       -  -",
        "refund           3      2       0   12 ms  840 ms    670 B       -  -",
        "frob             2      2       0  3.3 ms  3.3 ms    534 B       -  no such tool",
        "ship             1      0       1   2.5 s   2.5 s     90 B       -  -",
    ]
    assert cli("tools", "--sort-by", "p95", "-o", "name").out.split()[0] == "ship"
    assert [row[0] for row in cli("tools", "--since", "5m").rows] == ["find_orders", "frob"]
    assert json.loads(cli("tools", "-o", "json", "--sort-by", "bytes").out)["tools"][0] == {
        "tool": "find_orders",
        "calls": 11,
        "wrong": 0,
        "failed": 0,
        "p50": 0.0033,
        "p95": 0.0033,
        "bytes": 2937,
        "definition": None,
        "made_up": False,
    }


def test_listed_tools_have_the_size_of_their_definitions_whether_called_or_not(
    cli: Cli, redis_url: str, redis: Any
) -> None:
    write(redis_url, shop(NOW))
    listed = {0: {"refund": 1200, "unused": 3400}, 3600: {"refund": 90, "of_another_user": 5}, 7300: {"removed": 7}}
    for before, tools in listed.items():
        summary = {"tools": {name: ["hash", size] for name, size in tools.items()}}
        redis.hset("otel_mcp:shop:catalogues", before, f"{(NOW - before) * 1e6:.0f} {json.dumps(summary)}")
    redis.hset("otel_mcp:shop:catalogues", "foreign", "not of ours")

    found = {row[0]: (row[1], row[7], row[8]) for row in cli("tools", "--service", "shop").rows}

    assert found == {
        "find_orders": ("11", "-", "-"),
        "refund": ("3", "1200", "-"),
        "ship": ("1", "-", "-"),
        "of_another_user": ("0", "5", "not called in these"),
        "unused": ("0", "3400", "not called in these"),
    }
    dearest = cli("tools", "--service", "shop", "--sort-by", "listed", "-o", "name").out.split()
    assert dearest == ["unused", "refund", "of_another_user", "find_orders", "ship"]


def test_tools_of_ended_sessions_are_counted_where_they_are_asked_for(cli: Cli, redis_url: str) -> None:
    ended = session("gone", [call("sum", NOW - 9)], began=NOW - 10, ended=(NOW - 5, "client_delete"))
    write(redis_url, [*shop(NOW), ended])

    live, every = cli("tools"), cli("tools", "--all")

    assert "sum" not in live.out
    assert live.err == (
        "the newest calls of 3 of 3 live sessions; ended ones are left out: --all; the dashboards have all calls\n"
    )
    assert ["sum", "1"] in [row[:2] for row in every.rows]
    assert every.err.startswith("the newest calls of 4 sessions, including those that ended in the last ten minutes;")

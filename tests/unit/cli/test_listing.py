"""``otel-mcp sessions`` as it is read: on a terminal, in a pipe, by programs; over hostile and over odd documents."""

from __future__ import annotations

import json
import re
import threading
from datetime import datetime
from typing import Any

import pytest
from redis import Redis

from tests.unit.cli.conftest import NOW, Cli
from tests.unit.cli.stories import LONG_ID, call, session, shop, write


def put(redis: Any, service: str = "shop", **document: Any) -> None:
    """A document as another version may write it, newest of all, and in the index."""
    name = document["session_id"]
    redis.set(f"mcp_session:{name}", json.dumps({"service": service, **document}))
    redis.zadd(f"otel_mcp:{service}:deadlines", {name: NOW + 3600})


@pytest.fixture
def sessions(redis_url: str) -> None:
    write(redis_url, shop(NOW))


@pytest.mark.usefixtures("sessions")
def test_a_pipe_gets_whole_values_between_tabs(cli: Cli) -> None:
    result = cli("sessions")

    assert result == (
        0,
        "c_7f3ab2\tclaude-code 2.1.266\t91c2d0f3\t840\t14\t10\t0\t0\tfind_orders\tlive\t-\n"
        f"{LONG_ID}\tglama\t-\t40\t40\t0\t0\t0\t-\tlive\t-\n"
        "om1.uUrTOZUz\tcursor 3.4\t-\t7200\t687\t5\t2\t1\tship\tlive\t-\n",
        "3 of 3 live\n",
    )


@pytest.mark.usefixtures("sessions")
def test_a_wide_terminal_shows_every_column(cli: Cli) -> None:
    result = cli("sessions", "ls", columns=140, NO_COLOR="1")

    assert result.out.splitlines() == [
        "SESSION                               CLIENT               CALLER    AGE  IDLE  CALLS  WRONG  FAILED  "
        "LAST TOOL    OUTCOME",
        "c_7f3ab2                              claude-code 2.1.266  91c2d0f3  14m  14s      10      0       0  "
        "find_orders  live",
        f"{LONG_ID}  glama                -         40s  40s       0      0       0  -            live",
        "om1.uUrTOZUz                          cursor 3.4           -         2h   11m       5      2       1  "
        "ship         live",
    ]


@pytest.mark.usefixtures("sessions")
def test_at_eighty_columns_ids_stay_whole_and_other_columns_give_way(cli: Cli) -> None:
    result = cli("sessions", columns=80, NO_COLOR="1")

    assert result.out.splitlines() == [
        "SESSION                               CLIENT       CALLS  WRONG  FAILED  OUTCOME",
        "c_7f3ab2                              claude-cod…     10      0       0  live",
        f"{LONG_ID}  glama            0      0       0  live",
        "om1.uUrTOZUz                          cursor 3.4       5      2       1  live",
    ]


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize(
    ("columns", "arguments", "environment", "is_colored"),
    [
        (80, [], {}, True),
        (80, [], {"NO_COLOR": "1"}, False),
        (80, [], {"TERM": "dumb"}, False),
        (80, ["--color", "never"], {}, False),
        (80, ["--color", "always"], {"NO_COLOR": "1"}, True),
        (None, [], {}, False),
        (None, ["--color", "always", "-o", "table"], {}, True),
    ],
)
@pytest.mark.parametrize("is_first", [False, True])
def test_colors_are_for_terminals_unless_asked_otherwise(
    columns: int | None,
    arguments: list[str],
    environment: dict[str, str],
    is_colored: bool,
    is_first: bool,
    cli: Cli,
) -> None:
    before, after = (arguments[:2], arguments[2:]) if is_first else ([], arguments)

    assert ("\x1b[" in cli(*before, "sessions", *after, columns=columns, **environment).out) == is_colored


@pytest.mark.usefixtures("sessions")
def test_header_and_names(cli: Cli) -> None:
    header, _, table = cli("sessions", "-o", "table").out.partition("\n")
    assert header.startswith("SESSION")
    assert table.split() == cli("sessions", "-o", "table", "--no-headers").out.split()
    assert cli("sessions", "-o", "name").out.split() == ["c_7f3ab2", LONG_ID, "om1.uUrTOZUz"]
    assert [row[1] for row in cli("sessions", "-o", "wide").rows] == ["shop"] * 3


@pytest.mark.usefixtures("sessions")
def test_programs_get_a_versioned_schema(cli: Cli) -> None:
    listed = json.loads(cli("sessions", "-o", "json").out)
    lines = [json.loads(line) for line in cli("sessions", "-o", "jsonl").out.splitlines()]

    assert (listed["schema"], listed["live"]) == ("otel-mcp/sessions/1", 3)
    assert lines == [{"schema": "otel-mcp/session/1", **each} for each in listed["sessions"]]
    last = dict(listed["sessions"][2])
    assert last.pop("created_at").endswith("Z")
    assert last.pop("last_activity").endswith("Z")
    assert last == {
        "session_id": "om1.uUrTOZUz",
        "service": "shop",
        "client_name": "cursor",
        "client_version": "3.4",
        "user_agent": None,
        "caller": None,
        "calls": 5,
        "calls_kept": 5,
        "wrong": 2,
        "failed": 1,
        "last_tool": "ship",
        "outcome": "live",
        "findings": [],
        "interrupted": None,
        "ended": None,
        "protocol_version": "2025-11-25",
        "source": "header",
        "conversation_id": None,
        "previous_id": "om1.before",
        "synthetic_type": None,
        "tenant": None,
        "errors": 3,
        "requests": 7,
    }


@pytest.mark.usefixtures("sessions")
@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--client", "CLAUDE"], ["c_7f3ab2"]),
        (["--tool", "refund"], ["om1.uUrTOZUz"]),
        (["--since", "5m"], ["c_7f3ab2", LONG_ID]),
        (["--limit", "1"], ["c_7f3ab2"]),
        (["--limit", "1", "--client", "cursor"], ["om1.uUrTOZUz"]),
        (["--outcome", "live", "--tool", "ship"], ["om1.uUrTOZUz"]),
        (["--sort-by", "age"], ["om1.uUrTOZUz", "c_7f3ab2", LONG_ID]),
        (["--sort-by", "failed", "-n", "1"], ["om1.uUrTOZUz"]),
        (["--sort-by", "client"], ["c_7f3ab2", "om1.uUrTOZUz", LONG_ID]),
        (["--service", "nosuch"], []),
    ],
)
def test_what_is_asked_for_is_found(arguments: list[str], found: list[str], cli: Cli) -> None:
    assert cli("sessions", "-o", "name", *arguments).out.split() == found


def test_sessions_of_a_tenant_are_found_and_say_so(cli: Cli, redis_url: str) -> None:
    write(redis_url, [*shop(NOW), *(session(name, [], began=NOW - 9, tenant=name) for name in ("acme", "acme2"))])

    assert cli("sessions", "-o", "name", "--tenant", "acme").out.split() == ["acme"]
    assert "acme2" in cli("sessions", "-o", "wide", "--tenant", "acme2").out.replace("acme2", "", 1)
    assert ["tenant", "acme2"] in cli("show", "acme2", "-o", "tsv").rows


def test_ended_sessions_are_found_where_they_are_asked_for(cli: Cli, redis_url: str) -> None:
    ended = session("gone", [call("add", NOW - 9)], began=NOW - 10, ended=(NOW - 5, "client_delete"))
    write(redis_url, [*shop(NOW), ended])
    # As the sweep leaves it.
    other = cli("sessions", "--outcome", "client_delete", "-o", "name")

    assert other.out.split() == ["gone"]
    assert "gone" in cli("sessions", "--all", "-o", "name").out.split()


def test_no_more_sessions_are_listed_than_are_live(cli: Cli, redis_url: str) -> None:
    claimed = session("gone", [call("add", NOW - 9)], began=NOW - 10, ended=(NOW - 5, "client_delete"))
    write(redis_url, [*shop(NOW), claimed, session("due", [], began=NOW - 4000)])

    listed = cli("sessions")

    assert (len(listed.rows), listed.err) == (3, "3 of 3 live\n")


@pytest.mark.usefixtures("sessions")
def test_probes_stand_apart_by_name_and_by_how_they_went(cli: Cli, redis: Any) -> None:
    put(redis, session_id="watcher", client_name="yellowmcp-health", outcome="probe")
    put(redis, session_id="registry", client_name="glama", synthetic_type="bot")

    hidden = cli("sessions", "-o", "name")
    assert hidden.out.split() == ["c_7f3ab2", LONG_ID, "om1.uUrTOZUz"]
    assert hidden.err == "3 of 5 live, 2 probes hidden: --probes\n"
    assert {"watcher", "registry"} <= set(cli("sessions", "-o", "name", "--probes").out.split())
    assert cli("sessions", "-o", "name", "--outcome", "probe").out.split() == ["watcher"]


@pytest.mark.usefixtures("sessions")
def test_findings_stand_behind_live_until_an_outcome_is_decided(cli: Cli, redis: Any) -> None:
    now = "2026-11-30T00:00:00Z"
    put(redis, session_id="circling", last_activity=now, findings=["looped", "ping_pong"])
    put(redis, session_id="over", last_activity=now, findings=["looped"], outcome="corrected")
    put(redis, session_id="left", last_activity=now, outcome="gave_up", ended={"at": now, "reason": "expired"})
    put(redis, session_id="before", last_activity="2026-11-29T22:00:00Z", findings=["retry_storm"])
    at = datetime.fromisoformat(now).timestamp() + 90

    shown = cli("sessions", "-o", "table", columns=140, at=at, NO_COLOR="1")
    assert {line.split()[0]: re.split(r"  +", line)[-1] for line in shown.out.splitlines()[1:]} == {
        "circling": "live, looped, ping_pong",
        "over": "corrected, looped",
        "left": "gave_up",
        "before": "live, retry_storm",
        **dict.fromkeys(("c_7f3ab2", LONG_ID, "om1.uUrTOZUz"), "live"),
    }
    assert shown.err == "7 of 7 live, 3 struggled in the last hour\n"
    assert "\x1b[33mlive, looped, ping_pong\x1b[0m" in cli("sessions", columns=140, at=at).out
    assert ["live", "looped, ping_pong"] in [row[-2:] for row in cli("sessions").rows]
    narrow = cli("sessions", columns=70, at=at, NO_COLOR="1").out.splitlines()
    assert {line.split()[0]: re.split(r"  +", line)[-1] for line in narrow[1:]} == {
        **{"circling": "looped, pi…", "over": "looped", "left": "gave_up", "before": "retry_storm"},
        **dict.fromkeys(("c_7f3ab2", LONG_ID, "om1.uUrTOZUz"), "live"),
    }
    found = {outcome: set(cli("sessions", "-o", "name", "--outcome", outcome).out.split()) for outcome in OUTCOMES}
    assert found == OUTCOMES


def test_cut_sessions_and_ends_that_wait_for_their_report_are_marked(cli: Cli, redis: Any) -> None:
    cut = {"at": "2026-11-30T00:00:00Z", "cause": "restart"}
    later = [{"tool_name": "add", "started_at": "2026-11-30T00:00:09Z"}]
    put(redis, session_id="cut", interrupted=cut)
    put(redis, session_id="back", interrupted=cut, tool_calls=later)
    put(redis, session_id="lost", interrupted=cut, outcome="worked", ended={"reason": "expired"})
    put(redis, session_id="another", interrupted=cut, outcome="worked", ended={"reason": "replaced"})
    put(redis, session_id="waiting", ended={"reason": "client_delete"})

    shown = cli("sessions", columns=140, NO_COLOR="1").out.splitlines()[1:]

    assert {line.split()[0]: re.split(r"  +", line)[-1] for line in shown} == {
        "cut": "live, cut",
        "back": "live",
        "lost": "worked, cut",
        "another": "worked",
        "waiting": "-",
    }
    assert set(cli("sessions", "-o", "name", "--outcome", "cut").out.split()) == {"cut", "lost"}


def test_an_outcome_that_is_none_is_refused_with_the_list(cli: Cli) -> None:
    refused = cli("sessions", "--outcome", "nonsense")

    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("otel-mcp: nonsense is not an outcome\n  one of live, cut, worked, ")
    assert cli("sessions", "--outcome", "gave_up").err.startswith("0 found, ended sessions are kept for ten minutes\n")


OUTCOMES = {
    "looped": {"circling", "over"},
    "ping_pong": {"circling"},
    "corrected": {"over"},
    "gave_up": {"left"},
    "expired": {"left"},
    "retry_storm": {"before"},
    "live": {"circling", "before", "c_7f3ab2", LONG_ID, "om1.uUrTOZUz"},
}


def test_services_by_environment_by_pattern_and_where_none_is_named(cli: Cli, redis_url: str) -> None:
    for service in ("shop", "shop-eu", "bank"):
        write(redis_url, [session(f"of-{service}", [], began=NOW - 10)], service)

    def names(*arguments: str, **environment: str) -> set[str]:
        return set(cli("sessions", "-o", "name", *arguments, **environment).out.split())

    assert names() == {"of-shop"}
    assert names("--service", "bank") == {"of-bank"}
    assert names("--service", "shop*") == {"of-shop", "of-shop-eu"}
    assert names("--service", "*") == {"of-shop", "of-shop-eu", "of-bank"}
    assert names(OTEL_SERVICE_NAME="") == {"of-shop", "of-shop-eu", "of-bank"}
    none = cli("sessions", OTEL_SERVICE_NAME="else").err
    assert "left out: --all" in none
    assert "--service '*'" in none
    assert "--all" not in cli("sessions", "--all", OTEL_SERVICE_NAME="else").err


def test_a_prefix_is_part_of_every_key(cli: Cli, redis_url: str) -> None:
    write(redis_url, shop(NOW), redis_prefix="prod:")

    assert cli("sessions", "-o", "name").out == ""
    with_prefix = cli("sessions", OTEL_PYTHON_MCP_REDIS_PREFIX="prod:")
    assert [row[0] for row in with_prefix.rows] == ["c_7f3ab2", LONG_ID, "om1.uUrTOZUz"]
    assert with_prefix.rows[0][2] == "91c2d0f3"


@pytest.mark.parametrize("arguments", [[], ["--client", "c"], ["--probes", "--sort-by", "wrong", "-n", "3"]])
def test_a_list_takes_five_commands_at_most(arguments: list[str], cli: Cli, redis_url: str, redis: Any) -> None:
    documents = {f"s{number:04}": {"service": "shop", "client_name": "c"} for number in range(1_900)}
    redis.mset({f"mcp_session:{name}": json.dumps({"session_id": name, **each}) for name, each in documents.items()})
    redis.zadd("otel_mcp:shop:deadlines", {name: NOW + 3600 + at for at, name in enumerate(documents)})
    seen: list[str] = []

    with redis.monitor() as monitor, Redis.from_url(redis_url) as other:

        def listen() -> None:
            for command in monitor.listen():
                if command["command"] == "ECHO over":
                    return
                if command["command"] == "PING":
                    seen.clear()
                elif command["client_type"] != "lua":
                    seen.append(command["command"].split()[0])

        listener = threading.Thread(target=listen)
        listener.start()
        other.ping()
        assert cli("sessions", *arguments).code == 0
        other.echo("over")
        listener.join(60)

    # A database other than the first one is chosen by a command of its own.
    assert 3 <= len([name for name in seen if name != "SELECT"]) <= 5, seen


HOSTILE = {
    "a color": "\x1b[31mred\x1b[0m",
    "a title": "\x1b]0;owned\x07",
    "C1": "\x9b31mred",
    "markup": "[bold red]x[/] :smile: [link=http://evil]y[/link]",
    "lines": "one\r\ntwo\tthree\x0bfour\u2028five",
    "right to left": "\u202egnp.exe\u2066\u200f\u061c",
    "unseen": "a\u200b\u00adb\ufeff\U000e0041",
    "half a pair": "\ud800x",
    "bells": "\x07\x08\x7f",
}


@pytest.mark.parametrize(
    "command", [["sessions"], ["sessions", "-o", "wide"], ["tools"], *(["show", n] for n in HOSTILE)]
)
def test_text_of_strangers_reaches_the_terminal_as_text_only(command: list[str], cli: Cli, redis: Any) -> None:
    for name, text in HOSTILE.items():
        made = {"tool_name": text, "started_at": "2026-11-30T00:00:00Z", "duration": 1, "failure": text}
        put(
            redis,
            session_id=name,
            client_name=text,
            client_version=text,
            source=text,
            protocol_version=text,
            outcome=text,
            previous_id=text,
            findings=[text, 7, None],
            interrupted={"at": "2026-11-30T00:00:00Z", "cause": text},
            attributes={"otel_mcp.advice": {text: dict.fromkeys(("cause", "change", "tool", "model"), text)}},
            tool_calls=[{**made, "service_instance_id": text}],
            ended={"reason": text},
        )

    for columns in (None, 80, 600):
        result = cli(*command, columns=columns, NO_COLOR="1")
        plain = result.out.replace("\t", "") if columns is None else result.out

        assert result.code == 0
        assert all(character.isprintable() for line in plain.split("\n") for character in line)
        assert len(plain.split("\n")) == len(plain.splitlines()) + 1
    if command[-1] not in HOSTILE or command[-1] == "markup":
        assert HOSTILE["markup"] in plain  # Markup is text, and stays so.


ODD: list[dict[str, Any]] = [
    {"ended": {"at": "2026-11-30T00:00:00Z", "reason": "swallowed_by_a_whale"}},
    {"outcome": "enlightened", "tool_calls": [{"tool_name": "x", "failure": "cosmic", "new_field": {"a": [1]}}]},
    {"tool_calls": "none", "tool_call_count": "many", "created_at": 7, "last_activity": "yesterday"},
    {"tool_calls": [None, 7, {"tool_name": 3}, {"tool_name": "x", "duration": "long", "result_bytes": -1}]},
    {"client_name": ["a"], "ended": "yes", "source": None, "tool_call_count": 1e400},
    {"attributes": {"otel_mcp.advice": ["x"]}},
    {"attributes": [], "findings": "looped", "interrupted": "yes", "outcome": ["worked"], "synthetic_type": 7},
    {"interrupted": {"at": "soon", "cause": 3}, "findings": {"looped": 1}},
    {"interrupted": {"at": "2026-11-30T00:00:00Z", "cause": ["x"]}, "created_at": "2026-11-30T00:01:00Z"},
    {"created_at": "9999-12-31T23:59:59Z", "tool_calls": [{"tool_name": "x", "started_at": "0001-01-01T00:00:00"}]},
]


@pytest.mark.parametrize(
    "command", ["sessions", "sessions -o json", "tools", *(f"show odd-{n}" for n in range(len(ODD)))]
)
def test_documents_of_other_versions_are_shown_as_far_as_possible(command: str, cli: Cli, redis: Any) -> None:
    for number, document in enumerate(ODD):
        put(redis, session_id=f"odd-{number}", **document)

    for columns in (None, 80):
        result = cli(*command.split(), columns=columns)
        assert result.code == 0
        assert result.out.count("odd-") >= {"sess": len(ODD), "show": 1, "tool": 0}[command[:4]]


def test_what_is_no_document_is_left_out(cli: Cli, redis: Any) -> None:
    put(redis, session_id="good")
    for name, value in {"a": "no json", "b": "[]", "c": "{}", "d": "[" * 100_000, "e": b"\xff"}.items():
        put(redis, session_id=name)
        redis.set(f"mcp_session:{name}", value)
    redis.delete("mcp_session:f")
    redis.zadd("otel_mcp:shop:deadlines", {"gone": NOW + 5, b"\xff\xfe": NOW + 6})

    assert cli("sessions", "-o", "name").out.split() == ["good"]
    assert cli("sessions", "-o", "name", "--all").out.split() == ["good"]


def test_failures_of_calls_are_counted_by_whose_fault_they_are(cli: Cli, redis_url: str) -> None:
    kinds = ["unknown_tool", "invalid_arguments", "tool", "exception", "cancelled", "refused", None]
    calls = [call("t", NOW - 20 + number, failure=kind) for number, kind in enumerate(kinds)]
    write(redis_url, [session("s", calls, began=NOW - 30)])

    assert cli("sessions").rows[0][5:8] == ["7", "2", "2"]


def test_keys_of_others_under_our_names_are_passed_over(cli: Cli, redis: Any) -> None:
    put(redis, session_id="ours")
    redis.hset("mcp_session:theirs", "field", "value")
    redis.set("otel_mcp:theirs:deadlines", "value")

    for arguments in (["--all"], ["--service", "*"], ["--service", "*", "--all"]):
        assert cli("sessions", "-o", "name", *arguments)[:2] == (0, "ours\n")

"""Ten stories, each read from ``otel-mcp show`` alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from otel_mcp.model.state import SessionState
from otel_mcp.model.task import Task
from otel_mcp.model.verdict import find, judge
from tests.unit.cli.conftest import Cli
from tests.unit.cli.test_listing import put

BEGAN = 1_790_000_000.0
"""2026-09-21 14:13:20 UTC."""


def moment(at: float) -> str:
    """Instant so many seconds after the beginning, as a document has it."""
    return datetime.fromtimestamp(BEGAN + at, UTC).isoformat()


def call(at: float, tool: str, digest: str, failure: str | None = None, replica: str = "shop-1") -> dict[str, Any]:
    """One call as a document has it."""
    known = {"tool_name": tool, "started_at": moment(at), "duration": 0.012, "result_bytes": 180}
    return {**known, "arguments_digest": digest, "failure": failure, "service_instance_id": replica}


def tell(redis: Any, session_id: str, calls: list[dict[str, Any]], **known: Any) -> None:
    """Write the document of one session; `last` and `ended` in seconds after the beginning."""
    last = known.pop("last", None)
    if ended := known.pop("ended", None):
        known["ended"] = {"at": moment(ended[0]), "reason": ended[1]}
    document: dict[str, Any] = {
        "client_name": "cursor",
        "client_version": "3.4",
        "source": "header",
        "created_at": moment(0.0),
        "last_activity": calls[-1]["started_at"] if last is None else moment(last),
        "tool_call_count": len(calls),
        "tool_calls": calls,
        **known,
    }
    put(redis, session_id=session_id, **document)


def cut(at: float, cause: str) -> dict[str, str]:
    return {"at": moment(at), "cause": cause}


def worked(redis: Any) -> None:
    tell(redis, "s", [call(1, "search", "a"), call(3, "order", "b")], outcome="worked", ended=(9, "client_delete"))


def went_on_as_tasks(redis: Any) -> None:
    """Redis knows all but the first: one that has ended, one that runs, one whose beginning is still to come."""
    begun = [
        {**call(at, "build", "abcd"[at - 1]), "task": f"{at:016x}", "trace_id": f"{at:032x}", "span_id": f"{at:016x}"}
        for at in (1, 2, 3, 4)
    ]
    tell(redis, "s", begun, outcome="worked", ended=(9, "client_delete"))
    known = {
        2: Task(9.0, 1.0, "completed", 124.2, fetched=True, batch="b", tool="build"),
        3: Task(9.0, 1.0, tool="build"),
    }
    for at, task in known.items():
        redis.hset("otel_mcp:shop:tasks", f"{at:016x}", task._replace(link=f"{at:032x}-{at:016x}").text())
    redis.hset("otel_mcp:shop:tasks", f"{4:016x}", Task(9.0, status="failed", ended=5.0).text())
    redis.hset("otel_mcp:shop:tasks", "other", "text that is not ours")


def corrected(redis: Any) -> None:
    calls = [call(1, "refund", "a", "invalid_arguments"), call(4, "refund", "b")]
    tell(redis, "s", calls, outcome="corrected", ended=(9, "client_delete"))


def looped_and_goes_on(redis: Any) -> None:
    tell(redis, "s", [call(at, "search", "a") for at in (1, 2, 3, 4)], findings=["looped"])


def asked_for_approval(redis: Any) -> None:
    answered = {**call(1, "refund", "a"), "duration": 0.041, "rounds": 3, "input_wait": 129.9}
    tell(redis, "s", [answered, call(150, "list", "b"), {**call(152, "refund", "c"), "waiting": "d" * 16}])


def stormed(redis: Any) -> None:
    calls = [call(1 + at / 5, "ship", "a", "exception") for at in range(4)]
    known = {"outcome": "retry_storm", "findings": ["retry_storm"], "ended": (9, "client_delete")}
    tell(redis, "s", calls, **known)


def played_ping_pong_and_got_out(redis: Any) -> None:
    turns = [call(at, ("lock", "unlock")[at % 2], "ab"[at % 2]) for at in range(1, 7)]
    tell(
        redis, "s", [*turns, call(9, "order", "c")], outcome="ping_pong", findings=["ping_pong"], ended=(12, "expired")
    )


def gave_up(redis: Any) -> None:
    calls = [call(1, "refund", "a", "invalid_arguments"), call(3, "refund", "b", "invalid_arguments")]
    tell(redis, "s", calls, outcome="gave_up", ended=(3603, "expired"))


def only_looked(redis: Any) -> None:
    tell(redis, "s", [], last=0.5, outcome="no_call", ended=(1, "client_delete"))


def watched(redis: Any) -> None:
    known = {"client_name": "glama", "client_version": None, "synthetic_type": "bot"}
    tell(redis, "s", [], last=0.5, outcome="probe", ended=(1, "client_delete"), **known)


def came_back_as_another(redis: Any) -> None:
    known = {"interrupted": cut(60, "restart"), "outcome": "worked", "ended": (65, "replaced")}
    tell(redis, "before", [call(1, "search", "a")], last=30, **known)
    tell(redis, "next", [call(66, "order", "b")], created_at=moment(65), previous_id="before")


def met_a_replica_that_did_not_know_it(redis: Any) -> None:
    calls = [call(1, "search", "a"), call(15, "order", "b", replica="shop-2"), call(20, "order", "c")]
    tell(redis, "s", calls, interrupted=cut(12, "replica"))


def was_lost(redis: Any) -> None:
    known = {"interrupted": cut(1900, "idle_reaper"), "outcome": "worked", "ended": (3601, "expired")}
    tell(redis, "s", [call(1, "search", "a")], **known)


STORIES = [
    (
        worked,
        "s",
        """\
cursor 3.4 · header · worked, ended 1h ago: client_delete
session s of shop · began 2026-09-21 14:13:20 UTC
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  search  ok      12 ms  180 B
+3.0 s  order   ok      12 ms  180 B
360 B given to the model, about 90 tokens (bytes / 4)
""",
    ),
    (
        went_on_as_tasks,
        "s",
        """\
cursor 3.4 · header · worked, ended 1h ago: client_delete
session s of shop · began 2026-09-21 14:13:20 UTC
    AT  TOOL   RESULT   TOOK   SIZE
+1.0 s  build  ok      12 ms  180 B  went on as a task
+2.0 s  build  ok      12 ms  180 B  task completed after 2 min 3 s
+3.0 s  build  ok      12 ms  180 B  went on as a task, working
+4.0 s  build  ok      12 ms  180 B  went on as a task
720 B given to the model, about 180 tokens (bytes / 4)
""",
    ),
    (
        corrected,
        "s",
        """\
cursor 3.4 · header · corrected, ended 1h ago: client_delete
session s of shop · began 2026-09-21 14:13:20 UTC
corrected: a call went wrong or failed, and the same tool worked later
the caller's fault: refund (invalid_arguments)
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  refund  wrong   12 ms  180 B  invalid_arguments
+4.0 s  refund  ok      12 ms  180 B  corrected after 1
wrong: the caller's fault; failed: the server's
360 B given to the model, about 90 tokens (bytes / 4)
""",
    ),
    (
        looped_and_goes_on,
        "s",
        """\
cursor 3.4 · header · live, looped, idle 1h
session s of shop · began 2026-09-21 14:13:20 UTC
looped (search, 4 calls): the same call with the same arguments, again and again
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  search  ok      12 ms  180 B
+2.0 s  search  ok      12 ms  180 B  the same arguments again
+3.0 s  search  ok      12 ms  180 B  the same arguments, 3 times
+4.0 s  search  ok      12 ms  180 B  the same arguments, 4 times
720 B given to the model, about 180 tokens (bytes / 4)
""",
    ),
    (
        asked_for_approval,
        "s",
        """\
cursor 3.4 · header · live, idle 1h
session s of shop · began 2026-09-21 14:13:20 UTC
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  refund  ok      41 ms  180 B  3 rounds, 2 min 10 s waiting for input
                                      41 ms ours
+2m30s  list    ok      12 ms  180 B
+2m32s  refund  ok      12 ms  180 B  waits for input
540 B given to the model, about 135 tokens (bytes / 4)
""",
    ),
    (
        stormed,
        "s",
        """\
cursor 3.4 · header · retry_storm, ended 1h ago: client_delete
session s of shop · began 2026-09-21 14:13:20 UTC
retry_storm (ship, 4 calls): a call that failed was repeated, again and again
the server's fault: ship (exception)
    AT  TOOL  RESULT   TOOK   SIZE
+1.0 s  ship  failed  12 ms  180 B  tool raised
+1.2 s  ship  failed  12 ms  180 B  tool raised, the same arguments again
+1.4 s  ship  failed  12 ms  180 B  tool raised, the same arguments, 3 times
+1.6 s  ship  failed  12 ms  180 B  tool raised, the same arguments, 4 times
wrong: the caller's fault; failed: the server's
720 B given to the model, about 180 tokens (bytes / 4)
""",
    ),
    (
        played_ping_pong_and_got_out,
        "s",
        """\
cursor 3.4 · header · ping_pong, ended 1h ago: expired
session s of shop · began 2026-09-21 14:13:20 UTC
ping_pong (unlock, 6 calls): two calls in turn, again and again
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  unlock  ok      12 ms  180 B
+2.0 s  lock    ok      12 ms  180 B
+3.0 s  unlock  ok      12 ms  180 B  the same arguments again
+4.0 s  lock    ok      12 ms  180 B  the same arguments again
+5.0 s  unlock  ok      12 ms  180 B  the same arguments, 3 times
+6.0 s  lock    ok      12 ms  180 B  the same arguments, 3 times
+9.0 s  order   ok      12 ms  180 B
1.26 kB given to the model, about 315 tokens (bytes / 4)
""",
    ),
    (
        gave_up,
        "s",
        """\
cursor 3.4 · header · gave_up, ended 59m ago: expired
session s of shop · began 2026-09-21 14:13:20 UTC
gave_up: the last calls went wrong or failed, and nothing came after them
the caller's fault: refund (invalid_arguments)
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  refund  wrong   12 ms  180 B  invalid_arguments
+3.0 s  refund  wrong   12 ms  180 B  invalid_arguments
wrong: the caller's fault; failed: the server's
360 B given to the model, about 90 tokens (bytes / 4)
""",
    ),
    (
        only_looked,
        "s",
        """\
cursor 3.4 · header · no_call, ended 1h ago: client_delete
session s of shop · began 2026-09-21 14:13:20 UTC
no tool was called
""",
    ),
    (
        watched,
        "s",
        """\
glama · probe (bot) · header · probe, ended 1h ago: client_delete
session s of shop · began 2026-09-21 14:13:20 UTC
probe: a monitor or a registry that checks whether the server is there
no tool was called
""",
    ),
    (
        came_back_as_another,
        "before",
        """\
cursor 3.4 · header · worked, ended 1h ago: replaced
session before of shop · began 2026-09-21 14:13:20 UTC · goes on as next
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  search  ok      12 ms  180 B
-- cut at +60.0 s by a restart, came back after 5.0 s as next --
180 B given to the model, about 45 tokens (bytes / 4)
""",
    ),
    (
        came_back_as_another,
        "next",
        """\
cursor 3.4 · header · live, idle 1h
session next of shop · began 2026-09-21 14:14:25 UTC
continues before, cut 5.0 s before by a restart
    AT  TOOL   RESULT   TOOK   SIZE
+1.0 s  order  ok      12 ms  180 B
180 B given to the model, about 45 tokens (bytes / 4)
""",
    ),
    (
        met_a_replica_that_did_not_know_it,
        "s",
        """\
cursor 3.4 · header · live, idle 1h
session s of shop · began 2026-09-21 14:13:20 UTC
     AT  TOOL    RESULT   TOOK   SIZE
-- on replica shop-1 --
 +1.0 s  search  ok      12 ms  180 B
-- cut at +12.0 s by a replica that did not know it, back after 3.0 s --
-- on replica shop-2 --
+15.0 s  order   ok      12 ms  180 B
-- on replica shop-1 --
+20.0 s  order   ok      12 ms  180 B
540 B given to the model, about 135 tokens (bytes / 4)
""",
    ),
    (
        was_lost,
        "s",
        """\
cursor 3.4 · header · worked, cut, ended 59m ago: expired
session s of shop · began 2026-09-21 14:13:20 UTC
    AT  TOOL    RESULT   TOOK   SIZE
+1.0 s  search  ok      12 ms  180 B
-- cut at +31m40s by its server, which closes idle sessions, and lost --
180 B given to the model, about 45 tokens (bytes / 4)
""",
    ),
]


@pytest.mark.parametrize(
    ("story", "session_id", "shown"), STORIES, ids=[f"{each[0].__name__}-{each[1]}" for each in STORIES]
)
def test_a_story_reads_right_from_show_alone(
    story: Callable[[Any], None], session_id: str, shown: str, cli: Cli, redis: Any
) -> None:
    story(redis)

    assert cli("show", session_id, columns=80, at=BEGAN + 7200, NO_COLOR="1").out == shown


@pytest.mark.parametrize("story", dict.fromkeys(each[0] for each in STORIES))
def test_a_story_went_as_its_calls_say(story: Callable[[Any], None], redis: Any) -> None:
    story(redis)

    for name in redis.scan_iter("mcp_session:*"):
        known = SessionState.model_validate_json(redis.get(name))
        document = json.loads(redis.get(name))
        found, probe = [each.name for each in find(known.tool_calls)], document.get("synthetic_type") is not None
        outcome = judge(known.tool_calls, known.tool_call_count, findings=found, probe=probe)
        assert document.get("outcome", outcome) == outcome
        assert document.get("findings", []) == found


ADVICE = {
    "cause": "the list is empty and does not say why, so the model asks again",
    "change": "answer that there are no orders, and how to create one",
    "tool": "search",
    "confidence": "medium",
    "model": "qwen3:8b",
    "at": "2026-09-21T14:13:30+00:00",
}


def test_what_a_model_said_of_a_session_stands_in_its_story(cli: Cli, redis: Any) -> None:
    calls = [call(at, "search", "a") for at in (1, 2, 3, 4)]
    noted = {"looped": ADVICE, "gave_up": "no object", "odd": {"cause": 3}}
    tell(redis, "s", calls, findings=["looped"], attributes={"otel_mcp.advice": noted})

    shown = cli("show", "s", columns=80, at=BEGAN + 90, NO_COLOR="1").out.splitlines()
    assert shown[2:7] == [
        "looped (search, 4 calls): the same call with the same arguments, again and again",
        "looped, says qwen3:8b, medium: the list is empty and does not say why, so the",
        "  model asks again",
        "change search: answer that there are no orders, and how to create one",
        "    AT  TOOL    RESULT   TOOK   SIZE",
    ]
    known = {name: value for name, value in ADVICE.items() if name != "at"}
    assert json.loads(cli("show", "s", "-o", "json").out)["advice"] == [{"problem": "looped", **known}]
    for form in ("tsv", "md", "html"):
        written = cli("show", "s", "-o", form).out
        assert ADVICE["cause"] in written.replace("\n", " ")
        assert ADVICE["change"] in written


def test_forms_for_tickets_and_pages_say_what_a_terminal_does(cli: Cli, redis: Any) -> None:
    calls = [call(at, tool, "a", failure) for at, (tool, failure) in enumerate(FAILING)]
    tell(redis, "s", calls, findings=["looped"], outcome="gave_up")

    head = cli("show", "s", columns=200, NO_COLOR="1").out.splitlines()
    ticket, page, facts = (cli("show", "s", "-o", form).out for form in ("md", "html", "tsv"))

    # Four tools of the server, of which three are named; the calls that came before one worked are another matter.
    meaning = [
        "gave_up: the last calls went wrong or failed, and nothing came after them",
        "the caller's fault: frob (unknown_tool)",
        "the server's fault: a (tool), b (exception), c (tool), …",
    ]
    assert head[2:5] == meaning
    assert all(f"`{text}`" in ticket for text in meaning)
    assert "\n\nwrong: the caller's fault; failed: the server's\n\n" in ticket
    assert "gave_up, looped" in head[0]
    assert "outcome\tgave_up, looped\n" in facts
    assert "outcome: gave_up, looped" in page
    assert "outcome: `gave_up, looped`" in ticket


FAILING = [
    ("early", "exception"),
    ("early", None),
    ("a", "tool"),
    ("frob", "unknown_tool"),
    ("b", "exception"),
    ("c", "tool"),
    ("d", "tool"),
]

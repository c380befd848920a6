"""``otel-mcp show``: the story of one session, found by the beginning of its id, in each form."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.unit.cli.conftest import NOW, Cli
from tests.unit.cli.stories import LONG_ID, call, session, shop, write
from tests.unit.cli.test_listing import HOSTILE, put

BEGAN = 1_790_000_000.0
"""2026-09-21 14:13:20 UTC."""


def refund() -> Any:
    """A session that tries three times, is silent for long, and repeats itself."""
    calls = [
        call("find_orders", BEGAN + 1.2, 0.0033, 267, arguments_digest="a", trace_id="ab" * 16),
        call("refund", BEGAN + 4, 0.012, 180, arguments_digest="b", failure="invalid_arguments"),
        call("refund", BEGAN + 5.1, 0.011, 180, arguments_digest="b", failure="invalid_arguments"),
        call("refund", BEGAN + 9.7, 0.84, 112_310, arguments_digest="c"),
        call("ship", BEGAN + 7000, 130.0, None, failure="exception", error_type="TimeoutError"),
        call("refund", BEGAN + 7200, 0.9, 310, arguments_digest="c"),
    ]
    return session(
        "om1.story",
        calls,
        began=BEGAN,
        client_name="claude-code",
        client_version="2.1.266",
        protocol_version="2025-11-25",
        source="conversation",
        previous_id="om1.before",
        principal="91c2d0f3aa",
        opened=True,
    )


@pytest.fixture
def story(redis_url: str) -> None:
    write(redis_url, [refund()])


@pytest.mark.usefixtures("story")
def test_a_session_reads_like_a_story(cli: Cli) -> None:
    result = cli("show", "om1", columns=80, at=BEGAN + 7320.9, NO_COLOR="1")

    assert result.out.splitlines() == [
        "claude-code 2.1.266 · conversation · caller 91c2d0f3 · 2025-11-25 · live, idle 2m",
        "session om1.story of shop · began 2026-09-21 14:13:20 UTC · continues om1.before",
        "       AT  TOOL         RESULT    TOOK    SIZE",
        "   +1.2 s  find_orders  ok      3.3 ms   267 B",
        "   +4.0 s  refund       wrong    12 ms   180 B  invalid_arguments",
        "   +5.1 s  refund       wrong    11 ms   180 B  invalid_arguments",
        "                                                the same arguments again",
        "   +9.7 s  refund       ok      840 ms  112 kB  corrected after 2",
        "-- 116 min of silence --",
        "+1h56m40s  ship         failed   2 min       -  tool raised",
        "+2h00m00s  refund       ok      900 ms   310 B  the same arguments again",
        "wrong: the caller's fault; failed: the server's",
        "113 kB given to the model, about 28k tokens (bytes / 4)",
    ]


def test_context_includes_the_catalogue_and_calls_that_are_gone(cli: Cli, redis_url: str) -> None:
    known = refund()
    known.context, known.listed = 150_400, 38_200
    write(redis_url, [known], max_tool_calls=2)

    assert cli("show", "om1", columns=100, at=BEGAN + 7320.9).out.splitlines()[-1] == (
        "150 kB given to the model (catalogue 38.2 kB, answers 112 kB), about 38k tokens (bytes / 4)"
    )


@pytest.mark.usefixtures("story")
def test_a_pipe_gets_facts_and_whole_calls(cli: Cli) -> None:
    facts, _, calls = cli("show", "om1.story").out.partition("--\n")

    known = dict(line.split("\t") for line in facts.splitlines())
    assert known["session"] == "om1.story"
    assert known["client"] == "claude-code 2.1.266"
    assert known["began"] == "2026-09-21T14:13:20.000Z"
    assert (known["calls"], known["wrong"], known["failed"]) == ("6", "2", "1")
    assert (known["bytes given"], known["tokens given"]) == ("113247", "28312")
    assert calls.splitlines()[2] == (
        "5.100\trefund\twrong\t0.011000\t180\tinvalid_arguments, the same arguments again\t-\t-"
    )
    assert calls.splitlines()[4].split("\t")[-2:] == ["116 min of silence", "-"]


@pytest.mark.usefixtures("story")
def test_programs_get_a_versioned_schema(cli: Cli) -> None:
    shown = json.loads(cli("show", "om1.story", "-o", "json").out)

    assert shown["schema"] == "otel-mcp/story/1"
    assert (shown["session_id"], shown["calls"], shown["bytes_given"]) == ("om1.story", 6, 113_247)
    assert shown["tool_calls"][3] == {
        "tool": "refund",
        "started_at": "2026-09-21T14:13:29.700Z",
        "offset": 9.7,
        "duration": 0.84,
        "verdict": "ok",
        "failure": None,
        "bytes": 112_310,
        "arguments_digest": "c",
        "notes": ["corrected after 2"],
        "before": [],
        "replica": None,
        "request_id": 1,
        "rounds": 1,
        "input_wait": 0.0,
        "waiting": False,
        "trace_id": None,
        "span_id": None,
        "task": None,
        "task_status": None,
        "task_duration": None,
        "trace_url": None,
    }


PAGES = {
    "OTEL_PYTHON_MCP_JAEGER_URL": "https://jaeger.example/ui/",
    "OTEL_PYTHON_MCP_GRAFANA_URL": "https://grafana.example",
}


@pytest.mark.usefixtures("story")
def test_links_lead_to_jaeger_and_grafana(cli: Cli) -> None:
    shown = json.loads(cli("show", "om1.story", "-o", "json", **PAGES).out)

    assert shown["links"] == {
        "traces": "https://jaeger.example/ui/search?service=shop&tags=%7B%22session.id%22%3A%22om1.story%22%7D&limit=200"
        "&lookback=custom&start=1789999940000000&end=1790007260900000",
        "board": "https://grafana.example/d/otel-mcp-session?var-service=shop&var-session_id=om1.story"
        "&from=1789999940000&to=1790007260900",
    }
    assert shown["tool_calls"][0]["trace_url"] == f"https://jaeger.example/ui/trace/{'ab' * 16}"
    assert "traces: https://jaeger.example/ui/search?" in cli("show", "om1", columns=80, **PAGES).out


@pytest.mark.usefixtures("story")
def test_what_is_no_address_of_a_page_is_no_link(cli: Cli) -> None:
    shown = cli("show", "om1.story", "-o", "html", OTEL_PYTHON_MCP_JAEGER_URL="javascript:alert(1)//")

    assert shown.code == 0
    assert "javascript" not in shown.out


class Page(HTMLParser):
    """What a page holds: its tags, its text, and what it would load or run."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.text = ""
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in {"src", "href", "srcset", "style", "data", "action"} or name.startswith("on"):
                self.loads.append(f"{tag} {name}")

    def handle_data(self, data: str) -> None:
        self.text += data


PLAIN_TAGS = {"html", "head", "meta", "title", "style", "body", "pre", "code", "span", "a"}


@pytest.mark.usefixtures("story")
def test_a_page_is_whole_by_itself(cli: Cli) -> None:
    page = Page(cli("show", "om1.story", "-o", "html", **PAGES).out)

    assert page.tags == PLAIN_TAGS
    assert page.loads == []
    assert list(dict.fromkeys(link.partition("?")[0] for link in page.links)) == [
        f"https://jaeger.example/ui/trace/{'ab' * 16}",
        "https://jaeger.example/ui/search",
        "https://grafana.example/d/otel-mcp-session",
    ]
    for expected in ("om1.story", "invalid_arguments, the same arguments again", "corrected after 2", "28k tokens"):
        assert expected in page.text


SCRIPTS = {
    "script": "<script>alert(1)</script>",
    "attribute": '" onmouseover="alert(1)',
    "image": "<img src=x onerror=alert(1)>",
    "entity": "&lt;b&gt;",
    "cell": "a | b ` c `` d\n| e |",
    "link": "[x](javascript:alert(1)) ![y](http://evil/z.png) @somebody #1",
    **HOSTILE,
}


@pytest.mark.parametrize("text", SCRIPTS.values(), ids=SCRIPTS)
def test_strangers_write_text_into_pages_and_nothing_else(text: str, cli: Cli, redis: Any) -> None:
    made = {"tool_name": text, "started_at": "2026-11-30T00:00:00Z", "failure": text, "service_instance_id": text}
    put(redis, session_id="bad", client_name=text, source=text, outcome=text, previous_id=text, tool_calls=[made])

    page = Page(cli("show", "bad", "-o", "html").out)
    assert page.tags <= PLAIN_TAGS
    assert page.loads == []
    assert page.links == []

    shown = cli("show", "bad", "-o", "md").out
    (row,) = [line for line in shown.splitlines() if line.startswith("| +")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 7
    # Outside of code nothing of it is left.
    outside = re.sub(r"`[^`]*`", "", shown)
    assert not re.search(r"[<>@]|alert|evil|red", outside)


def test_at_eighty_columns_long_ids_stay_whole(cli: Cli, redis_url: str) -> None:
    ours = ["om1.uUrTOZUzDa1dr8aVNO_FgABrAzPz._VION33xecmT", "om1.nQ4mB0a1sRcMl3dPq7XzWgBrAyHk.h0Zk2pVbTqLw"]
    write(redis_url, [session(ours[0], [], began=BEGAN, previous_id=ours[1])])

    assert cli("show", "om1", columns=80, at=BEGAN + 9.5, NO_COLOR="1").out.splitlines() == [
        "- · live, idle 9s",
        f"session {ours[0]} of shop",
        f"began 2026-09-21 14:13:20 UTC · continues {ours[1]}"[:29],
        f"continues {ours[1]}",
        "no tool was called",
    ]


def test_the_beginning_of_an_id_suffices_where_it_is_the_only_one(cli: Cli, redis_url: str) -> None:
    others = [session(f"twin-{letter}", [], began=NOW - 9) for letter in "ab"]
    write(redis_url, [*shop(NOW), *others, session("twin", [], began=NOW - 9), session("a*c", [], began=NOW)])

    assert LONG_ID in cli("show", LONG_ID[:3]).out
    assert cli("show", "twin").out.startswith("session\ttwin\n")
    ambiguous = cli("show", "twin-")
    assert (ambiguous.code, ambiguous.out) == (1, "")
    assert re.findall(r"twin-\w", ambiguous.err) == ["twin-a", "twin-b"] or "twin-b" in ambiguous.err
    assert cli("show", "a*").out.startswith("session\ta*c\n")
    assert cli("show", "*").code == 1
    assert cli("show", "nosuch") == (
        1,
        "",
        "otel-mcp: no session nosuch\n  otel-mcp sessions lists them; ended ones are kept for ten minutes\n",
    )
    assert cli("show", "").code == 2


def test_a_braced_id_is_found_whole_and_by_its_beginning(cli: Cli, redis_url: str) -> None:
    write(redis_url, [session("a{b}c", [call("add", NOW)], began=NOW)])

    assert cli("show", "a{b}c").out.startswith("session\ta{b}c\n")
    assert cli("show", "a{b").out.startswith("session\ta{b}c\n")


def test_of_many_calls_the_story_says_that_older_ones_are_gone(cli: Cli, redis_url: str) -> None:
    write(redis_url, [session("long", [call("add", NOW - 99 + at) for at in range(80)], began=NOW - 100)])

    shown = cli("show", "long", columns=80, NO_COLOR="1").out

    assert "-- 55 earlier calls are not in the document any more --" in shown
    assert "by the newest 25 calls" in shown
    assert cli("sessions", columns=120, NO_COLOR="1").out.splitlines()[1].split()[-5:-2] == ["80", "0+", "0+"]

"""Sessions of made-up agents, monitors and people, each with the outcome that its author had in mind.

What an agent *means* to do is its label; what its calls look like follows from a seed: how long a model thinks, how
long a tool takes, what a client cancels, what runs in parallel, what the server could not see. The rules under test
are not asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from otel_mcp.model.delta import CallRecord

START = 1_790_000_000.0
"""Unix seconds at which the stories begin."""
TOOLS = ("search", "read_file", "list_dir", "query", "fetch", "create_issue", "send_mail", "run_tests", "edit_file")


@dataclass
class Story:
    """One session and what its author had in mind."""

    label: str
    kind: str
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    client: str = "claude-code"
    visits: list[float] = field(default_factory=list[float])
    """When the same client has come without calling anything, this session included; Unix seconds."""


class Agent:
    """Makes calls one after another, as a model does that reads each answer before the next."""

    def __init__(self, random: Random, story: Story) -> None:
        self.random = random
        self.story = story
        self.now = START + random.uniform(0, 3)
        self.think = random.choice((1.5, 3.0, 6.0, 9.0, 15.0))
        """Median seconds between an answer and the next call."""
        self.sees_sizes = random.random() > 0.05
        self.next_id = random.choice((0, 1, 7, 95))
        self.clocks = (0.0, random.uniform(-0.03, 0.03))
        """By how many seconds the clocks of two replicas are wrong."""

    def pause(self, seconds: float | None = None) -> None:
        """Let a model think, or wait for so many seconds."""
        self.now += self.random.lognormvariate(math.log(self.think), 0.45) if seconds is None else seconds

    def call(
        self,
        tool: str,
        arguments: str | None,
        *,
        size: int | None = None,
        failure: str | None = None,
        lasts: float | None = None,
        advance: bool = True,
    ) -> CallRecord:
        """Make one call; `arguments` stands for its digest, `size` for the bytes of its result."""
        lasts = self.random.lognormvariate(math.log(0.12), 1.0) if lasts is None else lasts
        error = {None: None, "tool": "tool_error", "exception": "-32603", "cancelled": "cancelled"}.get(failure)
        size = self.random.randint(80, 9000) if size is None else size
        known = self.sees_sizes and failure != "cancelled"
        record = CallRecord(
            tool,
            self.next_id,
            self.now + self.random.choice(self.clocks),
            lasts,
            error,
            failure,
            size + len(str(self.next_id)) if known else None,
            arguments and f"{tool}:{arguments}",
        )
        self.next_id += 1
        self.story.calls.append(record)
        if advance:
            self.now += lasts
        return record

    def fresh(self) -> str:
        """Return arguments that nobody has used."""
        return f"{self.random.getrandbits(48):x}"

    def work(self, count: int) -> None:
        """Do as many ordinary things: different calls, some in parallel, some without arguments, a few cancelled."""
        for _ in range(count):
            self.pause()
            chance = self.random.random()
            if chance < 0.12:
                for _ in range(self.random.randint(2, 5)):
                    self.now += self.random.uniform(0.0, 0.01)
                    self.call(self.random.choice(TOOLS), self.fresh(), lasts=self.random.uniform(0.3, 2), advance=False)
                self.now += 2.0
            elif chance < 0.2:
                self.call("list_projects", None, size=512)
            elif chance < 0.24:
                self.call(self.random.choice(TOOLS), self.fresh(), failure="cancelled", lasts=5.0)
                self.call("list_projects", None, size=512)
            elif chance < 0.3:  # The same twice: to be sure.
                again = self.fresh()
                for _ in range(2):
                    self.call("read_file", again, size=2048)
                    self.pause()
            else:
                self.call(self.random.choice(TOOLS), self.fresh())


def worked(agent: Agent) -> None:
    agent.work(agent.random.randint(1, 30))


def polls_with_progress(agent: Agent) -> None:
    """Ask for the state of a job, which grows."""
    job, size = agent.fresh(), 100
    agent.call("start_job", agent.fresh())
    for _ in range(agent.random.randint(4, 12)):
        agent.pause(agent.random.uniform(2, 6))
        size += agent.random.randint(3, 90)
        agent.call("job_status", job, size=size)
    agent.work(2)


def polls_by_timer(agent: Agent) -> None:
    """Ask at an even pace, while nothing changes."""
    job, period = agent.fresh(), agent.random.choice((15.0, 20.0, 30.0, 60.0, 300.0))
    for _ in range(agent.random.randint(4, 14)):
        agent.call("job_status", job, size=140, lasts=0.05)
        agent.pause(period * agent.random.uniform(0.97, 1.08))
    agent.work(agent.random.randint(0, 2))


def sleeps_and_asks(agent: Agent) -> None:
    """A model that is asked to wait between its looks at a job, in which nothing happens yet."""
    job, sleep = agent.fresh(), agent.random.choice((15.0, 20.0, 30.0))
    agent.think = min(agent.think, 6.0)
    for _ in range(agent.random.randint(3, 8)):
        agent.call("job_status", job, size=140, lasts=0.05)
        agent.pause(sleep)
        agent.pause()
    agent.call("job_status", job, size=900)


def goes_through_a_list(agent: Agent) -> None:
    """The same for each item, with answers of the same size; then page after page, without arguments."""
    for _ in range(agent.random.randint(5, 20)):
        agent.pause()
        agent.call("close_issue", agent.fresh(), size=64)
    for _ in range(agent.random.randint(0, 8)):
        agent.pause()
        agent.call("next_page", None)


def asks_now_and_then(agent: Agent) -> None:
    """A person asks the same every few minutes."""
    for _ in range(agent.random.randint(4, 9)):
        agent.call("weather", "berlin", size=310)
        agent.pause(agent.random.lognormvariate(math.log(240), 0.6) + 65)


def looks_between(agent: Agent) -> None:
    """Look at the same list between edits."""
    for _ in range(agent.random.randint(4, 10)):
        agent.call("list_dir", None, size=777)
        agent.pause()
        agent.call("edit_file", agent.fresh(), size=90)
        agent.pause()


def edits_and_tests(agent: Agent) -> None:
    """Edit differently, test the same, until it is fine."""
    for _ in range(agent.random.randint(3, 8)):
        agent.call("edit_file", agent.fresh(), size=90)
        agent.pause()
        agent.call("run_tests", "all")
        agent.pause()


def leaves_a_failure_behind(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 4))
    agent.pause()
    agent.call("send_fax", agent.fresh(), failure="exception")
    agent.work(agent.random.randint(1, 8))


def is_interrupted(agent: Agent) -> None:
    """A person cancels the last call."""
    agent.work(agent.random.randint(1, 8))
    agent.pause()
    agent.call("query", agent.fresh(), failure="cancelled", lasts=9.0)


def corrects_arguments(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 5))
    for _ in range(agent.random.randint(1, 3)):
        agent.pause()
        agent.call(
            "create_invoice", agent.fresh(), failure=agent.random.choice(("invalid_arguments", "tool")), size=120
        )
    agent.pause()
    agent.call("create_invoice", agent.fresh())
    agent.work(agent.random.randint(0, 12))


def tries_once_more(agent: Agent) -> None:
    """The same again works, since the trouble was short."""
    agent.work(agent.random.randint(0, 5))
    agent.pause()
    same = agent.fresh()
    agent.call("create_refund", same, failure="exception", lasts=2.0)
    agent.pause()
    agent.call("create_refund", same)
    agent.work(agent.random.randint(0, 6))


def comes_back_later(agent: Agent) -> None:
    """Try the same every few minutes, until the service is back."""
    same = agent.fresh()
    for _ in range(agent.random.randint(2, 4)):
        agent.call("create_refund", same, failure="exception")
        agent.pause(agent.random.uniform(90, 400))
    agent.call("create_refund", same)


def loops(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 10))
    tool, same, size = agent.random.choice(TOOLS), agent.fresh(), agent.random.randint(80, 4000)
    varies = 0.15 if agent.random.random() < 0.1 else 0.0  # The answer says how long it took.
    for turn in range(agent.random.randint(4, 14)):
        agent.pause()
        if turn and agent.random.random() < 0.04:
            agent.call(tool, same, failure="cancelled", lasts=3.0)
            agent.pause()
        differs = agent.random.random() < varies
        agent.call(tool, same, size=size + differs, lasts=agent.random.uniform(0.05, 0.4))
    agent.work(agent.random.randint(0, 8))


def loops_without_arguments(agent: Agent) -> None:
    agent.sees_sizes = True
    agent.work(agent.random.randint(0, 4))
    for _ in range(agent.random.randint(5, 10)):
        agent.pause()
        agent.call("list_tables", None, size=3210)
    agent.work(agent.random.randint(0, 3))


def loops_in_parallel(agent: Agent) -> None:
    """Repeat a whole turn of several calls."""
    turn = [(agent.random.choice(TOOLS), agent.fresh(), agent.random.randint(80, 999)) for _ in range(3)]
    for _ in range(agent.random.randint(5, 8)):
        agent.pause()
        for tool, arguments, size in turn:
            agent.now += 0.002
            agent.call(tool, arguments, size=size, lasts=agent.random.uniform(0.2, 0.9), advance=False)
        agent.now += 1.0


def retries(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 6))
    same, size = agent.fresh(), agent.random.randint(90, 300)
    agent.think = min(agent.think, 9.0)
    for _ in range(agent.random.randint(3, 9)):
        agent.pause()
        agent.call("create_refund", same, failure="exception", size=size, lasts=agent.random.choice((0.1, 2.0, 30.0)))
    if agent.random.random() < 0.4:
        agent.pause()
        agent.call("create_refund", same)
    agent.work(agent.random.randint(0, 4))


def retries_with_backoff(agent: Agent) -> None:
    same, wait = agent.fresh(), agent.random.uniform(0.5, 1.5)
    for _ in range(agent.random.randint(4, 6)):
        agent.call("charge", same, failure="exception", size=150)
        agent.pause(wait)
        wait *= 2
    agent.work(agent.random.randint(0, 4))


def guesses_arguments(agent: Agent) -> None:
    """Try one variation after the other, reading in between."""
    agent.think = min(agent.think, 9.0)
    for _ in range(agent.random.randint(5, 10)):
        agent.call("run_sql", agent.fresh(), failure=agent.random.choice(("invalid_arguments", "tool")))
        agent.pause()
        if agent.random.random() < 0.2:
            agent.call("describe_table", agent.fresh())
            agent.pause(1.0)
    if agent.random.random() < 0.5:
        agent.call("run_sql", agent.fresh())


def ping_pongs(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 8))
    pair = [(tool, agent.fresh(), agent.random.randint(80, 800)) for tool in agent.random.sample(TOOLS, 2)]
    for turn in range(agent.random.randint(6, 16)):
        agent.pause()
        tool, arguments, size = pair[turn % 2]
        agent.call(tool, arguments, size=size)
    agent.work(agent.random.randint(0, 5))


def gives_up(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 9))
    same = agent.fresh()
    for _ in range(agent.random.randint(1, 2)):
        agent.pause()
        agent.call("create_refund", same, failure=agent.random.choice(("tool", "exception", "invalid_arguments")))


def gives_up_after_variations(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 9))
    for _ in range(agent.random.randint(2, 4)):
        agent.pause()
        agent.call("run_sql", agent.fresh(), failure="invalid_arguments")


def invents_a_tool(agent: Agent) -> None:
    agent.work(agent.random.randint(0, 4))
    agent.pause()
    agent.call("get_everything", agent.fresh(), failure="unknown_tool", size=60)


def finds_the_back_end_down(agent: Agent) -> None:
    """Several in parallel fail at once, and that is it."""
    agent.work(agent.random.randint(0, 4))
    agent.pause()
    for _ in range(agent.random.randint(3, 8)):
        agent.now += 0.003
        agent.call("fetch", agent.fresh(), failure="exception", size=130, lasts=5.0, advance=False)


def is_cancelled_each_time(agent: Agent) -> None:
    for _ in range(agent.random.randint(1, 3)):
        agent.call("report", agent.fresh(), failure="cancelled", lasts=agent.random.uniform(5, 60))
        agent.pause()


def only_looks(agent: Agent) -> None:
    """A person's editor, opened or reloaded now and then, without a call."""
    agent.story.client = agent.random.choice(("cursor-vscode", "Visual Studio Code", "mcp-inspector", "claude-ai"))
    at = START
    for _ in range(agent.random.randint(1, 7)):
        agent.story.visits.append(at)
        at += agent.random.lognormvariate(math.log(1500), 1.4)


def reconnects(agent: Agent) -> None:
    """A client that is broken: back every few seconds."""
    agent.story.client = "home-made"
    agent.story.visits = [START + 5.5 * turn for turn in range(10)]


def probes_by_name(agent: Agent) -> None:
    names = ("glama", "glimind-probe", "smithery-probe", "YellowMCP-Health", "MCPScoringEngine", "mcpbeat", "new-probe")
    agent.story.client = agent.random.choice(names)
    agent.work(agent.random.choice((0, 0, 0, 2)))


def probes_by_visits(agent: Agent) -> None:
    """A monitor under a name of its own, or of an SDK."""
    agent.story.client = agent.random.choice(("mcp", "python-check", "status-page"))
    at, period = START, agent.random.choice((30.0, 60.0, 120.0, 300.0, 600.0))
    for _ in range(agent.random.randint(5, 10)):
        agent.story.visits.append(at)
        if agent.random.random() < 0.2:
            agent.story.visits.append(at + agent.random.uniform(0.1, 2))
        at += period * agent.random.uniform(0.9, 1.1)


Behaviour = Callable[[Agent], None]

KINDS: tuple[tuple[str, Behaviour, int], ...] = (
    ("worked", worked, 6),
    ("worked", polls_with_progress, 2),
    ("worked", polls_by_timer, 2),
    ("worked", sleeps_and_asks, 2),
    ("worked", goes_through_a_list, 2),
    ("worked", asks_now_and_then, 1),
    ("worked", looks_between, 1),
    ("worked", edits_and_tests, 2),
    ("worked", leaves_a_failure_behind, 2),
    ("worked", is_interrupted, 1),
    ("corrected", corrects_arguments, 4),
    ("corrected", tries_once_more, 2),
    ("corrected", comes_back_later, 1),
    ("looped", loops, 4),
    ("looped", loops_without_arguments, 1),
    ("looped", loops_in_parallel, 1),
    ("retry_storm", retries, 3),
    ("retry_storm", retries_with_backoff, 1),
    ("retry_storm", guesses_arguments, 2),
    ("ping_pong", ping_pongs, 5),
    ("gave_up", gives_up, 3),
    ("gave_up", gives_up_after_variations, 1),
    ("gave_up", invents_a_tool, 1),
    ("gave_up", finds_the_back_end_down, 1),
    ("gave_up", is_cancelled_each_time, 1),
    ("no_call", only_looks, 4),
    ("no_call", reconnects, 1),
    ("probe", probes_by_name, 3),
    ("probe", probes_by_visits, 3),
)
"""Outcome, behaviour, and how often it is among the generated."""


def tell(label: str, behaviour: Behaviour, seed: int) -> Story:
    """Make one session."""
    story = Story(label, behaviour.__name__)
    behaviour(Agent(Random(f"{behaviour.__name__} {seed}"), story))
    return story


def generated(count: int) -> list[Story]:
    """Make so many sessions, the same ones each time."""
    weighted = [(label, behaviour) for label, behaviour, weight in KINDS for _ in range(weight)]
    return [tell(*weighted[index % len(weighted)], index) for index in range(count)]


STORIES: tuple[tuple[str, Behaviour], ...] = (
    ("worked", edits_and_tests),
    ("worked", polls_by_timer),
    ("corrected", corrects_arguments),
    ("looped", loops),
    ("looped", loops_in_parallel),
    ("retry_storm", retries),
    ("retry_storm", guesses_arguments),
    ("ping_pong", ping_pongs),
    ("gave_up", gives_up_after_variations),
    ("gave_up", finds_the_back_end_down),
    ("no_call", only_looks),
    ("probe", probes_by_name),
)
"""Twelve that any window holds, told with the seed 1."""

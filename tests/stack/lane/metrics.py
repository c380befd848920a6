"""What must be true of the metrics that went through."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from typing import Final

from grafana.boards import contract
from otel_mcp import semconv as names
from tests.stack import dashboards

from . import builds, standins
from .ask import Refused
from .paths import ROOT
from .seen import VALUES, Proof, Seen, eventually

CLIENTS: Final = ("new-agent", "stuck-agent", "patient", "letter-writer")
"""One asks wrongly, the sessions of one end, one's is cut, one reads what is no tool."""
TOOLS: Final = ("charge_card", "book_courier", "take_stock")
"""One fails, one asks a person, one goes on as a task."""
RARE: Final = {
    *(contract.ERRORS.series, contract.OBSERVER_DROPPED.series, contract.TOOL_RESULT_OVERSIZED.series),
    contract.AUDIT_DROPPED.series,
}
"""Only trouble makes these."""
_INSTEAD: Final = re.compile(r" or label_replace\(vector\(0\),.*\)")
"""What a panel shows where it has nothing to show."""
# What may never be on a metric.
_IDS: Final = ("session_id", "mcp_session_id", "gen_ai_conversation_id")


def panels_have_data(seen: Seen) -> Iterator[str]:
    """Ask every query of every dashboard, with everything chosen."""
    yield from _without_data(seen, VALUES)


def panels_have_data_of_one(seen: Seen) -> Iterator[str]:
    """Ask again for one environment, tool and client: a series without the label would vanish."""
    one = VALUES | {"environment": "compose"}
    yield from _without_data(seen, *(one | {"tool": tool, "client": client} for tool in TOOLS for client in CLIENTS))


def _without_data(seen: Seen, *chosen: Mapping[str, str]) -> Iterator[str]:
    for name, dashboard in dashboards.load().items():
        for query in dashboards.queries(name, dashboard):
            if query.where.endswith("annotation Alerts"):
                continue  # Nothing fires on a good day.
            # Nothing is an hour old here.
            exprs = [query.filled(values).replace(" offset 1h", "") for values in chosen]
            try:
                if not any(_has_data(seen, expr) for expr in exprs):
                    yield f"{query.where}: no data: {exprs[0]}"
            except Refused as error:
                yield f"{query.where}: {error}"


def _has_data(seen: Seen, expr: str) -> bool:
    found = seen.prometheus.query(expr)
    return any(_is_number(series["value"][1]) for series in found) or _had_data(seen, expr)


def _had_data(seen: Seen, expr: str) -> bool:
    """Tell whether a query had an answer while there was traffic, or is about what only trouble makes."""
    if any(series in expr for series in RARE):
        return True
    found = seen.prometheus.query_range(expr, seen.began, time.time())
    return any(_is_number(value) for series in found for _, value in series["values"])


def _is_number(value: str) -> bool:
    return float(value) == float(value)


def panels_of_tasks_have_data(seen: Seen) -> Iterator[str]:
    """Ask the queries about tasks without what they show instead: the row reads `none` where there are none."""
    series = (contract.TASK_ACTIVE, contract.TASK_OLDEST, contract.TASK_STARTED, contract.TASK_DURATION)
    asked = [
        (query.where, _INSTEAD.sub("", query.filled(VALUES)))
        for name, dashboard in dashboards.load().items()
        for query in dashboards.queries(name, dashboard)
        if any(metric.series in query.expr for metric in series)
    ]
    if len(asked) < len(series):
        yield f"there are only {len(asked)} queries about tasks"
    for where, expr in asked:
        if not _has_data(seen, expr):
            yield f"{where}: no data: {expr}"


def a_task_that_nobody_looks_after_is_stuck(seen: Seen) -> Iterator[str]:
    """Ask the alert about the task that a client has left behind, of seconds where it says half an hour."""
    (rule,) = [rule for rule in seen.prometheus.rules() if rule["name"] == "MCPTasksStuck"]
    expr = rule["query"].replace("> 1800", "> 10")
    if expr == rule["query"]:
        yield f"it says nothing of half an hour any more: {expr}"
    found = [series["metric"] for series in seen.prometheus.query(expr)]
    if [labels.get("gen_ai_tool_name") for labels in found] != ["take_stock"]:
        yield f"{found}: {expr}"


def variables_have_values(seen: Seen) -> Iterator[str]:
    """Ask for the values of every variable."""
    for name, dashboard in dashboards.load().items():
        for variable in dashboards.variables(dashboard).values():
            if variable["type"] != "query":
                continue
            inside = variable["query"].removeprefix("label_values(").removesuffix(")")
            series, _, label = inside.rpartition(", ")
            expr = dashboards.Query("", f"count by ({label}) ({series})", False, True).filled(VALUES)
            if not any(label in found["metric"] for found in seen.prometheus.query(expr)):
                yield f"{name}: variable {variable['name']} has no values: {expr}"


def rules_evaluate(seen: Seen) -> Iterator[str]:
    """Look at the health of every rule, and ask every alert's expression."""
    # Groups have intervals of their own, and begin at some moment of them.
    eventually(lambda: all(rule["health"] != "unknown" for rule in seen.prometheus.rules()), 150)
    rules = seen.prometheus.rules()
    if not rules:
        yield "Prometheus knows no rules"
    for rule in rules:
        if rule["health"] != "ok" or rule.get("lastError"):
            yield f"rule {rule['name']}: {rule['health']} {rule.get('lastError', '')}"
        try:
            seen.prometheus.query(rule["query"])
        except Refused as error:
            yield f"rule {rule['name']}: {error}"
        # The first evaluation may have been before there was any traffic, and the next one is two minutes later.
        if rule["type"] == "recording" and not eventually(
            lambda rule=rule: seen.prometheus.query(rule["name"]) != [], 130
        ):
            yield f"recording rule {rule['name']} records nothing"


def metrics_keep_the_contract(seen: Seen) -> Iterator[str]:
    """Compare the names and labels that arrived with those that the dashboards count on."""
    allowed = {name: labels for metric in contract.METRICS for name, labels in metric.all_series()}
    arrived: dict[str, set[str]] = {}
    for labels in seen.prometheus.series():
        name = labels["__name__"]
        if name.startswith(("mcp_", "otel_mcp_")):
            arrived.setdefault(name, set()).update(labels.keys() - {"__name__"})
    for name, labels in arrived.items():
        if name not in allowed:
            yield f"{name} arrived, and the contract does not know it"
        elif unknown := labels - allowed[name]:
            yield f"{name} arrived with labels that the contract does not know: {sorted(unknown)}"
        if ids := labels & set(_IDS):
            yield f"{name} carries an id: {sorted(ids)}"
    for name in allowed.keys() - arrived.keys():
        if not name.startswith(tuple(RARE)):
            yield f"{name} never arrived"


def rules_keep_their_unit_tests(_: Seen) -> Iterator[str]:
    """Run promtool over the rules, their tests, and Prometheus's configuration."""
    try:
        promtool, config = builds.promtool().built(), "prometheus.yaml"
    except builds.NotBuilt:
        promtool, config = standins.debian("promtool"), "prometheus-scrape.yaml"
    for arguments in (
        ["check", "config", ROOT / "grafana" / config],
        ["test", "rules", *sorted((ROOT / "tests" / "stack" / "alerts").glob("*.test.yaml"))],
    ):
        done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            yield f"promtool: {done.stdout[-2000:]}{done.stderr[-2000:]}"


def sessions_are_distinguished_behind_the_proxy(seen: Seen) -> Iterator[str]:
    """The revision without session ids has sessions too, though every request comes from the proxy."""
    label = contract.label(names.SESSION_SOURCE)
    found = seen.prometheus.query(f"count by ({label}) ({contract.SESSION_STARTED.series})")
    sources = {series["metric"].get(label) for series in found}
    if not any(str(source).startswith("inferred") for source in sources):
        yield f"no session was inferred: {sorted(map(str, sources))}"


def failures_are_distinguished(seen: Seen) -> Iterator[str]:
    """Each failed call counts for whose fault it is, and what the client corrected for that."""
    tool, kind = contract.label(names.GEN_AI_TOOL_NAME), contract.label(names.FAILURE)
    status, client = contract.label(names.HTTP_RESPONSE_STATUS_CODE), contract.label(names.CLIENT_NAME)
    wanted = {
        (contract.CALL_FAILURES.series, tool, kind): {
            ("charge_card", "tool"),
            ("charge_card", "invalid_arguments"),
            ("stock_level", "invalid_arguments"),
            (names.OTHER, "unknown_tool"),
        },
        (contract.CALL_CORRECTED.series, tool, kind): {("stock_level", "invalid_arguments")},
        (contract.REQUESTS_REFUSED.series, status, client): {("400", "new-agent")},
    }
    for (series, *labels), expected in wanted.items():
        found = seen.prometheus.query(f"count by ({', '.join(labels)}) ({series})")
        named = {tuple(each["metric"].get(label) for label in labels) for each in found}
        if missing := expected - named:
            yield f"{series} does not count {sorted(missing)}: {sorted(map(str, named))}"


def counters_begin_at_zero(seen: Seen) -> Iterator[str]:
    """A first sample above zero is no increase: sessions that begin with the process would be lost.

    Most of them: Prometheus takes no zero for a series that began in the millisecond of its export.
    """
    if "prometheus" in seen.stack.missing:
        return  # Only Prometheus 3 knows when a counter began.
    for name in (contract.SESSION_STARTED.series, contract.CLIENT_REQUESTS.series, contract.OPERATION_DURATION.count):
        began = [float(series["value"][1]) for series in seen.prometheus.query(f"min_over_time({name}[30m])")]
        if began.count(0) < len(began) / 2:
            yield f"{name}: {began.count(0)} of {len(began)} series began at zero"


PROOFS: Final[dict[str, Proof]] = {
    "every panel's query returns data": panels_have_data,
    "so it does for one environment, tool and client": panels_have_data_of_one,
    "the row of tasks has data": panels_of_tasks_have_data,
    "MCPTasksStuck sees a task that nobody looks after": a_task_that_nobody_looks_after_is_stuck,
    "every variable has values": variables_have_values,
    "every rule evaluates": rules_evaluate,
    "metrics are those of the contract": metrics_keep_the_contract,
    "failures are distinguished by whose fault they are": failures_are_distinguished,
    "counters begin at zero": counters_begin_at_zero,
    "rules keep their unit tests": rules_keep_their_unit_tests,
    "sessions are distinguished behind the proxy": sessions_are_distinguished_behind_the_proxy,
}

"""What the Collector's configurations do to spans: mask, sample, balance, keep over a restart."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Final

from otel_mcp import semconv as names

from . import builds
from .ask import tags
from .otlp import Span, send
from .paths import ROOT
from .processes import free_port
from .seen import Proof, Seen, eventually

SECRETS: Final = {
    "http.request.header.authorization": "Bearer abcdefgh12345678",
    "tool.note": "call it with Authorization: bearer abcdefgh12345678 please",
    "db.connection_string": "postgres://app:hunter2hunter2@db/prod",
    "tool.argument": "the card is 4111 1111 1111 1111",
    "tool.jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "x.api_key": "anything at all",
}
LEAKS: Final = ("abcdefgh12345678", "hunter2hunter2", "4111 1111", "dozjgNryP4J3", "anything at all")
HARMLESS: Final = {
    names.SESSION_ID: "om1.YGE4HEIWYOmJzwN_MJ3nTg.Pvl5P9RTmP5x",
    names.CALL_ARGUMENTS_HASH: "4111111111111111",
    names.GEN_AI_TOOL_NAME: "token_price",
    "gen_ai.usage.input_tokens": "1234567890123456",
    "url.full": "http://localhost:8000/mcp?page=2",
}
FAST: Final = 60


def secrets_are_masked(seen: Seen) -> Iterator[str]:
    """Send what tools should never have recorded, and read back what is stored."""
    span = Span(attributes=SECRETS | HARMLESS)
    send(seen.stack.url("collector_http"), "lane-redaction", span)
    if not eventually(lambda: bool(seen.traces.trace(span.trace_id))):
        yield "the span did not arrive"
        return
    stored = tags(seen.traces.trace(span.trace_id)[0])
    for leak in LEAKS:
        for key, value in stored.items():
            if leak in str(value):
                yield f"{key} still says {value!r}"
    for key, value in HARMLESS.items():
        if stored.get(key) != value:
            yield f"{key} was {value!r} and is {stored.get(key)!r}"
    for key in SECRETS:
        if key not in stored:
            yield f"{key} is gone, not masked"


def error_texts_of_sdks_are_dropped(seen: Seen) -> Iterator[str]:
    """Send failures as the SDK, FastMCP and somebody else tell them, and read back what is stored."""
    text = "no such order: 4711"
    spans = {scope: Span(scope=scope, failed=True, error=text) for scope in ("mcp-python-sdk", "fastmcp", "a library")}
    send(seen.stack.url("collector_http"), "lane-errors", *spans.values())
    for scope, span in spans.items():
        if not eventually(lambda span=span: bool(seen.traces.trace(span.trace_id))):  # type: ignore[misc]
            yield f"the span of {scope} did not arrive"
            continue
        (stored,) = seen.traces.trace(span.trace_id)
        text_stored = json.dumps(stored)
        if (text in text_stored) is (scope != "a library"):
            yield f"{scope}: {text_stored}"
        if '"error"' not in text_stored or (scope != "a library" and "KeyError" not in text_stored):
            yield f"{scope}: that it failed, and how, is gone"


def sampling_keeps_what_matters(seen: Seen) -> Iterator[str]:
    """Two sampling Collectors behind a gateway: failures, slow calls and whole traces survive."""
    stack = seen.stack
    quick = {"TAIL_SAMPLING_WAIT": "3s", "TAIL_SAMPLING_PERCENT": "0"}
    running = [
        stack.start_collector(name, "tail-sampling.yaml", "sampler-tier.yaml", **quick)
        for name in ("sampler_1", "sampler_2")
    ]
    tier = {"SAMPLER_1": stack.address("sampler_1_grpc"), "SAMPLER_2": stack.address("sampler_2_grpc")}
    gateway = [builds.collector().built(), f"--config={ROOT / 'collector' / 'config' / 'gateway.yaml'}"]
    running.append(stack.run_collector("gateway", [*gateway], **tier))
    entry, service = stack.url("gateway_http"), "lane-sampling"
    try:
        failed, slow, kept_whole = Span(failed=True), Span(seconds=1.5), Span()
        ping = Span(name="ping", failed=True, attributes={names.MCP_METHOD_NAME: "ping"})
        session = Span(name=names.SPAN_SESSION)
        # A failure deep inside, sent apart from its root: both must meet at the same Collector.
        late = Span(trace_id=kept_whole.trace_id, parent_id=kept_whole.span_id, failed=True)
        fast = [Span() for _ in range(FAST)]
        for span in (failed, slow, ping, session, kept_whole, *fast):
            send(entry, service, span)
        send(entry, service, late)
        wanted = {"a failure": failed, "a slow call": slow, "a session": session}
        for what, span in wanted.items():
            if not eventually(lambda span=span: bool(seen.traces.trace(span.trace_id))):
                yield f"{what} was not kept"
        if not eventually(lambda: len(seen.traces.trace(kept_whole.trace_id)) == 2):
            yield "a trace in two parts was not kept whole"
        kept = sum(bool(seen.traces.trace(span.trace_id)) for span in fast)
        if kept:
            yield f"{kept} of {FAST} fast calls were kept, at 0 %"
        if seen.traces.trace(ping.trace_id):
            yield "a ping was kept"
        yield from _counts_are_of_everything(seen, service, spans=len(fast) + 6)
        yield from _kept_exemplars_resolve(seen)
    finally:
        for process in reversed(running):
            process.stop()


def _counts_are_of_everything(seen: Seen, service: str, spans: int) -> Iterator[str]:
    expr = f'sum(traces_span_metrics_calls_total{{service_name="{service}"}})'

    def counted() -> float:
        found = seen.prometheus.query(expr)
        return float(found[0]["value"][1]) if found else 0

    if not eventually(lambda: counted() == spans):
        yield f"span metrics count {counted():.0f} of {spans} spans"


def _kept_exemplars_resolve(seen: Seen) -> Iterator[str]:
    expr = "traces_kept_duration_seconds_bucket"
    found: set[str] = set()

    def some() -> bool:
        found.update(seen.prometheus.exemplars(expr, seen.began, time.time()))
        return bool(found)

    if not eventually(some):
        yield f"no exemplars on {expr}"
    for trace_id in found:
        if not seen.traces.trace(trace_id):
            yield f"exemplar {trace_id} behind the sampler leads to no trace"


def queue_survives_a_restart(seen: Seen) -> Iterator[str]:
    """Take a span in while Jaeger is away, restart, and deliver it."""
    stack = seen.stack
    own = {"COLLECTOR_QUEUE_DIRECTORY": str(stack.log_folder / "queue")}
    away = {"JAEGER_ENDPOINT": f"127.0.0.1:{free_port()}"}
    span = Span()
    process = stack.start_collector("keeper", "persistent-queue.yaml", **own, **away)
    try:
        send(stack.url("keeper_http"), "lane-queue", span)
        time.sleep(3)
    finally:
        process.stop()
    process = stack.start_collector("keeper", "persistent-queue.yaml", **own)
    try:
        if not eventually(lambda: bool(seen.traces.trace(span.trace_id))):
            yield "the span did not survive the restart"
    finally:
        process.stop()


PROOFS: Final[dict[str, Proof]] = {
    "secrets are masked, ids are not": secrets_are_masked,
    "texts of errors are dropped": error_texts_of_sdks_are_dropped,
    "sampling behind a gateway keeps what matters": sampling_keeps_what_matters,
    "a persistent queue survives a restart": queue_survives_a_restart,
}

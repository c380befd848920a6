"""The semantic-convention registry of what is emitted, in Weaver's format.

Anybody's `weaver registry live-check` knows the names of this package by it. It holds what is the
package's own and refines what is of the conventions; those are its dependencies. From the same
constants, instruments and texts as the reference; `tests` compares it with what is emitted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from grafana.boards import contract
from otel_mcp import semconv as names
from otel_mcp.version import __version__

from . import signals
from .source import Instrument, instruments, texts

FOLDER: Final = Path(__file__).with_name("registry")
OWN: Final = f"{names.SCOPE}."
_STABILITY: Final = "development"
_INSTRUMENTS: Final = {
    "counter": "counter",
    "histogram": "histogram",
    "observable_counter": "counter",
    "observable_gauge": "gauge",
    "observable_up_down_counter": "updowncounter",
}

INTEGERS: Final = frozenset({
    names.CALL_ROUND,
    *(names.SESSION_TOOL_CALLS, names.SESSION_REQUESTS, names.SESSION_ERRORS),
    *(names.AUDIT_NUMBER, names.CALL_RESULT_SIZE),
    *(names.SESSION_FINDING_CALLS, names.SESSION_CONTEXT_SIZE, names.CATALOGUE_SIZE, names.CATALOGUE_PREVIOUS_SIZE),
})  # fmt: skip
LISTS: Final = frozenset({names.CATALOGUE_ADDED, names.CATALOGUE_REMOVED, names.CATALOGUE_CHANGED})
OWN_EVENTS: Final = frozenset(
    {
        *(names.EVENT_CATALOGUE_CHANGED, names.EVENT_SESSION_FINDING),
        *(names.EVENT_SESSION_INTERRUPTED, names.EVENT_SESSION_RETURNED, names.EVENT_TOOL_CALL),
        names.EVENT_REQUEST_REFUSED,
    }
)
"""All others are the conventions'."""
MEMBERS: Final = {
    names.SESSION_SOURCE: {
        "conversation": "The host sent the id of its conversation.",
        "header": "A header carried the session's id.",
        "cookie": "A cookie carried the session's id.",
        "inferred": "The caller, address, user agent and client are those of a recent session.",
        "inferred_weak": "The same without a caller, from an address of a single client.",
        "none": "No source applies.",
    },
    names.SESSION_END_REASON: {
        "client_delete": "The client sent DELETE.",
        "expired": "There was no activity for too long.",
        "server_closed": "The server answered 404 for its own session, or deleted it.",
        "replaced": "The session became part of a conversation, or was cut and its client began another one.",
    },
    names.SESSION_INTERRUPTED_CAUSE: {
        "restart": "The process is younger than the session, or the one that served it has ended.",
        "replica": "Another process serves the session: the request reached the wrong one.",
        "idle_reaper": "The process served the session and closed it.",
    },
    names.SESSION_RETURNED_WITHIN: {
        "1m": "Within a minute.",
        "5m": "Within five minutes.",
        "30m": "Within half an hour.",
    },
    names.SESSION_FINDING: {
        "looped": "The same call again and again, with the same answer.",
        "retry_storm": "A failing call was repeated again and again.",
        "ping_pong": "Two calls in turn, again and again.",
    },
    names.STREAM_KIND: {
        "get": "Messages of the server's own, requested by GET.",
        "listen": "A subscription: `subscriptions/listen` of 2026-07-28.",
        "sse": "The stream of 2024-11-05, which is the session.",
        "post": "The answer to a POST, where it streams for a second or more.",
    },
    names.SESSION_OUTCOME: {
        "worked": "The last call succeeded.",
        "corrected": "The last call succeeded, after an earlier call of the same tool had failed.",
        "looped": "The same call again and again, with the same answer.",
        "retry_storm": "A failing call was repeated again and again.",
        "ping_pong": "Two calls in turn, again and again.",
        "gave_up": "The last calls failed.",
        "no_call": "No tool was called.",
        "probe": "A registry, a monitor or a test.",
    },
    names.FAILURE: {
        "unknown_tool": "The caller's fault: the server has no tool of that name.",
        "invalid_arguments": "The caller's fault: the arguments do not fit the tool.",
        "tool": "The tool reported the error.",
        "exception": "The tool or the server raised.",
        "cancelled": "The client cancelled the call, or disconnected.",
        "refused": "A middleware or the protocol refused the call before a tool ran.",
    },
    names.TASK_STATUS: {
        "working": "The task is running.",
        "input_required": "The task waits for input, for example from a person.",
        "completed": "The task has a result.",
        "failed": "The task failed.",
        "cancelled": "The client cancelled the task.",
        names.OTHER: "There was no room to follow it.",
    },
    names.REJECT_REASON: {
        "limit": "More new sessions a minute than are allowed.",
        "principal": "The session is another user's.",
        "foreign": "The key of the session in the store has a value that is not ours.",
        "full": "The buffer before the store was full, or the queue before an exporter of audit records.",
        "error": "The store rejected the call, or an audit record could not be made.",
        "ended": "The session had ended.",
        "export": "The exporter of audit records failed.",
        "unconfigured": "No logs are exported.",
        "shutdown": "The process ended before the store took it, or while an exporter still had the audit record.",
        "interruptions": "A check whether a session was cut or came back: too many were pending.",
        "rounds": "A note for other replicas that a result asks for input: too many, in all or in one session.",
        "tasks": "The end of a task: too many were pending.",
    },
    names.HEADER: {
        "mcp-method": "The method.",
        "mcp-name": "The tool or prompt.",
        "mcp-protocol-version": "The revision: 2026-07-28 on a message of an existing session.",
    },
    names.STORE_OUTCOME: {
        "ok": "The operation succeeded.",
        "error": "The operation failed.",
        "denied": "User, password or permissions were rejected.",
        "timeout": "The operation took too long.",
    },
}
"""Attributes with a closed set of values; all others are any text."""
EXAMPLES: Final = {
    names.CLIENT_NAME: ("claude-code", "mcp"),
    names.TENANT: ("acme", "org_8f2"),
    names.CLIENT_VERSION: ("1.2.0",),
    names.TOOL_EXCEPTION_TYPE: ("KeyError", "TimeoutError"),
    names.STORE_OPERATION: ("flush", "recall", "sweep"),
    names.CALL_ARGUMENTS_HASH: ("3f9a10b2c4d5e6f7",),
    names.CATALOGUE_HASH: ("7c1d20be5f60a9e1",),
    names.OBSERVER: ("log", "my_package.observers:observe"),
    names.COMPONENT: ("dispatch", "session events"),
}
ABSENT: Final = {
    names.MCP_PROTOCOL_VERSION: "if known",
    names.CLIENT_NAME: "if the client sent it",
    names.TENANT: "with `TENANT`, if one is named",
}
"""What not every point of a metric of our own carries; all else is on each."""
ABSENT_ON: Final = {names.METRIC_REQUESTS_ACTIVE: {names.GEN_AI_TOOL_NAME: "`tools/call`"}}
"""And of one metric."""

_MANIFEST: Final = {
    "description": "What otel_mcp emits beyond the OpenTelemetry conventions for MCP servers.",
    # It identifies; nothing is served there.
    "schema_url": f"https://otel-mcp.invalid/schemas/{__version__}",
    "stability": _STABILITY,
    "dependencies": [
        {
            "schema_url": names.SCHEMA_URL,
            "registry_path": "https://github.com/open-telemetry/semantic-conventions.git"
            f"@v{names.SCHEMA_URL.rpartition('/')[2]}[model]",
        },
        {
            # Has no release; the commit of 2026-10-07.
            "schema_url": "https://opentelemetry.io/schemas/gen-ai-dev/1.42.0-dev",
            "registry_path": "https://github.com/open-telemetry/semantic-conventions-genai.git"
            "@06ec68e722c45a7218e23ea1bc1339fe4e21ecae[model]",
        },
    ],
}


def registry() -> dict[Path, str]:
    """Return what each file of the registry should hold."""
    parts = {"attributes": attributes(), "metrics": metrics(), "events": events(), "spans": spans()}
    files = {name: {"file_format": "definition/2"} | content for name, content in parts.items()}
    return {FOLDER / f"{name}.yaml": _written(content) for name, content in ({"manifest": _MANIFEST} | files).items()}


def attributes() -> dict[str, Any]:
    """Return the attributes of our own."""
    found: list[dict[str, Any]] = []
    for constant, text in texts(names).items():
        key = getattr(names, constant)
        if isinstance(key, str) and key.startswith(OWN) and not constant.startswith("METRIC_"):
            found.append({"key": key, "type": _type(key), "stability": _STABILITY, "brief": _plain(text)})
            if key in EXAMPLES:
                found[-1]["examples"] = list(EXAMPLES[key])
    return {"attributes": sorted(found, key=lambda attribute: attribute["key"])}


def metrics() -> dict[str, Any]:
    """Return all metrics: those of the conventions too, which cannot be imported together with the core registry.

    That keeps deprecated definitions by the same names, from before they moved.
    """
    declared = {metric.name: metric.attributes for metric in contract.METRICS}
    made = sorted(instruments(), key=lambda instrument: instrument.name)
    return {"metrics": [_metric(instrument, declared[instrument.name]) for instrument in made]}


def events() -> dict[str, Any]:
    """Return the events: those of the conventions with what they carry beyond them, and our own."""
    refined = [event for event in signals.EVENTS if _name(event) not in OWN_EVENTS]
    return {
        "imports": {"events": [_name(event) for event in refined]},
        "event_refinements": [
            {
                "id": f"{OWN}{_name(event)}",
                "ref": _name(event),
                "brief": _plain(event.what),
                "attributes": _refs(event.attributes),
            }
            for event in refined
        ],
        "events": [
            {
                "name": _name(event),
                "stability": _STABILITY,
                "requirement_level": "recommended",
                "brief": _plain(event.what),
                "attributes": _refs(event.attributes),
            }
            for event in signals.EVENTS
            if _name(event) in OWN_EVENTS
        ],
    }


def spans() -> dict[str, Any]:
    """Return the spans. Weaver knows the attributes of groups, not those of refinements."""
    session = signals.SESSION
    groups = {"message": signals.MESSAGE, "beneath": signals.BENEATH, "logs": signals.RECORD, "http": signals.HTTP}
    return {
        "attribute_groups": [
            {
                "id": f"{OWN}{name}",
                "visibility": "public",
                "stability": _STABILITY,
                "brief": f"On {signal.name}. {_plain(signal.what)}",
                "attributes": _refs(signal.attributes),
            }
            for name, signal in groups.items()
        ],
        "span_refinements": [
            {"id": f"{OWN}server", "ref": "mcp.server", "attributes": [{"ref_group": f"{OWN}message"}]}
        ],
        "spans": [
            {
                "type": f"{OWN}session",
                "kind": "internal",
                "name": {"note": session.name},
                "stability": _STABILITY,
                "requirement_level": "opt_in",
                "brief": _plain(session.what),
                "attributes": _refs(session.attributes),
            }
        ],
    }


def _metric(made: Instrument, carried: Iterable[str]) -> dict[str, Any]:
    absent = ABSENT | ABSENT_ON.get(made.name, {}) if made.name.startswith(OWN) else signals.MESSAGE.attributes
    return {
        "name": made.name,
        "instrument": _INSTRUMENTS[made.kind],
        "unit": made.unit,
        "stability": _STABILITY,
        "requirement_level": "recommended",
        "brief": made.description,
        "attributes": _refs({name: absent.get(name, signals.ALWAYS) for name in carried}),
    }


def _refs(carried: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{"ref": name, "requirement_level": _level(when)} for name, when in carried.items()]


def _level(when: str) -> str | dict[str, str]:
    if when == signals.ALWAYS:
        return "required"
    return "opt_in" if when == "`CAPTURE_CONTENT`" else {"conditionally_required": when}


def _type(key: str) -> str | dict[str, Any]:
    if key in INTEGERS:
        return "int"
    if key in LISTS:
        return "string[]"
    if key == names.CALL_DURATION:
        return "double"
    if key not in MEMBERS:
        return "string"
    return {
        "members": [
            {"id": value, "value": value, "brief": brief, "stability": _STABILITY}
            for value, brief in MEMBERS[key].items()
        ]
    }


def _name(signal: signals.Signal) -> str:
    return signal.name.strip("`")


def _plain(text: str) -> str:
    return text.replace("\\|", "|")


def _written(content: dict[str, Any]) -> str:
    head = "# Generated by `python -m docs.generate`; edits here are lost.\n"
    return head + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)

"""Grafana's own types say no to a mistake; `.ci/stack` has them say yes to the dashboards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from . import dashboards, schema

Board = dict[str, Any]


def _panel(board: Board, kind: str) -> Board:
    return next(panel for panel in dashboards.panels(board) if panel["type"] == kind)


MISTAKES: dict[str, Callable[[Board], object]] = {
    "misspelt key of the dashboard": lambda b: b.update(timezon="browser"),
    "text for a number": lambda b: b.update(schemaVersion="42"),
    "unknown crosshair": lambda b: b.update(graphTooltip=7),
    "misspelt key of a panel": lambda b: _panel(b, "stat").update(fieldconfig={}),
    "misspelt option": lambda b: _panel(b, "stat")["options"].update(colourMode="value"),
    "unknown value of an option": lambda b: _panel(b, "timeseries")["options"]["tooltip"].update(mode="many"),
    "unknown field configuration": lambda b: _panel(b, "timeseries")["fieldConfig"]["defaults"]["custom"].update(
        linewidth=1
    ),
    "misspelt threshold": lambda b: _panel(b, "stat")["fieldConfig"]["defaults"].update(threshold={}),
    "a panel of another kind": lambda b: _panel(b, "stat").update(type="piechrt"),
}


@pytest.mark.skipif(not schema.FOLDER.exists(), reason="@grafana/schema is not here: python -m tests.stack.schema")
def test_a_mistake_does_not_compile() -> None:
    right = dashboards.load()["overview"]
    boards = {"right": right}
    for number, spoil in enumerate(MISTAKES.values()):
        boards[f"mistake{number}"] = copy.deepcopy(right)
        spoil(boards[f"mistake{number}"])

    found = schema.problems(boards)

    wrong = {line.partition(".ts")[0] for line in found}
    assert {mistake for number, mistake in enumerate(MISTAKES) if f"mistake{number}" not in wrong} == set()
    assert "right" not in wrong, found

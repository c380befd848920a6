"""Names of strangers become metric attributes, and their paths are kept, only within bounds."""

from __future__ import annotations

import pytest

from otel_mcp.bounded import BoundedNames, Paths


def test_a_name_that_proved_itself_is_known_from_then_on() -> None:
    names = BoundedNames(2)

    assert names.bounded("add", proven=False) == "_OTHER"
    assert names.bounded("add", proven=True) == "add"
    assert names.bounded("add", proven=False) == "add"


def test_names_that_are_only_likely_leave_half_of_the_places() -> None:
    names = BoundedNames(6)

    given = [names.bounded(f"made-up-{number}", proven=False, likely=True) for number in range(100)]
    names.learn(["listed"])

    assert {name for name in given if name != "_OTHER"} == {"made-up-0", "made-up-1", "made-up-2"}
    assert names.bounded("listed", proven=False) == "listed"
    assert names.bounded("known", proven=True) == "known"


def test_a_likely_name_that_is_proven_makes_room_for_another() -> None:
    names = BoundedNames(4)
    for name in ("a", "b"):
        names.bounded(name, proven=False, likely=True)

    names.learn(["a"])
    names.bounded("b", proven=True)

    assert [names.bounded(name, proven=False, likely=True) for name in ("c", "d", "e")] == ["c", "d", "_OTHER"]


def test_beyond_the_limit_every_new_name_is_other() -> None:
    names = BoundedNames(3)

    given = {names.bounded(f"tool-{number}", proven=True) for number in range(100_000)}

    assert given == {"tool-0", "tool-1", "tool-2", "_OTHER"}


def test_names_that_the_server_listed_are_known_up_to_the_limit() -> None:
    names = BoundedNames(2)

    names.learn(f"tool-{number}" for number in range(10))

    assert [names.bounded(f"tool-{number}", proven=False) for number in range(3)] == ["tool-0", "tool-1", "_OTHER"]


def test_a_known_name_takes_up_no_further_room() -> None:
    names = BoundedNames(2)

    names.learn(["a", "a", "a"])

    assert names.bounded("b", proven=True) == "b"


def test_a_name_too_long_is_other_however_proven() -> None:
    names = BoundedNames(10)

    assert names.bounded("x" * 129, proven=True) == "_OTHER"
    assert names.bounded("x" * 128, proven=True) == "x" * 128


def test_paths_in_use_stay_and_overlong_ones_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Paths, "MAX_PATHS", 2)
    paths: Paths[int] = Paths()
    for number, path in enumerate(("/mcp", "/a", "/b", "/" + "x" * 256)):
        paths.learn(path, number)
        assert paths.use("/mcp") == 0

    assert list(paths.items()) == [("/b", 2), ("/mcp", 0)]
    assert paths.use("/a") is None

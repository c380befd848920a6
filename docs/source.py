"""What the code says of itself: its instruments, and the text beneath each name."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any, Final

from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter

from otel_mcp.telemetry.metrics import Metrics


@dataclass(frozen=True)
class Instrument:
    """One instrument, as the package asks a meter for it."""

    kind: str
    name: str
    unit: str
    description: str
    boundaries: tuple[float, ...]


_KINDS: Final = tuple(name.removeprefix("create_") for name in dir(Meter) if name.startswith("create_"))


class _Noting(MeterProvider):
    """A provider whose meter notes what it is asked for."""

    def __init__(self) -> None:
        self.noted: list[Instrument] = []

    def get_meter(self, name: str, *_: Any, **__: Any) -> Meter:
        meter = NoOpMeter(name)
        for kind in _KINDS:
            setattr(meter, f"create_{kind}", self._note(kind, getattr(meter, f"create_{kind}")))
        return meter

    def _note(self, kind: str, create: Any) -> Any:
        signature = inspect.signature(create)

        def noting(*args: Any, **kwargs: Any) -> Any:
            asked = signature.bind(*args, **kwargs).arguments
            boundaries = tuple(asked.get("explicit_bucket_boundaries_advisory") or ())
            self.noted.append(Instrument(kind, asked["name"], asked["unit"], asked["description"], boundaries))
            return create(*args, **kwargs)

        return noting


def instruments() -> list[Instrument]:
    """Return every instrument, in the order in which they are made."""
    provider = _Noting()
    Metrics(provider)
    return provider.noted


def texts(of: ModuleType | type) -> dict[str, str]:
    """Return the text beneath each assignment of a module or class: name -> text, on one line.

    Python keeps no such texts at run time, so the source is read.
    """
    found: dict[str, str] = {}
    for assigned, below in pairwise(_body(of)):
        if (
            isinstance(assigned, ast.AnnAssign)
            and isinstance(assigned.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            found[assigned.target.id] = " ".join(str(below.value.value).split()).replace("``", "`").replace("|", "\\|")
    return found


def types(of: type) -> dict[str, str]:
    """Return the type of each field of a class as it is written, without ``None``."""
    return {
        assigned.target.id: ast.unparse(assigned.annotation).replace(" | None", "")
        for assigned in _body(of)
        if isinstance(assigned, ast.AnnAssign) and isinstance(assigned.target, ast.Name)
    }


def _body(of: ModuleType | type) -> list[ast.stmt]:
    tree = ast.parse(inspect.getsource(of))
    return tree.body[0].body if isinstance(of, type) and isinstance(tree.body[0], ast.ClassDef) else tree.body

"""`ferrule opt`: passes over the text of a graph."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import cast

from .. import passes as package
from ..ir.text import parse_graph, print_graph
from ..passes.base import Pass, Phase, parse_passes, run_passes


def known_passes() -> tuple[type[Pass], ...]:
    """Every pass that the passes folder declares, by name."""
    found: dict[str, type[Pass]] = {}
    for module in pkgutil.iter_modules(package.__path__):
        members = vars(importlib.import_module(f"{package.__name__}.{module.name}"))
        for value in members.values():
            if inspect.isclass(value) and _is_pass(value):
                kind = cast("type[Pass]", value)
                found[kind.name] = kind
    return tuple(found[name] for name in sorted(found))


def _is_pass(value: type) -> bool:
    named = isinstance(vars(value).get("name"), str)
    return named and dataclasses.is_dataclass(value) and hasattr(value, "run")


def run_text(text: str, passes: str, *, origins: bool = True) -> str:
    """The text of a graph after a comma-separated list of passes."""
    graph = parse_graph(text)
    chosen = parse_passes(passes, known_passes())
    return print_graph(run_passes(graph, [Phase("opt", chosen)]), origins=origins)


def pass_lines() -> list[str]:
    """Each pass with its options and the first sentence of what it does."""
    return [f"{_signature(p)}\n    {_first_line(p)}" for p in known_passes()]


def _signature(kind: type[Pass]) -> str:
    fields = [f for f in dataclasses.fields(kind) if f.name != "evaluate"]  # type: ignore[arg-type]
    shown = ",".join(f"{f.name}={_default(f)}" for f in fields)
    return f"{kind.name}{{{shown}}}" if shown else kind.name


def _default(field: dataclasses.Field[object]) -> str:
    return "..." if field.default is dataclasses.MISSING else str(field.default).lower()


def _first_line(kind: type[Pass]) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")

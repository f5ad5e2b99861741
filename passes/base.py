"""Passes: what one is, how it is written as text, and how phases of them run over a graph.

A pass is a frozen dataclass: `name` is a class variable, its fields are its options.

    @dataclass(frozen=True)
    class Quantize:
        \"\"\"Linear weights become int8 or int4.\"\"\"

        name: ClassVar[str] = "quantize"
        bits: int = 8

        def run(self, graph: Graph) -> Graph: ...

    assert parse_pass("quantize{bits=4}", [Quantize]) == Quantize(bits=4)
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import time
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.text import print_graph
from ..ir.verify import check_leaves, verify


class Pass(Protocol):
    """A rewriting of whole graphs, named, with its options as fields."""

    name: ClassVar[str]

    def run(self, graph: Graph) -> Graph:
        """The graph after the pass."""
        ...


@dataclass(frozen=True)
class Phase:
    """Passes in order, and the names of the ops that may remain after them (None: any)."""

    name: str
    passes: tuple[Pass, ...]
    leaves: frozenset[str] | None = None


@dataclass(frozen=True)
class Ran:
    """One pass that ran: its place in the order (from 1), what it got and gave, the seconds."""

    index: int
    phase: str
    done: Pass
    before: Graph
    after: Graph
    seconds: float


Hook = Callable[[Ran], bool | None]


def run_passes(graph: Graph, phases: Iterable[Phase], *, after_each: Hook | None = None) -> Graph:
    """The graph after every pass of every phase, in order.

    The hook sees each pass that ran and stops the run by returning True; without one, every
    result is verified. An error inside a pass is raised again with the name of the pass; ops that
    a phase may not leave are refused by name.
    """
    after_each = after_each or verify_after
    index = 0
    for phase in phases:
        for each in phase.passes:
            index += 1
            ran = _run(graph, index, phase.name, each)
            graph = ran.after
            if after_each(ran):
                return graph
        if phase.leaves is not None:
            check_leaves(graph, phase.leaves, phase.name)
    return graph


def _run(graph: Graph, index: int, phase: str, each: Pass) -> Ran:
    begin = time.perf_counter()
    try:
        after = each.run(graph)
    except IRError as error:
        raise IRError(f"pass {each.name!r}: {error}") from error
    return Ran(index, phase, each, graph, after, time.perf_counter() - begin)


class Inspector:
    """The usual hook: verifies, times, writes each graph to a folder, stops after a named pass.

    Files are `00-NAME.ir` for the graph before the first pass, then `01-quantize.ir` and so on;
    each can be parsed again. `lines` says, for each pass, what changed and how long it took.
    """

    def __init__(self, dump: Path | None = None, stop_after: str | None = None) -> None:
        self.dump, self.stop_after = dump, stop_after
        self.lines: list[str] = []

    def __call__(self, ran: Ran) -> bool:
        """Note one pass; whether to stop."""
        if self.dump is not None:
            self._write(self.dump, ran)
        verify_after(ran)
        before, after = set(ran.before.nodes()), set(ran.after.nodes())
        counts = f"{len(before)} -> {len(after)} nodes, {len(after - before)} new"
        name = f"{ran.index:02d}-{ran.done.name}"
        self.lines.append(f"{name}: {counts}, {ran.seconds * 1e3:.0f} ms")
        return ran.done.name == self.stop_after

    def _write(self, folder: Path, ran: Ran) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if ran.index == 1:
            (folder / f"00-{ran.before.name}.ir").write_text(print_graph(ran.before))
        (folder / f"{ran.index:02d}-{ran.done.name}.ir").write_text(print_graph(ran.after))


def verify_after(ran: Ran) -> None:
    """Verify what a pass returned; the error names the pass."""
    try:
        verify(ran.after)
    except IRError as error:
        raise IRError(f"after pass {ran.done.name!r}: {error}") from error


# -- passes as text

_PASS = re.compile(r"\s*(?P<name>[\w-]+)\s*(?:\{(?P<options>[^{}]*)\})?\s*(?P<more>,?)")
_OPTION = re.compile(
    r"""\s*(?P<key>\w+)\s*=\s*(?P<value>\([^()]*\)|"[^"]*"|'[^']*'|[^,()"']+)\s*(?:,|$)"""
)


def parse_pass(text: str, known: Iterable[type[Pass]]) -> Pass:
    """The pass that `name` or `name{option=value,...}` denotes, out of the known classes."""
    found = parse_passes(text, known)
    if len(found) != 1:
        raise IRError(f"one pass was wanted, not {len(found)}: {text!r}")
    return found[0]


def parse_passes(text: str, known: Iterable[type[Pass]]) -> tuple[Pass, ...]:
    """The passes of a comma-separated list, such as `merge-linears,quantize{bits=4}`."""
    table = {k.name: k for k in known}
    found: list[Pass] = []
    at, more = 0, bool(text.strip())
    while more:
        match = _PASS.match(text, at)
        if match is None:
            raise IRError(
                f"a pass such as name{{option=value}} was wanted at {text[at:]!r} of {text!r}"
            )
        found.append(_made(_named(match["name"], table), match["options"] or ""))
        at, more = match.end(), bool(match["more"])
    if text[at:].strip():
        raise IRError(f"a comma or the end was wanted at {text[at:]!r} of {text!r}")
    return tuple(found)


def pass_text(each: Pass) -> str:
    """The pass as text that parse_pass reads back; options at their defaults are left out."""
    fields = _options(type(each))
    given = {n: getattr(each, n) for n, f in fields.items() if getattr(each, n) != f.default}
    options = ",".join(f"{n}={_value_text(v)}" for n, v in given.items())
    return f"{each.name}{{{options}}}" if options else each.name


def nearest(kind: str, name: str, known: Iterable[str]) -> IRError:
    """The error for an unknown name, with the nearest known one."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return IRError(f"no {kind} {name!r}{hint} known: {', '.join(names) or 'none'}")


def _named(name: str, table: dict[str, type[Pass]]) -> type[Pass]:
    if name not in table:
        raise nearest("pass", name, table)
    return table[name]


def _options(kind: type[Pass]) -> dict[str, dataclasses.Field[Any]]:
    assert dataclasses.is_dataclass(kind), f"pass {kind.__name__} is no dataclass"
    return {f.name: f for f in dataclasses.fields(kind)}


def _made(kind: type[Pass], text: str) -> Pass:
    fields = _options(kind)
    types = typing.get_type_hints(kind)
    given: dict[str, Any] = {}
    at = 0
    while text[at:].strip():
        match = _OPTION.match(text, at)
        if match is None:
            raise IRError(f"pass {kind.name!r}: option=value was wanted at {text[at:]!r}")
        key = match["key"]
        if key not in fields:
            raise nearest(f"option of {kind.name!r}", key, fields)
        given[key] = _value(kind.name, key, match["value"].strip(), types[key])
        at = match.end()
    needed = [
        n for n in inspect.signature(kind).parameters if n not in given and _is_needed(fields[n])
    ]
    if needed:
        raise IRError(f"pass {kind.name!r} needs {', '.join(needed)}")
    return kind(**given)


def _is_needed(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(name: str, key: str, text: str, wanted: Any) -> Any:
    """The option's value; bare words are strings."""
    words = {"true": True, "false": False, "none": None, "None": None}
    try:
        value = words[text] if text in words else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    if isinstance(value, int) and not isinstance(value, bool) and _fits(float(value), wanted):
        value = value if _fits(value, wanted) else float(value)
    if not _fits(value, wanted):
        choices = ", ".join(map(repr, typing.get_args(wanted)))
        is_choice = typing.get_origin(wanted) is typing.Literal
        shown = f"one of {choices}" if is_choice else getattr(wanted, "__name__", wanted)
        raise IRError(f"pass {name!r}: {key} is {shown}, not {text!r}")
    return value


def _fits(value: object, wanted: Any) -> bool:
    """Whether a value has an annotated type."""
    choices = typing.get_args(wanted)
    if typing.get_origin(wanted) is tuple:
        return isinstance(value, tuple) and _items_fit(cast(tuple[object, ...], value), choices)
    if typing.get_origin(wanted) is typing.Literal:
        return value in choices
    if choices:
        return any(_fits(value, c) for c in choices)
    return type(value) is wanted if wanted is not None else value is None


def _items_fit(values: tuple[object, ...], wanted: tuple[Any, ...]) -> bool:
    each = wanted[:1] * len(values) if wanted[1:] == (...,) else wanted
    return len(each) == len(values) and all(map(_fits, values, each))


def _value_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "none"
    return f'"{value}"' if isinstance(value, str) else repr(value)

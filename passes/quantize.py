"""Weights in few bits: the weight of a linear, and a table whose rows are taken, become codes and
scales made by ordinary nodes over the parameters, rounded to nearest.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import ClassVar

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model
from ..ir.ops import quantized as q
from ..ir.ops import tensor as t
from ..ir.rewrite import rewrite
from ..ir.verify import quote
from .rules.movement import MOVEMENT
from .split_preparation import constants_of
from .weight_formats import Coded, Format

NONE = "none"
_LINEARS = (model.linear, model.expert_linear)


@dataclass(frozen=True)
class Recipe:
    """Which parameters take which format: the first rule (pattern, format) whose glob matches a
    parameter's name, else `default`; "none" leaves it as it is.
    """

    default: str = "int8"
    rules: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        for text in (self.default, *(f for _, f in self.rules)):
            if text != NONE:
                Format.parse(text)

    def format_of(self, name: str) -> str:
        """The format of a parameter, or "none"."""
        return next((f for glob, f in self.rules if fnmatchcase(name, glob)), self.default)

    def check(self, names: Iterable[str]) -> None:
        """Raise IRError where a rule matches none of the parameters, with those nearest to it."""
        known = list(names)
        for glob, _ in self.rules:
            if not any(fnmatchcase(name, glob) for name in known):
                near = difflib.get_close_matches(glob, known, 3, 0.0)
                raise IRError(
                    f"no parameter matches the recipe's rule {glob!r}; "
                    f"the nearest are {', '.join(near) or 'none at all'}"
                )


@dataclass(frozen=True)
class Quantize:
    """Linears over constant weights become quantized linears; tables whose rows are taken, and
    shared ones, are read from the same codes.

    `default` and `rules` are those of a Recipe.
    """

    name: ClassVar[str] = "quantize"
    default: str = "int8"
    rules: tuple[tuple[str, str], ...] = ()

    def run(self, graph: Graph) -> Graph:
        """The graph over codes and scales; `unquantized` lists what it leaves."""
        recipe = Recipe(self.default, self.rules)
        recipe.check(str(p["name"]) for p in graph.parameters())
        graph = _apart(graph, recipe)
        constant = constants_of(graph)
        mapping: dict[Node, Node] = {}
        made: dict[Node, tuple[Format, Coded]] = {}
        for node in _readers(graph):
            weight = _weight(node)
            if weight not in constant or _hindrance(weight, recipe):
                continue
            if weight not in made:
                made[weight] = _coded(weight, recipe)
            mapping[node] = _read(node, *made[weight])
        return graph.replace(mapping) if mapping else graph


def _apart(graph: Graph, recipe: Recipe) -> Graph:
    """Merged linears whose weights take several formats, as a linear for each run of one format."""
    constant = constants_of(graph)
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        if node.op in _LINEARS and node.inputs[1] in constant:
            runs = _runs(node.inputs[1], recipe)
            if len(runs) > 1:
                mapping[node] = _pieces(node, runs)
    return rewrite(graph.replace(mapping), MOVEMENT) if mapping else graph


def _runs(weight: Node, recipe: Recipe) -> list[list[Node]]:
    """The parts that a weight joins, those beside each other of one format together."""
    if weight.op is not t.concat or weight["axis"] != len(weight.shape) - 2:
        return [[weight]]
    formats = {w: tuple(_formats(w, recipe)) for w in weight.inputs}
    return [list(run) for _, run in groupby(weight.inputs, key=formats.__getitem__)]


def _pieces(node: Node, runs: Iterable[list[Node]]) -> Node:
    """The linear as the concatenation of a linear for each run of its weights."""
    x, _, *more = node.inputs
    index = more[:1] if node.op is model.expert_linear else []
    bias = more[len(index) :]
    pieces: list[Node] = []
    begin = 0
    for run in runs:
        axis = len(run[0].shape) - 2
        weight = t.concat(*run, axis=axis) if len(run) > 1 else run[0]
        end = begin + int(weight.shape[axis])
        own = [t.slice_(b, axis=axis, start=begin, stop=end) for b in bias]
        pieces.append(node.op.build((x, weight, *index, *own), {}))
        begin = end
    return t.concat(*pieces, axis=len(node.shape) - 1)


def _coded(weight: Node, recipe: Recipe) -> tuple[Format, Coded]:
    chosen = Format.parse(_formats(weight, recipe)[0])
    return chosen, chosen.quantized(weight)


def _readers(graph: Graph) -> Iterable[Node]:
    """The ops whose weight may be quantized: linears, those of experts, and lookups of rows in a
    table.
    """
    for node in graph.nodes():
        if node.op in _LINEARS or _takes_rows(node):
            yield node


def _takes_rows(node: Node) -> bool:
    """Whether the node looks up rows of a table of parameters."""
    if node.op is not t.take or node["axis"] != 0:
        return False
    table = node.inputs[0]
    return table.op.name == "parameter" and len(table.shape) == 2


def _weight(node: Node) -> Node:
    return node.inputs[1] if node.op in _LINEARS else node.inputs[0]


def _parameters(weight: Node) -> list[str]:
    return [n["name"] for n in walk((weight,)) if n.op.name == "parameter"]


def _formats(weight: Node, recipe: Recipe) -> list[str]:
    return list(dict.fromkeys(recipe.format_of(name) for name in _parameters(weight)))


def _hindrance(weight: Node, recipe: Recipe) -> str:
    """Why a constant weight is left, or nothing."""
    formats = _formats(weight, recipe)
    if weight.dtype not in ("f32", "f16", "bf16"):
        return f"a weight of {weight.dtype}"
    if len(formats) != 1:
        return f"its parts have several formats: {', '.join(formats) or 'no parameter'}"
    return "the recipe leaves it" if formats == [NONE] else ""


def _read(node: Node, chosen: Format, coded: Coded) -> Node:
    zeros = (coded.zeros,) if coded.zeros is not None else ()
    if node.op is model.linear:
        x, _, *bias = node.inputs
        more = (*zeros, *bias)
        return q.quantized_linear(x, coded.codes, coded.scale, *more, offset=chosen.offset)
    if node.op is model.expert_linear:
        x, _, index, *bias = node.inputs
        more = (index, *zeros, *bias)
        return q.quantized_expert_linear(x, coded.codes, coded.scale, *more, offset=chosen.offset)
    return _rows(node, chosen, coded)


def _rows(node: Node, chosen: Format, coded: Coded) -> Node:
    """Rows of a table, from the rows of its codes, scales and zeros."""
    table, index = node.inputs
    groups, length = (int(d) for d in coded.codes.shape[1:])

    def taken(part: Node) -> Node:
        rows = t.take(part, index, axis=0)
        return t.cast(rows, dtype="f32") if rows.dtype != "f32" else rows

    def columns(part: Node) -> Node:
        """A part's rows beside the codes of all groups."""
        count = int(part.shape[-1])
        each = t.reshape(taken(part), shape=(*index.shape, count, 1))
        if count == groups:
            return each
        shape = (*index.shape, count, groups // count)
        return t.reshape(t.broadcast(each, shape=shape), shape=(*index.shape, groups, 1))

    zero = t.scalar(float(chosen.offset), "f32") if coded.zeros is None else columns(coded.zeros)
    wide = t.sub(taken(coded.codes), zero)
    in_levels = coded.scale.op is q.group_scales
    for factor in coded.scale.inputs if in_levels else (coded.scale,):
        wide = t.mul(wide, columns(factor))
    flat = t.reshape(wide, shape=(*index.shape, groups * length))
    if groups * length != table.shape[1]:
        flat = t.slice_(flat, axis=len(index.shape), start=0, stop=table.shape[1])
    return t.cast(flat, dtype=table.dtype) if table.dtype != "f32" else flat


def unquantized(graph: Graph, recipe: Recipe) -> tuple[str, ...]:
    """The linears and tables that a quantized graph reads in full, each with the reason and its
    model line: data for the build report.
    """
    constant = constants_of(graph)
    found: dict[str, None] = {}
    for node in _readers(graph):
        weight = _weight(node)
        computed = "its weight is computed at run time"
        reason = _hindrance(weight, recipe) if weight in constant else computed
        names = ", ".join(_parameters(weight)[:3]) or node.op.name
        origin = ", ".join(graph.origin(node)) or quote(graph, node).strip()
        found[f"{names} is not quantized: {reason} ({origin})"] = None
    return tuple(found)

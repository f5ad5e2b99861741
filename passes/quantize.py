"""Weights in few bits: the weight of a linear, and a table whose rows are taken, become codes and
scales made by ordinary nodes over the parameters, rounded to nearest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model
from ..ir.ops import quantized as q
from ..ir.ops import tensor as t
from ..ir.verify import quote
from .split_preparation import constants_of

NONE = "none"
_FORMAT = re.compile(r"int(?P<bits>4|8)(?:-g(?P<group>\d+))?")
_STEP = 8  # codes of a group come in whole bytes and whole dot products


@dataclass(frozen=True)
class Format:
    """Codes of `bits` bits, a scale for each `group` of them along k; group 0 is the whole row.

    Scales of groups are bfloat16, those of rows float32. Codes have no sign: their zero is
    `offset`.
    """

    bits: int
    group: int

    @staticmethod
    def parse(text: str) -> Format:
        """int8 (a scale for each row), int8-g64, int4 (groups of 32), int4-g32, -g64, -g128."""
        found = _FORMAT.fullmatch(text)
        if found is None:
            raise IRError(f"no weight format {text!r}; wanted int8, int4, int8-g64, int4-g128, ...")
        bits = int(found["bits"])
        group = int(found["group"] or (32 if bits == 4 else 0))
        if found["group"] and (group < _STEP or group % _STEP):
            raise IRError(f"weight format {text!r}: a group is a multiple of {_STEP}, not {group}")
        return Format(bits, group)

    @property
    def offset(self) -> int:
        """The code that stands for 0."""
        return 1 << (self.bits - 1)

    def quantized(self, w: Node) -> tuple[Node, Node]:
        """w[N, K] as codes [N, J, G] and scales [N, J].

        8 bits: scale = max |w| / 127. 4 bits: scale = -m / 8, where m is the value of the largest
        magnitude, so that the code with no counterpart (-8) is used by it.
        """
        n, k = (int(d) for d in w.shape)
        length = min(self.group, -(-k // _STEP) * _STEP) or -(-k // _STEP) * _STEP
        groups = -(-k // length)
        wide = t.cast(w, dtype="f32") if w.dtype != "f32" else w
        if groups * length != k:
            wide = t.pad(wide, before=(0, 0), after=(0, groups * length - k), value=0.0)
        wide = t.reshape(wide, shape=(n, groups, length))
        scale = self._scale(wide)
        stored = t.cast(scale, dtype="bf16") if self.group else scale
        used = t.cast(stored, dtype="f32") if self.group else scale
        is_zero = t.eq(used, t.scalar(0.0, "f32"))
        safe = t.where(is_zero, t.scalar(1.0, "f32"), used)
        levels = t.round_(t.div(wide, t.reshape(safe, shape=(n, groups, 1))))
        low, high = float(-self.offset), float(self.offset - 1)
        levels = t.minimum(t.maximum(levels, t.scalar(low, "f32")), t.scalar(high, "f32"))
        codes = t.add(levels, t.scalar(float(self.offset), "f32"))
        return t.cast(codes, dtype="u8" if self.bits == 8 else "u4"), stored

    def _scale(self, w: Node) -> Node:
        if self.bits == 8:
            largest = t.reduce_max(t.abs_(w), axes=(2,))
            return t.mul(largest, t.scalar(1 / 127, "f32"))
        high, low = t.reduce_max(w, axes=(2,)), t.reduce_min(w, axes=(2,))
        m = t.where(t.gt(high, t.neg(low)), high, low)
        return t.mul(m, t.scalar(-1 / 8, "f32"))

    def __str__(self) -> str:
        return f"int{self.bits}" + (f"-g{self.group}" if self.group else "")


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
        constant = constants_of(graph)
        mapping: dict[Node, Node] = {}
        made: dict[Node, tuple[Format, Node, Node]] = {}
        for node in _readers(graph):
            weight = _weight(node)
            if weight not in constant or _hindrance(weight, recipe):
                continue
            if weight not in made:
                made[weight] = _coded(weight, recipe)
            mapping[node] = _read(node, *made[weight])
        return graph.replace(mapping) if mapping else graph


def _coded(weight: Node, recipe: Recipe) -> tuple[Format, Node, Node]:
    chosen = Format.parse(_formats(weight, recipe)[0])
    return (chosen, *chosen.quantized(weight))


def _readers(graph: Graph) -> Iterable[Node]:
    """The ops whose weight may be quantized: linears, and lookups of rows in a table."""
    for node in graph.nodes():
        if node.op is model.linear or _takes_rows(node):
            yield node


def _takes_rows(node: Node) -> bool:
    """Whether the node looks up rows of a table of parameters."""
    if node.op is not t.take or node["axis"] != 0:
        return False
    table = node.inputs[0]
    return table.op.name == "parameter" and len(table.shape) == 2


def _weight(node: Node) -> Node:
    return node.inputs[1] if node.op is model.linear else node.inputs[0]


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


def _read(node: Node, chosen: Format, codes: Node, scale: Node) -> Node:
    if node.op is model.linear:
        x, _, *bias = node.inputs
        return q.quantized_linear(x, codes, scale, *bias, offset=chosen.offset)
    table, index = node.inputs
    rows = t.cast(t.take(codes, index, axis=0), dtype="f32")
    factors = t.take(scale, index, axis=0)
    factors = t.cast(factors, dtype="f32") if scale.dtype != "f32" else factors
    factors = t.reshape(factors, shape=(*factors.shape, 1))
    wide = t.mul(t.sub(rows, t.scalar(float(chosen.offset), "f32")), factors)
    groups, length = (int(d) for d in codes.shape[1:])
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
    for node in (*_readers(graph), *(n for n in graph.nodes() if n.op is model.expert_linear)):
        weight = node.inputs[1] if node.op is model.expert_linear else _weight(node)
        if weight not in constant:
            reason = "its weight is computed at run time"
        elif node.op is model.expert_linear:
            reason = "experts keep their weights whole"
        else:
            reason = _hindrance(weight, recipe)
        names = ", ".join(_parameters(weight)[:3]) or node.op.name
        origin = ", ".join(graph.origin(node)) or quote(graph, node).strip()
        found[f"{names} is not quantized: {reason} ({origin})"] = None
    return tuple(found)

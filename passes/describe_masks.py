"""Masks by evaluation: an attention's mask becomes attributes that kernels understand.

The mask's subgraph depends on positions alone, so it can be run at any length. Its values are
matched against families: causal, sliding window, chunks, and an additive bias that is a function of
the distance (linear per head: ALiBi, Press et al., 2022; or any: a table). Sizes too large to run
(a window of 4,096) are found by running the subgraph with that constant made small, at two values,
which shows how the mask follows it. Masks of half-precision models are evaluated in float32: a bias
that grows with the distance is rounded to few bits far from the beginning, and is a function of the
distance before. No match is an error that prints the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, walk
from ..ir.ops import model, selection, tensor
from ..ir.types import TensorType
from ..ir.verify import quote
from .analyze_tokens import Evaluate, analyze, need_evaluate

Array = np.ndarray[Any, Any]
LENGTHS = (80, 33, 7, 1)
SMALL = (13, 22)  # what a large constant becomes, one after the other
MASKED = -9e3  # additive masks use -inf, the dtype's lowest, -1e9 or -1e4
TABLE_LIMIT = 2048
_HALF = ("bf16", "f16")


@dataclass(frozen=True)
class Mask:
    """Which keys a query sees, and whether a bias by distance is added: "" (none), "slopes",
    "bias" or "distances"."""

    causal: bool = True
    window: int = 0
    chunk: int = 0
    bias: str = ""

    def allowed(self, length: int) -> Array:
        """The visible pairs [query, key] at a length."""
        i, j = np.arange(length)[:, None], np.arange(length)[None, :]
        seen = (j <= i) if self.causal else np.ones((length, length), bool)
        if self.window:
            seen &= np.abs(i - j) < self.window
        return seen & (i // self.chunk == j // self.chunk) if self.chunk else seen


@dataclass(frozen=True)
class DescribeMasks:
    """Replace each attention's mask input by causal, window and chunk attributes and, for a bias,
    by slopes or a table.

    `max_context` bounds the positions: larger windows and chunks make no difference and are left
    out.
    """

    name: ClassVar[str] = "describe-masks"
    max_context: int = 4096
    evaluate: Evaluate | None = None
    lenient: bool = False

    def run(self, graph: Graph) -> Graph:
        """The graph without masks; raises IRError that prints a mask of no known family, or where
        `lenient` leaves it.
        """
        known: dict[Node, Mask] = {}
        mapping: dict[Node, Node] = {}
        kinds = analyze(graph).kinds
        for node in graph.nodes():
            if node.op is model.attention and "mask" in node["extras"]:
                mask = _mask_input(node)
                if self.lenient and not self._is_known(graph, node, known, kinds[mask]):
                    continue
                if kinds[mask] == "token":
                    raise IRError(
                        f"the mask of this attention depends on the tokens\n{quote(graph, node)}"
                    )
                if mask not in known:
                    known[mask] = self._recognize(graph, node, mask)
                mapping[node] = _described(node, known[mask], widened(mask), self.max_context)
            if node.op is selection.selected_keys and len(node.inputs) > 3:
                mask = node.inputs[3]
                if mask not in known:
                    known[mask] = self._recognize(graph, node, mask)
                if known[mask].bias:
                    raise IRError(f"a bias in an indexer's mask\n{quote(graph, node)}")
                mapping[node] = _seen_alike(node, known[mask])
        return graph.replace(mapping)

    def _is_known(self, graph: Graph, node: Node, known: dict[Node, Mask], kind: str) -> bool:
        """Whether a mask is of a family, which is then in `known`."""
        mask = _mask_input(node)
        try:
            if mask not in known and kind != "token":
                known[mask] = self._recognize(graph, node, mask)
        except IRError:
            return False
        return mask in known

    def _recognize(self, graph: Graph, node: Node, mask: Node) -> Mask:
        try:
            longest = graph.bounds["S"][1] if "S" in graph.bounds else LENGTHS[0]
            evaluate = need_evaluate(self.evaluate, self.name)
            return _Recognizer(widened(mask), evaluate, self.max_context, longest).mask()
        except _NoFamilyError as error:
            raise IRError(
                f"the mask of this attention is of no known family:\n{error}\n{quote(graph, node)}"
            ) from None


class _NoFamilyError(Exception):
    """The mask, drawn."""


class _Recognizer:
    """Runs one mask's subgraph and matches its values."""

    def __init__(self, mask: Node, evaluate: Evaluate, max_context: int, longest: int) -> None:
        self.root, self.evaluate, self.max_context = mask, evaluate, max_context
        # A mask that the model holds as a table ends with it.
        self.lengths = tuple(dict.fromkeys(min(n, longest) for n in LENGTHS))

    def mask(self) -> Mask:
        found = self._family(self.root)
        for size in self._large_constants():
            found = self._with_large(found, size)
        if found.window >= self.max_context:
            found = replace(found, window=0)
        return replace(found, chunk=0) if found.chunk >= self.max_context else found

    def values(self, root: Node, length: int) -> tuple[Array, Array]:
        """(allowed [L, L], bias [H, L, L]) at a length."""
        value = self.evaluate((root,), {"B": 2, "S": length})[0]
        value = value.reshape((1,) * (4 - value.ndim) + value.shape)
        if any(size not in (1, length) for size in value.shape[2:]):
            raise _NoFamilyError(f"of {length} tokens it is {value.shape[2:]}: keys are no tokens")
        value = np.broadcast_to(value, (*value.shape[:2], length, length))
        if (value != value[:1]).any():
            raise _NoFamilyError("it differs between the sequences of a batch")
        value = value[0]
        if value.dtype != bool and (value == np.inf).any():
            raise _NoFamilyError("a score that is seen is multiplied by something but 1")
        seen = value if value.dtype == bool else value > MASKED
        if (seen != seen[:1]).any():
            raise _NoFamilyError("heads see different keys")
        return seen[0], np.where(seen, 0.0 if value.dtype == bool else value, 0.0)

    def _family(self, root: Node) -> Mask:
        seen, bias = self.values(root, self.lengths[0])
        found = _match(seen)
        for length in self.lengths[1:]:
            if (self.values(root, length)[0] != found.allowed(length)).any():
                raise _NoFamilyError(draw(seen))
        family = _bias_family if found.causal else _family_of_both_sides
        return replace(found, bias=family(seen, bias))

    def _large_constants(self) -> list[int]:
        """Whole numbers in the subgraph that the lengths tried cannot show."""
        values = [n["value"] for n in walk((self.root,)) if n.op.name == "constant"]
        whole = {
            int(v) for v in values if not isinstance(v, bool) and np.isfinite(v) and v == int(v)
        }
        return sorted(v for v in whole if self.lengths[0] // 2 < abs(v) < self.max_context)

    def _with_large(self, found: Mask, size: int) -> Mask:
        """The mask when the constant `size` turns out to be a window or a chunk."""
        small = [self._family(_with_constant(self.root, size, value)) for value in SMALL]
        for part in ("window", "chunk"):
            sizes = [getattr(m, part) for m in small]
            if sizes == [getattr(found, part)] * len(SMALL):
                continue
            shifts = {s - value for s, value in zip(sizes, SMALL, strict=True)}
            if len(shifts) != 1 or not all(sizes):
                raise _NoFamilyError(f"it follows the constant {size} in no known way: {small}")
            found = replace(found, **{part: size + shifts.pop()})
        return found


def _match(seen: Array) -> Mask:
    """The smallest family that the visible pairs belong to."""
    length = len(seen)
    causal = not np.triu(seen, 1).any()
    first = int(np.argmax(seen[-1]))  # the first key that the last query sees
    chunks = [c for c in range(2, length) if (length - 1) // c * c == first]
    windows = [length - first] if first else []
    candidates = [
        Mask(causal),
        *(Mask(causal, window=w) for w in windows),
        *(Mask(causal, chunk=c) for c in chunks),
    ]
    if not causal and windows:
        candidates.append(Mask(causal, window=windows[0]))
    both = [Mask(causal, w, c) for w in range(1, 49) for c in chunks] if causal else []
    for mask in (*candidates, *both):
        if (mask.allowed(length) == seen).all():
            return mask
    raise _NoFamilyError(draw(seen))


def _bias_family(seen: Array, bias: Array) -> str:
    """What the additive part is, given that adding a constant to a row changes no softmax."""
    relative = np.where(seen, bias - np.diagonal(bias, axis1=1, axis2=2)[:, :, None], 0.0)
    if np.abs(relative).max() == 0:
        return ""
    distance = np.arange(len(seen))[:, None] - np.arange(len(seen))[None, :]
    last = relative[:, -1, ::-1]  # by distance from the last query, which sees furthest
    table = np.where(seen, last[:, np.clip(distance, 0, None)], 0.0)
    if not np.allclose(relative, table, rtol=1e-4, atol=1e-5):
        raise _NoFamilyError("its bias is not a function of the distance between query and key")
    slopes = -last[:, 1:2, None]
    linear = np.where(seen, -slopes * distance, 0.0)
    return "slopes" if np.allclose(relative, linear, rtol=1e-4, atol=1e-5) else "bias"


def _family_of_both_sides(seen: Array, bias: Array) -> str:
    """The same where queries see later keys: a table of distances, if it is anything."""
    relative = np.where(seen, bias - np.diagonal(bias, axis1=1, axis2=2)[:, :, None], 0.0)
    if np.abs(relative).max() == 0:
        return ""
    most = len(seen) - 1
    # By distance from -most on: the first query sees furthest ahead, the last one furthest back.
    table = np.concatenate([relative[:, 0, :0:-1], relative[:, -1, ::-1]], axis=1)
    distance = np.arange(len(seen))[:, None] - np.arange(len(seen))[None, :]
    if not np.allclose(relative, np.where(seen, table[:, distance + most], 0.0), 1e-4, 1e-5):
        raise _NoFamilyError("its bias is not a function of the distance between query and key")
    return "distances"


def widened(root: Node) -> Node:
    """The subgraph with float32 in place of every half-precision float."""
    done: dict[Node, Node] = {}
    for node in walk((root,)):
        known: Mapping[str, Any] = node.attributes
        if node.op.name == "parameter":
            half = isinstance(node.type, TensorType) and node.dtype in _HALF
            done[node] = tensor.cast(node, dtype="f32") if half else node
            continue
        if known.get("dtype") in _HALF:
            known = {**known, "dtype": "f32"}
        done[node] = node.op.build(tuple(done[i] for i in node.inputs), known)
    return done[root]


def _with_constant(root: Node, old: int, new: int) -> Node:
    """The subgraph with a whole constant (and its negative) replaced."""
    done: dict[Node, Node] = {}
    for node in walk((root,)):
        fresh = node.with_inputs(tuple(done[i] for i in node.inputs))
        value = node["value"] if node.op.name == "constant" else None
        if value is not None and not isinstance(value, bool) and abs(value) == abs(old):
            fresh = tensor.scalar(new if value * old > 0 else -new, node["dtype"])
        done[node] = fresh
    return done[root]


def _mask_input(node: Node) -> Node:
    return node.inputs[3 + list(node["extras"]).index("mask")]


def _described(node: Node, mask: Mask, root: Node, max_context: int) -> Node:
    """The attention with the mask's description in place of the mask."""
    at = node["extras"].index("mask")
    extras = [e for e in node["extras"] if e != "mask"]
    inputs = [*node.inputs[:3], *(x for i, x in enumerate(node.inputs[3:]) if i != at)]
    if mask.bias:
        extras.append(mask.bias)
        inputs.append(_MAKERS[mask.bias](root, node.inputs[0].shape[1], max_context))
    known: Mapping[str, Any] = {**node.attributes, "extras": tuple(extras)}
    causal = mask.causal or node["causal"]
    return model.attention.build(
        tuple(inputs), {**known, "causal": causal, "window": mask.window, "chunk": mask.chunk}
    )


def _seen_alike(node: Node, mask: Mask) -> Node:
    """The selection with its mask's description in place of the mask."""
    seen = {"causal": mask.causal or node["causal"], "window": mask.window, "chunk": mask.chunk}
    return selection.selected_keys.build(node.inputs[:3], {**node.attributes, **seen})


def _at_length(root: Node, heads: Any, length: int) -> Node:
    """The mask at one length as f32 [H, L, L]."""
    fixed = Graph("mask", (), (root,)).substitute({"B": 1, "S": length}).outputs[0]
    wide = tensor.cast(fixed, dtype="f32") if fixed.dtype != "f32" else fixed
    return tensor.reshape(
        tensor.broadcast(wide, shape=(1, heads, length, length)), shape=(heads, length, length)
    )


def _slopes(root: Node, heads: Any, max_context: int) -> Node:
    """Slope of each head: what one step back takes away, from the mask at length 2."""
    del max_context
    row = tensor.slice_(_at_length(root, heads, 2), axis=1, start=1, stop=2)
    here = tensor.slice_(row, axis=2, start=1, stop=2)
    back = tensor.slice_(row, axis=2, start=0, stop=1)
    return tensor.reshape(tensor.sub(here, back), shape=(heads,))


def _table(root: Node, heads: Any, max_context: int) -> Node:
    """The bias by distance [H, P], read off the last query of the longest context."""
    _check_table(max_context)
    row = tensor.slice_(
        _at_length(root, heads, max_context), axis=1, start=max_context - 1, stop=max_context
    )
    table = tensor.reshape(tensor.flip(row, axes=(2,)), shape=(heads, max_context))
    return tensor.sub(table, tensor.slice_(table, axis=1, start=0, stop=1))


def _distances(root: Node, heads: Any, max_context: int) -> Node:
    """The bias by distance [H, 2 P - 1], read off the first and the last query of the longest
    context.
    """
    _check_table(max_context)
    whole = _at_length(root, heads, max_context)
    first = tensor.flip(tensor.slice_(whole, axis=1, start=0, stop=1), axes=(2,))
    last = tensor.slice_(whole, axis=1, start=max_context - 1, stop=max_context)
    back = tensor.slice_(tensor.flip(last, axes=(2,)), axis=2, start=1, stop=max_context)
    both = tensor.concat(first, back, axis=2)
    table = tensor.reshape(both, shape=(heads, 2 * max_context - 1))
    here = tensor.slice_(table, axis=1, start=max_context - 1, stop=max_context)
    return tensor.sub(table, here)


def _check_table(max_context: int) -> None:
    if max_context > TABLE_LIMIT:
        raise IRError(
            f"a bias table over {max_context} positions is too large; at most {TABLE_LIMIT}"
        )


_MAKERS = {"slopes": _slopes, "bias": _table, "distances": _distances}


def draw(seen: Array, most: int = 24) -> str:
    """A corner of a mask as text: x where a key is visible."""
    rows = ["".join("x" if c else "." for c in row[:most]) for row in seen[:most]]
    return "\n".join(f"  {r}" for r in rows)

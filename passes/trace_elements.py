"""Elements through movement: which element of which source each element of a value is, found by
moving numbered arrays.

Movement ops only reorder, so they are run on arrays of element numbers for a few tokens. Element e
of a source's token t has the number t * TOKEN + base + e; what comes out says where every element
came from, whatever chain of views led there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import sympy

from ..ir.dims import Dim, dim, names_in, substitute
from ..ir.node import Node, walk

Ids = np.ndarray[Any, np.dtype[np.int64]]
Array = np.ndarray[Any, Any]

TOKEN = 1 << 40  # more than the elements that all sources together have for one token
SAMPLE = 3  # tokens that are run: enough to see an op that mixes them


@dataclass(frozen=True)
class LinearMap:
    """node = x @ w^T (+ bias): a linear map of the last axis of x by constant weights w[N, K]."""

    node: Node
    x: Node
    w: Node
    bias: Node | None


@dataclass(eq=False)
class Trace:
    """The element numbers of values, from sources on; a linear map's results are sources of their
    own.

    `ids` holds the values traced so far, `bases` the number of the first element of each source and
    linear map, `made` the linear maps met.
    """

    tokens: str
    sources: frozenset[Node]
    linears: Mapping[Node, LinearMap]
    ids: dict[Node, Ids] = field(default_factory=dict[Node, Ids])
    bases: dict[Node, int] = field(default_factory=dict[Node, int])
    made: dict[Node, None] = field(default_factory=dict[Node, None])
    _next: int = 0

    def of(self, node: Node) -> Ids | None:
        """Element numbers [SAMPLE, ...] with the tokens first, less TOKEN t; None where tokens mix
        or are not leading.
        """
        ids = self._ids(node)
        if not node.shape or node.shape[0] != dim(self.tokens):
            return None
        own = ids - TOKEN * np.arange(SAMPLE).reshape(-1, *(1,) * (ids.ndim - 1))
        return own[0] if (own == own[0]).all() and own.min() >= 0 and own.max() < TOKEN else None

    def _ids(self, root: Node) -> Ids:
        stack = [root]
        while stack:
            node = stack[-1]
            needs = [] if node in self.sources else self._needs(node)
            missing = [n for n in needs if n not in self.ids]
            if node not in self.ids and not missing:
                self.ids[node] = self._made(node)
            if not missing:
                stack.pop()
            stack.extend(missing)
        return self.ids[root]

    def _needs(self, node: Node) -> list[Node]:
        if node in self.linears:
            return [self.linears[node].x]
        return [node.inputs[0]] if node.op.name == "take" else list(node.inputs)

    def _made(self, node: Node) -> Ids:
        if node in self.sources:
            return self._numbered(node)
        if node in self.linears:
            self.made[node] = None
            return self._numbered(node)
        attributes = {k: at_size(v, self.tokens) for k, v in node.attributes.items()}
        arrays = [self.ids[i] for i in self._needs(node)]
        if node.op.name == "take":
            arrays.append(constant_value(node.inputs[1]))
        return MOVES[node.op.name](attributes, arrays)

    def _numbered(self, node: Node) -> Ids:
        axis = token_axis(node, self.tokens)
        assert axis is not None, f"{node!r} has no token axis {self.tokens}"
        rest = tuple(int(d) for i, d in enumerate(node.shape) if i != axis)
        self.bases[node] = self._next
        own = np.arange(self._next, self._next + row_size(node), dtype=np.int64).reshape(rest)
        self._next += row_size(node)
        tokens = TOKEN * np.arange(SAMPLE, dtype=np.int64).reshape(-1, *(1,) * len(rest))
        return np.moveaxis(own + tokens, 0, axis)


def row_size(node: Node) -> int:
    """Elements of a value for one token: the product of its dims that are numbers."""
    return math.prod(d for d in node.shape if isinstance(d, int))


def token_axis(node: Node, tokens: str) -> int | None:
    """The axis that is the token dim, where it is one of the axes and no other depends on it."""
    depends = [i for i, d in enumerate(node.shape) if names_in(d)]
    return depends[0] if len(depends) == 1 and node.shape[depends[0]] == dim(tokens) else None


def at_size(value: object, tokens: str) -> Any:
    """An attribute with the token dim at the size of the sample."""
    if isinstance(value, tuple):
        return tuple(at_size(v, tokens) for v in cast("tuple[object, ...]", value))
    sizes: dict[str, Dim] = {tokens: SAMPLE}
    return substitute(value, sizes) if isinstance(value, sympy.Expr) else value


# -- movement, on numpy arrays

Attributes = Mapping[str, Any]
Move = Callable[[Attributes, Sequence[Array]], Array]


def _sliced(a: Attributes, x: Sequence[Array]) -> Array:
    return x[0][(slice(None),) * a["axis"] + (slice(a["start"], a["stop"], a["step"]),)]


def _taken(a: Attributes, x: Sequence[Array]) -> Array:
    return np.take(x[0], x[1], axis=a["axis"])


def _joined(a: Attributes, x: Sequence[Array]) -> Array:
    return np.concatenate(x, a["axis"])


MOVES: Mapping[str, Move] = {
    "reshape": lambda a, x: x[0].reshape(a["shape"]),
    "transpose": lambda a, x: x[0].transpose(a["permutation"]),
    "broadcast": lambda a, x: np.broadcast_to(x[0], a["shape"]),
    "slice": _sliced,
    "flip": lambda a, x: np.flip(x[0], a["axes"]),
    "concat": _joined,
    "take": _taken,
}
"""Op name -> its value, from attributes and operands."""

_COMPUTED: Mapping[str, Move] = {
    **MOVES,
    "constant": lambda a, x: np.asarray(int(a["value"])),
    "iota": lambda a, x: np.arange(int(a["size"])),
    "cast": lambda a, x: x[0],
    "add": lambda a, x: x[0] + x[1],
    "sub": lambda a, x: x[0] - x[1],
    "mul": lambda a, x: x[0] * x[1],
    "floordiv": lambda a, x: x[0] // x[1],
    "mod": lambda a, x: x[0] % x[1],
}


def is_constant_index(node: Node) -> bool:
    """Whether constant_value can tell the whole numbers in a value."""
    return all(
        n.op.name in _COMPUTED
        and n.dtype in ("i32", "i64")
        and not any(names_in(d) for d in n.shape)
        for n in walk((node,))
    )


def constant_value(node: Node) -> Array:
    """The whole numbers that a value made of constants and iotas holds."""
    done: dict[Node, Array] = {}
    for each in walk((node,)):
        operands = [done[i] for i in each.inputs]
        done[each] = _COMPUTED[each.op.name](each.attributes, operands)
    return done[node]

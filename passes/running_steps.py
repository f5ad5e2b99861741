"""What running ops over tokens compute for one token, given what the token before left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..ir.dims import Dim, equal, product
from ..ir.errors import IRError
from ..ir.node import Node, input_, walk
from ..ir.ops import tensor as t
from .build_loop import Step
from .rules.values import reshaped, spread
from .token_values import S


def _log_added(a: Node, b: Node) -> Node:
    """log(e^a + e^b), taken from the larger; of equals, which may be infinite, nothing is
    subtracted.
    """
    low, high = t.minimum(a, b), t.maximum(a, b)
    apart = t.where(t.eq(low, high), t.scalar(0.0, a.dtype), t.sub(low, high))
    return t.add(high, t.log1p(t.exp(apart)))


# How each goes on from one token to the next, and what it begins with.
RUNNING: dict[str, tuple[Callable[[Node, Node], Node], float]] = {
    "cumsum": (t.add, 0.0),
    "cumprod": (t.mul, 1.0),
    "cummax": (t.maximum, float("-inf")),
    "logcumsumexp": (_log_added, float("-inf")),
}


@dataclass(frozen=True)
class _Part:
    """A value over S tokens, or S and one before them, as one token's [.., 1, ..] and, where there
    is one before, the value there.
    """

    row: Node
    first: Node | None = None


@dataclass
class RunningSteps:
    """Makes steps of values; `axes` holds, for each value of each token, which axis is the length.

    A value is a function of these and of constants by elementwise ops, movement that keeps the
    tokens apart, running ops, and one value put before those of the tokens. Raises IRError where it
    is another.
    """

    axes: dict[Node, int]
    tokens: dict[Node, Node] = field(default_factory=dict[Node, Node])
    constants: dict[Node, Node] = field(default_factory=dict[Node, Node])
    states: list[tuple[Node, Node, Node]] = field(default_factory=list[tuple[Node, Node, Node]])
    made: dict[tuple[Node, int], _Part] = field(default_factory=dict[tuple[Node, int], _Part])

    def step(self, node: Node, axis: int) -> tuple[Step, tuple[Node, ...]]:
        """The step of a value whose axis is the length, and the states that it begins with."""
        part = self.part(node, axis)
        if part.first is not None or not self.states:
            raise IRError(f"{node.op.name} : {node.type} runs over no tokens")
        held, news, begun = zip(*self.states, strict=True)
        step = Step(
            tokens=tuple(self.tokens.values()),
            states=held,
            constants=tuple(self.constants.values()),
            news=news,
            results=(part.row,),
        )
        return step, begun

    def part(self, node: Node, axis: int) -> _Part:
        """One token's part of a value whose axis is the length, made once."""
        if (node, axis) not in self.made:
            self.made[node, axis] = self._made(node, axis)
        return self.made[node, axis]

    def _made(self, node: Node, axis: int) -> _Part:
        if node in self.axes:
            return _Part(self._token(node, axis))
        if equal(node.shape[axis], 1):
            return _Part(self.constant(node))
        rule = _RULES.get(node.op.name) or (_elementwise if node.op.has("elementwise") else None)
        if rule is None or not _over_tokens(node.shape[axis]):
            raise IRError(f"{node.op.name} : {node.type} is no step from token to token")
        return rule(self, node, axis)

    def _token(self, node: Node, axis: int) -> Node:
        if self.axes[node] != axis:
            raise IRError(f"{node.op.name} : {node.type} has its tokens on another axis")
        kind = node.tensor.with_shape((*node.shape[:axis], *node.shape[axis + 1 :]))
        made = self.tokens.setdefault(node, input_(name=f"x{len(self.tokens)}", type=kind))
        return reshaped(made, _one(node.shape, axis))

    def constant(self, node: Node) -> Node:
        """A value of weights is an input of the step; numbers stay in it."""
        below = list(walk((node,)))
        if any(n.op.name == "input" or n in self.axes for n in below):
            raise IRError(f"{node.op.name} : {node.type} is the same at every token, and of tokens")
        if not any(n.op.name == "parameter" for n in below):
            return node
        return self.constants.setdefault(
            node, input_(name=f"c{len(self.constants)}", type=node.type)
        )

    def run(self, node: Node, axis: int) -> _Part:
        """A running op along the tokens: a state, in float32 or wider."""
        join, neutral = RUNNING[node.op.name]
        part = self.part(node.inputs[0], axis)
        dtype = node.dtype if node.dtype in ("f32", "f64") else "f32"
        if not node.tensor.is_float:
            raise IRError(f"{node.op.name} : {node.type} runs over whole numbers")
        kind = node.tensor.with_shape(_one(node.shape, axis)).with_dtype(dtype)
        held = input_(name=f"h{len(self.states)}", type=kind)
        first = part.first
        begun = spread(t.scalar(neutral, dtype), kind.shape)
        if first is not None:
            begun = spread(_in(first, dtype), kind.shape)
        new = join(held, _in(part.row, dtype))
        self.states.append((held, new, begun))
        return _Part(_in(new, node.dtype), first)


def _over_tokens(size: Dim) -> bool:
    return equal(size, S) or equal(size, S + 1)


def _one(shape: Sequence[Dim], axis: int) -> tuple[Dim, ...]:
    return tuple(1 if i == axis else d for i, d in enumerate(shape))


def _in(node: Node, dtype: str) -> Node:
    return node if node.dtype == dtype else t.cast(node, dtype=dtype)


def _elementwise(steps: RunningSteps, node: Node, axis: int) -> _Part:
    parts: list[_Part] = []
    for x in node.inputs:
        own = axis - len(node.shape) + len(x.shape)
        same = own < 0 or equal(x.shape[own], 1)
        parts.append(_Part(steps.constant(x)) if same else steps.part(x, own))
    row = node.op.build(tuple(p.row for p in parts), node.attributes)
    if equal(node.shape[axis], S):
        return _Part(row)
    firsts = zip(parts, node.inputs, strict=True)
    before = tuple(x if p.first is None else p.first for p, x in firsts)
    return _Part(row, node.op.build(before, node.attributes))


def _through(steps: RunningSteps, node: Node, own: int, again: Callable[[Node], Node]) -> _Part:
    """One token's part of a value that is moved about, or taken a part of."""
    part = steps.part(node.inputs[0], own)
    return _Part(again(part.row), None if part.first is None else again(part.first))


def _transpose(steps: RunningSteps, node: Node, axis: int) -> _Part:
    order = node["permutation"]
    return _through(steps, node, order[axis], lambda x: t.transpose(x, permutation=order))


def _reshape(steps: RunningSteps, node: Node, axis: int) -> _Part:
    x, shape = node.inputs[0], _one(node.shape, axis)
    for own, d in enumerate(x.shape):
        before = equal(product(x.shape[:own]), product(node.shape[:axis]))
        if before and equal(d, node.shape[axis]):
            return _through(steps, node, own, lambda x: t.reshape(x, shape=shape))
    raise IRError(f"{node.op.name} : {node.type} does not keep the tokens whole")


def _broadcast(steps: RunningSteps, node: Node, axis: int) -> _Part:
    x, shape = node.inputs[0], _one(node.shape, axis)
    own = axis - len(node.shape) + len(x.shape)
    if own < 0 or equal(x.shape[own], 1):
        row = spread(steps.constant(x), shape)
        return _Part(row, spread(x, shape) if equal(node.shape[axis], S + 1) else None)
    return _through(steps, node, own, lambda x: spread(x, shape))


def _slice(steps: RunningSteps, node: Node, axis: int) -> _Part:
    x = node.inputs[0]
    if node["axis"] != axis:
        return _through(steps, node, axis, lambda x: node.with_inputs((x,)))
    if not (equal(x.shape[axis], S + 1) and node["start"] == 1 and node["step"] == 1):
        raise IRError(f"{node.op.name} : {node.type} takes other tokens than its own")
    return _Part(steps.part(x, axis).row)


def _concat(steps: RunningSteps, node: Node, axis: int) -> _Part:
    if node["axis"] != axis:
        parts = [steps.part(x, axis) for x in node.inputs]
        firsts = [p.first for p in parts if p.first is not None]
        row = t.concat(*(p.row for p in parts), axis=node["axis"])
        return _Part(row, t.concat(*firsts, axis=node["axis"]) if firsts else None)
    if len(node.inputs) != 2 or not equal(node.inputs[0].shape[axis], 1):
        raise IRError(f"{node.op.name} : {node.type} puts more than one value before the tokens")
    first, rest = node.inputs
    steps.constant(first)
    return _Part(steps.part(rest, axis).row, first)


def _pad(steps: RunningSteps, node: Node, axis: int) -> _Part:
    before, after = (list(node[end]) for end in ("before", "after"))
    if before[axis] != 1 or after[axis] != 0 or any((*before[:axis], *before[axis + 1 :], *after)):
        raise IRError(f"{node.op.name} : {node.type} puts more than one value before the tokens")
    row = steps.part(node.inputs[0], axis).row
    return _Part(row, spread(t.scalar(node["value"], node.dtype), row.shape))


def _run(steps: RunningSteps, node: Node, axis: int) -> _Part:
    if node["axis"] == axis:
        return steps.run(node, axis)
    return _through(steps, node, axis, lambda x: node.with_inputs((x,)))


_RULES: dict[str, Callable[[RunningSteps, Node, int], _Part]] = {
    "transpose": _transpose,
    "reshape": _reshape,
    "broadcast": _broadcast,
    "slice": _slice,
    "concat": _concat,
    "pad": _pad,
    **dict.fromkeys(RUNNING, _run),
}

"""From one token's step to the op: token_loop out of what a model computes for a token of a batch.

A step is given as the model has it, over values [..., B, ...] of one token; the op's body is the
same step for a batch of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..ir.dims import Dim, names_in, product
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_, walk
from ..ir.ops import loops
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .canonicalize import Canonicalize
from .rules.values import reshaped, spread
from .scan_regions import rebuild, token_axes, tokens_first
from .token_values import B, S, numbers_of


@dataclass(frozen=True)
class Step:
    """What a model computes for one token of a batch: inputs for the token's values, for states
    and for constants; the states behind it, and its results.
    """

    tokens: tuple[Node, ...]
    states: tuple[Node, ...]
    constants: tuple[Node, ...]
    news: tuple[Node, ...]
    results: tuple[Node, ...]


def loop_of(
    step: Step, given: Sequence[Node], begun: Sequence[Node], constants: Sequence[Node]
) -> tuple[Node, ...]:
    """The results [B, S, numbers...] of a step for all tokens.

    `given` are the values that the step reads of each token, with an axis S more than they have
    there; `begun` are the states that a sequence begins with. Raises IRError where a state or a
    constant depends on tokens.
    """
    rows = [_rows(x) for x in given]
    fixed = [_of_one(x, "begins with") for x in begun]
    others = [_of_one(x, "reads in its step, beside the token's own values,") for x in constants]
    body = _body(step, rows, fixed, others)
    made = loops.token_loop(*rows, *fixed, *others, body=body, tokens=len(rows), states=len(fixed))
    return _results(made, [_numbers(r.shape) for r in step.results])


def _rows(x: Node) -> Node:
    """A value of each token, or of each position, as [B, S, numbers...]."""
    axes = token_axes(x)
    if axes is not None and not any(B in axis for axis in axes):
        x = spread(x, (B, *x.shape))
        axes = ((B,), *axes)
    if axes is None:
        raise IRError(f"a loop over tokens reads {x.type}, not a value of each token")
    return tokens_first(x, axes)


def _of_one(x: Node, what: str) -> Node:
    """A value that is the same for every sequence, for a batch of one."""
    if any(n.op.name == "input" for n in walk((x,))):
        raise IRError(
            f"what a loop over tokens {what} is the same for every sequence; this one depends on "
            f"the tokens: {x.type}"
        )
    (one,) = Graph("begin", (), (x,)).substitute({str(B): 1}).outputs
    return one


def _numbers(shape: Sequence[Dim]) -> tuple[int, ...]:
    """A shape of one token of a batch, without the batch."""
    kind = TensorType("f32", tuple(shape))
    axes = token_axes(input_(name="x", type=kind))
    if axes is None or any(names_in(d) for d in numbers_of(axes)):
        raise IRError(f"a loop over tokens gives {kind.shape}, not one value of each sequence")
    return tuple(int(d) for d in numbers_of(axes))


def _body(step: Step, rows: Sequence[Node], fixed: Sequence[Node], others: Sequence[Node]) -> Graph:
    """The step for a batch of one, over inputs [1, numbers...], states and constants."""
    outputs = (*step.news, *step.results)
    inner = Graph("step", (*step.tokens, *step.states, *step.constants), outputs)
    inner = inner.substitute({str(B): 1})
    count = len(step.tokens)
    kinds = [x.tensor.with_shape((1, *x.shape[2:])) for x in rows]
    kinds += [x.tensor for x in (*fixed, *others)]
    fresh = [input_(name=f"i{at}", type=kind) for at, kind in enumerate(kinds)]
    done: dict[Node, Node] = {}
    for at, (old, new) in enumerate(zip(inner.inputs, fresh, strict=True)):
        done[old] = reshaped(new, old.shape) if at < count else new
    for o in inner.outputs:
        rebuild(o, done)
    made = [done[o] for o in inner.outputs]
    states = made[: len(step.news)]
    parts = [reshaped(r, (1, *_numbers(r.shape))) for r in made[len(step.news) :]]
    joined = parts[0] if len(parts) == 1 else t.concat(*(_flat(p) for p in parts), axis=1)
    return Canonicalize().run(Graph("step", tuple(fresh), (*states, joined)))


def _flat(x: Node) -> Node:
    return reshaped(x, (1, product(x.shape[1:])))


def _results(made: Node, numbers: Sequence[tuple[int, ...]]) -> tuple[Node, ...]:
    """The results apart, where they are several."""
    if len(numbers) == 1:
        return (made,)
    parts: list[Node] = []
    first = 0
    for each in numbers:
        size = math.prod(each)
        part = t.slice_(made, axis=2, start=first, stop=first + size)
        parts.append(reshaped(part, (B, S, *each)))
        first += size
    return tuple(parts)

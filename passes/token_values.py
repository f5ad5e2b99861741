"""Values of a captured graph in flattened form: where each original axis went.

An axis of the captured graph is a product of *factors*: batch, length, and numbers. Flattened, a
value is stored as [T, numbers...] with the numbers in reading order, axes of size 1 left out:

    captured                     axes                         stored
    f32[B, S, 64]                (B) (S) (64)                 f32[T, 64]
    f32[B, 8, S, 16]             (B) (8) (S) (16)             f32[T, 8, 16]
    f32[2*B*S, 64]               (B S 2) (64)                 f32[T, 2, 64]
    f32[B, 1, S, S]              compares positions: no token value

so that moving batch and length about costs nothing, and a reshape is a regrouping of factors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..ir.dims import Dim, Shape, dim, equal, exact_quotient, product
from ..ir.errors import IRError
from ..ir.node import Node
from ..ir.ops import tensor

B, S, T = dim("B"), dim("S"), dim("T")
Axis = tuple[Dim, ...]


WHAT_TO_WRITE = (
    "A causal language model mixes tokens by causal attention, by convolutions that read no later "
    "token, or by a recurrence whose state has a fixed size: a linear one, which is recognized by "
    "its values, or any step that is the same for every token, in a loop over the tokens that "
    "reads no more than a token and what the step before left, or in torch's scan. What is linear "
    "and not recognized may call torch.ops.ferrule.linear_scan(q, k, v, log_decay, beta)"
)


class MixesTokensError(IRError):
    """An op reads other tokens than its own; flattening names it and where it came from."""


@dataclass(frozen=True)
class TokenValue:
    """A flattened value: the stored node [T, numbers...] and the factors of each original axis."""

    node: Node
    axes: tuple[Axis, ...]

    def numbers(self) -> tuple[Dim, ...]:
        """The stored shape after T."""
        return numbers_of(self.axes)

    def position(self, axis: int) -> int:
        """The stored axis at which the numbers of an original axis begin."""
        return 1 + len(numbers_of(self.axes[:axis]))

    def is_token_axis(self, axis: int) -> bool:
        """Whether batch or length is in an original axis."""
        return any(is_token(f) for f in self.axes[axis])


def is_token(factor: Dim) -> bool:
    """Whether a factor is batch or length."""
    return factor in (B, S)


def factors_of(d: Dim) -> Axis | None:
    """A dim as batch, length and a number, in that order, 1 left out; None where it is no such
    product."""
    factors: list[Dim] = []
    rest = d
    for token in (B, S):
        quotient = None if isinstance(rest, int) else exact_quotient(rest, token)
        if quotient is not None:
            factors.append(token)
            rest = quotient
    if not isinstance(rest, int):
        return None
    return tuple(factors) if rest == 1 else (*factors, rest)


def numbers_of(axes: Iterable[Axis]) -> tuple[Dim, ...]:
    """The factors of axes that are neither batch nor length."""
    return tuple(f for axis in axes for f in axis if not is_token(f))


def reshaped(node: Node, shape: Shape) -> Node:
    """The node in a shape, or itself where it has it."""
    return node if node.shape == tuple(shape) else tensor.reshape(node, shape=tuple(shape))


def regroup(value: TokenValue, shape: Shape, what: str) -> TokenValue:
    """The value under a reshape of the captured graph: factors are regrouped, and numbers split
    where they must be."""
    left = [f for axis in value.axes for f in axis]
    axes: list[Axis] = []
    for d in shape:
        axes.append(_take_factors(left, d, what))
    if left and not equal(product(left), 1):
        raise MixesTokensError(f"{what} leaves the factors {left} of batch and length over")
    new = tuple(_joined(axis) for axis in axes)
    return TokenValue(reshaped(value.node, (T, *numbers_of(new))), new)


def _joined(axis: Axis) -> Axis:
    """The axis with numbers that stand side by side as one number, as the model's author wrote the
    axis."""
    out: list[Dim] = []
    for factor in axis:
        if out and not is_token(factor) and not is_token(out[-1]):
            out[-1] = product((out[-1], factor))
        else:
            out.append(factor)
    return tuple(out)


def _take_factors(left: list[Dim], d: Dim, what: str) -> Axis:
    """Take the factors of one new dim off the front of what is left, splitting a number where only
    a part is wanted."""
    taken: list[Dim] = []
    rest = d
    while not equal(rest, 1):
        if not left:
            raise MixesTokensError(f"{what} has the dim {d}, for which no factors are left")
        quotient = exact_quotient(rest, left[0])
        if quotient is not None:
            rest = quotient
            taken.append(left.pop(0))
            continue
        part = exact_quotient(left[0], rest) if isinstance(rest, int) else None
        if part is None:
            raise MixesTokensError(
                f"{what} makes the dim {d} out of {left}: batch and length do not stay whole"
            )
        taken.append(rest)
        left[0] = part
        rest = 1
    return tuple(taken)


def merged(value: TokenValue, axis: int) -> TokenValue:
    """The value with one axis's numbers as a single number; an axis of size 1 gets a stored dim of
    1."""
    if value.is_token_axis(axis):
        raise MixesTokensError("an axis with batch or length was given where a number was wanted")
    size = product(value.axes[axis])
    axes = (*value.axes[:axis], (size,), *value.axes[axis + 1 :])
    return TokenValue(reshaped(value.node, (T, *numbers_of(axes))), axes)


def without_ones(axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """Axes without factors of 1."""
    return tuple(tuple(f for f in axis if f != 1) for axis in axes)


def tidy(node: Node, axes: Sequence[Axis]) -> TokenValue:
    """A value whose stored node may have dims of 1 that the canonical form leaves out."""
    clean = without_ones(axes)
    return TokenValue(reshaped(node, (T, *numbers_of(clean))), clean)


def permuted(value: TokenValue, permutation: Sequence[int]) -> TokenValue:
    """The value with its original axes in another order; stored numbers follow the reading
    order."""
    axes = tuple(value.axes[p] for p in permutation)
    starts = [value.position(i) for i in range(len(value.axes))]
    order = [0]
    for p in permutation:
        count = len(numbers_of((value.axes[p],)))
        order += range(starts[p], starts[p] + count)
    moved = value.node
    if order != sorted(order):
        moved = tensor.transpose(moved, permutation=tuple(order))
    return TokenValue(moved, axes)


def common_axes(
    values: Sequence[TokenValue], shapes: Sequence[Shape], what: str
) -> tuple[Axis, ...]:
    """The axes of an elementwise result: for each axis the finest factors among the operands that
    do not broadcast there.

    `shapes` are the captured shapes of the operands that do not depend on tokens.
    """
    rank = max([len(v.axes) for v in values] + [len(s) for s in shapes])
    axes: list[Axis] = []
    for at in range(rank):
        candidates = [
            v.axes[at - rank + len(v.axes)] for v in values if at - rank + len(v.axes) >= 0
        ]
        found: Axis = ()
        for axis in candidates:
            found = _finer(found, axis, what)
        constant = [s[at - rank + len(s)] for s in shapes if at - rank + len(s) >= 0]
        for d in constant:
            if d != 1 and not found:
                found = (d,)
        axes.append(found)
    if sum(axis.count(B) for axis in axes) > 1 or sum(axis.count(S) for axis in axes) > 1:
        raise MixesTokensError(f"{what} compares the tokens of a sequence with each other")
    return tuple(axes)


def _finer(a: Axis, b: Axis, what: str) -> Axis:
    """The common refinement of two factorizations of one axis; an axis of size 1 gives way."""
    if not a or not b or a == b:
        return a or b
    if [f for f in a if is_token(f)] != [f for f in b if is_token(f)]:
        raise MixesTokensError(f"{what} puts {a} beside {b}: different tokens meet")
    left, right, out = list(a), list(b), list[Dim]()
    while left and right:
        x, y = left[0], right[0]
        if equal(x, y):
            out.append(x)
            left.pop(0)
            right.pop(0)
            continue
        small, large = (left, right) if _smaller(x, y) else (right, left)
        part = exact_quotient(large[0], small[0])
        if part is None:
            raise MixesTokensError(f"{what} puts {a} beside {b}: the factors do not fit")
        out.append(small.pop(0))
        large[0] = part
    return tuple(out)


def _smaller(x: Dim, y: Dim) -> bool:
    return isinstance(x, int) and isinstance(y, int) and x < y


def aligned(value: TokenValue, axes: Sequence[Axis]) -> Node:
    """The stored node with a dim of 1 for each number of `axes` that the value broadcasts over: [T,
    numbers or 1...]."""
    rank = len(axes)
    shape: list[Dim] = [T]
    for at in range(rank):
        own = at - rank + len(value.axes)
        numbers = numbers_of((axes[at],))
        has = own >= 0 and bool(value.axes[own])
        shape += numbers if has else [1] * len(numbers)
    return reshaped(value.node, tuple(shape))


def aligned_constant(node: Node, axes: Sequence[Axis], what: str) -> Node:
    """A value without batch and length in a shape that broadcasts against [T, numbers...] of
    `axes`."""
    shape: list[Dim] = []
    rank = len(axes)
    for at in range(rank):
        own = at - rank + len(node.shape)
        numbers = numbers_of((axes[at],))
        size = node.shape[own] if own >= 0 else 1
        if size == 1:
            shape += [1] * len(numbers)
        elif equal(size, product(numbers)) and len(numbers) == len(axes[at]):
            shape += numbers
        else:
            raise MixesTokensError(f"{what} gives each of {axes[at]} its own constant")
    while shape and shape[0] == 1:
        shape.pop(0)
    return reshaped(node, tuple(shape))


def spread(value: TokenValue, axes: Sequence[Axis]) -> TokenValue:
    """The value broadcast to all the numbers of `axes`."""
    shape = (T, *numbers_of(axes))
    node = aligned(value, axes)
    wide = node if node.shape == shape else tensor.broadcast(node, shape=shape)
    return TokenValue(wide, tuple(axes))


def as_token(node: Node) -> TokenValue:
    """A constant as a token value: the same for every token."""
    axes = tuple(() if d == 1 else (d,) for d in node.shape)
    return TokenValue(
        tensor.broadcast(reshaped(node, numbers_of(axes)), shape=(T, *numbers_of(axes))), axes
    )

"""Regions: parts of a graph as functions of tokens, [B, S, ...] in and out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from ..ir.dims import Dim, equal, names_in, product
from ..ir.node import Node, input_
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .rules.values import reshaped
from .scan_roles import Array
from .token_values import Axis, B, S, factors_of, numbers_of

# (nodes, value of each dim, values of inputs by name) -> the nodes' values, floats in float64.
Run = Callable[[tuple[Node, ...], Mapping[str, int], Mapping[str, Array]], "list[Array]"]


@dataclass(frozen=True)
class Region:
    """A part of a graph with fresh inputs [B, S, ...] in float32, and the output so.

    `outputs` holds it by its length; at 0 for any that `step` divides. `node` is what it computes
    in the graph, `given` are the graph's own values for the inputs.
    """

    outputs: Mapping[int, Node] = field(hash=False)
    inputs: tuple[Node, ...]
    node: Node
    axes: tuple[Axis, ...]
    given: tuple[Node, ...]
    step: int = 1

    @classmethod
    def cut(
        cls, node: Node, inputs: Sequence[Node], each: Sequence[Sequence[Axis]], step: int = 1
    ) -> Region:
        """The region between inputs, whose axes are given, and a node."""
        axes = token_axes(node)
        assert axes is not None, f"{node} is no value of each token"
        fresh = fresh_inputs(each)
        output = output_of(node, axes, inputs, each)
        given = tuple(
            in_dtype(tokens_first(v, own), "f32") for v, own in zip(inputs, each, strict=True)
        )
        return cls({0: output}, fresh, node, axes, given, step)

    @property
    def key(self) -> tuple[object, ...]:
        """What is the same for regions that compute the same."""
        return (tuple(self.outputs.items()), self.inputs)

    @property
    def sizes(self) -> list[tuple[int, ...]]:
        """The sizes of each input behind batch and length."""
        return [cast("tuple[int, ...]", i.shape[2:]) for i in self.inputs]

    def lengths(self, wanted: Sequence[int]) -> Sequence[int]:
        """The wanted lengths, or those that the region is known at."""
        if 0 not in self.outputs:
            return tuple(self.outputs)
        return wanted if self.step == 1 else tuple(self.step * n for n in (1, 2, 3))

    def values(self, given: Sequence[Array], run: Run, *more: Node) -> list[Array]:
        """The output's value for values of the inputs, and those of more nodes over them."""
        batch, length = given[0].shape[:2]
        output = self.outputs.get(0) or self.outputs[length]
        named = {i["name"]: v for i, v in zip(self.inputs, given, strict=True)}
        return run((output, *more), {"B": batch, "S": length}, named)

    def outside(self, made: Node) -> Node:
        """What was made of the fresh inputs, of those of the graph."""
        done: dict[Node, Node] = dict(zip(self.inputs, self.given, strict=True))
        rebuild(made, done)
        return in_dtype(tokens_back(done[made], self.axes, self.node.shape), self.node.dtype)


def fresh_inputs(each: Sequence[Sequence[Axis]], length: Dim = S) -> tuple[Node, ...]:
    """Inputs [B, S, numbers...] for values with these axes."""
    shapes = [(B, length, *numbers_of(own)) for own in each]
    return tuple(
        input_(name=f"x{at}", type=TensorType("f32", shape)) for at, shape in enumerate(shapes)
    )


def output_of(
    node: Node,
    axes: Sequence[Axis],
    inputs: Sequence[Node],
    each: Sequence[Sequence[Axis]],
    length: Dim = S,
) -> Node:
    """A node [B, length, numbers...] as a function of fresh inputs in place of its own."""
    fresh = fresh_inputs(each, length)
    done = {
        value: in_dtype(tokens_back(made, own, value.shape), value.dtype)
        for value, own, made in zip(inputs, each, fresh, strict=True)
    }
    rebuild(node, done)
    return in_dtype(tokens_first(done[node], axes, length), "f32")


def frontier(node: Node, is_token: Callable[[Node], bool]) -> tuple[Node, ...]:
    """The values of each token that a node is made of, in order, as near to it as they are.

    In place of a product of smaller ones stand those: of keys and values, for one.
    """
    found: dict[Node, None] = {}
    stack, seen = [node], {node}
    while stack:
        for value in stack.pop().inputs:
            if value in seen:
                continue
            seen.add(value)
            if is_token(value):
                found |= dict.fromkeys(_factors(value, is_token))
            else:
                stack.append(value)
    return tuple(found)


def _factors(node: Node, is_token: Callable[[Node], bool]) -> tuple[Node, ...]:
    if node.op is not t.mul or not all(map(is_token, node.inputs)):
        return (node,)
    alike = any(equal(product(i.shape), product(node.shape)) for i in node.inputs)
    return (node,) if alike else node.inputs


def rebuild(root: Node, done: dict[Node, Node]) -> None:
    """Everything below a node built anew on what `done` holds."""
    stack = [root]
    while stack:
        node = stack[-1]
        missing = [i for i in node.inputs if i not in done]
        if node in done:
            stack.pop()
        elif missing:
            stack.extend(missing)
        else:
            done[node] = (
                node.with_inputs(tuple(done[i] for i in node.inputs)) if node.inputs else node
            )
            stack.pop()


def token_axes(node: Node) -> tuple[Axis, ...] | None:
    """The factors of a node's axes; None where one is no product of batch, length and a number."""
    if not isinstance(node.type, TensorType):
        return None
    each = [factors_of(d) if names_in(d) or d != 1 else () for d in node.shape]
    if any(a is None for a in each):
        return None
    axes = cast("tuple[Axis, ...]", tuple(each))
    return axes if all(sum(a.count(x) for a in axes) <= 1 for x in (B, S)) else None


def is_whole(axes: Sequence[Axis] | None) -> bool:
    """Whether batch and length are both among the axes, and the other sizes are numbers."""
    flat = [f for axis in axes or () for f in axis]
    numbers = (f for f in flat if f not in (B, S))
    return flat.count(B) == flat.count(S) == 1 and all(isinstance(d, int) for d in numbers)


def tokens_first(node: Node, axes: Sequence[Axis], length: Dim = S) -> Node:
    """The node as [B, length, numbers...]."""
    flat: list[Dim] = [f for axis in axes for f in axis]
    order = (flat.index(B), flat.index(S), *(i for i, f in enumerate(flat) if f not in (B, S)))
    node = reshaped(node, tuple(length if f == S else f for f in flat))
    return node if order == tuple(sorted(order)) else t.transpose(node, permutation=order)


def tokens_back(node: Node, axes: Sequence[Axis], shape: Sequence[Dim]) -> Node:
    """[B, S, numbers...] as the axes had it."""
    flat: list[Dim] = [f for axis in axes for f in axis]
    order = (flat.index(B), flat.index(S), *(i for i, f in enumerate(flat) if f not in (B, S)))
    back = tuple(order.index(i) for i in range(len(order)))
    if back != tuple(sorted(back)):
        node = t.transpose(node, permutation=back)
    return reshaped(node, tuple(shape))


def in_dtype(node: Node, dtype: str) -> Node:
    """The node in a dtype; itself where it has it."""
    return node if node.dtype == dtype else t.cast(node, dtype=dtype)

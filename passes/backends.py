"""What passes ask of a backend: plain values that code generation states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from ..ir.node import Node

ROWS = "rows"
"""The template that takes any group of elementwise, movement, index and reduction ops."""


class Layout(Protocol):
    """How a packed weight lies: [N, K] as [ceil(N / columns), ceil(K / depth), columns(, depth)],
    filled with zeros; or, with pairs, [.., ceil(K / (depth pairs)), columns, depth, pairs]. Blocks
    of the parts of N that are read together may take turns.
    """

    @property
    def columns(self) -> int:
        """Rows of w that stand side by side."""
        ...

    @property
    def depth(self) -> int:
        """Consecutive k of a row next to one another; 1 for no such axis."""
        ...

    @property
    def pairs(self) -> int:
        """Stretches of k that lie interleaved; 1 for no such axis."""
        ...

    @property
    def word(self) -> str:
        """The name that packed_linear carries."""
        ...

    def with_sides(self, sides: int) -> Layout:
        """This layout with the blocks of so many equal parts of N in turn."""
        ...

    def in_turn(self, blocks: Node, axis: int) -> Node:
        """Blocks along an axis, part after part, with those of the parts in turn."""
        ...

    def in_order(self, blocks: Node, axis: int) -> Node:
        """What in_turn was given."""
        ...

    def packed(self, w: Node) -> Node:
        """w[N, K] or w[E, N, K] in this layout."""
        ...


class Template(Protocol):
    """A kind of kernel: the ops it is built around, and what it takes in before and behind them."""

    @property
    def anchors(self) -> frozenset[str]:
        """Each of these begins a kernel; those of the rows template join each other."""
        ...

    @property
    def prologue(self) -> frozenset[str]:
        """Ops on the anchor's operands."""
        ...

    @property
    def epilogue(self) -> frozenset[str]:
        """Ops on the anchor's result."""
        ...

    @property
    def before(self) -> frozenset[str]:
        """Ops over whole rows that the template takes in as the anchor's first operand, where
        nothing else reads them and another anchor has made what they read.
        """
        ...

    @property
    def several(self) -> bool:
        """Whether more than one value of the epilogue may leave, all of as many columns."""
        ...

    @property
    def redone(self) -> frozenset[str]:
        """Ops of the prologue that are cheap enough to be done anew at each read, where their
        results take more memory than what they are made of.
        """
        ...


Templates = Mapping[str, Template]
Layouts = Mapping[str, Layout]

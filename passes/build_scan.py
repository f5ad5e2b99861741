"""From roles to the op: operands of linear_scan out of a region's inputs [B, S, ...]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..ir.dims import Dim, product
from ..ir.node import Node
from ..ir.ops import recurrent
from ..ir.ops import tensor as t
from .rules.values import reshaped, spread
from .scan_roles import Roles


def _itself(x: Node) -> Node:
    return x


def _minus(x: Node) -> Node:
    return t.neg(x)


def _rest(x: Node) -> Node:
    """log(1 - x)."""
    return t.log(t.sub(t.scalar(1.0, x.dtype), x))


# What a decay may be given as, and whether numbers below zero stand for one that fades.
DECAYS: tuple[tuple[Callable[[Node], Node], bool], ...] = (
    (_itself, True),
    (t.log, False),
    (_minus, False),
    (_rest, False),
)


@dataclass(frozen=True)
class Operands:
    """A region's inputs in float32 [B, S, *sizes], and the parts that they play."""

    roles: Roles
    inputs: Sequence[Node]

    @property
    def lead(self) -> tuple[Dim, ...]:
        """Batch and length."""
        return self.inputs[0].shape[:2]

    @property
    def heads(self) -> tuple[int, ...]:
        """The sizes of the result's axes of heads."""
        return tuple(self.roles.sizes[a] for a in self.roles.heads)

    @property
    def values(self) -> tuple[int, ...]:
        """The sizes of the result's axes of values."""
        return tuple(self.roles.sizes[a] for a in self.roles.values)

    def result(self, log_decay: Node | None) -> Node:
        """The scan [B, S, *sizes] with this logarithm of the decay, [B, S, H, K or 1]; None: 0."""
        heads, values = product(self.heads), product(self.values)
        v = spread(self._made(self.roles.numbers), (*self.lead, *self.heads, *self.values, 1))
        v = reshaped(v, (*self.lead, heads, values))
        q, k = self._grouped()
        if log_decay is None:
            log_decay = spread(t.scalar(0.0, "f32"), (*self.lead, heads, 1))
        y = recurrent.linear_scan(q, k, v, log_decay, *self._beta())
        y = reshaped(y, (*self.lead, *self.heads, *self.values))
        for gate in self.roles.gates:
            placed = self._placed(gate)
            y = t.mul(y, reshaped(placed, placed.shape[:-1]))
        order = (*self.roles.heads, *self.roles.values)
        back = (0, 1, *(2 + order.index(a) for a in range(len(order))))
        return y if back == tuple(sorted(back)) else t.transpose(y, permutation=back)

    def decay(self, logarithm: Callable[[Node], Node]) -> Node | None:
        """The logarithm of the decay [B, S, H, K or 1] out of the input that plays it."""
        at = self.roles.decay
        if at is None:
            return None
        placed = logarithm(self._placed(at))
        rows = placed.shape[-1]
        thin = reshaped(placed, (*self.lead, *placed.shape[2 : 2 + len(self.heads)], rows))
        wide = spread(thin, (*self.lead, *self.heads, rows))
        return reshaped(wide, (*self.lead, product(self.heads), rows))

    def _beta(self) -> tuple[Node, ...]:
        if not self.roles.is_delta:
            return ()
        made = self._made(self.roles.beta)
        thin = reshaped(made, (*self.lead, *made.shape[2 : 2 + len(self.heads)]))
        return (
            reshaped(spread(thin, (*self.lead, *self.heads)), (*self.lead, product(self.heads))),
        )

    def _grouped(self) -> tuple[Node, Node]:
        """Queries and keys [B, S, G, K], each group of heads once where they come last."""
        both = [self._made(part) for part in (self.roles.queries, self.roles.keys)]
        thin = [
            reshaped(x, (*self.lead, *x.shape[2 : 2 + len(self.heads)], x.shape[-1])) for x in both
        ]
        held = [any(x.shape[2 + i] != 1 for x in thin) for i in range(len(self.heads))]
        first = max((i + 1 for i, h in enumerate(held) if h), default=0)
        groups = self.heads[:first]
        shape = (*self.lead, *groups, self.roles.rows)
        kept = (reshaped(x, (*self.lead, *x.shape[2 : 2 + first], x.shape[-1])) for x in thin)
        q, k = (
            reshaped(spread(x, shape), (*self.lead, product(groups), self.roles.rows)) for x in kept
        )
        return q, k

    def _made(self, part: Sequence[int]) -> Node:
        """The product of inputs in [B, S, heads..., values..., rows], ones where there are none."""
        ones = (1,) * (len(self.heads) + len(self.values) + 1)
        if not part:
            return spread(t.scalar(1.0, "f32"), (*self.lead, *ones))
        made = self._placed(part[0])
        for at in part[1:]:
            made = t.mul(made, self._placed(at))
        return made

    def _placed(self, at: int) -> Node:
        """An input with its axes where the result has them, and the summed one last."""
        node, axes = self.inputs[at], self.roles.marks[at].axes
        order = (*self.roles.heads, *self.roles.values, None)
        found = [next((i for i, x in enumerate(axes) if x.beside == a), None) for a in order]
        present = [i for i in found if i is not None]
        permutation = (0, 1, *(2 + i for i in present))
        if permutation != tuple(sorted(permutation)):
            node = t.transpose(node, permutation=permutation)
        node = reshaped(node, (*self.lead, *(1 if i is None else axes[i].size for i in found)))
        for place, i in enumerate(found):
            if i is not None and axes[i].repeat > 1:
                node = _repeated(node, 2 + place, axes[i].repeat)
        return node


def _repeated(node: Node, axis: int, times: int) -> Node:
    """Each entry of an axis so many times in a row."""
    before, size, after = node.shape[:axis], node.shape[axis], node.shape[axis + 1 :]
    thin = reshaped(node, (*before, size, 1, *after))
    return reshaped(spread(thin, (*before, size, times, *after)), (*before, size * times, *after))

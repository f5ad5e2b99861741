"""Recurrent ops that a model or a capture helper calls by name, and torch's recurrent cells."""

from __future__ import annotations

from collections.abc import Sequence

from ...ir.dims import exact_quotient
from ...ir.node import Node, Op
from ...ir.ops import model, recurrent
from ...ir.ops import tensor as t
from .table import Builder, Call, Table

TABLE = Table()


@TABLE("ferrule.linear_scan")
def linear_scan(
    call: Call, q: Node, k: Node, v: Node, log_decay: Node, beta: Node | None = None
) -> Node:
    """The op of the same name."""
    return recurrent.linear_scan(q, k, v, log_decay, *(() if beta is None else (beta,)))


Gate = tuple[Node, ...]


def _gates(x: Node, w: Node, b: Node | None, count: int) -> Gate:
    """The gates [B, H] of x[B, I] by w[count H, I]."""
    y = model.linear(x, w, *(() if b is None else (b,)))
    size = exact_quotient(y.shape[1], count)
    assert isinstance(size, int), f"{y.type} for {count} gates"
    return tuple(t.slice_(y, axis=1, start=at * size, stop=(at + 1) * size) for at in range(count))


@TABLE("gru_cell")
def gru_cell(
    call: Call, x: Node, h: Node, w: Node, u: Node, b: Node | None = None, d: Node | None = None
) -> Node:
    """n + z (h - n), where n = tanh(n_x + r n_h)."""
    (rx, zx, nx), (rh, zh, nh) = _gates(x, w, b, 3), _gates(h, u, d, 3)
    r, z = t.sigmoid(t.add(rx, rh)), t.sigmoid(t.add(zx, zh))
    n = t.tanh(t.add(nx, t.mul(r, nh)))
    return t.add(n, t.mul(z, t.sub(h, n)))


@TABLE("lstm_cell")
def lstm_cell(
    call: Call,
    x: Node,
    states: Sequence[Node],
    w: Node,
    u: Node,
    b: Node | None = None,
    d: Node | None = None,
) -> tuple[Node, Node]:
    """(o tanh(c), c), where c = f c + i g."""
    h, before = states
    pairs = zip(_gates(x, w, b, 4), _gates(h, u, d, 4), strict=True)
    i, f, g, o = (t.add(*pair) for pair in pairs)
    c = t.add(t.mul(t.sigmoid(f), before), t.mul(t.sigmoid(i), t.tanh(g)))
    return t.mul(t.sigmoid(o), t.tanh(c)), c


def _simple_cell(bend: Op) -> Builder:
    def build(
        call: Call, x: Node, h: Node, w: Node, u: Node, b: Node | None = None, d: Node | None = None
    ) -> Node:
        (above,), (below,) = _gates(x, w, b, 1), _gates(h, u, d, 1)
        return bend(t.add(above, below))

    return build


TABLE("rnn_tanh_cell")(_simple_cell(t.tanh))
TABLE("rnn_relu_cell")(_simple_cell(t.relu))

"""torch's recurrent layers (nn.RNN, nn.GRU, nn.LSTM) as scans over the tokens.

torch runs them by functions of its own that export at one length at a time. Here each of these is
written once more: what reads the input alone for all tokens at once, and the step, which goes from
token to token, as torch's scan, which exports whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch._higher_order_ops.scan import scan
from torch.nn import functional as F
from torch.nn.modules import rnn

from .errors import CompileError

Tensor = torch.Tensor
States = tuple[Tensor, ...]
# (the gates of the token's input, the gates of the states, the states) -> the new states
Cell = Callable[[Tensor, Tensor, States], States]


def scanned_layers(undo: ExitStack) -> None:
    """torch's recurrent layers run as scans, until `undo`."""
    found: Any = rnn
    undo.callback(setattr, found, "_VF", found._VF)
    found._VF = _Functions(found._VF)


class _Functions:
    """torch's functions, but for those of recurrent layers."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def gru(self, x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """As torch.gru: (y, the states behind the last token)."""
        y, (last,) = _layers(_gru, x, (hx,), *rest)
        return y, last

    def lstm(self, x: Tensor, hx: Sequence[Tensor], *rest: Any) -> tuple[Tensor, ...]:
        """As torch.lstm: (y, h, c)."""
        y, last = _layers(_lstm, x, tuple(hx), *rest)
        return (y, *last)

    def rnn_tanh(self, x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """As torch.rnn_tanh."""
        y, (last,) = _layers(_simple(torch.tanh), x, (hx,), *rest)
        return y, last

    def rnn_relu(self, x: Tensor, hx: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        """As torch.rnn_relu."""
        y, (last,) = _layers(_simple(torch.relu), x, (hx,), *rest)
        return y, last


def _layers(
    cell: Cell,
    x: Tensor,
    states: States,
    weights: Sequence[Tensor],
    biased: Any,
    layers: int = 1,
    dropout: float = 0.0,
    train: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
) -> tuple[Tensor, States]:
    """The layers one after another, as torch's functions take their arguments."""
    if isinstance(biased, (list, tuple)):
        raise CompileError(
            "a recurrent layer of packed sequences: give it a tensor [B, S, ...]; batches of "
            "different lengths are what serving is made of"
        )
    if bidirectional:
        raise CompileError(
            "a recurrent layer with bidirectional=True reads later tokens, which a causal language "
            "model does not; bidirectional=False is what can be served"
        )
    y = x.transpose(0, 1) if batch_first else x
    each = len(weights) // layers
    last: list[States] = []
    for at in range(layers):
        own = weights[at * each : (at + 1) * each]
        y, behind = _layer(cell, y, tuple(s[at] for s in states), own, bool(biased))
        last.append(behind)
    joined = tuple(torch.stack(s) for s in zip(*last, strict=True))
    return y.transpose(0, 1) if batch_first else y, joined


def _layer(
    cell: Cell, x: Tensor, states: States, weights: Sequence[Tensor], biased: bool
) -> tuple[Tensor, States]:
    """One layer over x[S, B, I]; behind two weights stand two biases, then a projection of h."""
    w, u = weights[:2]
    b, d = weights[2:4] if biased else (None, None)
    projection = weights[4 if biased else 2 :]

    def step(before: States, gates: Tensor) -> tuple[States, Tensor]:
        h, *rest = cell(gates, F.linear(before[0], u, d), before)
        for p in projection:
            h = F.linear(h, p)
        return (h, *rest), h.clone()

    behind, y = scan(step, tuple(s.clone() for s in states), F.linear(x, w, b))
    return y, behind


def _gru(x: Tensor, h: Tensor, states: States) -> States:
    """r, z, n of Cho et al. (2014), as torch has them: the new gate reads r times h's part."""
    (before,) = states
    rx, zx, nx = x.chunk(3, -1)
    rh, zh, nh = h.chunk(3, -1)
    r, z = torch.sigmoid(rx + rh), torch.sigmoid(zx + zh)
    n = torch.tanh(nx + r * nh)
    return (n + z * (before - n),)


def _lstm(x: Tensor, h: Tensor, states: States) -> States:
    """i, f, g, o of Hochreiter and Schmidhuber (1997), with a forget gate."""
    i, f, g, o = (x + h).chunk(4, -1)
    c = torch.sigmoid(f) * states[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def _simple(bend: Callable[[Tensor], Tensor]) -> Cell:
    """Elman's (1990): the bent sum of both parts."""
    return lambda x, h, states: (bend(x + h),)

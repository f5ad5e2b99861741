"""torch's associative_scan as a scan over the tokens.

torch joins neighbours, then pairs of neighbours and so on: as many rounds as the length has, which
export at one length at a time. Here each token is joined to what those before it made, one after
another, as torch's scan, which exports whole and has the same values.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch._higher_order_ops.scan import scan
from torch.utils import _pytree as pytree

Tensor = torch.Tensor
Join = Callable[[list[Tensor], list[Tensor]], list[Tensor]]
"""What was made of the elements before, and an element, as one."""


def scanned_pairs(undo: ExitStack) -> None:
    """torch's associative scans are done element by element, until `undo`."""
    # By its name: a function of the package hides the module.
    found: Any = importlib.import_module("torch._higher_order_ops.associative_scan")
    for name, own in (("torch", _Torch()), ("generic_associative_scan", _one_by_one)):
        undo.callback(setattr, found, name, getattr(found, name))
        setattr(found, name, own)


class _Torch:
    """torch, without what makes of a function of one element one of many."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def vmap(self, function: Any, *_: Any, **__: Any) -> Any:
        """The function, for one element."""
        return function


def _one_by_one(
    operator: Any, leaves: Sequence[Tensor], dim: int = 0, additional_inputs: Sequence[Tensor] = ()
) -> list[Tensor]:
    """y_0 = x_0 and y_t = operator(y_{t - 1}, x_t), for tensors side by side."""
    rows = [x.movedim(dim, 0) for x in leaves]

    def join(before: list[Tensor], element: list[Tensor]) -> list[Tensor]:
        return pytree.tree_leaves(operator(*before, *element, *additional_inputs))

    known = isinstance(rows[0].shape[0], int)
    made = _written_out(join, rows) if known else _scanned(join, rows)
    return [y.movedim(0, dim) for y in made]


def _written_out(join: Join, rows: Sequence[Tensor]) -> list[Tensor]:
    """A scan over an axis of a known size, which is none of tokens."""
    before, *rest = zip(*(x.unbind(0) for x in rows), strict=True)
    made = [list(before)]
    for element in rest:
        made.append(join(made[-1], list(element)))
    return [torch.stack(ys) for ys in zip(*made, strict=True)]


def _scanned(join: Join, rows: Sequence[Tensor]) -> list[Tensor]:
    first = torch.arange(rows[0].shape[0]) == 0

    def step(before: list[Tensor], token: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        is_first, *own = token
        both = join(before, own)
        after = [torch.where(is_first, x, y) for x, y in zip(own, both, strict=True)]
        return after, [y.clone() for y in after]

    _, made = scan(step, [torch.zeros_like(x[0]) for x in rows], [first, *rows])
    return made

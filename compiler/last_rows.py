"""The last token's row, while a model is captured that gives the logits of no other.

Serving asks for the row of any token. A causal model's row of a token is that of the last one in
the tokens up to it: so where it takes the last row along the tokens, it takes every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _EveryRow(TorchFunctionMode):
    """Leaves out every `x[:, -1]` along the tokens."""

    def __init__(self, length: Any) -> None:
        super().__init__()
        self.length = length

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The tensor itself where its last row along the tokens is asked for; else the call."""
        if func is torch.Tensor.__getitem__:
            x, index = args
            if x.dim() in (2, 3) and same_size(x.shape[1], self.length) and is_last_row(index):
                return x
        return func(*args, **dict(kwargs or {}))


def same_size(one: Any, other: Any) -> bool:
    """Whether two sizes are the same, by what the tracer calls them."""
    if isinstance(one, torch.SymInt) and isinstance(other, torch.SymInt):
        return one.node.expr == other.node.expr
    return type(one) is type(other) and one == other


def is_last_row(index: Any) -> bool:
    """Whether an index takes the last entry of the second axis and nothing else."""
    if not isinstance(index, tuple) or len(index) < 2:
        return False
    first, second, *rest = index
    whole = all(i is Ellipsis or i == slice(None) for i in (first, *rest) if _is_plain(i))
    plain = all(_is_plain(i) for i in (first, *rest))
    return plain and whole and first == slice(None) and second in (-1, [-1], slice(-1, None))


def _is_plain(part: Any) -> bool:
    return part is Ellipsis or isinstance(part, slice)


@contextmanager
def all_rows_for_last(ids: torch.Tensor) -> Iterator[None]:
    """Take every row where a model takes the last along the length of ids [B, S]."""
    with _EveryRow(ids.shape[1]):
        yield

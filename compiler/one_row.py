"""The one row that a classifier's head reads, while its model is captured.

A sequence classifier scores one token of each sequence: the first, or the last that is no padding.
Its head keeps tokens apart, so where it takes that row along the tokens, here it takes every row:
serving asks for the one that it wants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import CompileError
from .last_rows import is_last_row, same_size


class OneRow(TorchFunctionMode):
    """Leaves out the one taking of a row along the length of ids [B, S]; `kind` is then "cls" (the
    first row) or "last".
    """

    def __init__(self, ids: torch.Tensor) -> None:
        super().__init__()
        self.length = ids.shape[1]
        self.kinds: set[str] = set()

    @property
    def kind(self) -> str:
        """Which row was taken; raises CompileError where none or several were."""
        if len(self.kinds) != 1:
            found = " and ".join(sorted(self.kinds)) or "none"
            raise CompileError(
                "a sequence classifier scores the first token or the last one of a sequence; of "
                f"the rows that this one takes are known: {found}"
            )
        return next(iter(self.kinds))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The tensor itself where one row along the tokens is asked for; else the call."""
        if func is torch.Tensor.__getitem__:
            x, index = args
            fits = x.dim() == 3 and same_size(x.shape[1], self.length)
            kind = self._row(x, index) if fits else None
            if kind is not None:
                self.kinds.add(kind)
                return x
        return func(*args, **dict(kwargs or {}))

    def _row(self, x: torch.Tensor, index: Any) -> str | None:
        if is_last_row(index):
            return "last"
        if not isinstance(index, tuple) or len(index) < 2:
            return None
        first, second, *rest = index
        if _is_whole(first) and second in (0, [0]) and all(map(_is_whole, rest)):
            return "cls"
        if rest or not (_is_number(first) and _is_number(second)):
            return None
        # logits[arange(B), where the last token that is no padding stands]
        return "last" if _is_line(first, x.shape[0]) and _ends(second, x.shape[0]) else None


def _is_whole(part: Any) -> bool:
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))


def _is_number(part: Any) -> bool:
    return isinstance(part, int) or (
        isinstance(part, torch.Tensor) and not part.is_floating_point() and part.dtype != torch.bool
    )


def _is_line(part: Any, size: Any) -> bool:
    return isinstance(part, torch.Tensor) and part.dim() == 1 and bool(part.shape[0] == size)


def _ends(part: Any, size: Any) -> bool:
    return part == -1 if isinstance(part, int) else _is_line(part, size)

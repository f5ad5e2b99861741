"""Strides, while a model is captured: they are not ours to keep.

Whether a part of a value lies in one piece depends on whether it is all of it, and so on the
length: `x[:, : 4 * (S // 4)].reshape(...)` is a view where four divides S, and a copy elsewhere.
The tracer keeps the two apart. Here a part is always a piece of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .errors import CompileError
from .sources import calling_line

Tensor = torch.Tensor
Function = Callable[..., Any]
_PARTS = (Tensor.__getitem__, Tensor.narrow, torch.narrow, Tensor.contiguous)
_SHAPES = (Tensor.reshape, torch.reshape, Tensor.flatten, torch.flatten)


class WithoutStrides(TorchFunctionMode):
    """Parts of values and values in other shapes are copies. A write into one, which may have been
    meant for the whole, is refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: dict[int, Tensor] = {}  # held: ids are keys

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The call itself, on or into a copy."""
        named = dict(kwargs or {})
        if args and id(args[0]) in self.copies and _writes(func):
            raise CompileError(
                f"at {calling_line()} a part of a value is written to; write to the value itself, "
                "as in x[:, a:b] = y"
            )
        if func in _SHAPES and isinstance(args[0], Tensor):
            return self._copied(func(_whole(args[0]), *args[1:], **named), args[0])
        found = func(*args, **named)
        if func in _PARTS and isinstance(found, Tensor):
            return self._copied(_whole(found), args[0])
        return found

    def _copied(self, made: Tensor, source: Tensor) -> Tensor:
        if made is not source:
            self.copies[id(made)] = made
        return made


def _whole(x: Tensor) -> Tensor:
    """The same numbers, one after another; itself where its sizes are no symbols."""
    if all(isinstance(d, int) for d in x.shape):
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _writes(func: Function) -> bool:
    name = getattr(func, "__name__", "")
    inner = name.startswith("__i") and name.endswith("__") and name != "__invert__"
    return func is Tensor.__setitem__ or inner or (name.endswith("_") and not name.endswith("__"))

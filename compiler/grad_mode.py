"""Gradients, while a model is captured: there are none, whatever its parts ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class WithoutGradients(TorchFunctionMode):
    """Passes over a model's `no_grad` and `enable_grad`: the tracer makes programs of their own of
    what they enclose, which to put back takes a second trace.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The call itself, unless it sets the mode."""
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **(kwargs or {}))

"""Decisions that a model takes in Python about its length, while it is being captured.

A rotary embedding with dynamic scaling asks `if max(position_ids) + 1 > limit`. The tracer knows no values, so it would
refuse. Here small integer tensors that come from the length alone carry two concrete twins, one for the shortest and one
for the longest length of the capture. Where both twins decide alike, that is the decision for every length; where they
differ, the model has no one graph for all lengths, and the error says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from .errors import CompileError


class _Twins(NamedTuple):
    shortest: Any
    longest: Any


class _Shadow(TorchFunctionMode):
    """Runs every call on tensors that depend on the length alone a second and third time, on the twins."""

    def __init__(self, length: Any, shortest: int, longest: int) -> None:
        super().__init__()
        self.length, self.ends = length, (shortest, longest)
        self.twins: dict[int, _Twins] = {}
        self.alive: list[Any] = []  # ids are keys: what they name must live as long as the mode

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The call itself; a question of truth is answered by the twins."""
        kwargs = dict(kwargs or {})
        if func in _QUESTIONS and id(args[0]) in self.twins:
            return self._answer(func, args[0])
        result = func(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.dim() <= 2 and not result.is_complex():
            self._shadow(func, args, kwargs, result)
        return result

    def _shadow(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: torch.Tensor,
    ) -> None:
        leaves = pytree.tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        known = all(id(t) in self.twins for t in tensors)
        if not known or (not tensors and func is not torch.arange):
            return
        if func in (torch.Tensor.__setitem__,) or getattr(func, "__name__", "").endswith("_"):
            return
        made = [self._run(func, args, kwargs, end) for end in (0, 1)]
        if all(isinstance(m, torch.Tensor) for m in made):
            self.twins[id(result)] = _Twins(*made)
            self.alive.append(result)

    def _run(self, func: Callable[..., Any], args: Any, kwargs: Any, end: int) -> Any:
        try:
            args, kwargs = pytree.tree_map(lambda leaf: self._concrete(leaf, end), (args, kwargs))
            with _disable_current_modes(), torch._C.DisableTorchFunction():
                return func(*args, **kwargs)
        except Exception:
            # A shadow is only ever an extra: without one the tracer asks its own question and reports it.
            return None

    def _concrete(self, leaf: Any, end: int) -> Any:
        if isinstance(leaf, torch.Tensor):
            return self.twins[id(leaf)][end]
        if isinstance(leaf, torch.SymInt):
            expr = leaf.node.expr
            value = expr.subs({self.length.node.expr: self.ends[end]})
            if value.free_symbols:
                raise ValueError(f"{expr} depends on more than the length")
            return int(value)
        return leaf

    def _answer(self, func: Callable[..., Any], asked: torch.Tensor) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            short, long = (func(t) for t in self.twins[id(asked)])
        if short != long:
            raise CompileError(
                f"the model decides by its length: a value it asks for is {short} at "
                f"{self.ends[0]} tokens and {long} at {self.ends[1]}; a max_context on one side of "
                "its limit compiles"
            )
        return short


_QUESTIONS = (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__)


@contextmanager
def decided_by_length(ids: torch.Tensor, shortest: int, longest: int) -> Iterator[None]:
    """Answer conditions on values that depend on the length of ids[B, S] alone, if all lengths agree."""
    length = ids.shape[1]
    if not isinstance(length, torch.SymInt):
        yield
        return
    with _Shadow(length, shortest, longest):
        yield

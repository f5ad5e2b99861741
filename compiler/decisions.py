"""Decisions that a model takes in Python about its length, while it is being captured.

A rotary embedding with dynamic scaling asks `if max(position_ids) + 1 > limit`. The tracer knows no
values, so it would
refuse. Here small integer tensors that come from the length alone carry two concrete twins, one for
the shortest and one
for the longest length of the capture. Where both twins decide alike, that is the decision for every
length. Where they
differ, the place is written down in `splits`, and the capture traces the model once for each end:
one graph for both
lengths is a graph for all, two graphs are an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from .sources import calling_line


class Splits:
    """Places where the two ends of the range decide differently.

    No plain list: the tracer puts containers that it finds on a module back as they were.
    """

    def __init__(self) -> None:
        self.places: tuple[str, ...] = ()

    def add(self, place: str) -> None:
        """Note a place once."""
        self.places = tuple(dict.fromkeys((*self.places, place)))


class _Twins(NamedTuple):
    shortest: Any
    longest: Any


class _Shadow(TorchFunctionMode):
    """Runs every call on tensors that depend on the length alone a second and third time, on the
    twins.
    """

    def __init__(self, length: Any, ends: tuple[int, int], end: int, splits: Splits) -> None:
        super().__init__()
        self.length, self.ends, self.end, self.splits = length, ends, end, splits
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
            # A shadow is only ever an extra: without one the tracer asks its own question and
            # reports it.
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
            answers = [func(twin) for twin in self.twins[id(asked)]]
        if answers[0] != answers[1]:
            self.splits.add(
                f"at {calling_line()} a value is {answers[0]} at {self.ends[0]} tokens and "
                f"{answers[1]} at {self.ends[1]}"
            )
        return answers[self.end]


_QUESTIONS = (torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.__int__)


@contextmanager
def decided_by_length(
    ids: torch.Tensor, ends: tuple[int, int], end: int, splits: Splits
) -> Iterator[None]:
    """Answer conditions on values that depend on the length of ids[B, S] alone, as at ends[end].

    Places where the two ends answer differently are added to `splits`.
    """
    length = ids.shape[1]
    if not isinstance(length, torch.SymInt):
        yield
        return
    with _Shadow(length, ends, end, splits):
        yield

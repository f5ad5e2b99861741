"""Capture helpers at work: they stand in for the functions of a model whose values they have.

A helper is found by a function's name, and proved by its values: at its first call with arguments
of new shapes the model's own function and the helper run on fresh random numbers, at two lengths.
Where they agree, the helper is traced; else the model's own function is, as if there were none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from .capture_helpers import HELPERS
from .threads import TorchThreads

Function = Callable[..., Any]
# (batch, every other open dim): the second is past a chunk of 64 tokens.
TRIALS = ((2, 7), (1, 67))
# Of the largest value: what chunks change, and one rounding of a result in few bits.
TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@contextmanager
def helped(model: nn.Module, helpers: Mapping[str, Function] = HELPERS) -> Iterator[None]:
    """The functions that a model's modules call by a helper's name, with the helpers in their
    place."""
    with ExitStack() as undo:
        known: dict[Any, bool] = {}
        for place, name, function in list(_named_functions(model, helpers)):
            own = function.func if isinstance(function, partial) else function
            undo.callback(place.__setitem__, name, function)
            stand_in = _helped(own, helpers[own.__name__], known)
            if isinstance(function, partial):
                stand_in = partial(stand_in, *function.args, **function.keywords)
            place[name] = stand_in
        yield


def _named_functions(
    model: nn.Module, helpers: Mapping[str, Function]
) -> Iterator[tuple[dict[str, Any], str, Function]]:
    """Where functions with a helper's name stand, bare or with some arguments given: globals of the
    methods, attributes of modules.
    """
    seen: set[int] = set()
    for place in namespaces(model):
        if id(place) in seen:
            continue
        seen.add(id(place))
        for name, value in place.items():
            own = value.func if isinstance(value, partial) else value
            if inspect.isfunction(own) and own.__name__ in helpers:
                yield place, name, value


def namespaces(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Where the code of a model's modules finds names: globals of the methods, attributes."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    for cls in classes - {nn.Module, object}:
        for method in vars(cls).values():
            if inspect.isfunction(method):
                yield inspect.unwrap(method).__globals__
    for module in model.modules():
        yield vars(module)


def _helped(function: Function, helper: Function, known: dict[Any, bool]) -> Function:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = pytree.tree_flatten((args, kwargs))
        key = (function, str(tree), tuple(map(_described, leaves)))
        if key not in known:
            known[key] = _agree(function, helper, leaves, tree)
        return (helper if known[key] else function)(*args, **kwargs)

    return call


def _described(leaf: Any) -> Any:
    """What tells one call's argument from another's: shape and dtype, or the value itself."""
    if isinstance(leaf, torch.Tensor):
        return leaf.dtype, tuple(str(d) for d in leaf.shape)
    return str(leaf)


def _agree(function: Function, helper: Function, leaves: list[Any], tree: Any) -> bool:
    """Whether both give the same values for random arguments of these shapes."""
    for trial in TRIALS:
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            try:
                sizes = _sizes(leaves, trial)
                drawn = [_drawn(leaf, sizes) for leaf in leaves]
                args, kwargs = pytree.tree_unflatten(drawn, tree)
                with TorchThreads() as threads:
                    threads.take(drawn)
                    results = [f(*args, **kwargs) for f in (function, helper)]
            except Exception:
                # A function that takes no such arguments, or does not run here, proves nothing.
                return False
            if not _same(*results):
                return False
    return True


def _sizes(leaves: list[Any], trial: tuple[int, int]) -> dict[Any, int]:
    """A number for each open dim: the first dim of the first tensor is the batch."""
    shapes = [leaf.shape for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
    found = {s: trial[1] for shape in shapes for d in shape for s in _symbols(d)}
    return found | dict.fromkeys(_symbols(shapes[0][0]), trial[0])


def _symbols(size: Any) -> set[Any]:
    return set(size.node.expr.free_symbols) if isinstance(size, torch.SymInt) else set()


def _drawn(leaf: Any, sizes: Mapping[Any, int]) -> Any:
    """The argument with numbers for open dims, and random ones for the elements of a tensor.

    Most are negative: whichever argument is the logarithm of a decay, the state fades.
    """
    if isinstance(leaf, torch.SymInt):
        return int(leaf.node.expr.subs(sizes))
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if not leaf.is_floating_point():
        raise TypeError(f"random values of {leaf.dtype} prove nothing")
    shape = [_drawn(d, sizes) for d in leaf.shape]
    return (torch.rand(shape) * 0.8 - 0.6).to(leaf.dtype)


def _same(wanted: Any, given: Any) -> bool:
    (a, tree), (b, other) = pytree.tree_flatten(wanted), pytree.tree_flatten(given)
    return tree == other and all(map(_close, a, b))


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return a is b
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    apart = (a.double() - b.double()).abs().max()
    return bool(apart <= TOLERANCE.get(a.dtype, 0.0) * a.double().abs().max())

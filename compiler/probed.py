"""What running a model shows of why it is refused: it is no function of its tokens, or a token's
value is of tokens behind it.

No form of such a model can be served, whatever it is that the tracer stumbles at; so it is asked
once a model in memory was refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake
from torch.utils import _pytree as pytree

from ..ir.errors import IRError
from .capture import LENGTH, LogitsOf
from .errors import CompileError
from .threads import threads_for

FEWER = 8  # tokens of a shorter run
APART = 1e-3  # of the largest value: more than rounding changes
Outputs = list[tuple[str, nn.Module, torch.Tensor]]
_TORCH = str(Path(torch.__file__).parent)


def no_language_model(model: nn.Module, refusal: str) -> str:
    """A refusal with what running the model shows before it, where that is why; "" elsewhere."""
    why = why_never_served(model)
    name = type(model).__name__
    return f"{name} is no causal language model: {why}\n{refusal}" if why else ""


@contextmanager
def explained(model: nn.Module) -> Iterator[None]:
    """Errors of a model's graph say where running the model shows that none could be served."""
    try:
        yield
    except IRError as error:
        if said := no_language_model(model, str(error)):
            raise CompileError(said) from error
        raise


def why_never_served(model: nn.Module) -> str:
    """The reason, with the module that it begins in and its line; "" where running it shows none,
    or where it does not run.
    """
    if any(is_fake(p) or p.is_meta for p in model.parameters()):
        return ""
    # Ids of few numbers: no vocabulary is smaller, and none of them stands for padding.
    ids = 3 + torch.arange(LENGTH)[None] % 4
    other = ids.clone()
    other[:, -1] += 1
    try:
        first, again, changed = (_outputs(model, x) for x in (ids, ids, other))
        fewer = _outputs(model, ids[:, :FEWER])
    except Exception:
        return ""  # whatever a model's own code raises; the refusal stands
    if place := _apart(first, again, lambda x: x):
        return f"it gives the same tokens other values each time, by random numbers, from {place}"
    if place := _apart(first, changed, lambda x: x[:, :-1]):
        return f"a token's value depends on the tokens behind it, from {place}"
    if place := _apart(first, fewer, lambda x: x[:, :FEWER]):
        return f"a token's value depends on how many tokens are behind it, from {place}"
    return ""


def _outputs(model: nn.Module, ids: torch.Tensor) -> Outputs:
    """What each module gives, in the order in which they end; the logits last."""
    with _noted(model) as found, torch.no_grad(), threads_for(model):
        logits = LogitsOf(model, ids.shape[1])(ids)
    if logits.shape[1] != ids.shape[1]:
        raise CompileError("logits of the last token alone show nothing of the others")
    return [*found, ("", model, logits)]


@contextmanager
def _noted(model: nn.Module) -> Iterator[Outputs]:
    found: Outputs = []

    def note(path: str) -> Callable[..., None]:
        def noted(module: nn.Module, _: Any, result: Any) -> None:
            for leaf in pytree.tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
                    found.append((path, module, leaf.clone()))

        return noted

    with ExitStack() as undo:
        for path, module in model.named_modules():
            if not _file(module).startswith(_TORCH):
                undo.callback(module.register_forward_hook(note(path)).remove)
        yield found


def _apart(a: Outputs, b: Outputs, part: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """The first module whose part is another in the second run; "" where the logits' is not."""
    differ = [path_of for path_of, x, y in _pairs(a, b) if _differ(x, y, part)]
    if not differ or differ[-1] != _place("", a[-1][1]):
        return ""
    return differ[0]


def _pairs(a: Outputs, b: Outputs) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """What both runs have of tokens: hidden states [1, S, ..] of as many or more; logits alone
    where they went other ways.
    """
    if len(a) != len(b):
        a, b = a[-1:], b[-1:]
    for (path, module, x), (_, _, y) in zip(a, b, strict=True):
        alike = x.dim() == y.dim() == 3 and x.shape[2] == y.shape[2]
        if alike and x.shape[1] >= LENGTH and y.shape[1] >= min(LENGTH, b[-1][2].shape[1]):
            yield _place(path, module), x, y


def _differ(x: torch.Tensor, y: torch.Tensor, part: Callable[[torch.Tensor], torch.Tensor]) -> bool:
    x, y = part(x).double(), part(y).double()
    return bool((x - y).abs().max() > APART * x.abs().max())


def _place(path: str, module: nn.Module) -> str:
    line = inspect.unwrap(type(module).forward).__code__.co_firstlineno
    return f"{path or 'the logits'} ({Path(_file(module)).name}:{line})"


def _file(module: nn.Module) -> str:
    return inspect.unwrap(type(module).forward).__code__.co_filename

"""The logits among the results of a forward, in whatever a model gives them.

A forward gives them bare, or beside other results: in a mapping, a tuple, a dataclass or an object
with attributes, one inside the other. What is as long as the token ids can be logits: [B, S, V],
[B, 1, V] and [B, V] of the last token, one row a token [B S, V], tokens first [S, B, V], or classes
before tokens [B, V, S].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .errors import CompileError

Tensor = torch.Tensor
NAME = "logits"
DEEPEST = 3  # results inside results
NOT_LOGITS = (
    "a causal language model maps token ids [B, S] to floating-point logits [B, S, V], bare, as "
    ".logits, under the key logits, or first of several results (behind a loss); this forward "
    "gives {given} for ids {ids}. Pass args=... to compile any other module."
)


@dataclass(frozen=True, eq=False)
class _Found:
    """A result that can be logits: its name, the logits [B, S or 1, V], and whether results have
    names where it stands.
    """

    name: str
    logits: Tensor
    is_named: bool


def logits_in(result: Any, ids: Tensor, vocabularies: frozenset[int] = frozenset()) -> Tensor:
    """The logits [B, S or 1, V] for ids [B, S] among the results of a forward.

    They are those of that name. Of others they are the first as wide as one of `vocabularies`, the
    rows of the model's tables of tokens, one with logits in its name before others; where none is,
    the first of results without names. Raises CompileError where there are none, or several by
    name.
    """
    found = list(_found(result, ids, as_seen)) or list(_found(result, ids, as_asked))
    if not found:
        raise CompileError(NOT_LOGITS.format(given=_text(result), ids=list(ids.shape)))
    exact = [f for f in found if f.name == NAME]
    near = [f for f in found if NAME in f.name]
    wide = [f for f in found if f.logits.shape[-1] in vocabularies]
    of_both = [f for f in near if f in wide]
    sure = next((kind for kind in (exact, of_both, wide) if kind), [])
    left = sure or near or found
    if not sure and left[0].is_named and len({f.logits.shape[-1] for f in left}) > 1:
        raise CompileError(
            "which of this forward's results are the logits? As long as the token ids are "
            f"{', '.join(f'{f.name} {list(f.logits.shape)}' for f in left)}; none of them is "
            "named logits, or as wide as a table of tokens is long"
        )
    return left[0].logits


def vocabularies_of(model: nn.Module) -> frozenset[int]:
    """How many rows the model's tables have that are read by number."""
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding))
    return frozenset(int(m.num_embeddings) for m in tables)


Form = Callable[[Tensor, Tensor], Tensor | None]


def _found(
    result: Any, ids: Tensor, form: Form, name: str = "", depth: int = 0
) -> Iterator[_Found]:
    """What can be logits, in the order of the results."""
    if isinstance(result, Tensor):
        floats = result.is_floating_point() and ids.dim() == 2
        logits = form(result, ids) if floats else None
        if logits is not None:
            yield _Found(name, logits, bool(name))
        return
    if depth < DEEPEST:
        for own, value in _parts(result):
            # What stands in a part of that name has it too.
            yield from _found(value, ids, form, NAME if name == NAME else own or name, depth + 1)


def _parts(result: Any) -> list[tuple[str, Any]]:
    """The parts of a result with their names, "" where they have none."""
    if isinstance(result, Mapping):
        return [(str(name), value) for name, value in result.items()]
    if isinstance(result, tuple) and hasattr(result, "_fields"):
        return list(zip(result._fields, result, strict=True))  # type: ignore[attr-defined]
    if isinstance(result, (tuple, list)):
        return [("", value) for value in result]
    if is_dataclass(result):
        return [(f.name, getattr(result, f.name)) for f in fields(result)]
    held = getattr(result, "__dict__", None)
    if isinstance(held, dict) and not isinstance(result, (nn.Module, type)):
        return list(held.items())
    return [(NAME, getattr(result, NAME))] if hasattr(result, NAME) else []


def as_seen(x: Tensor, ids: Tensor) -> Tensor | None:
    """A tensor as logits [B, S, V], or [B, 1, V] of the last token, where its sizes are seen to
    have such a form whatever the tracer's symbols are.
    """
    batch, length = ids.shape
    if x.dim() == 2:
        if _same(x.shape[0], batch):
            return x[:, None]
        return x.unflatten(0, (batch, length)) if _same(x.shape[0], batch * length) else None
    if x.dim() != 3:
        return None
    first, second, third = x.shape
    if _same(first, batch) and (_same(second, length) or _same(second, 1)):
        return x
    if _same(first, length) and _same(second, batch):
        return x.transpose(0, 1)
    return x.transpose(1, 2) if _same(first, batch) and _same(third, length) else None


def as_asked(x: Tensor, ids: Tensor) -> Tensor | None:
    """A tensor as logits, where the sizes that are traced have such a form: the tracer notes that
    they are asked for.
    """
    fits = x.dim() == 3 and x.shape[0] == ids.shape[0] and x.shape[1] in (ids.shape[1], 1)
    return x if fits else None


def _same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal, whatever the tracer's symbols are."""
    return bool(statically_known_true(a == b))


def _text(result: Any) -> str:
    """A result in words: its shape, or its parts."""
    if isinstance(result, Tensor):
        return str(list(result.shape)) + ("" if result.is_floating_point() else f" {result.dtype}")
    parts = _parts(result)
    named = (f"{name}: {_text(value)}" if name else _text(value) for name, value in parts)
    return f"{type(result).__name__}({', '.join(named)})" if parts else type(result).__name__

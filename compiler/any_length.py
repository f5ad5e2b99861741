"""The program of a language model for any batch and any length, and the lengths that it holds for.

What the tracer refuses by algebra is asked in other ways: conditions deferred and tried at every
length, without looking at how values lie in memory, up to a length that the tracer finds.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as _torch_config

from .capture import BATCH, LENGTH, MOST_BATCH, LogitsOf, export, input_symbols
from .conditions import broken_condition, first_broken, noted_conditions
from .early_refusals import EarlyRefusalError, ended_early
from .errors import CompileError
from .fixed_lengths import is_computable
from .refusals import is_settled

TORCH_CONFIG: Any = _torch_config  # its methods are made when it is loaded


def export_any_length(
    model: nn.Module, limit: int, wanted: int | None, *, early: bool = True
) -> tuple[ExportedProgram, tuple[int, int], str]:
    """The program, the lengths that it holds for, and the condition in the model's source that
    longer ones break, where there is one.

    With `early`, EarlyRefusalError is raised for a model in memory that takes another way where
    there are few windows of tokens, as soon as that is known; without, the tracer's whole refusal.
    """
    try:
        return _export_up_to(model, limit, early=early), (1, limit), ""
    except EarlyRefusalError:
        raise
    except CompileError as refusal:
        # A table that is sliced to the length bounds it: let the tracer find the bound, where none
        # was asked for.
        found = None if is_settled(str(refusal)) else _found_bounds(model, limit)
        if found is not None and wanted and found[0] == MOST_BATCH and found[2]:
            raise CompileError(
                f"{refusal}\nmax_context {found[1]} is served; longer sequences break {found[2]}"
            ) from None
        if found is None or (wanted and found[0] == MOST_BATCH):
            raise refusal
    batch, high, why = found
    high = min(high, wanted or high)
    try:
        return _export_up_to(model, high, batch), (1, high), why
    except CompileError:
        # The whole of a table is a case of its own to the tracer: its full length is not shared.
        return _export_up_to(model, high - 1, batch), (1, high - 1), why


def _ids(limit: int) -> torch.Tensor:
    return torch.zeros(BATCH, min(LENGTH, limit), dtype=torch.int64)


def _export_up_to(
    model: nn.Module, limit: int, batch: int = MOST_BATCH, *, early: bool = False
) -> ExportedProgram:
    longest = LogitsOf(model, limit, end=1)
    program = _export_for_all(longest, limit, batch, early=early)
    if longest.splits.places:
        shortest = _export_for_all(LogitsOf(model, limit, end=0), limit, batch)
        if str(shortest.graph) != str(program.graph):
            raise CompileError(
                f"{type(model).__name__} computes differently at different lengths: "
                f"{'; '.join(longest.splits.places)}. "
                "A max_context below that length compiles"
            )
    return program


def _export_for_all(
    model: LogitsOf, limit: int, batch: int, *, early: bool = False
) -> ExportedProgram:
    """The program for any batch up to one, and every length up to the limit. With `early` the
    tracer is heard out only where nothing else helps.
    """
    try:
        shapes = _open_shapes(limit, batch, least=1)
        with ended_early(limit, by_windows=is_computable(model.model)) if early else nullcontext():
            return export(model, (_ids(limit),), {}, shapes, open_sizes=True)
    except EarlyRefusalError as refusal:
        if refusal.by_windows:
            raise
        try:
            return export_obliviously(model, _ids(limit), _open_shapes(limit, batch, least=2))
        except CompileError:
            return _export_for_all(model, limit, batch)
    except CompileError as refusal:
        if is_settled(str(refusal)):
            raise
        # The least of two sizes is beyond the tracer's algebra.
        if "Constraints violated" in str(refusal) and "min(" in str(refusal):
            return _export_proved(model, limit, batch, refusal)
        try:
            # Where a part of a table is all of it, its strides are others, and the tracer keeps the
            # two apart. Told not to look at sizes for what is decided the same way without, it
            # joins them. It then no longer takes for granted that a size is not 1.
            return export_obliviously(model, _ids(limit), _open_shapes(limit, batch, least=2))
        except CompileError as again:
            raise (again if _TRACERS_OWN in str(refusal) else refusal) from None


_TRACERS_OWN = "Cannot create Dim with inconsistent"  # a fault of what suggests other sizes


def export_obliviously(model: LogitsOf, ids: torch.Tensor, shapes: Any) -> ExportedProgram:
    """The program of a model whose parts of values are told apart neither by whether they are all
    of a value nor, where that is not enough, by how they lie in memory.
    """
    with TORCH_CONFIG.patch(backed_size_oblivious=True):
        try:
            return export(model, (ids,), {}, shapes, open_sizes=True)
        except CompileError as refusal:
            if "!=" not in str(refusal):
                raise
            model.strides = False
            try:
                return export(model, (ids,), {}, shapes, open_sizes=True)
            finally:
                model.strides = True


def _export_proved(
    model: LogitsOf, limit: int, batch: int, refusal: CompileError
) -> ExportedProgram:
    """The program whose conditions on sizes hold at each length, as is found by trying them."""
    shapes = _open_shapes(limit, batch, least=1)
    program = export(model, (_ids(limit),), {}, shapes, deferred=True, open_sizes=True)
    sequences, length = (str(s) for s in input_symbols(program))
    broken = broken_condition(program, {sequences: (1, batch), length: (1, limit)})
    if broken is not None:
        raise CompileError(f"{refusal}\nas is found by trying: {broken}") from refusal
    return program


def _open_shapes(limit: int, batch: int, least: int) -> Any:
    return ({0: Dim("B", min=least, max=batch), 1: Dim("S", min=least, max=limit)},)


def _found_bounds(model: nn.Module, limit: int) -> tuple[int, int, str] | None:
    """The batch and the length up to which the tracer finds that the model works, where either is
    bound (a buffer has room for so many sequences, a table ends, longer sequences go another way),
    and the condition that bounds the length.
    """
    try:
        shapes = ({0: Dim.AUTO, 1: Dim.AUTO},)
        with noted_conditions() as conditions:
            program = export(LogitsOf(model, limit), (_ids(limit),), {}, shapes, open_sizes=True)
    except CompileError:
        return None
    batch, length = (_most(program, at, most) for at, most in enumerate((MOST_BATCH, limit)))
    symbol = str(input_symbols(program)[1])
    why = first_broken(conditions, symbol, length + 1, "S") if length < limit else ""
    return None if (batch, length) == (MOST_BATCH, limit) else (batch, length, why)


def _most(program: ExportedProgram, axis: int, most: int) -> int:
    """The most that a size of the token ids may be, up to a number."""
    symbol = input_symbols(program)[axis]
    for name, bound in program.range_constraints.items():
        if str(name) == symbol and int(bound.lower) <= 2 <= bound.upper < 1 << 31:
            most = min(most, int(bound.upper))
    return most

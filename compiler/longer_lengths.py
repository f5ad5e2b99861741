"""Capture of models that take another way where there are few tokens, as those do that attend to
means of whole windows: for lengths from some number on.

What such a model gives a token is the same whatever stands behind the token, or no pass will have
it: at fewer tokens it computes what it does at more, of which the last are not looked at. Whether
that is so is tried against the model's own programs for shorter lengths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.export import Dim

from .any_length import export_obliviously
from .capture import (
    BATCH,
    LENGTH,
    MOST_BATCH,
    Captured,
    LogitsOf,
    input_symbols,
    of_logits,
)
from .checkpoint import Weights
from .errors import CompileError
from .fixed_lengths import FEW, captures_at, far_apart, is_computable
from .import_aten import Imported, import_captured
from .reference import evaluate
from .refusals import least_length, most_length, second_window
from .threads import threads_for

MOST_TRIES = 3
WINDOWS = 3  # as many of those that a model makes of its tokens are in a trace, and a rest


def capture_longer(
    model: nn.Module, limit: int, weights: Weights, name: str, refusal: CompileError
) -> Captured | None:
    """The capture for lengths from the least on that a refusal of all lengths names, up to a limit;
    None where it names none, or where the model does not export so. Where it names a greatest one
    the least is that of a longer trace.

    Raises CompileError where the model computes differently at fewer tokens.
    """
    reason, traced = str(refusal), LENGTH
    for _ in range(MOST_TRIES):
        low, most = max(least_length(reason), second_window(reason)), most_length(reason, limit)
        if most < limit:  # it takes another way from there on
            traced, low = min(limit, WINDOWS * (most + 1) + LENGTH), max(low, 2)
        if not 1 < low <= min(traced, limit):
            return None
        try:
            captured = _captured(model, (low, limit), traced, weights, name)
        except CompileError as again:
            if str(again) == reason:
                return None
            reason = str(again)
            continue
        imported = import_captured(captured)
        try:
            _check_shorter(model, imported, weights, name, low)
        except CompileError as error:
            raise CompileError(f"{error}\n{refusal}") from None
        return replace(captured, imported=imported)
    return None


def capture_from_traced(
    model: nn.Module, limit: int, weights: Weights, name: str
) -> Captured | None:
    """The capture for lengths from that of a trace on; None where the model does not export so, or
    computes differently at fewer tokens, of which some are tried for every size of windows.
    """
    try:
        captured = _captured(model, (LENGTH, limit), LENGTH, weights, name)
        imported = import_captured(captured)
        _check_shorter(model, imported, weights, name, LENGTH, _ONE_WINDOW)
    except CompileError:
        return None
    return replace(captured, imported=imported)


_ONE_WINDOW = tuple(1 << n for n in range(LENGTH.bit_length()) if 1 << n < LENGTH)
"""Lengths of which one has a single window, of whatever size up to that of a trace."""


def _captured(
    model: nn.Module, lengths: tuple[int, int], traced: int, weights: Weights, name: str
) -> Captured:
    low, high = lengths
    ids = torch.zeros(BATCH, traced, dtype=torch.int64)
    shapes = ({0: Dim("B", min=2, max=MOST_BATCH), 1: Dim("S", min=low, max=high)},)
    program = export_obliviously(LogitsOf(model, high), ids, shapes)
    batch, length = input_symbols(program)
    if not isinstance(batch, str) or not isinstance(length, str):
        raise CompileError(f"[B, S] became {[batch, length]}")
    return of_logits(program, {batch: "B", length: "S"}, {"S": (low, high)}, weights, name)


def _check_shorter(
    model: nn.Module,
    longer: Imported,
    weights: Weights,
    name: str,
    low: int,
    also: Sequence[int] = (),
) -> None:
    """Refuse a graph whose first tokens have other values than the model has for as many tokens
    alone: those of the model itself, or, where its weights are on disk or of few bits, those of
    its own programs in float64.
    """
    ids = torch.randint(0, FEW, (2, low))
    (given,) = evaluate(longer.graph, [ids], longer.weights, wide=True)
    lengths = sorted({1, low // 2, low - 1, *also})  # no window, one, and the last that are fewer
    shorter = _computed if is_computable(model) else _exported
    for length, wanted in zip(lengths, shorter(model, ids, lengths, weights, name), strict=True):
        if far_apart(wanted, given[:, :length]):
            raise CompileError(
                f"the model computes differently at {length} tokens than at {low} or more, of "
                f"which the first {length} are looked at"
            )


def _computed(
    model: nn.Module, ids: torch.Tensor, lengths: Sequence[int], weights: Weights, name: str
) -> Iterator[torch.Tensor]:
    """The logits that a model in memory gives the first tokens alone."""
    logits = LogitsOf(model, ids.shape[1])
    for length in lengths:
        with torch.no_grad(), threads_for(model):
            found = logits(ids[:, :length]).double()
        yield found


def _exported(
    model: nn.Module, ids: torch.Tensor, lengths: Sequence[int], weights: Weights, name: str
) -> Iterator[torch.Tensor]:
    """The logits of the model's own programs for so many tokens, in float64."""
    captures = dict(captures_at(model, lengths, weights, name))
    if missing := [n for n in lengths if n not in captures]:
        raise CompileError(f"the model does not export at {missing[0]} tokens")
    for length, captured in captures.items():
        own = import_captured(captured)
        yield evaluate(own.graph, [ids[:, :length]], own.weights, wide=True)[0]

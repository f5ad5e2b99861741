"""Capture of models that do not export for any length: at two fixed ones, joined.

A model that loops in Python over its tokens, or that wants its length to be a multiple of a chunk,
exports at one length at a time. Two such programs show what in them follows the length, and the
loops between are recognized as scans (passes/join_lengths.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake
from torch.export import Dim

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import parameter
from ..passes.base import run_passes
from ..passes.join_lengths import JoinLengths, step_of
from ..passes.lift_steps import lift_steps
from ..passes.raise_scans import RaiseScans
from ..passes.token_values import WHAT_TO_WRITE
from .capture import (
    BATCH,
    MOST_BATCH,
    Captured,
    LogitsOf,
    export,
    input_symbols,
    of_logits,
)
from .checkpoint import OverlaidWeights, Weights
from .eager import logits_from
from .errors import CompileError
from .evaluator import part_runner
from .import_aten import Imported, import_captured
from .long_sequence import affordable_length
from .pipeline import raising
from .reference import evaluate
from .refusals import A_NUMBER

# Short ones for loops over tokens, of no common factor with most sizes, the first of them without
# a second chunk in most; then multiples of chunks.
LENGTHS = ((11, 14), (19, 26), (64, 96), (64, 128), (128, 192), (256, 512))
MOST_CHUNK = 256
CHECKED = (1,)
MASKED = 256  # tokens at which masks are compared that are numbers at the lengths captured
MOST_CHECKED = 1024  # tokens
WIDE = (torch.float32, torch.float64)
FEW = 8  # token ids below this exist in every vocabulary


def capture_by_lengths(
    model: nn.Module, limit: int, weights: Weights, name: str, refusal: CompileError
) -> Captured:
    """The capture for any length up to a limit; `refusal` says why it was not to be had at once.

    Raises CompileError, with that reason, where the model exports at no two lengths either, or
    where what it computes in loops is no linear scan. What a model decides in Python about lengths
    beyond those that are tried, a long one among them, is not seen.
    """
    size = chunk_in(str(refusal))
    # Whole chunks first, two of them and three: what fills up the last one is in neither.
    pairs = [(2 * size, 3 * size)] if size else []
    for lengths in (*pairs, *(pair for pair in LENGTHS if max(pair) <= limit)):
        captures = dict(captures_at(model, lengths, weights, name))
        if len(captures) < len(lengths):
            continue
        try:
            return _joined(model, captures, limit, name, refusal)
        except CompileError:
            if lengths not in pairs and _grows(captures):
                raise  # a loop over the tokens, which is the same at greater lengths
    raise refusal


def _grows(captures: Mapping[int, Captured]) -> bool:
    """Whether the longer program is the larger one."""
    sizes = [len(captures[n].program.graph.nodes) for n in sorted(captures)]
    return sizes[-1] > sizes[0]


def chunk_in(refusal: str) -> int:
    """The number that lengths were divided by in a refusal, or that they had to reach; 0 where
    there is none.
    """
    found = re.findall(r"(?://|%) ?(\d+)|Mod\([^,]*, (\d+)\)|\b(\d+) <= L\[", refusal)
    most = max((int("".join(each)) for each in found), default=0)
    return most if 2 <= most <= MOST_CHUNK else 0


def _joined(
    model: nn.Module,
    captures: Mapping[int, Captured],
    limit: int,
    name: str,
    refusal: CompileError,
) -> Captured:
    """Two captures as one for any length up to a limit."""
    imports = {length: import_captured(each) for length, each in captures.items()}
    (_, short), (last, long) = imports.items()
    imports[last] = long = _with_own_names(long, short, f"@{last}")
    held = OverlaidWeights(short.weights, _constants(long, short))
    graphs = {length: lift_steps(each.graph, length) for length, each in imports.items()}
    join = JoinLengths(graphs, limit, _raised, part_runner(held))
    try:
        graph = join.run()
        step = step_of(graph)
        if step > 1:
            graph = RaiseScans(part_runner(held), step).run(_raised(graph))
    except IRError as error:
        raise CompileError(f"{refusal}\n{error}\n{WHAT_TO_WRITE}") from None
    if join.loops == 0 and step == 1 and A_NUMBER not in str(refusal):
        # Nothing in it needs one length: what refused it holds, but where that was a length that
        # became a number, as `len` makes it.
        raise refusal
    if step_of(graph) > 1:
        raise CompileError(
            f"{refusal}\nWhat the model computes at {' and '.join(map(str, graphs))} tokens is the "
            f"same for every {step_of(graph)}th length alone\n{WHAT_TO_WRITE}"
        )
    graph = _within_slices(graph, limit)
    first = captures[min(captures)]
    imported = Imported(graph, held)
    try:
        lengths = (*CHECKED, min(limit, MASKED)) if join.tables else CHECKED
        _check(model, imported, first.weights, name, captures, lengths)
    except IRError as error:  # a size that is no more than that of the lengths tried
        raise CompileError(f"{refusal}\n{error}\n{WHAT_TO_WRITE}") from None
    return replace(first, bounds={**first.bounds, "S": graph.bounds["S"]}, imported=imported)


def _within_slices(graph: Graph, limit: int) -> Graph:
    """The graph with the longest length up to a limit at which every slice is inside its table."""

    def fits(length: int) -> bool:
        try:
            graph.substitute({"S": length})
        except IRError:
            return False
        return True

    low, high = 1, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return replace(graph, bounds={**graph.bounds, "S": (1, low)})


def _check(
    model: nn.Module,
    joined: Imported,
    weights: Weights,
    name: str,
    captures: Collection[int],
    lengths: Sequence[int],
) -> None:
    """Refuse a graph that has other values than the model's own program at other lengths, both in
    float64: half-precision sums in another order are no other computation.
    """
    for length, captured in captures_at(model, lengths, weights, name):
        own = import_captured(captured)
        ids = torch.randint(0, FEW, (2, length))
        both = (evaluate(i.graph, [ids], i.weights, wide=True) for i in (own, joined))
        (wanted,), (given,) = both
        if far_apart(wanted, given):
            raise CompileError(
                f"the model computes differently at {length} tokens than at the lengths that it "
                f"was captured at, {' and '.join(map(str, captures))}"
            )


def check_long(model: nn.Module, joined: Captured) -> None:
    """Refuse a capture by lengths that has other values than a model in memory behind many tokens:
    as many as its tables hold, and as can be computed in some seconds.
    """
    most = affordable_length(model, min(joined.bounds["S"][1], MOST_CHECKED))
    found = _long_logits(model, most) if is_computable(model) else None
    if found is None:
        return
    ids, wanted = found
    imported = import_captured(joined)
    (given,) = evaluate(imported.graph, [ids], imported.weights, wide=True)
    if far_apart(wanted, given[:, -1:]):
        raise CompileError(
            f"the model computes differently at {ids.shape[1]} tokens than at the few that it was "
            "captured at, and it exports at one length at a time; a smaller max_context may keep "
            "it the same"
        )


def _long_logits(model: nn.Module, most: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Random ids [1, S] and the logits [1, 1, V] behind them, of the most tokens or of whole
    chunks; None where the model takes neither.
    """
    for length in (most, most // MOST_CHUNK * MOST_CHUNK):
        ids = torch.randint(0, FEW, (1, length))
        try:
            return ids, logits_from(LogitsOf(model, length), ids, length - 1).double()
        except Exception:
            continue  # whatever a model's own code raises at a length that it does not take
    return None


def is_computable(model: nn.Module) -> bool:
    """Whether a model is in memory, and in a dtype whose rounding is no other computation."""
    return all(p.dtype in WIDE and not is_fake(p) for p in model.parameters())


def far_apart(wanted: torch.Tensor, given: torch.Tensor) -> bool:
    """Whether logits of one model are no longer the same but for rounding."""
    return not (wanted - given).abs().max() <= 1e-3 * wanted.abs().max()


def _raised(graph: Graph) -> Graph:
    return run_passes(graph, raising())


def captures_at(
    model: nn.Module, lengths: Sequence[int], weights: Weights, name: str
) -> Iterator[tuple[int, Captured]]:
    """The captures at fixed lengths, any batch; none from the first on at which there is none."""
    for length in lengths:
        ids = torch.zeros(BATCH, length, dtype=torch.int64)
        shapes = ({0: Dim("B", min=1, max=MOST_BATCH), 1: Dim.STATIC},)
        try:
            program = export(LogitsOf(model, length), (ids,), {}, shapes, open_sizes=True)
        except CompileError:
            return
        batch, *_ = input_symbols(program)
        if isinstance(batch, int):
            return
        yield length, of_logits(program, {batch: "B"}, {}, weights, name)


def _with_own_names(long: Imported, short: Imported, suffix: str) -> Imported:
    """The longer program with names of its own for tensors that a model makes in Python for its
    length, which have the same names in both.
    """
    made, other = (getattr(i.weights, "above", {}) for i in (long, short))
    own = {n for n in made if n in other and not _equal(made[n], other[n])}
    if not own:
        return long
    fresh = {
        p: parameter(name=p["name"] + suffix, type=p.tensor)
        for p in long.graph.parameters()
        if p["name"] in own
    }
    held = {p["name"] + suffix: made[p["name"]] for p in fresh}
    return replace(
        long, graph=long.graph.replace(fresh), weights=OverlaidWeights(long.weights, held)
    )


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bool(torch.equal(a, b))


def _constants(long: Imported, short: Imported) -> dict[str, torch.Tensor]:
    """What the longer program alone holds."""
    missing = [p["name"] for p in long.graph.parameters() if p["name"] not in short.weights]
    return {name: long.weights[name] for name in missing}

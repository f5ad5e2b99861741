"""The pipeline: every pass in its order, on one screen, and the hook between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..codegen.backend import Backend
from ..ir.graph import Graph
from ..ir.node import OPS
from ..passes.base import Inspector, Pass, Phase, Ran, run_passes
from ..passes.cache_attention import CacheAttention
from ..passes.cache_states import CacheStates
from ..passes.canonicalize import Canonicalize
from ..passes.describe_masks import DescribeMasks
from ..passes.few_columns import FewColumns
from ..passes.flatten_tokens import FlattenTokens
from ..passes.group_kernels import GroupKernels
from ..passes.layout_weights import LayoutWeights
from ..passes.merge_linears import MergeLinears
from ..passes.merge_scans import MergeScans
from ..passes.order_columns import OrderColumns
from ..passes.quantize import Quantize, Recipe
from ..passes.raise_attention import RaiseAttention
from ..passes.raise_contexts import RaiseContexts
from ..passes.raise_convs import RaiseConvs
from ..passes.raise_counts import RaiseCounts
from ..passes.raise_experts import RaiseExperts
from ..passes.raise_norms import RaiseNorms
from ..passes.raise_running import RaiseRunning
from ..passes.raise_scans import RaiseScans
from ..passes.raise_selections import RaiseSelections
from ..passes.raise_stacks import RaiseStacks
from ..passes.scan_regions import Run
from ..passes.select_logit_rows import SelectLogitRows
from ..passes.spell_out import SpellOut
from ..passes.split_masks import SplitMasks
from ..passes.tabulate_positions import TabulatePositions
from ..runtime.limits import ABSENT, Absent

if TYPE_CHECKING:
    from ..passes.analyze_tokens import Evaluate

# What remains once tokens are ragged, and once steps go on from caches.
_NO_BATCH = frozenset(OPS) - {
    "attention", "selected_keys", "causal_conv", "linear_scan", "token_loop",
    "token_context",
}  # fmt: skip
_CACHED = _NO_BATCH - {
    "ragged_attention", "ragged_selected_keys", "ragged_conv", "ragged_scan", "ragged_loop",
    "ragged_context",
}  # fmt: skip
KERNELS = frozenset({"kernel", "reshape", "item", "input", "parameter"})


@dataclass(frozen=True)
class Sizes:
    """The limits that a serving graph is made for; `block` is slots in a block of the cache,
    `cache_dtype` the caches' dtype ("" for that of the model), `bounded_by` what in the model
    bounds max_context, where something does, and `absent` the token that no sequence may have.
    """

    max_context: int
    max_batch: int
    chunk: int
    block: int
    cache_dtype: str = ""
    bounded_by: str = ""
    absent: Absent = ABSENT


def raising(run_part: Run | None = None) -> tuple[Phase, ...]:
    """From the exporter's spelling to one op for one thing; `run_part` evaluates parts of a
    language model, to see which are scans.
    """
    return (
        Phase("canonicalize", (Canonicalize(),)),
        Phase(
            "raise",
            (
                # Norms first: attention over normalized queries and keys is matched through them.
                RaiseNorms(),
                RaiseConvs(),
                RaiseCounts(),
                RaiseExperts(),
                RaiseAttention(),
                # Last: what mixes tokens by now is no convolution and no attention.
                RaiseScans(run_part),
                Canonicalize(),
            ),
        ),
        # Columns first: a merged linear's are read through slices.
        Phase("merge", (OrderColumns(), MergeLinears(), MergeScans())),
    )


def serving(sizes: Sizes, evaluate: Evaluate, run_part: Run | None = None) -> tuple[Phase, ...]:
    """From f(ids[B, S]) to step(tokens[T], ...): each pass proves what it does or names what
    hinders it.
    """
    context = sizes.max_context
    return (
        Phase(
            "serving form",
            (
                *_masking(context, evaluate, lenient=True),
                # Before contexts: a state of a fixed size is less than all tokens so far.
                RaiseRunning(),
                # What mixes tokens in no other way by now.
                RaiseContexts(run_part, max_context=context, evaluate=evaluate),
                # Masks before positions: what is left of them then needs no table.
                TabulatePositions(max_context=context, evaluate=evaluate),
                FlattenTokens(max_tokens=sizes.chunk, max_batch=sizes.max_batch),
            ),
            leaves=_NO_BATCH,
        ),
        Phase(
            "caches",
            (
                Canonicalize(),  # flattening leaves views of views, which hide keys and values
                CacheAttention(block=sizes.block, max_context=context, dtype=sizes.cache_dtype),
                CacheStates(),
                RaiseStacks(),  # what caching absorbs is among them
                # Last: what the caches need of every token is known only now.
                SelectLogitRows(),
                Canonicalize(),
            ),
            leaves=_CACHED,
        ),
    )


def _masking(context: int, evaluate: Evaluate, *, lenient: bool = False) -> tuple[Pass, ...]:
    return (
        SplitMasks(),
        # Selections first: what is left of a mask then depends on positions alone.
        RaiseSelections(max_context=context),
        DescribeMasks(max_context=context, evaluate=evaluate, lenient=lenient),
    )


def describing(sizes: Sizes, evaluate: Evaluate) -> tuple[Phase, ...]:
    """To attention that says by itself which keys a query sees."""
    return (Phase("masks", _masking(sizes.max_context, evaluate)),)


def whole_sequences(sizes: Sizes, evaluate: Evaluate) -> tuple[Phase, ...]:
    """The serving form of a model whose tokens read later ones, its masks described: a step has all
    of a sequence, and nothing is cached.
    """
    return (
        Phase(
            "serving form",
            (
                TabulatePositions(max_context=sizes.max_context, evaluate=evaluate),
                FlattenTokens(
                    max_tokens=max(sizes.chunk, sizes.max_context),
                    max_batch=sizes.max_batch,
                    whole_sequences=True,
                ),
            ),
            leaves=_NO_BATCH,
        ),
        Phase(
            "states",
            # Counts of tokens are scans, which kernels know with a state alone.
            (Canonicalize(), CacheStates(), RaiseStacks(), SelectLogitRows(), Canonicalize()),
            leaves=_CACHED | {"ragged_attention"},
        ),
    )


def quantizing(recipe: Recipe | None) -> tuple[Phase, ...]:
    """Weights in few bits, where a recipe asks for them: after merging, so that merged weights have
    one format, and before layouts, which follow the format.
    """
    if recipe is None:
        return ()
    return (Phase("quantize", (Quantize(recipe.default, recipe.rules),)),)


def laying_out(backend: Backend) -> tuple[Phase, ...]:
    """Ops that a backend has templates for, and weights in the layouts that kernels read, where it
    has any; what depends on weights alone is split off after it.
    """
    spelled: tuple[Pass, ...] = (
        SpellOut(templates=backend.templates),
        FewColumns(backend.few_columns),
    )
    if not backend.layouts:
        return (Phase("lay out", spelled),)
    layouts = LayoutWeights(layouts=backend.layouts, integer=backend.integer_dots)
    return (Phase("lay out", (*spelled, layouts)),)


def grouping(backend: Backend) -> tuple[Phase, ...]:
    """From ops to kernels of a backend."""
    return (Phase("group", (GroupKernels(templates=backend.templates),), leaves=KERNELS),)


def language_model(sizes: Sizes, evaluate: Evaluate, run_part: Run) -> tuple[Phase, ...]:
    """The phases of a causal language model up to its weights."""
    return (*raising(run_part), *serving(sizes, evaluate, run_part))


class Recorder(Inspector):
    """The hook between passes: verifies, times, dumps, can stop; keeps a record of each for the
    report.
    """

    def __init__(
        self,
        dump: Path | None = None,
        stop_after: str | None = None,
        watch: Callable[[Ran], None] | None = None,
    ) -> None:
        super().__init__(dump, stop_after)
        self.records: list[dict[str, object]] = []
        self.watch = watch
        self.stopped = False

    def run(self, graph: Graph, phases: tuple[Phase, ...]) -> Graph:
        """The graph after the phases; once stopped, the graph as it is."""
        return graph if self.stopped else run_passes(graph, phases, after_each=self)

    def __call__(self, ran: Ran) -> bool:
        """Note one pass; whether to stop."""
        # Passes are numbered through, however often phases are run.
        ran = replace(ran, index=len(self.records) + 1)
        self.stopped = super().__call__(ran)
        before, after = set(ran.before.nodes()), set(ran.after.nodes())
        self.records.append(
            {
                "name": ran.done.name,
                "phase": ran.phase,
                "before": len(before),
                "after": len(after),
                "new": len(after - before),
                "seconds": ran.seconds,
            }
        )
        if self.watch is not None:
            self.watch(ran)
        return self.stopped

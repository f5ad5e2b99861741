"""The memory of a loaded model on a device: one arena of weights, workspace, scratch, inputs,
results and caches, laid out before anything is allocated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ...ir.launches import FED, FEED, LaunchTable
from ...ir.plan import Argument, Plan, PlanError, TensorSpec, evaluate_shape, tensor_bytes
from ..pools import Pools
from ..tensors import Array
from ..weights import Weights

ALIGNMENT = 256


@dataclass(frozen=True)
class Arena:
    """Where everything lies, as offsets in bytes: weights, steps (inputs and results) and caches by
    name. The scratch that calls share is the end of the workspace. Inputs lie side by side, from
    `inputs` on, the block table last.
    """

    size: int
    workspace: int
    scratch: int
    inputs: int
    weights: Mapping[str, int]
    steps: Mapping[str, int]
    caches: Mapping[str, int]

    @staticmethod
    def of(plan: Plan, table: LaunchTable, pools: Pools) -> "Arena":
        """The arena of a plan with so many blocks of cache and states."""
        layout = _Layout()
        weights = {
            n: layout.take(tensor_bytes(w.dtype, plan.largest(w.shape)))
            for n, w in plan.weights().items()
        }
        workspace = layout.take(plan.workspace_bytes)
        scratch = workspace + plan.workspace_bytes - table.scratch_bytes
        inputs = layout.end
        steps = {n: layout.take(size) for n, size in step_sizes(plan, table).items()}
        caches = {
            c.name: layout.take(
                tensor_bytes(c.dtype, c.array(pools.blocks, plan.block, pools.states))
            )
            for c in plan.caches
        }
        return Arena(layout.end, workspace, scratch, inputs, weights, steps, caches)

    def address(self, base: int, argument: Argument) -> int:
        """Where an argument of a call lies, for an arena that begins at `base`."""
        if argument.kind == "workspace":
            return base + self.workspace + argument.offset
        named = {"weight": self.weights, "cache": self.caches}.get(argument.kind, self.steps)
        name = argument.name or ""
        if name not in named:
            raise PlanError(f"no {argument.kind} {name!r}; there are {', '.join(named)}")
        return base + named[name]


class _Layout:
    """Places one after another, each at a multiple of ALIGNMENT."""

    def __init__(self) -> None:
        self.end = 0

    def take(self, size: int) -> int:
        """The place of so many bytes; nothing takes none."""
        start = self.end
        self.end += -(-size // ALIGNMENT) * ALIGNMENT
        return start


def step_specs(plan: Plan) -> dict[str, TensorSpec]:
    """The inputs and results of all entries, by name."""
    return {
        spec.name: spec
        for entry in plan.entries.values()
        for spec in (*entry.signature("input"), *entry.signature("result"))
    }


def step_sizes(plan: Plan, table: LaunchTable) -> dict[str, int]:
    """Bytes of each input and result at its largest, over all entries: inputs first, the block
    table last of them; what feeds tokens is an input that no entry names.
    """
    sizes: dict[str, int] = {}
    for kind in ("input", "result"):
        for entry in plan.entries.values():
            for spec in entry.signature(kind):
                size = tensor_bytes(spec.dtype, plan.largest(spec.shape))
                sizes[spec.name] = max(size, sizes.get(spec.name, 0))
        if kind == "input":
            if FEED in table.functions:
                sizes[FED] = sizes["tokens"]
            sizes |= {n: sizes.pop(n) for n in ("block_table",) if n in sizes}
    return sizes


def weight_parts(
    plan: Plan, arena: Arena, base: int, weights: Weights | Mapping[str, Array]
) -> Iterator[tuple[int, Array]]:
    """The weights of a plan, each with its place in an arena that begins at `base`."""
    for name, argument in plan.weights().items():
        array = (
            weights.select(name, argument.dtype, evaluate_shape(argument.shape, {}))
            if isinstance(weights, Weights)
            else weights[name]
        )
        yield base + arena.weights[name], np.ascontiguousarray(array)

"""Memory of an artifact to the byte, from its plan alone."""

from dataclasses import dataclass

from ..ir.plan import Plan
from .executor import bound_of, context_limit
from .manifest import Manifest
from .pools import Pools, pools_for


@dataclass(frozen=True)
class PlanReport:
    """What an artifact takes: bytes of weights, workspace and cache (recurrent states are in it),
    and the sequences that fit.
    """

    weight_bytes: int
    workspace_bytes: int
    token_bytes: int
    block: int
    blocks: int
    state_bytes: int
    states: int
    cache_bytes: int
    max_context: int
    max_batch: int
    full_sequences: int
    file_bytes: int
    calls: tuple[tuple[str, int], ...]

    @property
    def total_bytes(self) -> int:
        """Weights, workspace and cache together."""
        return self.weight_bytes + self.workspace_bytes + self.cache_bytes

    @property
    def _paged(self) -> int:
        return self.blocks * self.block * self.token_bytes

    def _state_rows(self) -> list[tuple[str, str]]:
        if not self.state_bytes:
            return []
        held = f"{self.states * self.state_bytes:,} bytes ({self.states:,} states)"
        one = f"{self.state_bytes:,} bytes, whatever its length"
        return [("recurrent state, one sequence", one), ("recurrent states", held)]

    def __str__(self) -> str:
        """The report as lines of name and number."""
        rows = [
            ("weights", f"{self.weight_bytes:,} bytes"),
            ("workspace", f"{self.workspace_bytes:,} bytes"),
            ("KV cache, one token", f"{self.token_bytes:,} bytes"),
            ("KV cache", f"{self._paged:,} bytes ({self.blocks:,} blocks of {self.block} tokens)"),
            *self._state_rows(),
            ("total", f"{self.total_bytes:,} bytes"),
            ("on disk", f"{self.file_bytes:,} bytes"),
            ("context limit", f"{self.max_context:,} tokens"),
            ("batch limit", f"{self.max_batch:,} sequences"),
            ("sequences of full context that fit", f"{self.full_sequences:,}"),
            *((f"kernels in a {name} step", f"{count:,}") for name, count in self.calls),
        ]
        return "\n".join(f"{name:<36}{value}" for name, value in rows)


def plan_report(plan: Plan, manifest: Manifest, budget: int | None, available: int) -> PlanReport:
    """The report for a cache budget in bytes, or for what would be taken of `available` memory."""
    serves = "decode" in plan.entries
    pools = pools_for(plan, budget, available) if serves else Pools(0, 0)
    blocks = pools.blocks
    context = min(context_limit(plan), blocks * plan.block) if serves else 0
    return PlanReport(
        weight_bytes=plan.weight_bytes,
        workspace_bytes=plan.workspace_bytes,
        token_bytes=plan.token_bytes,
        block=plan.block,
        blocks=blocks,
        state_bytes=plan.state_bytes,
        states=pools.states,
        cache_bytes=pools.nbytes(plan),
        max_context=context,
        max_batch=bound_of(plan, "N") if serves else 0,
        full_sequences=_fitting(plan, pools, context) if serves else 0,
        file_bytes=sum(f["bytes"] for f in manifest["files"].values()),
        calls=tuple((name, len(entry.calls)) for name, entry in plan.entries.items()),
    )


def _fitting(plan: Plan, pools: Pools, context: int) -> int:
    """Sequences of so many tokens that have blocks and a state each."""
    fitting = plan.sequences_that_fit(pools.nbytes(plan), context)
    return min(fitting, pools.states) if plan.state_bytes else fitting

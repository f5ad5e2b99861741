"""Memory of an artifact to the byte, from its plan alone."""

from dataclasses import dataclass

from ..ir.plan import Plan
from .executor import blocks_for, bound_of, context_limit
from .manifest import Manifest


@dataclass(frozen=True)
class PlanReport:
    """What an artifact takes: bytes of weights, workspace and cache, and the sequences that fit."""

    weight_bytes: int
    workspace_bytes: int
    token_bytes: int
    block: int
    blocks: int
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

    def __str__(self) -> str:
        """The report as lines of name and number."""
        rows = [
            ("weights", f"{self.weight_bytes:,} bytes"),
            ("workspace", f"{self.workspace_bytes:,} bytes"),
            ("KV cache, one token", f"{self.token_bytes:,} bytes"),
            (
                "KV cache",
                f"{self.cache_bytes:,} bytes ({self.blocks:,} blocks of {self.block} tokens)",
            ),
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
    blocks = blocks_for(plan, budget, available) if serves else 0
    context = min(context_limit(plan), blocks * plan.block) if serves else 0
    return PlanReport(
        weight_bytes=plan.weight_bytes,
        workspace_bytes=plan.workspace_bytes,
        token_bytes=plan.token_bytes,
        block=plan.block,
        blocks=blocks,
        cache_bytes=blocks * plan.block_bytes,
        max_context=context,
        max_batch=bound_of(plan, "N") if serves else 0,
        full_sequences=plan.sequences_that_fit(blocks * plan.block_bytes, context) if serves else 0,
        file_bytes=sum(f["bytes"] for f in manifest["files"].values()),
        calls=tuple((name, len(entry.calls)) for name, entry in plan.entries.items()),
    )

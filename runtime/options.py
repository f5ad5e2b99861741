"""What an operator chooses about an engine, by plain values: an artifact makes the rest of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.plan import Plan
from .executor import context_limit
from .policies import POLICIES

_SWAP_SHARE = 4  # a cache's size by that of the memory beside it, where nobody says how much


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of an `Engine` that do not depend on its artifact; None leaves them to the runtime.

    `policy` is a name in `POLICIES`, `weights` are shares of clients under "fair". Preempted
    sequences may take `swap_bytes` of host memory, a quarter of the cache's size where it is None,
    or as much of `swap_directory`.
    """

    policy: str = "fcfs"
    weights: Mapping[str, float] | None = None
    prefix_caching: bool = True
    swap_bytes: int | None = None
    swap_directory: Path | str | None = None
    max_waiting: int | None = None
    max_batch: int | None = None
    max_context: int | None = None
    token_budget: int | None = None
    beside_decodes: int | None = None
    pace: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ValueError(f"policy={self.policy!r}: wanted one of {', '.join(POLICIES)}")
        if self.weights and self.policy != "fair":
            raise ValueError(f"weights: wanted with policy 'fair', given {self.policy!r}")
        wrong = [f"{c}={w}" for c, w in (self.weights or {}).items() if not w > 0]
        if wrong:
            raise ValueError(f"weights: wanted numbers above 0, given {', '.join(wrong)}")

    def arguments(self, plan: Plan, blocks: int) -> dict[str, Any]:
        """The arguments of an engine over a cache of so many blocks."""
        swapped = blocks // _SWAP_SHARE
        if self.swap_bytes is not None:
            swapped = _blocks_in(self.swap_bytes, plan)
        given = {"weights": self.weights} if self.weights else {}
        return {
            "policy": POLICIES[self.policy](**given),
            "prefix_caching": self.prefix_caching,
            "swap_blocks": swapped,
            "swap_directory": self.swap_directory,
            "max_waiting": self.max_waiting,
            "max_batch": self.max_batch,
            "max_context": self.max_context,
            "token_budget": self.token_budget,
            "beside_decodes": self.beside_decodes,
            "pace": self.pace,
            "seed": self.seed,
        }


def _blocks_in(size: int, plan: Plan) -> int:
    """The blocks that so many bytes hold; a state counts as a context where blocks hold nothing."""
    if plan.block_bytes:
        return size // plan.block_bytes
    context = -(-context_limit(plan) // plan.block)
    return size // plan.state_bytes * context if plan.state_bytes else 0


DEFAULTS = EngineOptions()

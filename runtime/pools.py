"""How much memory serving takes for what it keeps of sequences: blocks of KV cache, and states."""

from typing import NamedTuple

from ..ir.plan import Plan
from .errors import ArtifactError
from .executor import bound_of, context_limit

STATES = 2
"""States for each sequence of a full batch: its own, and one for forks and prefixes to go on from.
"""


class Pools(NamedTuple):
    """Blocks of KV cache, and recurrent states of sequences."""

    blocks: int
    states: int

    def nbytes(self, plan: Plan) -> int:
        """The bytes of both."""
        return self.blocks * plan.block_bytes + self.states * plan.state_bytes


def pools_for(plan: Plan, budget: int | None, available: int) -> Pools:
    """How many blocks and states to make.

    `budget` is in bytes; where it is None, every sequence of a full batch gets its whole context,
    but both take no more than half of the `available` memory. What does not hold all that is wanted
    is shared out in the same proportion.
    """
    count = bound_of(plan, "N")
    wanted = Pools(
        count * -(-context_limit(plan) // plan.block), STATES * count if plan.state_bytes else 0
    )
    limit = available // 2 if budget is None else budget
    if (total := wanted.nbytes(plan)) <= limit:
        return wanted
    states = min(wanted.states, max(1, wanted.states * limit // total))
    left = limit - states * plan.state_bytes
    blocks = min(wanted.blocks, left // plan.block_bytes) if plan.block_bytes else wanted.blocks
    if left < 0 or blocks < 1:
        given = "half of free memory" if budget is None else f"{budget} bytes"
        state = f" and a state of {plan.state_bytes} bytes" if plan.state_bytes else ""
        raise ArtifactError(f"KV cache: {given} holds no block of {plan.block_bytes} bytes{state}")
    return Pools(blocks, states)

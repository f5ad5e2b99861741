"""What a monitor is told of an engine, beside its counts."""

from .blocks import BlockPool
from .grammar import Grammars
from .memory import BlockMemory
from .scheduler import Scheduler
from .spread import Counts


def spreads(pool: BlockPool, grammars: Grammars | None) -> dict[str, Counts]:
    """How the seconds of what happens spread, by the names of metrics."""
    times = pool.times
    found = {
        "kv_block_lifetime_seconds": times.lifetime,
        "kv_block_idle_before_evict_seconds": times.idle,
        "kv_block_reuse_gap_seconds": times.gap,
    }
    if grammars is not None:
        found["grammar_compilation_time_seconds"] = grammars.seconds
    return {name: spread.counts() for name, spread in found.items()}


def config_of(scheduler: Scheduler, memory: BlockMemory) -> dict[str, str]:
    """How steps are planned and where preempted sequences go, by names."""
    return {
        "max_num_batched_tokens": str(scheduler.chunk),
        "pace": str(scheduler.pace or 0),
        "enable_prefix_caching": str(scheduler.prefix_caching),
        "scheduling_policy": type(scheduler.policy).name,
        "swap_blocks": str(memory.room),
        "swap_store": type(memory.store).__name__.lower(),
    }

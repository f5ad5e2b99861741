"""What one step runs: parts of sequences, and their tokens laid end to end."""

from dataclasses import dataclass
from typing import NamedTuple

from .executor import Batch
from .sequence import Sequence


class Part(NamedTuple):
    """`count` tokens of a sequence in one step; `fresh` are the blocks taken for them, `end` is how
    many tokens are computed after it, `rows` how many of its tokens get logits.
    """

    sequence: Sequence
    count: int  # pyright: ignore[reportIncompatibleMethodOverride] (what a tuple counts is of no use)
    fresh: tuple[int, ...]
    end: int
    rows: int


@dataclass(frozen=True)
class Step:
    """What one step runs; blocks are reserved until it is committed or rolled back."""

    parts: tuple[Part, ...]

    def batch(self, block: int) -> Batch:
        """The step's tokens for the executor."""
        return _batch(self.parts, block)


def _batch(parts: tuple[Part, ...], block: int) -> Batch:
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    lengths: list[int] = []
    starts, rows = [0], []
    for part in parts:
        sequence, count = part.sequence, part.count
        begin, blocks = sequence.computed, sequence.blocks
        end = begin + count
        if count == 1:
            tokens.append(sequence.tokens[begin])
            positions.append(begin)
            slots.append(blocks[begin // block] * block + begin % block)
        else:
            tokens += sequence.tokens[begin:end]
            positions += range(begin, end)
            slots += [blocks[p // block] * block + p % block for p in range(begin, end)]
        lengths.append(end)
        starts.append(len(tokens))
        first = starts[-2] if sequence.first_row else len(tokens) - part.rows
        rows += range(first, first + part.rows)
    return Batch(
        tokens=tokens,
        positions=positions,
        query_start=starts,
        context_length=lengths,
        # No kernel reads what is out of sight; its place in the table only has to be a block.
        block_table=[
            [max(b, 0) for b in p.sequence.blocks] if p.sequence.freed else p.sequence.blocks
            for p in parts
        ],
        slots=slots,
        # Kernels take at least one row; where no part ends, nobody reads it.
        logit_rows=rows or [len(tokens) - 1],
        state_from=[p.sequence.state for p in parts],
        state_to=[p.sequence.next_state for p in parts],
    )

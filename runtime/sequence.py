"""What the scheduler knows of one sequence: integers and lists, no tensors."""

from dataclasses import dataclass, field

from .memory import Saved

NO_BLOCK = -1


@dataclass(eq=False)
class Sequence:
    """One sequence's tokens and its place in the cache.

    `tokens` holds prompt and output, `computed` counts those whose keys and values are in `blocks`.
    `limit` bounds the output; `salt` separates prefix caches; `keys` are the contents of the full
    blocks, the first `freed` of which are given back (NO_BLOCK stands for each), because no later
    token sees them; `cached` counts prompt tokens that were found in the prefix cache, `charged`
    those that a policy has charged to the client. With `all_rows` every token of the prompt gets
    logits; else one has, the last that is computed, or the first with `first_row`. With `whole` one
    step computes all of it. `state` is where its recurrent state is, `next_state` where the step
    that runs puts it (NO_BLOCK: nowhere).
    """

    id: str
    tokens: list[int]
    prompt_length: int
    arrival: int = 0
    computed: int = 0
    blocks: list[int] = field(default_factory=list[int])
    freed: int = 0
    state: int = NO_BLOCK
    next_state: int = NO_BLOCK
    client: str = ""
    priority: int = 0
    limit: int = 16
    salt: bytes = b""
    all_rows: bool = False
    first_row: bool = False
    whole: bool = False
    reads_cache: bool = True
    predicted: float = 0.0
    keys: list[bytes] = field(default_factory=list[bytes])
    cached: int | None = None
    charged: int = 0
    saved: Saved | None = None

    @property
    def held(self) -> list[int]:
        """The blocks that the sequence holds, first to last."""
        return self.blocks[self.freed :]

    @property
    def pending(self) -> int:
        """Tokens that a step must still compute; 1 for a sequence that decodes."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens after the prompt."""
        return len(self.tokens) - self.prompt_length

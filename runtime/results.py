"""What an engine gives: deltas, completions, log probabilities, times and counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from .spread import Counts
from .tensors import Array

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True)
class Logprob:
    """A token's log probability before any sampling parameter, and its rank, 1 for the likeliest.

    `decoded_token` is None where the engine has no tokenizer.
    """

    logprob: float
    rank: int
    decoded_token: str | None = None


# The chosen token first, then the likeliest ones.
TokenLogprobs = Mapping[int, Logprob]


@dataclass(frozen=True)
class Times:
    """When a request arrived, was first computed, gave its first token, ended.

    Seconds of `time.monotonic`; None for what did not happen.
    """

    arrived: float
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None


@dataclass(frozen=True)
class Delta:
    """What a step gave to one sequence of a request; a finish reason comes with its last one.

    `index` counts the sequences of a request that asked for several (`n`). `logprobs` has an entry
    for each token id, `prompt_logprobs` for each prompt token (None for the first); they come where
    they were asked for, the latter with the first delta. `cached_tokens` of the prompt were found
    in the prefix cache. `stop_reason` is the stop string or the stop token that ended the sequence,
    None for the model's own end token. `times` come with the finish reason, `vector` f32[H] with
    that of a prompt that is pooled.
    """

    request_id: str
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cached_tokens: int = 0
    stop_reason: int | str | None = None
    times: Times | None = field(default=None, compare=False)
    vector: Array | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Completion:
    """A finished request. `token_ids` holds the token that ended it, `text` does not show it.

    `finish_reason` is "stop" (an end token or a stop string) or "length". Others: see `Delta`.
    `cumulative_logprob` is the sum of the tokens' log probabilities, where they were asked for.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_token_ids: tuple[int, ...] = ()
    index: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    cumulative_logprob: float | None = None
    cached_tokens: int = 0
    stop_reason: int | str | None = None
    times: Times | None = field(default=None, compare=False)


@dataclass(frozen=True)
class EngineStats:
    """What an engine holds now, and what it has counted since it was made.

    Blocks: `used` are held by sequences, `cached` by nobody but their content may be used again,
    `free` are the rest. `prefix_queries` counts prompt tokens that were looked up in the prefix
    cache, `prefix_hits` those that were found. `swaps` are the preemptions that kept their blocks
    outside the cache, `evictions` the cached blocks that were given away. Of those that wait
    `preempted` have run before. `corrupted` requests ended because the model gave no numbers.
    `spreads` are seconds by the names of a monitor.
    """

    running: int
    waiting: int
    blocks_used: int
    blocks_cached: int
    blocks_free: int
    steps: int
    preemptions: int
    swaps: int
    prefix_queries: int
    prefix_hits: int
    prompt_tokens: int
    generated_tokens: int
    evictions: int = 0
    preempted: int = 0
    corrupted: int = 0
    spreads: Mapping[str, Counts] = field(default_factory=dict[str, Counts])

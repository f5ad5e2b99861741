"""Log probabilities of tokens, as the model gave them: before any sampling parameter."""

from collections.abc import Callable

import numpy as np

from .results import Logprob, TokenLogprobs
from .sampling import greatest
from .tensors import Array

Decode = Callable[[int], str] | None


def token_logprobs(logits: Array, token: int, count: int, decode: Decode) -> TokenLogprobs:
    """The token's log probability in a row of logits, and those of the `count` likeliest.

    -1 is the whole vocabulary. Equal logits rank in the order of ids, the token itself first.
    """
    total = _log_sum(logits)
    likeliest = greatest(logits, logits.shape[0] if count == -1 else count) if count else ()
    ranked = sorted((int(t) for t in likeliest), key=lambda t: (-logits[t], t))
    own = 1 + int(np.count_nonzero(logits > logits[token]))
    found = {token: own} | {t: rank for rank, t in enumerate(ranked, 1) if t != token}
    return {
        t: Logprob(float(logits[t]) - total, rank, decode(t) if decode else None)
        for t, rank in found.items()
    }


def _log_sum(logits: Array) -> float:
    best = float(logits.max())
    return best + float(np.log(np.exp(logits - best).sum(dtype=np.float64)))

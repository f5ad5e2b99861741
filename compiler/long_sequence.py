"""How long a sequence may be that a model is tried on: what it does differently behind many tokens
is seen at such a length alone.
"""

from __future__ import annotations

import math

from torch import nn

WORK = 10**11  # multiplications of eager, some seconds of a processor
PAIRS = 1 << 26  # numbers for the pairs of its tokens, where a model makes a row of each


def affordable_length(model: nn.Module, limit: int) -> int:
    """The most tokens up to a limit that eager computes within some seconds and some hundred
    megabytes.
    """
    sizes = [p.shape for p in model.parameters()]
    weights = max(1, sum(size.numel() for size in sizes))
    width = max((min(size) for size in sizes if len(size) > 1), default=1)
    return max(1, min(limit, WORK // weights, math.isqrt(PAIRS // max(1, width))))

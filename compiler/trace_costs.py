"""What torch and Python do beside a trace, and what takes longer than it gains."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SELDOM = 50_000  # objects made before Python looks for unreachable ones: a trace makes millions


@contextmanager
def without_known_results() -> Iterator[None]:
    """The tracer computes the shape of every result anew. It keeps those of calls with the same
    shapes otherwise, and with symbols for sizes a look at what is known takes longer than the
    shape: a quarter to a third of a whole trace.
    """
    import torch._dynamo

    config: Any = torch._dynamo.config  # its methods are made when it is loaded
    with config.patch(fake_tensor_cache_enabled=False):
        yield


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Python looks for unreachable objects once in many: all that the libraries hold is looked
    through each time.
    """
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, SELDOM) if first else 0, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)

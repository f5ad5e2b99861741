"""Tracing without the tracer's memory of results."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any


def without_known_results() -> AbstractContextManager[Any]:
    """The tracer computes the shape of every result anew. It keeps those of calls with the same
    shapes otherwise, and with symbols for sizes a look at what is known takes longer than the
    shape: a quarter to a third of a whole trace.
    """
    import torch._dynamo

    config: Any = torch._dynamo.config  # its methods are made when it is loaded
    return config.patch(fake_tensor_cache_enabled=False)

"""What feeds a step with tokens of the step before, where the host does not know them yet."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir.dims import dim
from ...ir.graph import Graph
from ...ir.launches import FED, FEED
from ...ir.node import input_
from ...ir.ops import tensor as t
from ...ir.types import TensorType


def feed_body(bounds: Mapping[str, tuple[int, int]]) -> Graph:
    """tokens i32[T] with max(argmax[fed[i]], 0) in the place of token i where fed[i] is 0 or more;
    an argmax of -1, of a row that is an error, reads no memory that is not there.
    """
    tokens, fed = (input_(name=n, type=TensorType("i32", (dim("T"),))) for n in ("tokens", FED))
    argmax = input_(name="argmax", type=TensorType("i32", (dim("R"),)))
    zero = t.constant(value=0, dtype="i32")
    taken = t.take(argmax, t.maximum(fed, zero), axis=0)
    result = t.where(t.lt(fed, zero), tokens, t.maximum(taken, zero))
    kept = {n: b for n, b in bounds.items() if n in ("T", "R")}
    return Graph(FEED, (tokens, fed, argmax), (result,), bounds=kept)

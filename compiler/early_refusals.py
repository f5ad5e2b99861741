"""The end of a trace at the first condition on the length that some lengths break.

The tracer itself goes on to the end, and refuses there; what is done then is known here already.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy.functions import FloorDiv

from .capture import IDS, LENGTH
from .conditions import BEYOND_ALGEBRA, axis_of, trial
from .errors import CompileError
from .refusals import STRIDES
from .sources import calling_line

_ORDERS = (sympy.Ge, sympy.Gt, sympy.Le, sympy.Lt)


class EarlyRefusalError(CompileError):
    """A model is not traced to the end for all lengths: with `by_windows` it takes another way
    where there are few windows of tokens, else a condition may be one on how values lie in memory.
    """

    def __init__(self, condition: sympy.Basic, place: str, *, by_windows: bool) -> None:
        super().__init__(f"not for all lengths: {condition}" + (f", at {place}" if place else ""))
        self.by_windows = by_windows


class _BrokenError(BaseException):
    """No Exception, which tracers catch and log."""

    def __init__(self, refusal: EarlyRefusalError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


@contextmanager
def ended_early(limit: int, *, by_windows: bool) -> Iterator[None]:
    """Raise EarlyRefusalError where a trace takes for granted what fewer tokens than those of the
    trace break, and as many as the limit do not; of windows only where that is asked for.
    """
    tracer: Any = ShapeEnv
    known = tracer._maybe_guard_rel

    @wraps(known)
    def guarded(env: Any, condition: Any) -> None:
        counts = _broken_by_windows(env, condition, limit)
        if counts is not None and counts <= by_windows:
            raise _BrokenError(EarlyRefusalError(condition, calling_line(), by_windows=counts))
        known(env, condition)

    tracer._maybe_guard_rel = guarded
    try:
        yield
    except _BrokenError as broken:
        raise broken.refusal from None
    finally:
        tracer._maybe_guard_rel = known


def _broken_by_windows(env: Any, condition: Any, limit: int) -> bool | None:
    """Whether a condition that fewer tokens break counts windows; None where none break it, or
    where it is not plain enough to tell.
    """
    symbols = list(condition.free_symbols)
    if limit < LENGTH or len(symbols) != 1 or axis_of(env, symbols[0], IDS) != 1:
        return None
    holds = trial(condition, symbols)
    broken = [n for n in range(2, LENGTH) if not holds(n)]
    if not broken or not holds(limit):
        return None
    if not condition.has(*BEYOND_ALGEBRA):
        return False
    rest = [f for f in BEYOND_ALGEBRA if f is not FloorDiv]
    least = broken[-1] + 1
    counts = isinstance(condition, _ORDERS) and broken == list(range(2, least)) and least > STRIDES
    return True if counts and not condition.has(*rest) else None

"""Errors of the compiler layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..codegen.errors import CodegenError
from ..ir.plan import Plan


class CompileError(Exception):
    """A model, checkpoint or option that cannot be compiled: says what was given, what was wanted,
    and where.
    """


@contextmanager
def kernel_lines(plan: Plan) -> Iterator[None]:
    """Errors of a plan's kernels say what in the model the kernel is of."""
    try:
        yield
    except CodegenError as error:
        calls = (c for entry in plan.entries.values() for c in entry.calls)
        place = next((c.origin for c in calls if error.kernel and c.kernel == error.kernel), "")
        if not place:
            raise
        raise CodegenError(f"{place} has no kernel: {error}", error.kernel) from error

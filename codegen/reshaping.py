"""Which axes of two shapes with the same elements hold the same part of them."""

from __future__ import annotations

from ..ir.dims import Dim, Shape, equal, exact_quotient, product
from ..ir.errors import IRError


def matching_groups(a: Shape, b: Shape) -> list[tuple[list[int], list[int]]]:
    """Shortest runs of axes of a and of b, in order, whose sizes have equal products; axes of
    size 1 are left out.
    """
    left = [i for i, d in enumerate(a) if d != 1]
    right = [j for j, d in enumerate(b) if d != 1]
    groups: list[tuple[list[int], list[int]]] = []
    while left or right:
        xs, ys = left[:1], right[:1]
        while not equal(p := product(a[i] for i in xs), q := product(b[j] for j in ys)):
            more_left = len(xs) < len(left) and (len(ys) == len(right) or _divides(p, q))
            if more_left:
                xs = left[: len(xs) + 1]
            elif len(ys) < len(right):
                ys = right[: len(ys) + 1]
            elif len(xs) < len(left):
                xs = left[: len(xs) + 1]
            else:
                raise IRError(f"shapes {a} and {b} differ in size")
        groups.append((xs, ys))
        left, right = left[len(xs) :], right[len(ys) :]
    return groups


def _divides(p: Dim, q: Dim) -> bool:
    if isinstance(p, int) and isinstance(q, int):
        return p < q
    return exact_quotient(q, p) is not None

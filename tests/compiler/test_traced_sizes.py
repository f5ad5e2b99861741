"""Sizes of the tracer as dims: what the bounds decide is decided."""

import pytest
import sympy
from ferrule.compiler.traced_sizes import OpenSizeError, TracedSizes
from ferrule.ir.dims import dim
from torch.utils._sympy.functions import (
    CeilToInt,
    FloatPow,
    FloatTrueDiv,
    FloorDiv,
    Mod,
    OpaqueUnaryFn_sqrt,
    PythonMod,
    ToFloat,
)

s0, s1, u0 = sympy.symbols("s0 s1 u0", integer=True)
SIZES = TracedSizes({"s0": "B", "s1": "S"}, {"B": (1, 8), "S": (1, 96)})
B, S = dim("B"), dim("S")


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (sympy.Integer(3), 3),
        (s0 * s1 + 2, B * S + 2),
        (96 - sympy.Max(0, 96 - s1), S),
        (sympy.Max(0, 1 - s1), 0),
        (sympy.Min(s1, 100), S),
        (sympy.Min(s1, 96, 97), S),
        (sympy.Max(s0, s0 + s1 - 1), B + S - 1),
        (sympy.Max(0, 50 - s1), sympy.Max(0, 50 - S)),
        (sympy.Min(s0, s1), sympy.Min(B, S)),
        (sympy.Max(1, s0 * s1), sympy.Max(1, B * S)),
        (CeilToInt(FloatTrueDiv(ToFloat(-s1), sympy.Float(-1.0))), S),
        (FloorDiv(s1 + s1 * s1, 1 + s1), S),
        (s1 + PythonMod(-s1, 8), 8 * sympy.floor((S + 7) / 8)),
        (FloorDiv(s1 + PythonMod(-s1, 8), 8), sympy.floor((S + 7) / 8)),
        (s1 - Mod(s1, 4), 4 * sympy.floor(S / 4)),
        (FloatPow(ToFloat(s1), ToFloat(s0)), S**B),
        (OpaqueUnaryFn_sqrt(ToFloat(s1)), sympy.sqrt(S)),
    ],
)
def test_a_size_becomes_a_dim(given: sympy.Expr, wanted: object):
    assert SIZES.dim(given) == wanted


def test_a_size_that_the_data_decides_is_none():
    with pytest.raises(OpenSizeError, match="u0"):
        SIZES.dim(s0 + u0)

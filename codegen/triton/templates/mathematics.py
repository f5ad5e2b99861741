"""Elementary functions that Triton has not on every target: float32 formulas, and whole numbers
that round down.
"""

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """(e^2x - 1) / (e^2x + 1); below 0.625 x + x^3 p(x^2), a polynomial (Cephes, tanhf)."""
    s = x * x
    p = (-5.70498872745e-3 * s + 2.06390887954e-2) * s - 5.37397155531e-2
    p = (p * s + 1.33314422036e-1) * s - 3.33332819422e-1
    near = x + x * s * p
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, near, tl.where(x < 0, -far, far))


@triton.jit
def expm1(x):
    """e^x - 1, exact for small x: (u - 1) x / log u with u = e^x (Kahan)."""
    u = tl.exp(x)
    inner = (u - 1.0) * x / tl.log(u)
    large = tl.where(u - 1.0 == -1.0, u - 1.0, inner)
    return tl.where(u == 1.0, x, tl.where(u == float("inf"), u, large))


@triton.jit
def log1p(x):
    """log(1 + x), exact for small x: x log u / (u - 1) with u = 1 + x (Kahan)."""
    u = 1.0 + x
    return tl.where(u == 1.0, x, tl.where(u == float("inf"), u, tl.log(u) * x / (u - 1.0)))


@triton.jit
def erfinv(x):
    """x p(-log(1 - x^2)): two polynomials (Giles, 2012, single precision)."""
    w = -tl.log((1.0 - x) * (1.0 + x))
    a = w - 2.5
    p = 2.81022636e-08
    p = 3.43273939e-07 + p * a
    p = -3.5233877e-06 + p * a
    p = -4.39150654e-06 + p * a
    p = 0.00021858087 + p * a
    p = -0.00125372503 + p * a
    p = -0.00417768164 + p * a
    p = 0.246640727 + p * a
    p = 1.50140941 + p * a
    b = tl.sqrt(w) - 3.0
    q = -0.000200214257
    q = 0.000100950558 + q * b
    q = 0.00134934322 + q * b
    q = -0.00367342844 + q * b
    q = 0.00573950773 + q * b
    q = -0.0076224613 + q * b
    q = 0.00943887047 + q * b
    q = 1.00167406 + q * b
    q = 2.83297682 + q * b
    ends = tl.where(x == 1.0, float("inf"), tl.where(x == -1.0, float("-inf"), x * q))
    return tl.where(w < 5.0, x * p, ends)


@triton.jit
def nearest(x):
    """The nearest whole number, of two the even one."""
    low = tl.floor(x)
    above = x - low
    odd = low - 2.0 * tl.floor(low * 0.5) != 0.0
    return tl.where((above > 0.5) | ((above == 0.5) & odd), low + 1.0, low)


@triton.jit
def softplus(x, beta, threshold):
    """log(1 + e^(beta x)) / beta; x above the threshold."""
    s = x * beta
    safe = tl.minimum(s, threshold)
    return tl.where(s > threshold, x, (tl.maximum(safe, 0.0) + log1p(tl.exp(-tl.abs(safe)))) / beta)


@triton.jit
def power(x, y):
    """x^y = 2^(y log2 |x|), negative where x is and y is odd; not a number where x < 0 and y is no
    whole number.
    """
    size = tl.exp2(y * tl.log2(tl.abs(x)))
    whole = tl.floor(y) == y
    odd = whole & (y - 2.0 * tl.floor(y * 0.5) != 0.0)
    signed = tl.where((x < 0) & odd, -size, tl.where((x < 0) & (whole == 0), float("nan"), size))
    return tl.where((y == 0.0) | (x == 1.0), 1.0, signed)


@triton.jit
def floordiv(x, y):
    """The whole quotient, rounded down; Triton's own rounds to zero."""
    q = x // y
    return tl.where((q * y != x) & ((x < 0) != (y < 0)), q - 1, q)


@triton.jit
def floormod(x, y):
    """x - floordiv(x, y) y."""
    r = x % y
    return tl.where((r != 0) & ((r < 0) != (y < 0)), r + y, r)


@triton.jit
def larger(x, y):
    """The larger; a NaN on either side is kept."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def smaller(x, y):
    """The smaller; a NaN on either side is kept."""
    return tl.minimum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def multiplied(x, y):
    """x y, for products along an axis."""
    return x * y


@triton.jit
def log_added(x, y):
    """log(e^x + e^y), taken from the larger; of equals, which may be infinite, nothing is
    subtracted.
    """
    low, high = tl.minimum(x, y), tl.maximum(x, y)
    apart = tl.where(low == high, 0.0, low - high)
    return high + log1p(tl.exp(apart))

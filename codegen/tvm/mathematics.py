"""Elementary functions over float32 vectors, as polynomials that every ISA vectorizes; float64
goes to LLVM's intrinsics.

Each takes and gives expressions; shared subterms are bound to variables, because TVM's passes
walk expressions as trees. Errors are within 2 units in the last place (4 for tanh and erf) of
float32, infinities and NaN as in IEEE arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from .values import Expr, bind_opaque, cast, const, dtype_of, is_nan


def _f(value: float) -> Expr:
    return const(value, "float32")


def _like(value: float, x: Expr) -> Expr:
    return const(value, dtype_of(x))


def _horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    total = _like(coefficients[0], x)
    for c in coefficients[1:]:
        total = total * x + _like(c, x)
    return bind_opaque(total)


def _is_double(x: Expr) -> bool:
    return dtype_of(x) == "float64"


def _intrinsic(name: str) -> Callable[[Expr], Expr]:
    return getattr(tirx, name)


def _keep_nan(x: Expr, y: Expr) -> Expr:
    return bind_opaque(tirx.Select(is_nan(x), x, y))


_EXP_TAIL = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
"""e^r = 1 + r + r^2 (these, highest power first)."""


def exp(x: Expr) -> Expr:
    """e^x = 2^n e^r, |r| <= ln 2 / 2, e^r by a polynomial of degree 7 (Cephes)."""
    if _is_double(x):
        return bind_opaque(tirx.exp(x))
    x = bind_opaque(x)
    clipped = bind_opaque(tirx.min(tirx.max(x, _f(-87.33654)), _f(88.72283)))
    n = bind_opaque(tirx.floor(clipped * _f(1.4426950408889634) + _f(0.5)))
    r = bind_opaque(clipped - n * _f(0.693359375) - n * _f(-2.12194440e-4))
    p = bind_opaque(_horner(r, _EXP_TAIL) * r * r + r + _f(1.0))
    y = bind_opaque(_scale(p, n))
    y = tirx.Select(tirx.GT(x, _f(88.72283)), _f(float("inf")), y)
    y = tirx.Select(tirx.LT(x, _f(-87.33654)), _f(0.0), y)
    return _keep_nan(x, y)


_SHIFT = 12582912.0
"""1.5 2^23: what is added to it is rounded to a whole number, which lies in its lowest bits."""
_EXP_SHORT = (
    1.3814539877e-3,
    8.3687451271e-3,
    4.1668390790e-2,
    1.6666520399e-1,
    4.9999993432e-1,
    1.0,
    1.0,
)
"""e^r for |r| <= ln 2 / 2, highest power first, within 3.1e-9 of itself (least squares with
Lawson's weights).
"""


def _exp_parts(x: Expr) -> tuple[Expr, Expr]:
    """e^r and 2^n of e^x = 2^n e^r, |r| <= ln 2 / 2, for -87.4 < x < 88.8."""
    shifted = bind_opaque(x * _f(1.4426950408889634) + _f(_SHIFT))
    n = bind_opaque(shifted - _f(_SHIFT))
    r = bind_opaque(x - n * _f(0.693359375) - n * _f(-2.12194440e-4))
    bits, i = tirx.op.reinterpret("int32", shifted), lambda v: const(v, "int32")
    power = tirx.op.shift_left(bits, i(23)) + i(127 << 23)  # the shift leaves n alone
    return _horner(r, _EXP_SHORT), bind_opaque(tirx.op.reinterpret("float32", bind_opaque(power)))


def exp_within(x: Expr) -> Expr:
    """e^x where neither its last numbers nor those beside 0 matter: e^-87.3 below that, infinite
    above 88.37; NaN stays.
    """
    if _is_double(x):
        return bind_opaque(tirx.exp(x))
    x = bind_opaque(x)
    low, high = _f(-87.33654), _f(88.72283)
    # The bound is what is compared, so that NaN is what is kept.
    above = bind_opaque(tirx.Select(tirx.GT(low, x), low, x))
    clipped = bind_opaque(tirx.Select(tirx.LT(high, above), high, above))
    p, power = _exp_parts(clipped)
    return bind_opaque(p * power)  # 2^128 is infinite


def exp_below(x: Expr) -> Expr:
    """e^x of a float32 x <= 0, NaN or -inf: exp without its upper end; 0 below the normal
    numbers.
    """
    x, low = bind_opaque(x), _f(-87.33654)
    p, power = _exp_parts(bind_opaque(tirx.Select(tirx.GT(low, x), low, x)))
    return bind_opaque(tirx.Select(tirx.LT(x, low), _f(0.0), bind_opaque(p * power)))


def _scale(p: Expr, n: Expr) -> Expr:
    """p * 2^n in two steps, so that n = 128 does not overflow the exponent field."""
    half = bind_opaque(tirx.op.shift_right(tirx.Cast("int32", n), const(1, "int32")))
    rest = bind_opaque(tirx.Cast("int32", n) - half)
    return p * _power_of_two(half) * _power_of_two(rest)


def _power_of_two(n: Expr) -> Expr:
    return tirx.op.reinterpret(
        "float32", tirx.op.shift_left(n + const(127, "int32"), const(23, "int32"))
    )


def log(x: Expr) -> Expr:
    """ln x = e ln 2 + ln m, sqrt(1/2) <= m < sqrt(2), by a polynomial of degree 9 (Cephes);
    subnormals are scaled up first.
    """
    if _is_double(x):
        return bind_opaque(tirx.log(x))
    x = bind_opaque(x)
    tiny = bind_opaque(tirx.LT(x, _f(1.17549435e-38)))
    scaled = bind_opaque(tirx.Select(tiny, x * _f(8388608.0), x))
    bits = bind_opaque(tirx.op.reinterpret("int32", scaled))
    i = lambda n: const(n, "int32")  # noqa: E731
    # 0x3F3504F3 is sqrt(1/2): subtracting it centres the mantissa before the exponent is cut off.
    exponent = bind_opaque(tirx.op.shift_right(bits - i(0x3F3504F3), i(23)))
    m = bind_opaque(
        tirx.op.reinterpret("float32", bits - tirx.op.shift_left(exponent, i(23))) - _f(1.0)
    )
    e = bind_opaque(tirx.Cast("float32", exponent) - tirx.Select(tiny, _f(23.0), _f(0.0)))
    p = _horner(
        m,
        (
            7.0376836292e-2,
            -1.1514610310e-1,
            1.1676998740e-1,
            -1.2420140846e-1,
            1.4249322787e-1,
            -1.6668057665e-1,
            2.0000714765e-1,
            -2.4999993993e-1,
            3.3333331174e-1,
        ),
    )
    z = bind_opaque(m * m)
    y = bind_opaque(p * m * z + e * _f(-2.12194440e-4) - _f(0.5) * z)
    y = bind_opaque(m + y + e * _f(0.693359375))
    y = tirx.Select(tirx.EQ(x, _f(float("inf"))), x, y)
    y = tirx.Select(tirx.EQ(x, _f(0.0)), _f(float("-inf")), y)
    y = tirx.Select(tirx.LT(x, _f(0.0)), _f(float("nan")), y)
    return _keep_nan(x, y)


def expm1(x: Expr) -> Expr:
    """exp(x) - 1 without cancellation: (u - 1) x / ln u with u = exp(x) (Kahan)."""
    x = bind_opaque(x)
    u = bind_opaque(exp(x))
    less = bind_opaque(u - _like(1, x))
    ratio = bind_opaque(less * (x / log(u)))
    y = tirx.Select(tirx.EQ(u, _like(float("inf"), x)), u, ratio)
    y = tirx.Select(tirx.EQ(less, _like(-1, x)), less, y)
    return bind_opaque(tirx.Select(tirx.EQ(u, _like(1, x)), x, y))


def log1p(x: Expr) -> Expr:
    """ln(1 + x) without cancellation: ln(u) x / (u - 1) with u = 1 + x (Kahan)."""
    x = bind_opaque(x)
    u = bind_opaque(x + _like(1, x))
    ratio = bind_opaque(log(u) * (x / (u - _like(1, x))))
    y = tirx.Select(tirx.EQ(u, _like(float("inf"), x)), u, ratio)
    return bind_opaque(tirx.Select(tirx.EQ(u, _like(1, x)), x, y))


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x)."""
    return bind_opaque(_like(1, x) / (_like(1, x) + exp_within(-x)))


def _rational(x: Expr, top: Sequence[float], bottom: Sequence[float]) -> Expr:
    z = bind_opaque(x * x)
    return bind_opaque(x * _horner(z, top) / _horner(z, bottom))


def tanh(x: Expr) -> Expr:
    """A ratio of polynomials in x^2 on [-7.9, 7.9] (the fit of Eigen and XLA); the ends are +-1."""
    if _is_double(x):
        return _tanh_double(x)
    x = bind_opaque(x)
    clipped = bind_opaque(tirx.max(tirx.min(x, _f(7.90531110763549805)), _f(-7.90531110763549805)))
    top = (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    )
    bottom = (
        1.19825839466702e-06,
        1.18534705686654e-04,
        2.26843463243900e-03,
        4.89352518554385e-03,
    )
    y = _rational(clipped, top, bottom)
    return _keep_nan(x, tirx.Select(tirx.LT(tirx.abs(x), _f(0.0004)), x, y))


def _tanh_double(x: Expr) -> Expr:
    x = bind_opaque(x)
    size = bind_opaque(expm1(tirx.abs(x) * _like(-2, x)))
    y = bind_opaque(-size / (size + _like(2, x)))
    return bind_opaque(tirx.Select(tirx.LT(x, _like(0, x)), -y, y))


def erf(x: Expr) -> Expr:
    """A ratio of polynomials in x^2 on [-4, 4] (the fit of Eigen and XLA); the ends are +-1."""
    if _is_double(x):
        return bind_opaque(tirx.erf(x))
    x = bind_opaque(x)
    clipped = bind_opaque(tirx.max(tirx.min(x, _f(4.0)), _f(-4.0)))
    top = (
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    )
    bottom = (
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    )
    return _keep_nan(x, _rational(clipped, top, bottom))


def erfinv(x: Expr) -> Expr:
    """Giles, "Approximating the erfinv function" (2012), single precision."""
    one, kind = _like(1, x), dtype_of(x)
    x = bind_opaque(cast(x, "float32"))
    w = bind_opaque(-log((_f(1.0) - x) * (_f(1.0) + x)))
    near = _horner(
        w - _f(2.5),
        (
            2.81022636e-08,
            3.43273939e-07,
            -3.5233877e-06,
            -4.39150654e-06,
            0.00021858087,
            -0.00125372503,
            -0.00417768164,
            0.246640727,
            1.50140941,
        ),
    )
    far = _horner(
        bind_opaque(tirx.sqrt(w) - _f(3.0)),
        (
            -0.000200214257,
            0.000100950558,
            0.00134934322,
            -0.00367342844,
            0.00573950773,
            -0.0076224613,
            0.00943887047,
            1.00167406,
            2.83297682,
        ),
    )
    y = bind_opaque(tirx.Select(tirx.LT(w, _f(5.0)), near, far) * x)
    y = tirx.Select(tirx.EQ(tirx.abs(x), _f(1.0)), x * _f(float("inf")), y)
    return bind_opaque(cast(y, kind) * one)


def _reduced_angle(x: Expr) -> tuple[Expr, Expr]:
    """(quadrant, remainder in [-pi/4, pi/4]): reduced in float64, exact enough for angles up to
    2^30.
    """
    wide = bind_opaque(cast(x, "float64"))
    d = lambda v: const(v, "float64")  # noqa: E731
    k = bind_opaque(tirx.floor(wide * d(0.6366197723675814) + d(0.5)))
    r = bind_opaque(wide - k * d(1.5707963267948966) - k * d(6.123233995736766e-17))
    return bind_opaque(tirx.Cast("int32", k)), bind_opaque(tirx.Cast("float32", r))


def _sine(x: Expr, shift: int) -> Expr:
    quadrant, r = _reduced_angle(x)
    quadrant = bind_opaque(quadrant + const(shift, "int32"))
    z = bind_opaque(r * r)
    s = bind_opaque(_horner(z, (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)) * z * r + r)
    c = _horner(z, (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2))
    c = bind_opaque(c * z * z - _f(0.5) * z + _f(1.0))
    odd = tirx.EQ(tirx.op.bitwise_and(quadrant, const(1, "int32")), const(1, "int32"))
    y = bind_opaque(tirx.Select(odd, c, s))
    negative = tirx.EQ(tirx.op.bitwise_and(quadrant, const(2, "int32")), const(2, "int32"))
    return bind_opaque(tirx.Select(negative, -y, y))


def sin(x: Expr) -> Expr:
    """Sine: the angle reduced in float64, then a polynomial (Cephes)."""
    return bind_opaque(tirx.sin(x)) if _is_double(x) else _sine(x, 0)


def cos(x: Expr) -> Expr:
    """Cosine: the sine a quadrant further."""
    return bind_opaque(tirx.cos(x)) if _is_double(x) else _sine(x, 1)


def power(x: Expr, y: Expr) -> Expr:
    """x^y: products for small whole constants, a root for 1/2, else the C library's pow."""
    known = float(y.value) if isinstance(y, tirx.FloatImm | tirx.IntImm) else None
    x = bind_opaque(x)
    if known is not None and known == int(known) and 0 <= known <= 8:
        return _whole_power(x, int(known))
    if not dtype_of(x).startswith("float"):
        return cast(bind_opaque(tirx.op.pow(cast(x, "float64"), cast(y, "float64"))), dtype_of(x))
    if known == 0.5:
        return bind_opaque(tirx.sqrt(x))
    if known == -0.5:
        return bind_opaque(_like(1, x) / tirx.sqrt(x))
    if known is not None and known == int(known) and -8 <= known < 0:
        return bind_opaque(_like(1, x) / _whole_power(x, -int(known)))
    return bind_opaque(tirx.op.pow(x, y))


def _whole_power(x: Expr, n: int) -> Expr:
    result: Expr | None = None
    while n:
        if n & 1:
            result = x if result is None else bind_opaque(result * x)
        n >>= 1
        x = bind_opaque(x * x) if n else x
    return _like(1, x) if result is None else result


_ATANH = (1 / 15, 1 / 13, 1 / 11, 1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0)
"""atanh(s) / s in s^2, highest power first; what is left out is 2e-9 of it at s = 1/3."""


def softplus(x: Expr, beta: float, threshold: float) -> Expr:
    """ln(1 + e^(beta x)) / beta, and x where beta x is above the threshold: max(y, 0) + ln(1 + z)
    with y = beta x, z = e^-|y|, and ln(1 + z) = 2 atanh(z / (2 + z)).
    """
    y = bind_opaque(x * _like(beta, x))
    if _is_double(x):
        soft = log1p(exp(y))
    else:
        z = exp_below(-tirx.abs(y))
        s = bind_opaque(z / (z + _f(2.0)))
        logarithm = s * _f(2.0) * _horner(bind_opaque(s * s), _ATANH)
        soft = tirx.max(y, _f(0.0)) + logarithm
    above = tirx.GT(y, _like(threshold, x))
    return bind_opaque(tirx.Select(above, x, bind_opaque(soft / _like(beta, x))))


def gelu(x: Expr, approximate: str) -> Expr:
    """x Phi(x), by erf or by the tanh approximation."""
    x = bind_opaque(x)
    if approximate == "tanh":
        inner = bind_opaque(_like(0.7978845608028654, x) * (x + _like(0.044715, x) * x * x * x))
        return bind_opaque(_like(0.5, x) * x * (_like(1, x) + tanh(inner)))
    return bind_opaque(_like(0.5, x) * x * (_like(1, x) + erf(x * _like(0.7071067811865476, x))))

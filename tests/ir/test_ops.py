"""Every op's type rule: what it accepts, what it refuses, and that it agrees with numpy."""

import re

import numpy as np
import pytest
from ferrule.ir.dims import dim, substitute
from ferrule.ir.errors import IRError
from ferrule.ir.node import OPS, input_
from ferrule.ir.ops.elementwise import broadcast_shapes
from ferrule.ir.ops.tensor import broadcast, conv1d, reshape, scalar, slice_
from ferrule.ir.text import parse_graph
from ferrule.ir.types import TensorType
from hypothesis import given, settings
from hypothesis import strategies as st

DIMS = " where B in [1, 9], C in [1, 9], M in [1, 9], N in [1, 9], S in [1, 9], T in [1, 9]"
X, INTS, C = "%x: f32[B, S, 8]", "%x: i32[B, S, 8]", "%x: bool[B, S, 8]"
KV = "%k: cache<f32>[16; 2, 8]"
SCAN = "%q: f32[B, S, 2, 6], %k: f32[B, S, 2, 6], %v: bf16[B, S, 4, 5], %g: f32[B, S, 4, 1]"
TOKENS = "%q: f32[T, 2, 6], %k: f32[T, 2, 6], %v: bf16[T, 4, 5], %g: f32[T, 4, 1]"
PLACES = "%s: i32[N + 1], %f: i32[N], %t: i32[N]"
STEP = "%t: i32[N, M], %s: i32[N + 1], %c: i32[N]"
FLOAT = [
    "exp",
    "expm1",
    "log",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "sin",
    "cos",
    "tanh",
    "sigmoid",
    "erf",
    "erfinv",
    "silu",
    "gelu",
    "softplus",
]
ANY = ["neg", "abs", "floor", "ceil", "round", "sign", "relu"]
BINARY = ["add", "sub", "mul", "floordiv", "mod", "pow", "maximum", "minimum"]
COMPARE = ["eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or"]
BITS = ["bitwise_and", "bitwise_or", "bitwise_xor"]

LOOPED = """body = graph step(%x: f32[1, 3], %h: f32[1, 3], %w: f32[3]) {
  %0 = mul %h %w : f32[1, 3]
  %1 = add %x %0 : f32[1, 3]
  return %1 as h, %1 as y
}, tokens = 1, states = 1"""

SUMMED = """body = graph row(%x: f32[1, 3], %z: f32[L, 3], %w: f32[3]) where L in [1, 99] {
  %0 = reduce_sum %z {axes = (0,), keepdims = true} : f32[1, 3]
  %1 = mul %0 %w : f32[1, 3]
  %2 = add %x %1 : f32[1, 3]
  return %2 as y
}, own = 1, seen = 1"""

# (op, inputs, attributes, type); a pattern in place of the type is the error.
GOOD = [
    *((n, X, "", "f32[B, S, 8]") for n in FLOAT + ANY),
    *((n, INTS, "", "i32[B, S, 8]") for n in ANY),
    ("gelu", X, 'approximate = "tanh"', "f32[B, S, 8]"),
    ("softplus", X, "beta = 2.0", "f32[B, S, 8]"),
    ("logical_not", X, "", "bool[B, S, 8]"),
    ("bitwise_not", INTS, "", "i32[B, S, 8]"),
    ("cast", X, 'dtype = "bf16"', "bf16[B, S, 8]"),
    *((n, X + ", %y: f32[S, 1]", "", "f32[B, S, 8]") for n in [*BINARY, "div"]),
    *((n, X + ", %y: f32[]", "", "bool[B, S, 8]") for n in COMPARE),
    *((n, C + ", %y: bool[8]", "", "bool[B, S, 8]") for n in BITS),
    ("where", "%c: bool[S, 1], %x: f32[B, 1, 8], %y: f32[]", "", "f32[B, S, 8]"),
    *((f"reduce_{n}", X, "axes = (0, 2)", "f32[S]") for n in ("sum", "max", "min", "prod")),
    ("reduce_sum", X, "axes = (1,), keepdims = true", "f32[B, 1, 8]"),
    ("reduce_max", X, "axes = ()", "f32[B, S, 8]"),
    ("argmax", X, "axis = 2", "i64[B, S]"),
    ("argmax", X, "axis = 0, keepdims = true", "i64[1, S, 8]"),
    ("softmax", X, "axis = 1", "f32[B, S, 8]"),
    ("cumsum", INTS, "axis = 1", "i32[B, S, 8]"),
    *((n, X, "axis = 1", "f32[B, S, 8]") for n in ("cumprod", "cummax", "logcumsumexp")),
    ("topk", X, "k = 3, axis = 2", "(f32[B, S, 3], i64[B, S, 3])"),
    ("sort", X, "axis = 1, descending = true", "(f32[B, S, 8], i64[B, S, 8])"),
    ("reshape", X, "shape = (B*S, 2, 4)", "f32[B*S, 2, 4]"),
    ("transpose", X, "permutation = (2, 0, 1)", "f32[8, B, S]"),
    ("broadcast", "%x: f32[S, 1]", "shape = (B, S, 8)", "f32[B, S, 8]"),
    ("slice", X, "axis = 2, start = 1, stop = 8, step = 3", "f32[B, S, 3]"),
    ("slice", X, "axis = 1, start = S - 1, stop = S", "f32[B, 1, 8]"),
    ("slice", X, "axis = 1, start = 1, stop = S", "f32[B, S - 1, 8]"),
    ("concat", X + ", %y: f32[B, 3, 8]", "axis = 1", "f32[B, S + 3, 8]"),
    ("concat", X, "axis = 0", "f32[B, S, 8]"),
    ("pad", X, "before = (0, 1, 0), after = (0, S, 2)", "f32[B, 2*S + 1, 10]"),
    ("pad", X, "before = (0, 0, -1), after = (0, 0, -2), value = 1.0", "f32[B, S, 5]"),
    ("flip", X, "axes = (0, 2)", "f32[B, S, 8]"),
    ("take", X + ", %i: i64[T, 2]", "axis = 1", "f32[B, T, 2, 8]"),
    ("take", X + ", %i: i32[]", "axis = 0", "f32[S, 8]"),
    ("take_along", X + ", %i: i64[B, S, 2]", "axis = 2", "f32[B, S, 2]"),
    ("scatter", X + ", %i: i32[B, S, 2], %s: f32[B, S, 2]", 'axis = 2, reduce = "add"',
     "f32[B, S, 8]"),
    ("matmul", "%x: f32[B, 1, S, 8], %y: f32[3, 8, T]", "", "f32[B, 3, S, T]"),
    ("conv1d", "%x: f32[B, 8, S], %w: f32[6, 4, 3], %b: f32[6]", "padding = 1, groups = 2",
     "f32[B, 6, S]"),
    ("conv1d", "%x: f32[B, 8, 9], %w: f32[6, 8, 3]", "stride = 2, dilation = 2", "f32[B, 6, 3]"),
    ("linear", X + ", %w: f32[5, 8], %b: f32[5]", "", "f32[B, S, 5]"),
    ("rms_norm", X, "eps = 1e-06", "f32[B, S, 8]"),
    ("rms_norm", "%x: bf16[T, 8], %w: f32[8]", "eps = 1e-06, offset = 1.0", "bf16[T, 8]"),
    ("layer_norm", X + ", %w: f32[8], %b: f32[8]", "eps = 1e-05", "f32[B, S, 8]"),
    ("attention", "%q: f32[B, 4, S, 8], %k: f32[B, 2, T, 8], %v: f32[B, 2, T, 5], %m: bool[S, T]",
     'scale = 0.5, extras = ("mask",)', "f32[B, 4, S, 5]"),
    ("attention",
     "%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8], %i: f32[4], %s: f32[4]",
     'scale = 0.5, causal = true, window = 4, extras = ("sinks", "slopes")', "f32[B, 4, S, 8]"),
    ("expert_linear", "%x: f32[T, 2, 8], %w: f32[4, 5, 8], %i: i64[T, 2], %b: f32[4, 5]", "",
     "f32[T, 2, 5]"),
    ("causal_conv", X + ", %w: f32[8, 3]", "", "f32[B, S, 8]"),
    ("linear_scan", SCAN, "", "bf16[B, S, 4, 5]"),
    ("linear_scan",
     "%q: f32[B, S, 4, 6], %k: f32[B, S, 4, 6], %v: f32[B, S, 4, 5], %g: f32[B, S, 4, 6], "
     "%b: bf16[B, S, 4]", "", "f32[B, S, 4, 5]"),
    ("ragged_conv", "%x: bf16[T, 8], %w: bf16[3, 8], %s: i32[N + 1]", "", "bf16[T, 8]"),
    ("ragged_scan", f"{TOKENS}, %s: i32[N + 1], %b: f32[T, 4]", "", "bf16[T, 4, 5]"),
    ("state_conv", f"%x: bf16[T, 8], %w: bf16[3, 8], %c: state<bf16>[2, 8], {PLACES}", "",
     "(bf16[T, 8], state<bf16>[2, 8])"),
    ("state_scan", f"{TOKENS}, %c: state<f32>[4, 6, 5], {PLACES}, %b: f32[T, 4]", "",
     "(bf16[T, 4, 5], state<f32>[4, 6, 5])"),
    ("token_loop", "%x: f32[B, S, 3], %h: f32[1, 3], %w: f32[3]", LOOPED, "f32[B, S, 3]"),
    ("ragged_loop", "%x: f32[T, 3], %s: i32[N + 1], %h: f32[1, 3], %w: f32[3]", LOOPED,
     "f32[T, 3]"),
    ("state_loop", f"%x: f32[T, 3], %c: state<f32>[3], {PLACES}, %h: f32[1, 3], %w: f32[3]",
     LOOPED,
     "(f32[T, 3], state<f32>[3])"),
    ("token_context", "%x: f32[B, S, 3], %z: f32[B, S, 3], %w: f32[3]", SUMMED, "f32[B, S, 3]"),
    ("ragged_context", "%x: f32[T, 3], %z: f32[T, 3], %s: i32[N + 1], %w: f32[3]", SUMMED,
     "f32[T, 3]"),
    ("paged_context",
     "%x: f32[T, 3], %z: cache<f16>[16; 3], %t: i32[T], %b: i32[N, M], %s: i32[N + 1], %l: i32[N], "
     "%w: f32[3]", SUMMED, "f32[T, 3]"),
    ("ragged_attention", "%q: f32[T, 4, 8], %k: f32[T, 2, 8], %v: f32[T, 2, 6], %s: i32[N + 1]",
     "scale = 0.5, window = 3", "f32[T, 4, 6]"),
    ("selected_keys", "%q: f32[B, S, 2, 8], %k: f32[B, T, 8], %w: f32[B, S, 2], %m: bool[S, T]",
     "count = 3", "i32[B, S, 3]"),
    ("ragged_selected_keys",
     "%q: f32[T, 2, 8], %k: f32[T, 1, 8], %w: f32[T, 2], %s: i32[N + 1]", "count = 3", "i32[T, 3]"),
    ("paged_selected_keys",
     f"%q: f32[T, 2, 8], %w: f32[T, 2], %k: cache<f32>[16; 1, 8], {STEP}", "count = 3",
     "i32[T, 3]"),
    ("cache_append", KV + ", %v: f32[T, 2, 8], %s: i32[T]", "", "cache<f32>[16; 2, 8]"),
    ("paged_attention", f"%q: f32[T, 4, 8], {KV}, %v: cache<f32>[16; 2, 6], {STEP}, %i: f32[4]",
     'scale = 0.5, value_start = 1, value_size = 5, extras = ("sinks",)', "f32[T, 4, 5]"),
    ("quantized_linear", "%x: f32[T, 12], %q: u4[5, 2, 8], %s: bf16[5, 2], %b: f32[5]",
     "offset = 8", "f32[T, 5]"),
    ("quantized_linear",
     "%x: f32[T, 12], %q: u4[5, 2, 8], %s: bf16[5, 2], %z: u8[5, 2], %b: f32[5]",
     "offset = 0", "f32[T, 5]"),
    ("quantized_expert_linear",
     "%x: f32[T, 3, 12], %q: u4[4, 5, 2, 8], %s: bf16[4, 5, 2], %i: i64[T, 3], %z: u8[4, 5, 2]",
     "offset = 0", "f32[T, 3, 5]"),
    ("quantized_expert_linear",
     "%x: bf16[T, 3, 12], %q: f8e4m3[4, 5, 1, 12], %s: f32[4, 5, 1], %i: i64[T, 3], %b: bf16[4, 5]",
     "offset = 0", "bf16[T, 3, 5]"),
    ("packed_quantized_expert_linear",
     "%x: f32[T, 3, 12], %q: u4[40], %s: bf16[9], %i: i32[T, 3], %b: f32[4, 5]",
     'n = 5, group = 8, offset = 8, layout = "n16k2"', "f32[T, 3, 5]"),
    ("packed_integer_expert_linear",
     "%x: i8[T, 3, 2, 8], %a: f32[T, 3, 2], %q: u8[40], %s: f32[9], %i: i32[T, 3]",
     'n = 5, offset = 128, layout = "n16k4", dtype = "bf16"', "bf16[T, 3, 5]"),
    ("packed_quantized_linear", "%x: bf16[T, 12], %q: u8[40], %s: f32[9]",
     'n = 5, group = 8, offset = 128, layout = "n16"', "bf16[T, 5]"),
    ("packed_integer_linear", "%x: i8[T, 2, 8], %a: f32[T, 2], %q: u8[40], %s: f32[9], %b: f16[5]",
     'n = 5, offset = 128, layout = "n16k4", dtype = "f16"', "f16[T, 5]"),
    ("packed_integer_linear",
     "%x: i8[T, 2, 8], %a: f32[T, 2], %q: u4[1, 2, 16, 4, 2], %s: bf16[1, 2, 16], "
     "%m: u4[1, 2, 16, 2], %b: f16[5]",
     'n = 5, offset = 8, layout = "n16k4x2", dtype = "f16"', "f16[T, 5]"),
    ("group_scales", "%m: u4[5, 8], %s: bf16[5, 2]", "", "bf16[5, 8]"),
    ("packed_linear", "%x: f32[T, 8], %w: u8[40], %b: f32[5]", 'n = 5, layout = "rows"',
     "f32[T, 5]"),
    ("packed_expert_linear",
     "%x: f32[T, 2, 8], %w: u8[40], %i: i32[T, 2]", 'n = 5, layout = "rows"',
     "f32[T, 2, 5]"),
    ("iota", "", "size = 2*T, dtype = \"i32\"", "i32[2*T]"),
    ("dim_value", "", "dim = T + 1, dtype = \"f32\"", "f32[]"),
    ("constant", "", "value = 1.5, dtype = \"f16\"", "f16[]"),
]  # fmt: skip
BAD = [
    *((n, INTS, "", "floating-point tensor was wanted, not i32") for n in FLOAT),
    *((n, KV, "", "a tensor was wanted") for n in ANY),
    *((n, X + ", %y: f16[8]", "", r"dtypes differ: f32\[B, S, 8\], f16\[8\]")
      for n in [*BINARY, "div", *COMPARE]),
    *((n, X + ", %y: f32[7]", "", r"shapes \[B, S, 8\] and \[7\] do not broadcast")
      for n in [*BINARY, "div", *COMPARE]),
    *((n, X + ", %y: f32[8]", "", "integers or booleans were wanted") for n in BITS),
    ("add", "%x: f32[S], %y: f32[T]", "", "do not broadcast"),
    ("div", "%x: i32[3], %y: i32[3]", "", "floating-point"),
    ("bitwise_not", X, "", "integers or booleans"),
    ("gelu", X, 'approximate = "fast"', "approximate is 'none' or 'tanh'"),
    ("cast", X, 'dtype = "f31"', "no dtype 'f31'"),
    ("where", "%c: i32[3], %x: f32[3], %y: f32[3]", "", "the condition is bool, not i32"),
    ("where", "%c: bool[3], %x: f32[3], %y: f16[3]", "", "dtypes differ"),
    *((f"reduce_{n}", X, "axes = (3,)", "axis 3 of f32") for n in ("sum", "max", "min", "prod")),
    ("reduce_sum", X, "axes = (1, 1)", "an axis twice"),
    ("argmax", X, "axis = -1", "axis -1 of"),
    ("softmax", INTS, "axis = 0", "floating-point"),
    ("softmax", X, "axis = 3", "axis 3"),
    ("cumsum", X, "axis = 3", "axis 3"),
    ("cumprod", X, "axis = 3", "axis 3"),
    ("sort", X, "axis = 3", "axis 3"),
    ("flip", X, "axes = (3,)", "axis 3"),
    ("topk", X, "k = 9, axis = 2", "the 9 largest of axis 2"),
    ("reshape", X, "shape = (B, 8)", r"does not reshape to \[B, 8\]"),
    ("reshape", X, "shape = (-1, 8)", "negative"),
    ("transpose", X, "permutation = (0, 1)", "no permutation"),
    ("broadcast", X, "shape = (S, 8)", "does not broadcast"),
    ("broadcast", X, "shape = (B, S, 16)", "does not broadcast"),
    ("slice", X, "axis = 2, start = 3, stop = 9", r"slice \[3, 9\) of axis 2"),
    ("slice", X, "axis = 2, start = 3, stop = 2", "slice"),
    ("slice", X, "axis = 1, start = 0, stop = S + 1", "slice"),
    ("slice", X, "axis = 2, start = -1, stop = 2", "slice"),
    ("slice", X, "axis = 2, start = 0, stop = 2, step = 0", "a step is 1 or more"),
    ("concat", "", "axis = 0", "nothing to join"),
    ("concat", X + ", %y: f32[B, 3, 7]", "axis = 1", "do not join along axis 1"),
    ("concat", X + ", %y: f32[B, 3]", "axis = 1", "do not join"),
    ("concat", X + ", %y: f16[B, 3, 8]", "axis = 1", "dtypes differ"),
    ("pad", X, "before = (0, 1), after = (0, 1)", "needs 3 paddings"),
    ("pad", X, "before = (0, 0, 0), after = (0, 0, -9)", "negative"),
    ("take", X + ", %i: f32[3]", "axis = 0", "an index is i32 or i64"),
    ("take_along", X + ", %i: i64[B]", "axis = 0", "ranks of"),
    ("scatter", X + ", %i: i64[B], %s: f32[B]", "axis = 0", "ranks of"),
    ("scatter", X + ", %i: i32[1, 1, 1], %s: f16[1, 1, 1]", "axis = 0", "dtypes differ"),
    ("scatter", X + ", %i: i32[1, 1, 1], %s: f32[1, 1, 1]", 'axis = 0, reduce = "mul"',
     "reduce is"),
    ("matmul", "%x: f32[S, 8], %y: f32[7, T]", "", r"inner dims differ, f32\[S, 8\] @ f32\[7, T\]"),
    ("matmul", "%x: f32[8], %y: f32[8, T]", "", "matrices were wanted"),
    ("matmul", "%x: f32[2, S, 8], %y: f32[3, 8, T]", "", "do not broadcast"),
    ("conv1d", "%x: f32[B, 8, S], %w: f32[6, 8, 3]", "groups = 2", "in 2 groups|2 groups"),
    ("conv1d", "%x: f32[B, 8, 3], %w: f32[6, 8, 5]", "", "is longer than"),
    ("conv1d", "%x: f32[B, 8, S], %w: f32[6, 8, 3], %b: f32[5]", "", "one bias"),
    ("linear", X + ", %w: f32[5, 7]", "", "inner dims differ"),
    ("linear", X + ", %w: f16[5, 8]", "", "one dtype"),
    ("linear", X + ", %w: f32[5, 8], %b: f32[8]", "", "bias"),
    ("rms_norm", X + ", %w: f32[7]", "eps = 1e-06", "weight"),
    ("rms_norm", INTS, "eps = 1e-06", "a float tensor"),
    ("layer_norm", X + ", %w: f32[8], %b: f32[8], %c: f32[8]", "eps = 1e-06", "at most 2"),
    ("attention", "%q: f32[B, 3, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8]", "scale = 1.0",
     "no multiple"),
    ("attention", "%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, T, 8]", "scale = 1.0",
     "differ in heads or length"),
    ("attention", "%q: f32[B, 4, S, 8], %k: f32[1, 2, S, 8], %v: f32[1, 2, S, 8]", "scale = 1.0",
     "one batch"),
    ("attention", "%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8], %m: bool[T, S]",
     'scale = 1.0, extras = ("mask",)', "broadcast"),
    ("attention", "%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8], %m: f32[3]",
     'scale = 1.0, extras = ("sinks",)', "does not fit 4 heads"),
    ("attention", "%q: f32[B, 4, S, 8], %k: f32[B, 2, S, 8], %v: f32[B, 2, S, 8], %m: f32[4]",
     'scale = 1.0, extras = ("sunk",)', "extras name"),
    ("expert_linear", "%x: f32[T, 2, 8], %w: f32[4, 5, 8], %i: i64[T]", "", "were wanted"),
    ("expert_linear", "%x: f32[T, 8], %w: f32[4, 5, 8], %i: f32[T]", "", "i32 or i64 index"),
    ("causal_conv", X + ", %w: f32[7, 3]", "", "of one dtype were wanted"),
    ("causal_conv", X + ", %w: bf16[8, 3]", "", "of one dtype were wanted"),
    ("causal_conv", "%x: f32[T, 8], %w: f32[8, 3]", "", r"x\[B, S, C\] was wanted"),
    ("linear_scan", SCAN.replace("%k: f32[B, S, 2, 6]", "%k: f32[B, S, 2, 7]"), "", "one shape"),
    ("linear_scan", SCAN.replace("bf16[B, S, 4", "bf16[B, S, 3"), "", "no multiple"),
    ("linear_scan", SCAN.replace("bf16[B, S", "bf16[B, T"), "", "on the same tokens"),
    ("linear_scan", SCAN.replace("%g: f32[B, S, 4, 1]", "%g: f32[B, S, 4, 5]"), "", "a log_decay"),
    ("linear_scan", SCAN + ", %b: f32[B, S, 2]", "", "one beta"),
    ("linear_scan", SCAN + ", %b: i32[B, S, 4]", "", "floats were wanted"),
    ("ragged_conv", "%x: bf16[T, 8], %w: bf16[8, 3], %s: i32[N + 1]", "", "one dtype were wanted"),
    ("ragged_conv", "%x: bf16[T, 8], %w: bf16[3, 8], %s: i64[N + 1]", "", "were wanted"),
    ("ragged_scan", f"{SCAN}, %s: i32[N + 1]", "", r"q\[T, G, K\] was wanted"),
    ("state_conv", f"%x: bf16[T, 8], %w: bf16[3, 8], %c: state<f32>[2, 8], {PLACES}", "",
     r"a state<bf16>\[2, 8\] was wanted"),
    ("state_conv", f"%x: f32[T, 8], %w: f32[3, 8], %c: cache<f32>[16; 2, 8], {PLACES}", "",
     r"a state<f32>\[2, 8\] was wanted"),
    ("state_scan", f"{TOKENS}, %c: state<f32>[4, 5, 6], {PLACES}", "", "was wanted"),
    ("token_loop", "%x: f32[B, S, 3], %h: f32[1, 3]", LOOPED, "the body takes"),
    ("token_context", "%x: f32[B, S, 3], %z: f32[B, S, 4], %w: f32[3]", SUMMED, "the body takes"),
    ("ragged_context", "%x: f32[T, 3], %z: f32[N, 3], %s: i32[N + 1], %w: f32[3]", SUMMED,
     "the same tokens"),
    ("paged_context",
     "%x: f32[T, 3], %z: cache<f16>[16; 4], %t: i32[T], %b: i32[N, M], %s: i32[N + 1], %l: i32[N], "
     "%w: f32[3]", SUMMED, "not entries of"),
    ("ragged_loop", "%x: f32[T, 3], %s: i64[N + 1], %h: f32[1, 3], %w: f32[3]", LOOPED,
     "were wanted"),
    ("state_loop", f"%x: f32[T, 3], %c: state<f32>[4], {PLACES}, %h: f32[1, 3], %w: f32[3]",
     LOOPED,
     r"state<f32>\[3\] was wanted"),
    ("state_scan", f"{TOKENS}, %c: state<f32>[4, 6, 5], {PLACES.replace('[N]', '[N + 1]')}", "",
     "an i32 for each sequence"),
    ("ragged_attention", "%q: f32[T, 4, 8], %k: f32[T, 2, 7], %v: f32[T, 2, 6], %s: i32[N + 1]",
     "scale = 0.5", "were wanted"),
    ("cache_append", KV + ", %v: f16[T, 2, 8], %s: i32[T]", "", "values of cache"),
    ("cache_append", KV + ", %v: f32[T, 2, 7], %s: i32[T]", "", "were wanted"),
    ("cache_append", KV + ", %v: f32[T, 2, 8], %s: i32[N]", "", "were wanted"),
    ("selected_keys", "%q: f32[B, S, 2, 8], %k: f32[B, T, 7], %w: f32[B, S, 2]", "count = 3",
     "were wanted"),
    ("selected_keys", "%q: f32[B, S, 2, 8], %k: f32[B, T, 8], %w: f32[B, S, 2]", "count = 0",
     "a count of 1 or more"),
    ("ragged_selected_keys",
     "%q: f32[T, 2, 8], %k: f32[T, 2, 8], %w: f32[T, 2], %s: i32[N + 1]", "count = 3",
     "were wanted"),
    ("paged_selected_keys",
     f"%q: f32[T, 2, 8], %w: f32[T, 2], %k: cache<f32>[16; 2, 8], {STEP}", "count = 3",
     "for a cache of"),
    ("paged_attention", f"%q: f32[T, 4, 8], {KV}, %v: cache<f32>[16; 2, 6], {STEP}",
     "scale = 0.5, value_start = 2, value_size = 5", r"value \[2, 7\)"),
    ("paged_attention", f"%q: f32[T, 3, 8], {KV}, %v: cache<f32>[16; 2, 6], {STEP}",
     "scale = 0.5, value_size = 6", "no multiple"),
    ("paged_attention", f"%q: f32[T, 4, 8], {X}, %v: cache<f32>[16; 2, 6], {STEP}",
     "scale = 0.5, value_size = 6", "a cache was wanted"),
    ("packed_linear", "%x: f32[T, 8], %w: u8[40], %b: f32[5], %c: f32[5]", 'n = 5, layout = "r"',
     "one bias"),
    ("quantized_linear", "%x: f32[T, 17], %q: u4[5, 2, 8], %s: f32[5, 2]", "offset = 8",
     "do not cover"),
    ("quantized_linear", "%x: f32[T, 16], %q: i8[5, 2, 8], %s: f32[5, 2]", "offset = 8",
     "codes u8 or u4"),
    ("quantized_linear", "%x: f32[T, 16], %q: u8[5, 2, 8], %s: f32[4, 2]", "offset = 8",
     "were wanted"),
    ("quantized_linear", "%x: f32[T, 16], %q: u8[5, 2, 8], %s: f32[5, 2], %z: u8[5, 2]",
     "offset = 8", "offset 0 were wanted"),
    ("quantized_linear", "%x: f32[T, 16], %q: u8[5, 2, 8], %s: f32[5, 2], %z: u8[5, 1]",
     "offset = 0", "zeros like"),
    ("quantized_linear", "%x: f32[T, 16], %q: u8[5, 2, 8], %s: f32[5, 2], %b: f32[5], %c: f32[5]",
     "offset = 0", "one float bias"),
    ("quantized_expert_linear",
     "%x: f32[T, 16], %q: u8[4, 5, 2, 8], %s: f32[4, 5, 2], %i: i64[T, 1]", "offset = 128",
     "an index"),
    ("quantized_expert_linear",
     "%x: f32[T, 16], %q: u8[4, 5, 2, 8], %s: f32[4, 6, 2], %i: i64[T]", "offset = 128",
     r"q\[E, N, J, G\]"),
    ("quantized_expert_linear",
     "%x: bf16[T, 16], %q: f8e4m3[4, 5, 2, 8], %s: f32[4, 5, 2], %i: i64[T]", "offset = 0",
     r"f8e4m3\[.., N, 1, K\]"),
    ("group_scales", "%m: u4[5, 8], %s: bf16[5, 3]", "", "multipliers"),
    ("group_scales", "%m: u8[5, 8], %s: bf16[5, 2]", "", "multipliers"),
    ("packed_integer_linear",
     "%x: i8[T, 2, 8], %a: f32[T, 2], %q: u4[40], %s: f32[9], %m: u4[9], %z: u8[9]",
     'n = 5, offset = 0, layout = "n16k4", dtype = "f32"', "not both"),
    ("packed_integer_linear", "%x: i8[T, 16], %a: f32[T, 2], %q: u8[40], %s: f32[9]",
     'n = 5, offset = 128, layout = "n16k4", dtype = "f32"', "were wanted"),
]  # fmt: skip


def text(name, inputs, attributes, result):
    names = " ".join(re.findall(r"%\w+", inputs))
    body = f"{{{attributes}}}" if attributes else ""
    line = f"%0 = {name} {names} {body} : {result}"
    return f"graph g({inputs}){DIMS} {{\n  {line}\n  return %0 as out0\n}}"


@pytest.mark.parametrize(("name", "inputs", "attributes", "result"), GOOD)
def test_accepts(name, inputs, attributes, result):
    assert str(parse_graph(text(name, inputs, attributes, result)).outputs[0].type) == result


@pytest.mark.parametrize(("name", "inputs", "attributes", "message"), BAD)
def test_refuses(name, inputs, attributes, message):
    with pytest.raises(IRError, match=f"^{name}: .*{message}"):
        parse_graph(text(name, inputs, attributes, "f32[]"))


def test_every_op_is_here():
    elsewhere = {"input", "parameter", "item", "kernel"}  # tests of nodes and of text
    missing = OPS.keys() - {name for name, *_ in GOOD} - elsewhere
    assert not missing, f"ops without a test: {sorted(missing)}"
    undocumented = [o.name for o in OPS.values() if not o.doc]
    assert not undocumented


def test_a_kernel_wants_what_its_body_wants():
    body = 'body = graph b(%x: f32[3]) {\n return %x as y\n}, template = "rows"'
    with pytest.raises(IRError, match=r"the body wants \(f32\[3\]\), not \(f32\[4\]\)"):
        parse_graph(text("kernel", "%x: f32[4]", body, "f32[3]"))


def test_scalars():
    assert scalar(1, "f32")["value"] == 1.0 and scalar(1, "bool")["value"] is True


# -- symbolic shapes against numpy

NAMES = ("B", "S", "T")
SIZES = st.sampled_from([1, 2, 3, *map(dim, NAMES), dim("B") * dim("S"), dim("T") + 1])


def at(shape, values):
    return tuple(int(substitute(d, values)) for d in shape)


VALUES = st.fixed_dictionaries({n: st.integers(2, 7) for n in NAMES})


@settings(deadline=None)
@given(st.lists(SIZES, max_size=4), st.data(), VALUES)
def test_broadcasting_is_numpys(shape, data, values):
    """Shapes made from one by putting 1 in places broadcast as numpy's do, at every size."""
    parts = []
    for _ in range(2):
        kept = data.draw(st.lists(st.booleans(), min_size=len(shape), max_size=len(shape)))
        part = tuple(d if k else 1 for d, k in zip(shape, kept, strict=True))
        parts.append(part[data.draw(st.integers(0, len(part))) :])
    result = broadcast_shapes(*parts)
    assert at(result, values) == np.broadcast_shapes(*(at(p, values) for p in parts))


@settings(deadline=None)
@given(st.lists(SIZES, min_size=1, max_size=4), st.lists(SIZES, max_size=4), VALUES)
def test_shapes_that_numpy_refuses_are_refused(one, other, values):
    try:
        result = broadcast_shapes(tuple(one), tuple(other))
    except IRError:
        return
    assert at(result, values) == np.broadcast_shapes(at(one, values), at(other, values))


@settings(deadline=None)
@given(st.permutations([2, 3, dim("B"), dim("S"), dim("T")]), st.data(), VALUES)
def test_reshaping_is_numpys(dims, data, values):
    """Neighbouring dims in any order, multiplied together, hold as many elements."""
    x = input_(name="x", type=TensorType("f32", tuple(dims)))
    order = data.draw(st.permutations(dims))
    cut = data.draw(st.integers(1, 4))
    joined = 1
    for d in order[:cut]:
        joined = joined * d
    shape = reshape(x, shape=(joined, *order[cut:])).shape
    assert np.zeros(at(dims, values)).reshape(at(shape, values)).shape == at(shape, values)
    with pytest.raises(IRError, match="does not reshape"):
        reshape(x, shape=(joined + 1, *order[cut:]))
    assert broadcast(x, shape=(4, *dims)).shape == (4, *dims)


@settings(deadline=None)
@given(st.integers(0, 3), st.integers(0, 4), st.integers(1, 4), VALUES)
def test_slicing_is_numpys(start, cut, step, values):
    """The length of a slice of a symbolic dim, at every size that it is legal for."""
    size = dim("T") + 8
    x = input_(name="x", type=TensorType("f32", (size,)))
    length = slice_(x, axis=0, start=start, stop=size - cut, step=step).shape
    total = int(substitute(size, values))
    assert at(length, values) == np.zeros(total)[start : total - cut : step].shape


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(0, 2), st.integers(1, 2), st.integers(1, 3), VALUES)
def test_convolving_gives_as_many_rows_as_windows_fit(stride, padding, dilation, k, values):
    size = dim("T") + 6
    x = input_(name="x", type=TensorType("f32", (1, 2, size)))
    w = input_(name="w", type=TensorType("f32", (4, 2, k)))
    result = conv1d(x, w, stride=stride, padding=padding, dilation=dilation)
    total = int(substitute(size, values)) + 2 * padding
    starts = range(0, total - dilation * (k - 1), stride)
    assert at(result.shape, values) == (1, 4, len(starts))

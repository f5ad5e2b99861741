"""Builds the kernels of a toy language model with TVM; run in a process of its own.

The next token after tokens t[0..L) is (sum of t[j] * (j + 1)) % V, read back from the paged cache:
wrong blocks, slots, positions or lengths give wrong tokens.
"""

import sys

import tvm
from tvm.script import tirx as T

VOCABULARY = 67
BLOCK = 4


@T.prim_func
def append(tokens: T.handle, slots: T.handle, scale: T.handle, cache: T.handle):
    t = T.int32()
    c = T.int32()
    TOKENS = T.match_buffer(tokens, (t,), "int32")
    SLOTS = T.match_buffer(slots, (t,), "int32")
    SCALE = T.match_buffer(scale, (1,), "int32")
    CACHE = T.match_buffer(cache, (c, BLOCK, 1), "int32")
    for i in T.parallel(t):
        CACHE[SLOTS[i] // BLOCK, SLOTS[i] % BLOCK, 0] = TOKENS[i] * SCALE[0]


@T.prim_func
def attend(
    cache: T.handle,
    table: T.handle,
    start: T.handle,
    context: T.handle,
    positions: T.handle,
    rows: T.handle,
    out: T.handle,
):
    c = T.int32()
    n = T.int32()
    m = T.int32()
    t = T.int32()
    r = T.int32()
    CACHE = T.match_buffer(cache, (c, BLOCK, 1), "int32")
    TABLE = T.match_buffer(table, (n, m), "int32")
    START = T.match_buffer(start, (n + 1,), "int32")
    CONTEXT = T.match_buffer(context, (n,), "int32")
    POSITIONS = T.match_buffer(positions, (t,), "int32")
    ROWS = T.match_buffer(rows, (r,), "int32")
    OUT = T.match_buffer(out, (r,), "int32")
    for i in T.parallel(r):
        OUT[i] = 0
        for s in T.serial(n):
            if START[s] <= ROWS[i] and ROWS[i] < START[s + 1]:
                if POSITIONS[ROWS[i]] != CONTEXT[s] - (START[s + 1] - ROWS[i]):
                    OUT[i] = 1000000
                for j in T.serial(POSITIONS[ROWS[i]] + 1):
                    OUT[i] = OUT[i] + CACHE[TABLE[s, j // BLOCK], j % BLOCK, 0] * (j + 1)


@T.prim_func
def score(sums: T.handle, logits: T.handle, best: T.handle):
    r = T.int32()
    SUMS = T.match_buffer(sums, (r,), "int32")
    LOGITS = T.match_buffer(logits, (r, VOCABULARY), "float32")
    BEST = T.match_buffer(best, (r,), "int32")
    for i in T.parallel(r):
        BEST[i] = SUMS[i] % VOCABULARY
        for v in T.serial(VOCABULARY):
            LOGITS[i, v] = T.float32(0) - T.Cast("float32", T.abs(v - BEST[i]))


@T.prim_func
def double(x: T.handle, y: T.handle):
    n = T.int32()
    X = T.match_buffer(x, (n, 64), "float32")
    Y = T.match_buffer(y, (n, 64), "float32")
    for i in T.parallel(n):
        for j in T.vectorized(64):
            Y[i, j] = X[i, j] * T.float32(2)


def main(path: str) -> None:
    functions = {"append": append, "attend": attend, "score": score, "double": double}
    module = tvm.IRModule({n: f.with_attr("global_symbol", n) for n, f in functions.items()})
    target = tvm.target.Target({"kind": "llvm", "num-cores": 2})
    tvm.compile(module, target=target).export_library(path)


if __name__ == "__main__":
    main(sys.argv[1])

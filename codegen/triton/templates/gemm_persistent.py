"""gemm by as many programs as a GPU holds at once, each taking tile after tile: the next tile's
operands are on their way while one is stored. With TMA, weights come by the tensor memory
accelerator, in blocks, without addresses in registers.
"""

import triton
import triton.language as tl

from .gemm import IEEE, grouped_tile, rows_of_weights


@triton.jit
def gemm_persistent(
    env, w, M, N: tl.constexpr, K: tl.constexpr,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, PARTS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    TMA: tl.constexpr = False, GROUP: tl.constexpr = 8, PRECISION: tl.constexpr = IEEE,
):  # fmt: skip
    """sums[p][m, n] as in gemm; any grid (P,), P at most the number of tiles.

    TMA: K elements of w are a multiple of 16 bytes; the launch has scratch memory for the
    descriptor of w, as the compiled kernel's metadata says.
    """
    tl.static_assert(PARTS == 1 or PARTS == 2, "one part or two")
    WIDE: tl.constexpr = N // PARTS
    EVEN_K: tl.constexpr = K % BK == 0
    tiles_m, tiles_n = tl.cdiv(M, BM), triton.cdiv(WIDE, BN)
    if TMA:
        blocks = tl.make_tensor_descriptor(w, [N, K], [K, 1], [BN, BK])
    for number in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        tile_m, tile_n = grouped_tile(number, tiles_m, tiles_n, GROUP)
        rows = (tile_m * BM + tl.arange(0, BM))[:, None]
        cols = tile_n * BN + tl.arange(0, BN)
        first = tl.zeros((BM, BN), tl.float32)
        second = tl.zeros((BM, BN), tl.float32)
        for k in range(0, K, BK):
            ks = k + tl.arange(0, BK)
            mask = (rows < M) if EVEN_K else (rows < M) & (ks < K)[None, :]
            x = LOAD_X(env, rows, ks[None, :], mask)
            if TMA:
                a = blocks.load([tile_n * BN, k]).T
            else:
                a = rows_of_weights(w, cols[None, :], ks[:, None], WIDE, K, BN, EVEN_K)
            first = tl.dot(x, a.to(x.dtype), first, input_precision=PRECISION)
            if PARTS == 2:
                if TMA:
                    b = blocks.load([WIDE + tile_n * BN, k]).T
                else:
                    beside = w + WIDE * K
                    b = rows_of_weights(beside, cols[None, :], ks[:, None], WIDE, K, BN, EVEN_K)
                second = tl.dot(x, b.to(x.dtype), second, input_precision=PRECISION)

        sums = (first,) if PARTS == 1 else (first, second)
        STORE(env, sums, rows, cols[None, :], (rows < M) & (cols < WIDE)[None, :])

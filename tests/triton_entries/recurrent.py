"""Entries of the recurrent templates, such as are generated."""

import triton
import triton.language as tl
from ferrule.codegen.triton.templates.recurrent import conv_sequences, scan_sequences


@triton.jit
def load_q(env, row, group, ks, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    return tl.load(q + (row * G + group) * K + ks, mask=mask, other=0)


@triton.jit
def load_k(env, row, group, ks, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    return tl.load(k + (row * G + group) * K + ks, mask=mask, other=0)


@triton.jit
def load_v(env, row, head, vs, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    return tl.load(v + (row * H + head) * V + vs, mask=mask, other=0)


@triton.jit
def load_decay(env, row, head, ks, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    return tl.load(decay + (row * H + head) * D + ks, mask=mask, other=0)


@triton.jit
def load_decays(env, rows, head, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    return tl.load(decay + (rows * H + head) * D)


@triton.jit
def load_beta(env, row, head, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    return tl.load(beta + row * H + head)


@triton.jit
def load_betas(env, rows, head, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    return tl.load(beta + rows * H + head)


@triton.jit
def store_y(env, sums, row, head, vs, mask):
    q, k, v, decay, beta, y, H, G, K, V, D = env
    tl.store(y + (row * H + head) * V + vs, sums[0].to(y.dtype.element_ty), mask=mask)


@triton.jit
def scan(
    q, k, v, decay, beta, state, starts, source, target, y, H: tl.constexpr, G: tl.constexpr,
    K: tl.constexpr, V: tl.constexpr, D: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr, BETA: tl.constexpr,
    BLOCK: tl.constexpr = 1, TF32: tl.constexpr = 0, BETAS: tl.constexpr = None,
):  # fmt: skip
    env = (q, k, v, decay, beta, y, H, G, K, V, D)
    scan_sequences(
        env,
        state,
        starts,
        source,
        target,
        LOAD_Q=load_q,
        LOAD_K=load_k,
        LOAD_V=load_v,
        LOAD_DECAY=load_decay,
        LOAD_BETA=BETA,
        STORE=store_y,
        H=H,
        G=G,
        K=K,
        V=V,
        D=D,
        BK=BK,
        BV=BV,
        LOAD_QS=load_q,
        LOAD_KS=load_k,
        LOAD_VS=load_v,
        LOAD_DECAYS=load_decays,
        LOAD_BETAS=BETAS,
        BLOCK=BLOCK,
        TF32=TF32,
    )


@triton.jit
def load_x(env, rows, cols, mask):
    x, y, C = env
    return tl.load(x + rows * C + cols, mask=mask, other=0)


@triton.jit
def store_rows(env, sums, rows, cols, mask):
    x, y, C = env
    tl.store(y + rows * C + cols, sums[0].to(y.dtype.element_ty), mask=mask)


@triton.jit
def conv(
    x, w, state, starts, source, target, y, C: tl.constexpr, TAPS: tl.constexpr, BT: tl.constexpr,
    BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    conv_sequences(
        (x, y, C),
        w,
        state,
        starts,
        source,
        target,
        LOAD_X=load_x,
        STORE=store_rows,
        C=C,
        TAPS=TAPS,
        BT=BT,
        BC=BC,
        BS=BS,
    )

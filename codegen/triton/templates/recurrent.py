"""Recurrent ops over ragged sequences: sequence n is rows query_start[n] to query_start[n + 1],
goes on from the state at state_from[n] (zeros where that is below 0) and leaves its own at
state_to[n]. Without states each begins with zeros and leaves none.
"""

import triton
import triton.language as tl


@triton.jit
def inverse_of_lower(a, BLOCK: tl.constexpr):
    """(I + a)^-1 of a strictly lower triangular a[BLOCK, BLOCK], row by row: row i of the inverse
    is e_i - sum over j < i of a_ij times row j.
    """
    at = tl.arange(0, BLOCK)
    found = -a
    for i in range(1, BLOCK):
        row = tl.sum(tl.where(at[:, None] == i, found, 0.0), axis=0)
        row += tl.sum(row[:, None] * found, axis=0)
        found = tl.where(at[:, None] == i, row[None, :], found)
    return found + tl.where(at[:, None] == at[None, :], 1.0, 0.0)


@triton.jit
def scan_block(
    env, held, rows, head, group, ks, vs, is_k, is_v,
    LOAD_QS: tl.constexpr, LOAD_KS: tl.constexpr, LOAD_VS: tl.constexpr, LOAD_DECAYS: tl.constexpr,
    LOAD_BETAS: tl.constexpr, STORE: tl.constexpr, BLOCK: tl.constexpr, TF32: tl.constexpr,
):  # fmt: skip
    """BLOCK rows of a scan with one decay a head at once (Dao and Gu, 2024): with P_t = exp(g_1 +
    .. + g_t) inside the block and S the state before it, y_t = P_t S^T q_t + sum_{s <= t} P_t / P_s
    (q_t . k_s) u_s; gives the state behind it, P_B S + sum_s P_B / P_s k_s u_s^T.

    u_s is v_s, or with the delta rule (Yang et al., 2024) what solves
    u_t + sum_{s < t} beta_t P_t / P_s (k_t . k_s) u_s = beta_t (v_t - P_t S^T k_t).

    Quotients of P are exp of differences of sums, which are made in float64: of what is exp(-1e4)
    or less nothing is left. TF32: products have 11 bits of each number, as many as halves have, but
    for the solution's.
    """
    PRECISION: tl.constexpr = "tf32" if TF32 else "ieee"
    EXACT: tl.constexpr = "tf32x3" if TF32 else "ieee"
    at = rows + tl.arange(0, BLOCK)
    g = LOAD_DECAYS(env, at, head, True).to(tl.float64)
    g = tl.maximum(g, -1e4)
    sums = tl.cumsum(g, axis=0)
    whole = tl.sum(g, axis=0)
    column = at[:, None]
    q = LOAD_QS(env, column, group, ks, is_k).to(tl.float32)
    k = LOAD_KS(env, column, group, ks, is_k).to(tl.float32)
    new = LOAD_VS(env, column, head, vs, is_v).to(tl.float32)
    place = tl.arange(0, BLOCK)
    before = place[:, None] >= place[None, :]
    apart = tl.where(before, sums[:, None] - sums[None, :], -1e4).to(tl.float32)
    if LOAD_BETAS is not None:
        beta = LOAD_BETAS(env, at, head, True).to(tl.float32)[:, None]
        alike = tl.dot(k, tl.trans(k), input_precision=PRECISION) * tl.exp(apart) * beta
        alike = tl.where(place[:, None] > place[None, :], alike, 0.0)
        kept = k * tl.exp(sums.to(tl.float32))[:, None]
        known = tl.dot(kept, held, input_precision=PRECISION)
        solved = inverse_of_lower(alike, BLOCK)
        new = tl.dot(solved, beta * (new - known), input_precision=EXACT)
    seen = tl.dot(q, tl.trans(k), input_precision=PRECISION) * tl.exp(apart)
    decayed = q * tl.exp(sums.to(tl.float32))[:, None]
    y = tl.dot(decayed, held, input_precision=PRECISION)
    y = tl.dot(seen, new, y, input_precision=PRECISION)
    STORE(env, (y,), column, head, vs, is_v)
    left = k * tl.exp((whole - sums).to(tl.float32))[:, None]
    held = held * tl.exp(whole.to(tl.float32))
    return tl.dot(tl.trans(left), new, held, input_precision=PRECISION)


@triton.jit
def scan_sequences(
    env, state, query_start, state_from, state_to,
    LOAD_Q: tl.constexpr, LOAD_K: tl.constexpr, LOAD_V: tl.constexpr, LOAD_DECAY: tl.constexpr,
    LOAD_BETA: tl.constexpr, STORE: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, V: tl.constexpr, D: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
    LOAD_QS: tl.constexpr = None, LOAD_KS: tl.constexpr = None, LOAD_VS: tl.constexpr = None,
    LOAD_DECAYS: tl.constexpr = None, LOAD_BETAS: tl.constexpr = None, BLOCK: tl.constexpr = 1,
    TF32: tl.constexpr = 0,
):  # fmt: skip
    """y_t = S_t^T q_t, S_t = diag(exp(g_t)) S_{t-1} + k_t u_t^T; u_t is v_t, or with LOAD_BETA, the
    delta rule (Yang et al., 2024), beta_t (v_t - (diag(exp(g_t)) S_{t-1})^T k_t).

    BV columns of the state f32 S[K, V] of one head stay in registers over all tokens; columns do
    not touch one another. state f32[.., H, K, V] or None; BK is K filled up to a power of two.
    Hooks give a row's entries as attention's do: LOAD_Q and LOAD_K(env, row, group, ks, mask),
    LOAD_V(env, row, head, vs, mask), LOAD_DECAY(env, row, head, ks, mask), the logarithm, with D =
    1 at ks = 0 alone, LOAD_BETA(env, row, head, mask) or None; STORE(env, sums, row, head, vs,
    mask). With BLOCK over 1 whole blocks of so many rows are taken at once, by scan_block, whose
    hooks are given rows[BLOCK, 1], LOAD_DECAYS and LOAD_BETAS(env, rows, head, mask) rows[BLOCK].
    Grid (N, H, cdiv(V, BV)).
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    group = head // (H // G)
    ks = tl.arange(0, BK)[:, None]
    vs = (tl.program_id(2) * BV + tl.arange(0, BV))[None, :]
    is_k, is_v = ks < K, vs < V
    own = head * (K * V) + ks * V + vs
    held = tl.zeros((BK, BV), tl.float32)
    if state is not None:
        source = tl.load(state_from + sequence).to(tl.int64)
        known = is_k & is_v & (ks < tl.where(source >= 0, K, 0))
        held = tl.load(state + source * (H * K * V) + own, mask=known, other=0)

    begin, end = tl.load(query_start + sequence), tl.load(query_start + sequence + 1)
    if BLOCK > 1:
        single = begin + (end - begin) // BLOCK * BLOCK
        kt, is_kt = tl.arange(0, BK)[None, :], tl.arange(0, BK)[None, :] < K
        for rows in range(begin, single, BLOCK):
            held = scan_block(
                env, held, rows, head, group, kt, vs, is_kt, is_v,
                LOAD_QS, LOAD_KS, LOAD_VS, LOAD_DECAYS, LOAD_BETAS, STORE, BLOCK, TF32,
            )  # fmt: skip
        begin = single
    for row in range(begin, end):
        if D == 1:
            decay = LOAD_DECAY(env, row, head, ks * 0, is_k)
        else:
            decay = LOAD_DECAY(env, row, head, ks, is_k)
        k = LOAD_K(env, row, group, ks, is_k).to(tl.float32)
        new = LOAD_V(env, row, head, vs, is_v).to(tl.float32)
        held = held * tl.exp(decay.to(tl.float32))
        if LOAD_BETA is not None:
            beta = LOAD_BETA(env, row, head, is_v).to(tl.float32)
            new = beta * (new - tl.sum(held * k, axis=0)[None, :])
        held += k * new
        q = LOAD_Q(env, row, group, ks, is_k).to(tl.float32)
        STORE(env, (tl.sum(held * q, axis=0)[None, :],), row, head, vs, is_v)

    if state is not None:
        target = tl.load(state_to + sequence).to(tl.int64)
        tl.store(state + target * (H * K * V) + own, held, mask=is_k & is_v)


@triton.jit
def conv_sequences(
    env, w, state, query_start, state_from, state_to,
    LOAD_X: tl.constexpr, STORE: tl.constexpr, C: tl.constexpr, TAPS: tl.constexpr,
    BT: tl.constexpr, BC: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """y[t, c] = sum over j of w[j, c] x[t - TAPS + 1 + j, c], x before a sequence's first row taken
    from its state, the TAPS - 1 rows before it; w[TAPS, C], state[.., TAPS - 1, C] or None.

    A program takes BC channels of a sequence, BT tokens at a time; BS is TAPS - 1 filled up to a
    power of two. LOAD_X(env, rows, cols, mask), STORE(env, sums, rows, cols, mask).
    Grid (N, cdiv(C, BC)).
    """
    sequence = tl.program_id(0)
    start = tl.load(query_start + sequence)
    end = tl.load(query_start + sequence + 1)
    cols = (tl.program_id(1) * BC + tl.arange(0, BC))[None, :]
    is_c = cols < C
    known = 0
    source = tl.zeros((), tl.int64)
    if state is not None:
        source = tl.load(state_from + sequence).to(tl.int64)
        known = tl.where(source >= 0, TAPS - 1, 0)
        target = tl.load(state_to + sequence).to(tl.int64)
        # What lies behind this step, before anything is written over what lay before it.
        back = tl.arange(0, BS)[:, None]
        kept = end - start + back
        before = state + source * ((TAPS - 1) * C) + kept * C + cols
        left = tl.load(before, mask=is_c & (kept < known), other=0)
        new = end - (TAPS - 1) + back
        is_new = is_c & (new >= start) & (back < TAPS - 1)
        left += LOAD_X(env, new, cols, is_new).to(left.dtype)

    for first in range(start, end, BT):
        rows = first + tl.arange(0, BT)[:, None]
        sums = tl.zeros((BT, BC), tl.float32)
        for j in tl.static_range(TAPS):
            at = rows - (TAPS - 1) + j
            x = LOAD_X(env, at, cols, is_c & (at >= start) & (at < end)).to(tl.float32)
            if state is not None:
                behind = at - start + (TAPS - 1)
                place = state + source * ((TAPS - 1) * C) + behind * C + cols
                x += tl.load(place, mask=is_c & (at < start) & (behind < known), other=0)
            sums += tl.load(w + j * C + cols, mask=is_c, other=0).to(tl.float32) * x
        STORE(env, (sums,), rows, cols, is_c & (rows < end))

    if state is not None:
        tl.debug_barrier()
        place = state + target * ((TAPS - 1) * C) + back * C + cols
        tl.store(place, left, mask=is_c & (back < TAPS - 1))

"""Attention over pages: softmax(softcap(SCALE q k^T) + bias) v with a running maximum.

Keys pass in tiles of BK, each row keeping its largest score, the sum of its weights and its
weighted values (Milakov and Gimelshein, 2018; Dao et al., 2022 and 2023). A sequence with one new
token has its keys cut into SPLITS stretches by its own length alone, which join_splits puts
together, so that its result does not depend on what else is in the step; other sequences take tiles
of query tokens and heads.

What the templates share: k_cache[C, BLOCK, G, D], v_cache[C, BLOCK, G, WIDTH], of which values
FIRST to FIRST + E count; block_table i32[N, M], query_start i32[N + 1], context_length i32[N];
slopes[H], bias[H, REACH], k_scale and v_scale f32[C, BLOCK, G] or None. Without a block table a
sequence's keys are its own rows, k[T, G, D] and v[T, G, WIDTH], and there is no context_length. D
is read in two parts, DA and DB (0: none) wide, E in EA and EB: powers of two, the first no wider
than it has to be. With SAME both caches are one. HEADS heads of a group are in a program, a power
of two; a group of more takes several. PRECISION says how float32 is multiplied.
"""

import triton
import triton.language as tl

from .gemm import IEEE
from .ragged import ragged_tile

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def key_range(
    position, length, CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr
):  # fmt: skip
    """The keys from low to high that the query at a position sees; see the op ragged_attention."""
    low = position * 0
    high = low + length
    if CAUSAL:
        high = position + 1
    if WINDOW > 0:
        low = tl.maximum(position - WINDOW + 1, 0)
        if not CAUSAL:
            high = tl.minimum(high, position + WINDOW)
    if CHUNK > 0:
        begin = position // CHUNK * CHUNK
        low = tl.maximum(low, begin)
        high = tl.minimum(high, begin + CHUNK)
    return low, high


@triton.jit
def multiplied(x, like):
    """x in the dtype of another tensor; codes by way of float32, in which they are exact."""
    if x.dtype.is_int():
        x = x.to(tl.float32)
    return x.to(like.dtype)


@triton.jit
def load_entry(
    cache,
    slots,
    es,
    mask,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    PADDED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """cache[slots, es] of entries WIDTH wide, 0 from SIZE on; slots and es broadcast.

    PADDED: es go beyond SIZE; MASKED: not all slots are there.
    """
    at = cache + slots * WIDTH + es
    if MASKED and PADDED:
        value = tl.load(at, mask=mask & (es < SIZE), other=0.0)
    elif MASKED:
        value = tl.load(at, mask=mask, other=0.0)
    elif PADDED:
        value = tl.load(at, mask=es < SIZE, other=0.0)
    else:
        value = tl.load(at)
    return value


@triton.jit
def take_keys(
    state, q, positions, heads, low, high, start, end, sequence, group, caches, extras, M,
    MASKED: tl.constexpr, SIZES: tl.constexpr, MASK: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """The state (largest score, weights, values in two parts) of some rows after the keys from
    start to end, scores in units of log2(e) so that weights are powers of two.

    Row r, head heads[r] at positions[r], sees keys low[r] to high[r]; without MASKED every key from
    start to end, a multiple of BK. SIZES and MASK are what the templates' constexprs say.
    """
    largest, weight, values_a, values_b = state
    qa, qb = q
    k_cache, v_cache, block_table, first_slot = caches
    slopes, bias, k_scale, v_scale = extras
    D: tl.constexpr = SIZES[0]
    E: tl.constexpr = SIZES[1]
    G: tl.constexpr = SIZES[2]
    BLOCK: tl.constexpr = SIZES[3]
    WIDTH: tl.constexpr = SIZES[4]
    FIRST: tl.constexpr = SIZES[5]
    DA: tl.constexpr = SIZES[6]
    DB: tl.constexpr = SIZES[7]
    EA: tl.constexpr = SIZES[8]
    EB: tl.constexpr = SIZES[9]
    SAME: tl.constexpr = SIZES[10] and FIRST == 0 and E == DA and EB == 0 and D == WIDTH
    SCALE: tl.constexpr = MASK[0]
    SOFTCAP: tl.constexpr = MASK[1]
    REACH: tl.constexpr = MASK[2]
    PRECISION: tl.constexpr = MASK[3]
    BOTH: tl.constexpr = MASK[4]
    da, db = tl.arange(0, DA), DA + tl.arange(0, DB if DB else 1)
    ea, eb = tl.arange(0, EA), EA + tl.arange(0, EB if EB else 1)
    for at in range(start, end, BK):
        js = at + tl.arange(0, BK)
        there = js < end
        if block_table is None:
            slots = (first_slot + js).to(tl.int64) * G + group
        else:
            page = block_table + sequence.to(tl.int64) * M + js // BLOCK
            block = tl.load(page, mask=there, other=0) if MASKED else tl.load(page)
            slots = (block.to(tl.int64) * BLOCK + js % BLOCK) * G + group
        ka = load_entry(k_cache, slots[None, :], da[:, None], there[None, :], D, D, DA > D, MASKED)
        s = tl.dot(qa, multiplied(ka, qa), input_precision=PRECISION)
        if DB:
            kb = load_entry(
                k_cache, slots[None, :], db[:, None], there[None, :], D, D, DA + DB > D, MASKED
            )
            s = tl.dot(qb, multiplied(kb, qa), s, input_precision=PRECISION)
        if k_scale is not None:
            s *= tl.load(k_scale + slots, mask=there, other=0)[None, :]
        s *= SCALE if SOFTCAP > 0 or slopes is not None or bias is not None else SCALE * LOG2E
        if SOFTCAP > 0:
            s = SOFTCAP - 2 * SOFTCAP / (tl.exp2(s * (2 * LOG2E / SOFTCAP)) + 1)
        if slopes is not None:
            slope = tl.load(slopes + heads).to(tl.float32)
            s += slope[:, None] * (js[None, :] - positions[:, None]).to(tl.float32)
        if bias is not None:
            back = positions[:, None] - js[None, :]
            if BOTH:
                back += REACH // 2
            back = tl.minimum(tl.maximum(back, 0), REACH - 1)
            s += tl.load(bias + heads[:, None] * REACH + back).to(tl.float32)
        if SOFTCAP > 0 or slopes is not None or bias is not None:
            s *= LOG2E
        if MASKED:
            seen = (js[None, :] >= low[:, None]) & (js[None, :] < high[:, None])
            s = tl.where(seen & there[None, :], s, float("-inf"))

        above = tl.maximum(largest, tl.max(s, axis=1))
        # Where nothing was seen yet the maximum is -inf, and no number less itself.
        known = tl.where(above == float("-inf"), 0.0, above)
        fade = tl.exp2(largest - known)
        p = tl.exp2(s - known[:, None])
        weight = weight * fade + tl.sum(p, axis=1)
        largest = above

        if v_scale is not None:
            p *= tl.load(v_scale + slots, mask=there, other=0)[None, :]
        p = p.to(qa.dtype)
        if SAME:
            va = tl.trans(ka)
        else:
            va = load_entry(
                v_cache + FIRST,
                slots[:, None],
                ea[None, :],
                there[:, None],
                E,
                WIDTH,
                EA > E,
                MASKED,
            )
        values_a = tl.dot(
            p, multiplied(va, qa), values_a * fade[:, None], input_precision=PRECISION
        )
        if EB:
            vb = load_entry(
                v_cache + FIRST,
                slots[:, None],
                eb[None, :],
                there[:, None],
                E,
                WIDTH,
                EA + EB > E,
                MASKED,
            )
            values_b = tl.dot(
                p, multiplied(vb, qa), values_b * fade[:, None], input_precision=PRECISION
            )
    return largest, weight, values_a, values_b


@triton.jit
def load_queries(
    env,
    rows,
    heads,
    mask,
    LOAD_Q: tl.constexpr,
    D: tl.constexpr,
    DA: tl.constexpr,
    DB: tl.constexpr,
):
    """The two parts of q at rows and heads; the first twice where there is no second."""
    da = tl.arange(0, DA)[None, :]
    qa = LOAD_Q(env, rows[:, None], heads[:, None], da, mask[:, None] & (da < D))
    qb = qa
    if DB:
        db = DA + tl.arange(0, DB)[None, :]
        qb = LOAD_Q(env, rows[:, None], heads[:, None], db, mask[:, None] & (db < D))
    return qa, qb


@triton.jit
def attend_splits(
    env, k_cache, v_cache, block_table, query_start, context_length,
    slopes, bias, k_scale, v_scale, partial, stats, M,
    LOAD_Q: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, SAME: tl.constexpr, SCALE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
    REACH: tl.constexpr, DA: tl.constexpr, DB: tl.constexpr, EA: tl.constexpr, EB: tl.constexpr,
    HEADS: tl.constexpr, BK: tl.constexpr, SPLITS: tl.constexpr,
    PRECISION: tl.constexpr = IEEE,
):  # fmt: skip
    """One stretch of the keys of a sequence with one new token, for HEADS heads of a group (16 at
    least): values f32 partial[N, H, SPLITS, E], and stats f32[N, H, SPLITS, 2], the largest score
    and the sum of weights. What lies in partial where that sum is 0 means nothing.

    Grid (N, G cdiv(H / G, HEADS), SPLITS).
    """
    REPEAT: tl.constexpr = H // G
    TILES: tl.constexpr = triton.cdiv(REPEAT, HEADS)
    SIZES: tl.constexpr = (D, E, G, BLOCK, WIDTH, FIRST, DA, DB, EA, EB, SAME)
    MASK: tl.constexpr = (SCALE, SOFTCAP, REACH, PRECISION, False)
    sequence = tl.program_id(0)
    group = tl.program_id(1) // TILES
    split = tl.program_id(2)
    row = tl.load(query_start + sequence)
    # A sequence of none or of more has nothing to do here.
    one = tl.load(query_start + sequence + 1) - row == 1
    length = tl.load(context_length + sequence) if context_length is not None else one.to(tl.int32)
    low, high = key_range(length - 1, length, CAUSAL, WINDOW, CHUNK)
    high = tl.minimum(high, length)
    whole = tl.cdiv(high, BK) - low // BK
    each = tl.cdiv(whole, SPLITS) * BK
    start = low // BK * BK + split * each
    end = tl.where(one, tl.minimum(start + each, high), 0)

    member = tl.program_id(1) % TILES * HEADS + tl.arange(0, HEADS)
    is_head = member < REPEAT
    heads = group * REPEAT + tl.minimum(member, REPEAT - 1)
    rows = row + member * 0
    q = load_queries(env, rows, heads, is_head, LOAD_Q, D, DA, DB)
    state = (
        tl.full((HEADS,), float("-inf"), tl.float32),
        tl.zeros((HEADS,), tl.float32),
        tl.zeros((HEADS, EA), tl.float32),
        tl.zeros((HEADS, EB if EB else 1), tl.float32),
    )
    positions = length - 1 + member * 0
    caches = (k_cache, v_cache, block_table, row)
    extras = (slopes, bias, k_scale, v_scale)
    largest, weight, values_a, values_b = take_keys(
        state, q, positions, heads, low + member * 0, high + member * 0, start, end, sequence,
        group, caches, extras, M, MASKED=True, SIZES=SIZES, MASK=MASK, BK=BK,
    )  # fmt: skip

    at = (sequence * H + heads).to(tl.int64) * SPLITS + split
    mine = member < tl.where(one, REPEAT, 0)
    tl.store(stats + at * 2, largest, mask=mine)
    tl.store(stats + at * 2 + 1, weight, mask=mine)
    if start < end:
        es = tl.arange(0, EA)[None, :]
        tl.store(partial + at[:, None] * E + es, values_a, mask=mine[:, None] & (es < E))
        if EB:
            es = EA + tl.arange(0, EB)[None, :]
            tl.store(partial + at[:, None] * E + es, values_b, mask=mine[:, None] & (es < E))


@triton.jit
def join_splits(
    env, query_start, sinks, partial, stats,
    STORE: tl.constexpr,
    H: tl.constexpr, E: tl.constexpr, SPLITS: tl.constexpr, WAYS: tl.constexpr,
    BE: tl.constexpr = 64,
):  # fmt: skip
    """What attend_splits left, as a result: sum over s of 2^(m_s - m) partial[s] over the sum of
    weights, m the largest of the m_s and the sink, which weighs and has no value.

    WAYS is SPLITS filled up to a power of two. Grid (N, H).
    """
    sequence, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(query_start + sequence)
    if tl.load(query_start + sequence + 1) - row == 1:
        split = tl.arange(0, WAYS)
        at = (sequence * H + head).to(tl.int64) * SPLITS + split
        largest = tl.load(stats + at * 2, mask=split < SPLITS, other=float("-inf"))
        weight = tl.load(stats + at * 2 + 1, mask=split < SPLITS, other=0)
        most = tl.max(largest, axis=0)
        if sinks is not None:
            sink = tl.load(sinks + head).to(tl.float32) * LOG2E
            most = tl.maximum(most, sink)
        most = tl.where(most == float("-inf"), 0.0, most)
        factor = tl.exp2(largest - most)
        total = tl.sum(weight * factor, axis=0)
        if sinks is not None:
            total += tl.exp2(sink - most)

        for e in tl.static_range(0, E, BE):
            es = e + tl.arange(0, BE)
            mask = (weight > 0)[:, None] & (es < E)[None, :]
            part = tl.load(partial + at[:, None] * E + es[None, :], mask=mask, other=0)
            result = tl.sum(part * factor[:, None], axis=0) / tl.where(total > 0, total, 1.0)
            STORE(env, (result,), row, head, es, es < E)


@triton.jit
def attend_tokens(
    env, k_cache, v_cache, block_table, query_start, context_length,
    sinks, slopes, bias, k_scale, v_scale, N, M,
    LOAD_Q: tl.constexpr, STORE: tl.constexpr,
    H: tl.constexpr, G: tl.constexpr, D: tl.constexpr, E: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, FIRST: tl.constexpr, SAME: tl.constexpr, SCALE: tl.constexpr,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, CHUNK: tl.constexpr, SOFTCAP: tl.constexpr,
    REACH: tl.constexpr, DA: tl.constexpr, DB: tl.constexpr, EA: tl.constexpr, EB: tl.constexpr,
    HEADS: tl.constexpr, TOKENS: tl.constexpr, BK: tl.constexpr, SINGLES: tl.constexpr,
    PRECISION: tl.constexpr = IEEE, BOTH: tl.constexpr = False,
):  # fmt: skip
    """Attention of TOKENS tokens and HEADS heads of a group (TOKENS HEADS 16 at least) of a
    sequence; SINGLES: of sequences with one new token too, which attend_splits does better. BOTH:
    bias[H, REACH] is of distances to both sides, that of 0 in the middle.

    Keys that every row sees pass first, without a mask. Grid (T // TOKENS + N, G cdiv(H / G,
    HEADS)).
    """
    REPEAT: tl.constexpr = H // G
    TILES: tl.constexpr = triton.cdiv(REPEAT, HEADS)
    ROWS: tl.constexpr = TOKENS * HEADS
    SIZES: tl.constexpr = (D, E, G, BLOCK, WIDTH, FIRST, DA, DB, EA, EB, SAME)
    MASK: tl.constexpr = (SCALE, SOFTCAP, REACH, PRECISION, BOTH)
    # The last tiles see the most keys: they go first.
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    sequence, first = ragged_tile(query_start, number, N, TOKENS)
    begin = tl.load(query_start + sequence)
    beyond = tl.load(query_start + sequence + 1)
    if (first < beyond) & (SINGLES or beyond - begin > 1):
        group = tl.program_id(1) // TILES
        member = tl.program_id(1) % TILES * HEADS + tl.arange(0, ROWS) % HEADS
        heads = group * REPEAT + tl.minimum(member, REPEAT - 1)
        rows = first + tl.arange(0, ROWS) // HEADS
        inside = (rows < beyond) & (member < REPEAT)
        length = beyond - begin
        if context_length is not None:
            length = tl.load(context_length + sequence)
        before = length - beyond
        positions = before + tl.minimum(rows, beyond - 1)
        low, high = key_range(positions, length, CAUSAL, WINDOW, CHUNK)
        start = tl.min(low, axis=0) // BK * BK
        end = tl.minimum(tl.max(high, axis=0), length)

        q = load_queries(env, rows, heads, inside, LOAD_Q, D, DA, DB)
        largest = tl.full((ROWS,), float("-inf"), tl.float32)
        weight = tl.zeros((ROWS,), tl.float32)
        if sinks is not None:
            largest = tl.load(sinks + heads).to(tl.float32) * LOG2E
            weight += 1.0
        values_a = tl.zeros((ROWS, EA), tl.float32)
        values_b = tl.zeros((ROWS, EB if EB else 1), tl.float32)
        state = (largest, weight, values_a, values_b)
        caches = (k_cache, v_cache, block_table, begin)
        extras = (slopes, bias, k_scale, v_scale)
        if WINDOW == 0 and CHUNK == 0:
            shared = tl.min(high, axis=0) // BK * BK
            state = take_keys(
                state, q, positions, heads, low, high, start, shared, sequence, group, caches,
                extras, M, MASKED=False, SIZES=SIZES, MASK=MASK, BK=BK,
            )  # fmt: skip
            start = shared
        state = take_keys(
            state, q, positions, heads, low, high, start, end, sequence, group, caches, extras, M,
            MASKED=True, SIZES=SIZES, MASK=MASK, BK=BK,
        )  # fmt: skip
        largest, weight, values_a, values_b = state

        scale = (1.0 / tl.where(weight > 0, weight, 1.0))[:, None]
        es = tl.arange(0, EA)[None, :]
        mask = inside[:, None] & (es < E)
        STORE(env, (values_a * scale,), rows[:, None], heads[:, None], es, mask)
        if EB:
            es = EA + tl.arange(0, EB)[None, :]
            mask = inside[:, None] & (es < E)
            STORE(env, (values_b * scale,), rows[:, None], heads[:, None], es, mask)

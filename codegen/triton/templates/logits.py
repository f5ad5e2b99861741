"""The largest of long rows in two stages: those of each chunk, then those among them. Of equals the
first is the larger.
"""

import triton
import triton.language as tl


@triton.jit
def top_of_chunk(
    env, values, columns, M, N, VALUE: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr,
    CHECKED: tl.constexpr = False,
):  # fmt: skip
    """The TOP largest VALUE(env, row, cols, mask) of BLOCK columns of a row, largest first and of
    equal ones the first: f32 values[M, cdiv(N, BLOCK), TOP], i32 columns likewise; -inf and 0 where
    there are no more. CHECKED: a NaN counts as an infinity.

    Grid (M, cdiv(N, BLOCK)).
    """
    row, chunk = tl.program_id(0), tl.program_id(1)
    lanes = tl.arange(0, BLOCK)
    cols = chunk * BLOCK + lanes
    held = VALUE(env, row, cols, cols < N).to(tl.float32)
    held = tl.where(cols < N, held, float("-inf"))
    if CHECKED:
        held = tl.where(held == held, held, float("inf"))
    at = (row * tl.num_programs(1) + chunk) * TOP
    for i in range(TOP):
        largest, place = tl.max(held, axis=0, return_indices=True)
        tl.store(values + at + i, largest)
        column = tl.where(largest == float("-inf"), 0, chunk * BLOCK + place)
        tl.store(columns + at + i, column)
        held = tl.where(lanes == place, float("-inf"), held)


@triton.jit
def top_of_chunks(
    env, values, columns, top_values, top_columns, CHUNKS: tl.constexpr, TOP: tl.constexpr,
    BLOCK: tl.constexpr, CHECKED: tl.constexpr = False,
):  # fmt: skip
    """The TOP largest of what top_of_chunk left of a row: top_values[M, TOP], top_columns[M, TOP].
    CHECKED: column -1 where the value is infinite.

    BLOCK is CHUNKS TOP filled up to a power of two. Grid (M,).
    """
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    at = row * (CHUNKS * TOP) + lanes
    held = tl.load(values + at, mask=lanes < CHUNKS * TOP, other=float("-inf"))
    for i in range(TOP):
        largest, place = tl.max(held, axis=0, return_indices=True)
        tl.store(top_values + row * TOP + i, largest.to(top_values.dtype.element_ty))
        column = tl.load(columns + row * (CHUNKS * TOP) + place)
        if CHECKED:
            column = tl.where(tl.abs(largest) < float("inf"), column, -1)
        tl.store(top_columns + row * TOP + i, column.to(top_columns.dtype.element_ty))
        held = tl.where(lanes == place, float("-inf"), held)

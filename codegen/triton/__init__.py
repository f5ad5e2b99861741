"""GPU kernels through Triton: `build_kernels` compiles kernel bodies ahead of time, for a GPU that
need not be there.

What the templates take is data: `ferrule.codegen.backend.gpu_backend(target)`, which imports no
compiler.

**From a body to launches.** A kernel of the plan becomes one launch or a few in order (parts of a
split sum and what gathers them, a value that must be whole before others read it). Each launch is
one `@triton.jit` function, the *entry*, in a real Triton file that is generated and kept with the
kernel's report. The entry imports the template and calls it; hook bodies stand beside it:

    import triton
    import triton.language as tl
    from ferrule.codegen.triton.templates.gemm import gemm

    @triton.jit
    def k3_linear_load_x(env, rows, ks, mask): ...
    @triton.jit
    def k3_linear_store(env, sums, rows, cols, mask): ...
    @triton.jit
    def k3_linear(x0, x1, y0, T, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
        env = (x0, x1, y0, T)
        gemm(env, x1, T, 4096, 2048, LOAD_X=k3_linear_load_x, STORE=k3_linear_store, PARTS=1,
             BM=BM, BN=BN, BK=BK)

**A template** is a `@triton.jit` device function in `codegen/triton/templates/`, its docstring the
formula, called from an entry and never launched by itself. It reads `tl.program_id` itself and says
in its docstring which grid it wants. Its parameters, in this order:

- `env`: a tuple that it hands on to the hooks and does not look into.
- pointers that it addresses itself (weights, codes and scales, caches, block table, partial sums);
  everything in memory is contiguous and row-major in the shape that the op's declaration gives it,
  and pointers are multiples of 64 bytes. Dtypes are those of the pointers: bf16, f16, f32, int8
  codes as uint8, 4-bit codes two to a uint8 along the last axis (low bits first), bool as uint8.
  An operand that is not there is None.
- sizes: those known when the model is compiled arrive as numbers, which Triton folds as it does
  constexprs; those of a step (T rows, N sequences, M blocks in a row of the block table) are i32.
  Offsets into caches and into [T, wide] arrays are made in int64.
- hooks and choices by keyword, all `tl.constexpr`, in capitals.

**Hooks** are `@triton.jit` functions given as constexprs. Indices are integer tensors that
broadcast against one another (`rows[:, None]`, `cols[None, :]`), or scalars; `mask` broadcasts to
their common shape, and where it is false a load gives 0 and a store does nothing.

- `LOAD_X(env, rows, ks, mask)`: operand x at [row, k], in the dtype that is multiplied. Axes before
  the last are one: a row is the number of a row of x[..., K].
  Beside a `FACTOR(env, row, total)` (templates of one row) it gives two float32 values, what is
  multiplied and what `total` is the sum of over the row: the row's sums are multiplied by FACTOR's.
- `STORE(env, sums, rows, cols, mask)`: `sums` is a tuple of PARTS float32 tensors; part p belongs
  to column p N / PARTS + cols of the anchor's result (a gate beside what it gates arrives as two
  parts with the same cols), and cols are below N / PARTS. The hook adds the bias, does everything
  behind the anchor, rounds and stores. A template without an epilogue is given a hook that stores.
- attention: `LOAD_Q(env, rows, heads, ds, mask)` gives q[row, head, d] in the dtype of the dots,
  and `STORE(env, sums, rows, heads, es, mask)` takes a 1-tuple of float32 results [row, head, e].

**Choices.** Tile sizes are whole numbers, named in capitals as the template names them (BM, BN, BK,
SPLIT, ...), with `num_warps` and `num_stages` among them as WARPS and STAGES. What may be chosen is
a `ferrule.codegen.space.Space` for each bucket of rows, beside the Python half of the template in
`codegen/triton/`. A template's file states as plain data, beside its functions, the choices that
fit (`fits(choice, target)`) and `shared_bytes(...)` where it is known in advance; a compiled kernel
whose shared memory or registers exceed the target's is rejected in any case.

**The Python half** (`codegen/triton/linear.py`, `attention.py`, `expert.py`) states for each anchor
op what it needs whole in memory, its spaces, how it is launched: template, grid, scratch, choices
by bucket of rows. A bucket is a part of the step's dims (up to 16 rows, up to 64, more); every
bucket that the limits allow is compiled when the model is built: nothing compiles while serving.

**Determinism.** With `Target.deterministic` one variant serves every number of rows, and sums are
split by sizes known at build time alone.
"""

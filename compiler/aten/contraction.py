"""ATen ops that contract: linear, matmul, einsum, attention, convolution."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from ...ir.dims import Dim, equal, product
from ...ir.node import Node
from ...ir.ops import model as m
from ...ir.ops import tensor as t
from .movement import on_diagonal, part
from .table import Call, Table, Unsupported, broadcast, cast, operand, reshape, transpose

TABLE = Table()


def is_weight(x: Node) -> bool:
    """Whether a node depends on parameters alone, by moving and casting."""
    if x.op.name == "parameter":
        return True
    return (
        bool(x.inputs)
        and (x.op.has("movement") or x.op.name == "cast")
        and all(map(is_weight, x.inputs))
    )


@TABLE("linear")
def linear(call: Call, x: Node, w: Node, b: Node | None = None) -> Node:
    """x @ w^T + b."""
    if len(w.shape) == 1:
        return t.reduce_sum(t.mul(x, w), axes=(len(x.shape) - 1,))
    return m.linear(x, w) if b is None else m.linear(x, w, b)


def product_of(x: Node, y: Node) -> Node:
    """x @ y of matrices; by a weight it is a linear."""
    if len(y.shape) == 2 and is_weight(y):
        return m.linear(x, transpose(y, (1, 0)))
    return t.matmul(x, y)


@TABLE("matmul", "mm", "bmm")
def matmul(call: Call, x: Node, y: Node, **_: Any) -> Node:
    """torch.matmul: a vector is a row on the left and a column on the right, and leaves no axis."""
    a = reshape(x, (1, *x.shape)) if len(x.shape) == 1 else x
    b = reshape(y, (*y.shape, 1)) if len(y.shape) == 1 else y
    return reshape(product_of(cast(a, call.dtype), cast(b, call.dtype)), call.shape)


@TABLE("mv", "dot")
def mv(call: Call, x: Node, y: Node) -> Node:
    """A matrix or a vector by a vector."""
    return matmul(call, x, y)


@TABLE("addmm", "baddbmm")
def addmm(call: Call, c: Node, x: Node, y: Node, *, beta: Any = 1, alpha: Any = 1) -> Node:
    """beta c + alpha x @ y."""
    plain = alpha == 1 and beta == 1
    if (
        plain
        and len(c.shape) == 1
        and len(y.shape) == 2
        and is_weight(y)
        and equal(c.shape[0], y.shape[1])
    ):
        return m.linear(x, transpose(y, (1, 0)), c)
    made = product_of(x, y)
    made = made if alpha == 1 else t.mul(made, operand(alpha, call.dtype))
    if beta == 0:
        return made
    return t.add(made, c if beta == 1 else t.mul(c, operand(beta, call.dtype)))


@TABLE("addmv")
def addmv(call: Call, c: Node, x: Node, y: Node, *, beta: Any = 1, alpha: Any = 1) -> Node:
    """beta c + alpha x y, of a matrix and a vector."""
    made = addmm(call, _column(c), x, _column(y), beta=beta, alpha=alpha)
    return reshape(made, call.shape)


def _column(x: Node) -> Node:
    return reshape(x, (*x.shape, 1))


@TABLE("outer", "ger")
def outer(call: Call, x: Node, y: Node) -> Node:
    """Every element of x by every element of y."""
    column = reshape(cast(x, call.dtype), (*x.shape, 1))
    return t.mul(column, cast(y, call.dtype))


# -- einsum


@TABLE("einsum")
def einsum(call: Call, equation: str, xs: Sequence[Node], **__: Any) -> Node:
    """Sums of products named by letters, two tensors at a time from the left."""
    terms, right = _spelled_out(equation.replace(" ", ""), [len(x.shape) for x in xs])
    pairs = [_without_repeats(term, x) for term, x in zip(terms, xs, strict=True)]
    letters, result = pairs[0]
    for i in range(1, len(terms)):
        needed = set(right).union(*terms[i + 1 :])
        letters, result = _contract(letters, result, *pairs[i], needed)
    summed = tuple(i for i, c in enumerate(letters) if c not in right)
    result = t.reduce_sum(result, axes=summed) if summed else result
    letters = "".join(c for c in letters if c in right)
    return transpose(result, [letters.index(c) for c in right])


def _without_repeats(letters: str, x: Node) -> tuple[str, Node]:
    """A tensor along the diagonal of axes that one letter names."""
    while len(set(letters)) != len(letters):
        again = next(c for c in letters if letters.count(c) > 1)
        first = letters.index(again)
        second = letters.index(again, first + 1)
        x = on_diagonal(x, first, second, 0, x.shape[first])
        rest = (c for at, c in enumerate(letters) if at not in (first, second))
        letters = "".join(rest) + again
    return letters, x


def _spelled_out(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """The letters of each tensor and of the result; those of an ellipsis are none of the
    equation's.
    """
    left, arrow, right = equation.partition("->")
    terms = left.split(",")
    free = [c for c in string.ascii_letters if c not in equation]
    counts = [r - len(x) + 3 for x, r in zip(terms, ranks, strict=True) if "..." in x]
    more = free[: max(counts, default=0)]
    for at, (term, rank) in enumerate(zip(terms, ranks, strict=True)):
        own = rank - len(term) + 3
        terms[at] = term.replace("...", "".join(more[len(more) - own :]))
    if arrow:
        return terms, right.replace("...", "".join(more))
    letters = left.replace(",", "").replace(".", "")
    once = sorted(c for c in set(letters) if letters.count(c) == 1)
    return terms, "".join([*more, *once])


def _contract(a: str, x: Node, b: str, y: Node, needed: set[str]) -> tuple[str, Node]:
    """x[a] y[b] summed over the letters that both have and nothing needs, as one batched matmul."""
    batch = [c for c in a if c in b and c in needed]
    summed = [c for c in a if c in b and c not in needed]
    rows, columns = [c for c in a if c not in b], [c for c in b if c not in a]
    size = dict(zip(a, x.shape, strict=True)) | dict(zip(b, y.shape, strict=True))

    def merged(groups: Sequence[Sequence[str]]) -> tuple[Dim, ...]:
        return tuple(product(size[c] for c in group) for group in groups)

    left = transpose(x, [a.index(c) for c in (*batch, *rows, *summed)])
    right = transpose(y, [b.index(c) for c in (*batch, *summed, *columns)])
    lead = tuple(size[c] for c in batch)
    left = reshape(left, (*lead, *merged((rows, summed))))
    right = reshape(right, (*lead, *merged((summed, columns))))
    made = product_of(left, right)
    letters = (*batch, *rows, *columns)
    return "".join(letters), reshape(made, tuple(size[c] for c in letters))


# -- attention


@TABLE("scaled_dot_product_attention")
def attention(
    call: Call,
    q: Node,
    k: Node,
    v: Node,
    mask: Node | None = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Node:
    """softmax(scale q k^T + mask) v over [..., H, S, D], brought to four axes."""
    q4, k4, v4 = (_four_axes(x) for x in (q, k, v))
    lead = q4.shape[0]
    k4, v4 = (broadcast(x, (lead, *x.shape[1:])) for x in (k4, v4))
    causal = is_causal and equal(q.shape[-2], k.shape[-2])
    extras, more = (), ()
    if is_causal and not causal:
        mask = _triangle(q.shape[-2], k.shape[-2])
    if mask is not None:
        mask = mask if mask.dtype == "bool" else cast(mask, q.dtype)
        extras, more = ("mask",), (_mask_axes(mask, q, lead),)
    factor = float(scale) if scale is not None else int(q.shape[-1]) ** -0.5
    result = m.attention(q4, k4, v4, *more, scale=factor, causal=causal, extras=extras)
    return reshape(result, call.shape)


def _four_axes(x: Node) -> Node:
    """[..., H, S, D] as [B, H, S, D]."""
    if len(x.shape) == 4:
        return x
    if len(x.shape) == 2:
        return reshape(x, (1, 1, *x.shape))
    return reshape(x, (product(x.shape[:-3]), *x.shape[-3:]))


def _mask_axes(mask: Node, q: Node, lead: Dim) -> Node:
    rank = len(q.shape)
    shape = (*(1 for _ in range(rank - len(mask.shape))), *mask.shape)
    if rank <= 4:
        return reshape(mask, (*(1 for _ in range(4 - rank)), *shape))
    wide = (*q.shape[:-3], *shape[-3:])
    return reshape(broadcast(reshape(mask, shape), wide), (lead, *shape[-3:]))


def _triangle(queries: Dim, keys: Dim) -> Node:
    i = reshape(t.iota(size=queries, dtype="i64"), (queries, 1))
    return t.le(reshape(t.iota(size=keys, dtype="i64"), (1, keys)), i)


# -- convolution and experts


@TABLE("conv1d", "conv1d.padding")
def conv1d(
    call: Call,
    x: Node,
    w: Node,
    b: Node | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Node:
    """Cross-correlation along the last axis."""
    if isinstance(padding, str):
        raise Unsupported(f"conv1d with padding={padding!r}")
    bias = () if b is None else (b,)
    one = (v if isinstance(v, int) else v[0] for v in (stride, padding, dilation))
    steps = dict(zip(("stride", "padding", "dilation"), one, strict=True))
    return t.conv1d(x, w, *bias, groups=groups, **steps)


@TABLE("convolution")
def convolution(
    call: Call, x: Node, w: Node, b: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int,
) -> Node:  # fmt: skip
    """A convolution of one axis or of two that is not transposed."""
    steps = (stride, padding, dilation)
    if not transposed and len(x.shape) == 3:
        return conv1d(call, x, w, b, *steps, groups)
    if not transposed and len(x.shape) == 4:
        apart = next((a for a in (0, 1) if isinstance(x.shape[2 + a], int)), 0)
        for axis in (0, 1):
            if (w.shape[2 + axis], stride[axis], padding[axis]) == (1, 1, 0):
                apart = axis
        return _of_two_axes(call, x, w, b, apart, steps, groups)
    raise Unsupported(f"a {'transposed ' * transposed}convolution of {len(x.shape) - 2} axes")


def _of_two_axes(
    call: Call, x: Node, w: Node, b: Any, axis: int, steps: Sequence[Any], groups: int
) -> Node:
    """The sum of one convolution along the other axis for each tap along `axis`."""
    step, around, apart = (int(each[axis]) for each in steps)
    others = [(each[1 - axis],) for each in steps]
    ends = tuple(around if i == 2 + axis else 0 for i in range(4))
    x = t.pad(x, before=ends, after=ends, value=0.0) if around else x
    last, total = step * (call.shape[2 + axis] - 1) + 1, None
    for at in range(int(w.shape[2 + axis])):
        rows = part(x, 2 + axis, apart * at, apart * at + last, step)
        taps = part(w, 2 + axis, at, at + 1)
        made = _along_the_other(call, rows, taps, b if at == 0 else None, axis, others, groups)
        total = made if total is None else t.add(total, made)
    assert total is not None, w
    return total


def _along_the_other(
    call: Call, x: Node, w: Node, b: Any, axis: int, steps: Sequence[Any], groups: int
) -> Node:
    """A convolution of two axes whose taps lie along one: what lies along `axis` keeps apart."""
    lines, order = x.shape[2 + axis], (0, 2 + axis, 1, 3 - axis)
    rows = reshape(transpose(x, order), (x.shape[0] * lines, x.shape[1], x.shape[3 - axis]))
    taps = reshape(w, (*w.shape[:2], w.shape[3 - axis]))
    made = conv1d(call, rows, taps, b, *steps, groups)
    apart = reshape(made, (x.shape[0], lines, *made.shape[1:]))
    return transpose(apart, (0, 2, 1, 3) if axis == 0 else (0, 2, 3, 1))


@TABLE("transformers.grouped_mm_fallback", "_grouped_mm")
def grouped_mm(call: Call, x: Node, w: Node, ends: Node, *_: Any, **__: Any) -> Node:
    """Rows sorted by expert, each by its own expert's w[E, K, N]; expert e's rows stop at
    ends[e].
    """
    if len(x.shape) != 2 or len(w.shape) != 3:
        raise Unsupported(f"grouped_mm of {x.type} by {w.type}")
    rows = reshape(t.iota(size=x.shape[0], dtype=ends.dtype), (x.shape[0], 1))
    past = cast(t.ge(rows, ends), "i64")
    last = operand(int(w.shape[0]) - 1, "i64")
    expert = t.minimum(t.reduce_sum(past, axes=(1,)), last)
    return m.expert_linear(x, transpose(w, (0, 2, 1)), expert)

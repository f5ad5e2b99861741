"""The rows template: any group of elementwise, movement, index and reduction ops, as loops over
rows.

Values are pulled (see pull.py); what is not an expression of its inputs, or is too dear to
compute twice, is kept: in scratch that belongs to one row where the group's rows are
independent, else in a buffer of the whole value, one stage of loops after another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from tvm.script.ir_builder import tirx as T

from ...ir.dims import Dim, Shape, equal_shapes, product
from ...ir.node import Node, item
from ...ir.types import TensorType
from ..errors import CodegenError, NotRowwise
from . import contract, reductions
from .elementwise import COST
from .loops import Place, Work, along, nest, over_rows, probe
from .pull import BY_INDEX, Source
from .values import COMPUTED, Expr, bind, i64

Wanted = Mapping[Node, Place]

_WHOLE = {
    "float64": "f64",
    "float32": "f32",
    "int64": "i64",
    "int32": "i32",
    "int16": "i16",
    "int8": "i8",
    "uint8": "u8",
    "bool": "bool",
}
_READS_MANY = frozenset({"matmul", "conv1d", "topk", "sort", "argmax"})
_DEAR = 8
_ROWLESS_LIMIT = 4096


def kept_dtype(dtype: str) -> str:
    """The IR dtype of scratch for a value: wide, as it is in a register."""
    return _WHOLE[COMPUTED[dtype]]


def in_order(roots: Sequence[Node], known: Mapping[Node, object]) -> list[Node]:
    """The nodes that the roots reach without passing through a known one, inputs first."""
    order: dict[Node, None] = {}
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in order or node in known:
            continue
        if ready:
            order[node] = None
            continue
        stack.append((node, True))
        stack.extend((i, False) for i in reversed(node.inputs))
    return list(order)


def kept_nodes(wanted: Wanted, sources: Mapping[Node, Source]) -> list[Node]:
    """The nodes to be computed once and held, inputs first: what needs loops, and what is dear
    and read more than once.
    """
    order = in_order(list(wanted), sources)
    users: dict[Node, list[Node]] = {n: [] for n in order}
    for n in order:
        for i in n.inputs:
            if i in users:
                users[i].append(n)
    kept: list[Node] = []
    cost: dict[Node, int] = {}
    for n in order:
        own = COST.get(n.op.name, 1) if n.op.has("elementwise") else 0
        cost[n] = own + sum(cost.get(i, 0) for i in n.inputs)
        if n.op.name != "item" and (n not in wanted or users[n]) and _is_kept(n, users[n], cost[n]):
            kept.append(n)
            cost[n] = 0
        if n in wanted and users[n]:
            cost[n] = 0
    return kept


def _is_kept(node: Node, users: list[Node], cost: int) -> bool:
    if node.op.name not in BY_INDEX:
        return node.op.name not in ("cache_append", "input")
    if not node.inputs or not cost:
        return False
    if any(u.op.name in _READS_MANY for u in users):
        return True
    if cost >= 4 and any(_is_wider(u, node) for u in users):
        return True
    return cost >= _DEAR and len(users) > 1


def _is_wider(user: Node, node: Node) -> bool:
    """Whether each element of node is read for several of user."""
    if not isinstance(user.type, TensorType) or not (
        user.op.has("elementwise") or user.op.name == "broadcast"
    ):
        return False
    return not equal_shapes(
        tuple(d for d in user.shape if d != 1), tuple(d for d in node.shape if d != 1)
    )


def emit_rows(work: Work, wanted: Wanted) -> None:
    """Emit loops that compute every wanted node into its place."""
    kept = kept_nodes(wanted, work.sources)
    order = [n for n in in_order(list(wanted), work.sources) if n in set(kept) or n in wanted]
    rows = next((r for r in _row_shapes(order) if _fits(work, wanted, order, r)), None)
    if rows is None:
        return _stages(work, wanted, order)
    cost = _cost(order, len(rows))
    return over_rows(work, rows, cost, lambda w, at: _row(w, wanted, order, rows, at))


def _fits(work: Work, wanted: Wanted, order: list[Node], rows: Shape) -> bool:
    """Whether the group's rows are independent: tried, on statements that are thrown away."""
    try:
        with probe():
            serial = replace(work, parallel=False)
            over_rows(serial, rows, 1, lambda w, at: _row(w, wanted, order, rows, at))
    except NotRowwise:
        return False
    return True


def _space(node: Node) -> Shape:
    """The index space that a node's loops run over."""
    if node.op.name == "cache_append":
        return node.inputs[1].shape
    if not isinstance(node.type, TensorType):
        return node.inputs[0].shape
    return node.shape


def _row_shapes(order: list[Node]) -> list[Shape]:
    """Candidate shapes of the rows, most axes first: common leading axes that no kept node
    reduces or scans.
    """
    spaces = [_space(n) for n in order]
    most = min((len(s) for s in spaces), default=0)
    first = max(spaces, key=len, default=())
    only_pointwise = all(n.op.name in BY_INDEX or n.op.name == "cache_append" for n in order)
    if only_pointwise and most:
        most = max(most - 1, 1)
    return [first[:r] for r in range(most, 0, -1)]


def _cost(order: list[Node], rows: int) -> Dim:
    """Vector cycles of one row, roughly."""
    total: Dim = 4
    for n in order:
        space = _space(n)[rows:]
        if n.op.name.startswith("reduce"):
            space = n.inputs[0].shape[rows:]
        count = product(space)
        weight = COST.get(n.op.name, 1) + 1
        total = total + (count * weight // 16 if isinstance(count, int) else count)
    return total


def _row(work: Work, wanted: Wanted, order: list[Node], rows: Shape, at: list[Expr]) -> None:
    """Everything of one row."""
    for node in order:
        if node.op.name == "item" and node in work.sources:
            continue
        led = equal_shapes(_space(node)[: len(rows)], rows)
        if node in wanted and not led:
            raise NotRowwise
        places = _places(work, wanted, node, rows)
        _emit(work, node, places, at if led else [])
        named = _named(node, places)
        work = work.with_sources({n: _row_reader(work, p, at, led=led) for n, p in named.items()})


def _places(work: Work, wanted: Wanted, node: Node, rows: Shape) -> list[Place]:
    """Where a node's results go: wanted places, or fresh scratch without the row axes."""
    if isinstance(node.type, TensorType) or node.op.name == "cache_append":
        return [wanted[node] if node in wanted else _scratch(work, node.shape, node.dtype, rows)]
    given = {
        n["index"]: p for n, p in wanted.items() if n.op.name == "item" and n.inputs[0] is node
    }
    return [
        given[i] if i in given else _scratch(work, t.shape, t.dtype, rows)
        for i, t in enumerate(node.type.items)
        if isinstance(t, TensorType)
    ]


def _scratch(work: Work, shape: Shape, dtype: str, rows: Shape) -> Place:
    skip = len(rows) if equal_shapes(shape[: len(rows)], rows) else 0
    if rows and not skip:
        count = product(shape)
        if not isinstance(count, int) or count > _ROWLESS_LIMIT:
            raise NotRowwise
    kept = kept_dtype(dtype)
    inner = shape[skip:]
    extents = [(work.room or work.dims).expr(d) for d in inner] or [i64(1)]
    stored = "uint8" if kept == "bool" else COMPUTED[kept]
    return Place(T.alloc_buffer(extents, stored), kept, skip)


def _named(node: Node, places: list[Place]) -> dict[Node, Place]:
    """Which nodes can be read from the places that a node was written to."""
    if node.op.name == "cache_append":
        return {}
    if isinstance(node.type, TensorType):
        return {node: places[0]}
    return {item(node, index=i): p for i, p in enumerate(places)}


def _row_reader(work: Work, place: Place, row: list[Expr], *, led: bool) -> Source:
    """A source that gives this row's elements alone, where the value has the row's axes (`led`)."""

    def read(at: Sequence[Expr]) -> Expr:
        if led:
            facts = work.pull().facts
            if not all(
                a is r or facts.can_prove_equal(a, r) for a, r in zip(at, row, strict=False)
            ):
                raise NotRowwise
        return place.read(at)

    return read


def _stages(work: Work, wanted: Wanted, order: list[Node]) -> None:
    """One node after another over its whole index space."""
    for node in order:
        if node.op.name == "item" and node in work.sources:
            continue
        places = _places(work, wanted, node, ())
        _emit(work, node, places, [])
        named = _named(node, places)
        work = work.with_sources({n: p.read for n, p in named.items()})


# -- one node's loops

Loops = Callable[[Work, Node, list[Place], list[Expr]], None]


def _emit(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    """The loops of one node over the axes that follow the prefix."""
    name = node.op.name
    if name in BY_INDEX or name == "item":
        return _pointwise(work, node, places[0], prefix)
    if name not in LOOPS:
        raise CodegenError(f"no loops for {name} : {node.type}")
    return LOOPS[name](work, node, places, prefix)


def _outer(work: Work, shape: Shape, cost: Dim, body: Callable[[Work, list[Expr]], None]) -> None:
    """Loops over leading axes: threads where the work may go parallel, else serial ones."""
    if work.parallel:
        return over_rows(work, shape, cost, body)
    with nest(work, shape) as (inside, at):
        body(inside, at)


def _pointwise(work: Work, node: Node, place: Place, prefix: list[Expr]) -> None:
    rest = node.shape[len(prefix) :]
    if not rest:
        return place.store(prefix, work.pull().value(node, prefix))
    last = rest[-1]
    cost = last * (COST.get(node.op.name, 1) + 1) // 16 + 1 if isinstance(last, int) else last

    def row(inside: Work, at: list[Expr]) -> None:
        def element(inner: Work, j: Expr) -> None:
            point = [*prefix, *at, j]
            place.store(point, inner.pull().value(node, point))

        along(inside, last, element, probed=lambda w, j: w.pull().value(node, [*prefix, *at, j]))

    _outer(work, rest[:-1], cost, row)


def _append(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    """cache[slot // block, slot % block] = value, where the slot is not negative."""
    _, value, slots = node.inputs
    block = node.type.block
    rest = value.shape[1:]

    def token(inside: Work, at: list[Expr]) -> None:
        slot = bind(i64(inside.pull().value(slots, at[:1])))
        with T.If(slot >= i64(0)), T.Then():
            where = [bind(slot // i64(block)), bind(slot % i64(block))]
            with nest(inside, rest[:-1]) as (deep, before):

                def element(inner: Work, j: Expr) -> None:
                    places[0].store(
                        [*where, *before, j], inner.pull().value(value, [at[0], *before, j])
                    )

                along(
                    deep,
                    rest[-1],
                    element,
                    probed=lambda w, j: w.pull().value(value, [at[0], *before, j]),
                )

    if prefix:
        if len(prefix) > 1:
            raise NotRowwise
        return token(work, prefix)
    return over_rows(work, value.shape[:1], product(rest), token)


def _reduction(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    x, axes = node.inputs[0], node["axes"]
    _check_rows(prefix, min(axes, default=0))
    if not axes:
        raise CodegenError(f"{node.op.name} over no axes")
    rest = node.shape[len(prefix) :]
    if len(x.shape) - 1 in axes:
        cost = product(x.shape[a] for a in axes)
        cost = cost // 8 + 8 if isinstance(cost, int) else cost
        _outer(
            work, rest, cost, lambda w, at: reductions.reduce(w, node, places[0], [*prefix, *at])
        )
    else:
        reductions.reduce_across(work, node, places[0], prefix, rest)


def _check_rows(prefix: list[Expr], axis: int) -> None:
    if axis < len(prefix):
        raise NotRowwise


def _argmax(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    _check_rows(prefix, node["axis"])
    size = node.inputs[0].shape[node["axis"]]
    cost = size // 4 if isinstance(size, int) else size
    rest = node.shape[len(prefix) :]
    _outer(work, rest, cost, lambda w, at: reductions.argmax(w, node, places[0], [*prefix, *at]))


def _running(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    _check_rows(prefix, node["axis"])
    reductions.running(work, node, places[0], prefix, node.shape[len(prefix) :])


def _order(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    _check_rows(prefix, node["axis"])
    reductions.order(
        work, node, (places[0], places[1]), prefix, node.inputs[0].shape[len(prefix) :]
    )


def _scatter(work: Work, node: Node, places: list[Place], prefix: list[Expr]) -> None:
    _check_rows(prefix, node["axis"])
    if not equal_shapes(node.inputs[1].shape[: len(prefix)], node.shape[: len(prefix)]):
        raise NotRowwise
    reductions.scatter(work, node, places[0], prefix, node.shape[len(prefix) :])


LOOPS: Mapping[str, Loops] = {
    "reduce_sum": _reduction,
    "reduce_max": _reduction,
    "reduce_min": _reduction,
    "reduce_prod": _reduction,
    "argmax": _argmax,
    "cumsum": _running,
    "cumprod": _running,
    "cummax": _running,
    "logcumsumexp": _running,
    "topk": _order,
    "sort": _order,
    "scatter": _scatter,
    "cache_append": _append,
    "matmul": contract.matmul,
    "conv1d": contract.conv1d,
}
"""Ops of the rows template that are not expressions of their inputs: op name -> emitter of its
loops.
"""

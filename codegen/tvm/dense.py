"""Attention over whole tensors, for modules that keep no cache: q[B, H, S, D], k[B, G, L, D],
v[B, G, L, E].
"""

from __future__ import annotations

from collections.abc import Mapping

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from .attention import Attention, Item, pulled_once, result_place
from .function import Anchor, Kernel
from .loops import Place, Work
from .prefill import emit_tokens
from .pull import CodegenError
from .values import Expr, bind, i64


def _needs(kernel: Kernel, node: Node) -> dict[Node, str]:
    needed: dict[Node, str] = {}
    for x in node.inputs[:3]:
        needed.update(pulled_once(kernel, x))
    return needed


def _extra(node: Node, word: str) -> Node | None:
    return node.inputs[3 + node["extras"].index(word)] if word in node["extras"] else None


def emit_dense(kernel: Kernel, node: Node, results: Mapping[Node, Place]) -> None:
    """Emit an attention; an item is a tile of queries of one group of one batch element."""
    q, k, v = node.inputs[:3]
    if "selected" in node["extras"]:
        raise CodegenError("attention: keys are selected in paged caches alone")
    place, done = result_place(kernel, node, results)
    mask, sinks = _extra(node, "mask"), _extra(node, "sinks")
    boolean = mask is not None and mask.dtype == "bool"

    def masked(w: Work, item: Item, i: Expr, h: Expr, j: Expr) -> Expr:
        assert mask is not None
        pull = w.pull()
        shape = (*q.shape[:3], k.shape[2])
        return pull.value(mask, pull.broadcast(mask, shape, (item.sequence, h, item.query + i, j)))

    def seen(item: Item, i: Expr) -> tuple[Expr, Expr]:
        end = bind(item.position + i + i64(1)) if node["causal"] else item.high
        return i64(0), bind(tirx.min(end, item.high))

    attention = Attention(
        kernel=kernel,
        heads=int(q.shape[1]),
        groups=int(k.shape[1]),
        width=int(q.shape[3]),
        value_width=int(v.shape[3]),
        scale=float(node["scale"]),
        softcap=float(node["softcap"]),
        slot=lambda item, j: j,
        run=0,
        key=lambda w, item, s, d: w.pull().value(k, [item.sequence, item.group, s, d]),
        value=lambda w, item, s, e: w.pull().value(v, [item.sequence, item.group, s, e]),
        query=lambda w, item, i, h, d: w.pull().value(q, [item.sequence, h, item.query + i, d]),
        store=lambda item, i, h, e, x: place.store([item.sequence, h, item.query + i, e], x),
        seen=seen,
        visible=masked if boolean else None,
        bias=masked if mask is not None and not boolean else None,
        dtype=q.dtype,
        sink=None if sinks is None else lambda w, h: w.pull().value(sinks, [h]),
    )
    _items(kernel, node, attention)
    kernel.places.update(done)


def _items(kernel: Kernel, node: Node, a: Attention) -> None:
    dims = kernel.dims
    batch, length, keys = (
        dims.expr(d) for d in (node.shape[0], node.shape[2], node.inputs[1].shape[2])
    )
    tiles = bind(tirx.floordiv(length + i64(a.tokens - 1), i64(a.tokens)))
    work = kernel.work()
    with T.parallel(i64(0), batch * i64(a.groups) * tiles) as w:
        tile = bind(tirx.floormod(w, tiles))
        rest = bind(tirx.floordiv(w, tiles))
        query = bind(tile * i64(a.tokens))
        count = bind(tirx.min(length - query, i64(a.tokens)))
        position = bind(query + keys - length)
        high = bind(tirx.min(position + count, keys)) if node["causal"] else keys
        sequence = bind(tirx.floordiv(rest, i64(a.groups)))
        group = bind(tirx.floormod(rest, i64(a.groups)))
        emit_tokens(a, work, Item(sequence, group, query, position, count, i64(0), high))


DENSE = Anchor(_needs, emit_dense)

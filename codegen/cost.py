"""What a kernel has to move and compute, as formulas of its dims."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sympy

from ..ir.dims import Dim, as_dim, dim, product
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops.serving import updated
from ..ir.types import BITS, CacheType, TensorType
from .needed import needed_elements
from .visible import Mask, pairs_doubled, span

CONTEXT = "L"
"""The dim that stands for the tokens of a sequence, those of this step among them, which no shape
of a kernel shows.
"""


@dataclass(frozen=True)
class Cost:
    """Bytes read of each input of a body, bytes written, arithmetic operations (a multiply-add is
    two) by the dtype of what is multiplied; dims as in the kernel's shapes, and L.

    Where a step has several sequences, the formulas take them to be of one length.
    """

    reads: tuple[Dim, ...]
    bytes_written: Dim
    by_dtype: Mapping[str, Dim]

    @property
    def bytes_read(self) -> Dim:
        """Bytes read of all inputs."""
        return _sum(self.reads)

    @property
    def operations(self) -> Dim:
        """Operations of all dtypes."""
        return _sum(self.by_dtype.values())


def cost_of(body: Graph) -> Cost:
    """The cost of a kernel body that reads what its results need, once; of a table that is
    indexed, the rows taken.
    """
    needed = needed_elements(body)
    reads = tuple(
        _cached_bytes(i, body) if isinstance(i.type, CacheType) else _bytes(i, needed.get(i, 0))
        for i in body.inputs
    )
    written = _sum(_written(o) for o in dict.fromkeys(body.outputs))
    by_dtype: dict[str, Dim] = {}
    for n in body.nodes():
        if (count := _operations(n)) != 0:
            dtype = _multiplied(n)
            by_dtype[dtype] = as_dim(by_dtype.get(dtype, 0) + count)
    return Cost(reads, written, by_dtype)


def _sum(parts: Iterable[Dim]) -> Dim:
    total: Dim = 0
    for part in parts:
        total = total + part
    return as_dim(total)


def _bytes(node: Node, count: Dim) -> Dim:
    bits = BITS[node.dtype]
    return product((count, bits // 8)) if bits >= 8 else as_dim((product((count, bits)) + 7) // 8)


def _written(output: Node) -> Dim:
    if isinstance(output.type, CacheType) and output.type.is_state:
        states, writer = updated(output)
        assert states is not None, output
        return _state_bytes(states, writer)
    value = output.inputs[1] if isinstance(output.type, CacheType) else output
    return _bytes(value, product(value.shape))


def _state_bytes(states: Node, reader: Node) -> Dim:
    """Bytes of the states of a step's sequences."""
    assert isinstance(states.type, CacheType), f"{states.type}"
    places = reader.inputs[reader.inputs.index(states) + 2]
    return product((places.shape[0], states.type.entry_bytes()))


def _cached_bytes(cache: Node, body: Graph) -> Dim:
    """Bytes of the cached tokens that any query sees, all sequences together."""
    assert isinstance(cache.type, CacheType), f"{cache.type}"
    total: Dim = 0
    for r in body.users(cache):
        if cache.type.is_state:
            total = total + _state_bytes(cache, r)
        elif r.op.name == "paged_context":
            sequences = r.inputs[r["own"] + r["seen"] + 3].shape[0]
            total = total + product((sequences, dim(CONTEXT), cache.type.entry_bytes()))
        elif r.op.name in ("paged_attention", "paged_selected_keys"):
            tokens, sequences = r.shape[0], r.inputs[5].shape[0]
            seen = product((sequences, span(_mask(r), dim(CONTEXT), tokens // sequences)))
            if (count := _selected(r)) is not None:
                seen = sympy.Min(seen, product((tokens, count)))
            total = total + product((seen, cache.type.entry_bytes()))
    return as_dim(total)


def _selected(n: Node) -> Dim | None:
    """How many keys a query reads at most, where an indexer picks them."""
    extras: tuple[str, ...] = n.attributes.get("extras", ())
    if "selected" not in extras:
        return None
    return n.inputs[len(n.inputs) - len(extras) + extras.index("selected")].shape[-1]


def _mask(n: Node) -> Mask:
    return Mask(n["causal"], n["window"], n["chunk"])


def _multiplied(n: Node) -> str:
    """The dtype of what a node multiplies: that of a contraction's input, else float32."""
    if n.op.name.endswith("_context"):
        return n.dtype  # the first input may be a cache
    return n.inputs[0].dtype if n.op.has("contraction") else "f32"


def _operations(n: Node) -> Dim:
    kinds = ("leaf", "movement", "index")
    name = n.op.name
    if name.endswith("_context"):
        return _context_operations(n)
    if name.endswith("_loop"):
        return _loop_operations(n)
    if name.endswith(("_conv", "_scan")):
        return _recurrent_operations(n)
    if any(map(n.op.has, kinds)) or not isinstance(n.type, TensorType) or name == "item":
        return 0
    if name.endswith(("attention", "selected_keys")):
        return _attention_operations(n)
    if "integer" in name:
        return product((2, *n.shape, *n.inputs[0].shape[-2:]))
    if name.endswith("linear") or name == "matmul":
        return product((2, *n.shape, n.inputs[0].shape[-1]))
    if name == "conv1d":
        return product((2, *n.shape, *n.inputs[1].shape[1:]))
    source = n.inputs[0] if n.op.has("reduction") and n.inputs else n
    return product(source.shape)


def _recurrent_operations(n: Node) -> Dim:
    """Two operations a tap and element; for each element of a state and token, two to decay and add
    and two to read, and with the delta rule two more.
    """
    if n.op.name.endswith("_conv"):
        x, w = n.inputs[:2]
        taps = w.shape[1 if n.op.name == "causal_conv" else 0]
        return product((2, *x.shape, taps))
    q, v = n.inputs[0], n.inputs[2]
    delta = len(n.inputs) == (9 if n.op.name == "state_scan" else 5)
    return product((6 if delta else 4, *v.shape, q.shape[-1]))


def _context_operations(n: Node) -> Dim:
    """Those of the body, for each token: L is the tokens that it sees."""
    tokens = n.shape[: 2 if n.op.name == "token_context" else 1]
    return product((*tokens, _sum(map(_operations, n["body"].nodes()))))


def _loop_operations(n: Node) -> Dim:
    """Those of the body, for each token."""
    tokens = n.inputs[0].shape[: 2 if n.op.name == "token_loop" else 1]
    return product((*tokens, _sum(map(_operations, n["body"].nodes()))))


def _attention_operations(n: Node) -> Dim:
    """Two operations a visible pair of query and key, for each element of a key and a value; a
    selection has no values, and its scores are weighed.
    """
    if n.op.name == "attention":
        batch, heads, queries, width = n.inputs[0].shape
        count, lengths = product((batch, heads)), (n.inputs[1].shape[2], queries)
    else:
        tokens, heads, width = n.inputs[0].shape
        sequences = _sequences(n)
        queries = tokens // sequences
        count = product((sequences, heads))
        lengths = (dim(CONTEXT) if n.op.name.startswith("paged") else queries, queries)
    pairs = pairs_doubled(_mask(n), *lengths)
    if (picked := _selected(n)) is not None:
        pairs = sympy.Min(pairs, product((2, queries, picked)))
    values = 1 if n.op.name.endswith("selected_keys") else n.shape[-1]
    return product((count, width + values, pairs))


def _sequences(n: Node) -> Dim:
    if n.op.name.startswith("paged"):
        return n.inputs[5].shape[0]
    return as_dim(n.inputs[3].shape[0] - 1)

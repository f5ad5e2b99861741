"""Attention over paged caches: operands, hooks and launches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...ir.dims import Dim, as_dim, product, upper_bound
from ...ir.errors import IRError
from ...ir.node import Node
from ...ir.types import BITS
from ..errors import CodegenError
from ..space import Bucket, Choice, Sample
from .burdens import Burdens, splits_burden, tokens_burden
from .kernel import Call, Hook, Kernel, cache_of, cache_type, emit_call, floor_by
from .linear import inside
from .loops import TooDear, power_of_two
from .pull import Place, reshaped
from .spaces import TileSpace, tiles_space
from .text import Index, Writer
from .tiles import ATTEND_SPLITS, ATTEND_TOKENS, WIDE, Sizes, Tiles, rows_of, split_width

HEADS, LANES = frozenset({"heads"}), frozenset({"lanes"})
EXTRAS = ("sinks", "slopes", "bias", "k_scale", "v_scale")


def load_hook(kernel: Kernel, q: Node) -> Hook:
    """LOAD_Q(env, rows, heads, ds, mask): q at a token, a head and a place in it."""
    writer = Writer()
    pull = kernel.pull(writer)
    heads, ds = Index("heads", 0, HEADS), Index("ds", 0, LANES)
    mask = inside(pull, (heads, q.shape[1]), (ds, q.shape[2]))
    value = pull.value(q, (Index("rows", 0, HEADS), heads, ds), mask)
    cast = {"bf16": "tl.bfloat16", "f16": "tl.float16"}.get(q.dtype)
    writer.line(f"return {value}.to({cast})" if cast else f"return {value}")
    return Hook(("rows", "heads", "ds", "mask"), writer, pull)


def store_hook(kernel: Kernel, node: Node, place: Place) -> Hook:
    """STORE(env, sums, rows, heads, es, mask): the result, in the shape that its place has."""
    writer = Writer()
    pull = kernel.pull(writer)
    at = (Index("rows", 0, HEADS), Index("heads", 0, HEADS), Index("es", 0, LANES))
    address = pull.address(place, reshaped(writer, place.shape, node.shape, at))
    writer.line(f"tl.store({address}, sums[0], mask=mask)")
    return Hook(("sums", "rows", "heads", "es", "mask"), writer, pull)


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What attention wants whole: caches, extras, and a q that a load cannot make."""
    try:
        load_hook(kernel, node.inputs[0])
    except TooDear:
        return list(node.inputs)
    return list(node.inputs[1:])


def emit_paged(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launches of a paged_attention; its result goes to the place of a reshape of it too.

    Sequences with one new token are taken apart by their keys and joined again; others go by tiles
    of tokens, in a launch that a step of single tokens leaves out. Where a token's sums must not
    depend on how many come with it, all go by tiles.
    """
    q, k_cache, v_cache, table, starts, lengths = node.inputs[:6]
    extras = dict(zip(node["extras"], node.inputs[6:], strict=True))
    result, place = _result(kernel, node, results)

    def pointer(operand: Node | None) -> str | None:
        return None if operand is None else kernel.places[cache_of(operand)].name

    batch = [pointer(n) for n in (k_cache, v_cache, table, starts, lengths)]
    more = {e: pointer(extras.get(e)) for e in EXTRAS}
    sequences, width = as_dim(starts.shape[0] - 1), table.shape[1]
    shape = _Shape.of(node, extras)
    load, store = load_hook(kernel, q), store_hook(kernel, node, place)
    longest = product((width, cache_type(k_cache).block))
    splits, tokens = _chosen(kernel, shape, longest, q)
    invariant = kernel.target.deterministic
    if not invariant:
        few = (*batch, *(more[e] for e in EXTRAS if e != "sinks"))
        _emit_singles(kernel, shape, few, more["sinks"], (sequences, width), splits, load, store)
    heads = rows_of(tokens, shape.h // shape.g)
    many = (*more.values(), sequences, width)
    emit_call(kernel, Call(
        "attention", "attend_tokens", (*batch, *many), {"LOAD_Q": load, "STORE": store},
        {**shape.constants, "SINGLES": invariant},
        (as_dim(floor_by(node.shape[0], heads["TOKENS"]) + sequences), shape.tiles(heads["HEADS"])),
        heads | {"BK": tokens["BK"]}, tokens["WARPS"], tokens["STAGES"],
        unless=None if invariant else (node.shape[0], sequences),
    ))  # fmt: skip
    kernel.places[result] = place


def _emit_singles(
    kernel: Kernel, shape: _Shape, given: tuple[str | None, ...], sinks: str | None,
    sizes: tuple[Dim, Dim], splits: Choice, load: Hook, store: Hook,
) -> None:  # fmt: skip
    """Sequences of one new token, taken apart by their keys and joined again: `given` are the
    pointers up to extras, `sizes` sequences and the width of the table.
    """
    sequences, width = sizes
    partial = kernel.scratch_for((sequences, shape.h, splits["SPLITS"], shape.e), "f32").name
    stats = kernel.scratch_for((sequences, shape.h, splits["SPLITS"], 2), "f32").name
    emit_call(kernel, Call(
        "attention", "attend_splits", (*given, partial, stats, width), {"LOAD_Q": load},
        shape.constants, (sequences, shape.tiles(splits["HEADS"]), splits["SPLITS"]),
        _without_launch(splits), splits["WARPS"], splits["STAGES"],
    ))  # fmt: skip
    constants = {"H": shape.h, "E": shape.e, "WAYS": power_of_two(splits["SPLITS"])}
    emit_call(kernel, Call(
        "attention", "join_splits", (given[3], sinks, partial, stats), {"STORE": store},
        constants | {"SPLITS": splits["SPLITS"]}, (sequences, shape.h),
    ))  # fmt: skip


def emit_ragged(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launch of a ragged_attention, whose keys and values are its own rows: all sequences
    go by tiles of tokens.
    """
    q, k, v, starts = node.inputs[:4]
    extras = dict(zip(node["extras"], node.inputs[4:], strict=True))
    if "selected" in extras:
        raise CodegenError(
            f"ragged_attention : {node.type} of selected keys, by rows without pages"
        )
    if "distances" in extras:
        extras["bias"] = extras.pop("distances")
    result, place = _result(kernel, node, results)
    shape = _Shape.by_rows(node, extras)
    choice = ATTEND_TOKENS[shape.d > WIDE].default(kernel.target)
    heads = rows_of(choice, shape.h // shape.g)
    sequences = as_dim(starts.shape[0] - 1)
    places = {e: kernel.places[n].name for e, n in extras.items()}
    rows = (*(kernel.places[n].name for n in (k, v)), None, kernel.places[starts].name, None)
    emit_call(kernel, Call(
        "attention", "attend_tokens", (*rows, *(places.get(e) for e in EXTRAS), sequences, 1),
        {"LOAD_Q": load_hook(kernel, q), "STORE": store_hook(kernel, node, place)},
        {**shape.constants, "SINGLES": True, "BOTH": "distances" in node["extras"]},
        (as_dim(floor_by(node.shape[0], heads["TOKENS"]) + sequences), shape.tiles(heads["HEADS"])),
        heads | {"BK": choice["BK"]}, choice["WARPS"], choice["STAGES"],
    ))  # fmt: skip
    kernel.places[result] = place


@dataclass(frozen=True)
class _Shape:
    """What a template of attention is compiled for."""

    h: int
    g: int
    d: int
    e: int
    constants: Mapping[str, int | float | bool]

    @staticmethod
    def of(node: Node, extras: Mapping[str, Node]) -> _Shape:
        """Of a paged_attention."""
        k_cache, v_cache = node.inputs[1:3]
        groups = int(cache_type(k_cache).entry[0])
        caches = {
            "BLOCK": cache_type(k_cache).block, "WIDTH": cache_type(v_cache).entry[1],
            "FIRST": int(node["value_start"]), "SAME": cache_of(k_cache) is cache_of(v_cache),
        }  # fmt: skip
        return _Shape._made(node, extras, groups, int(node["value_size"]), caches)

    @staticmethod
    def by_rows(node: Node, extras: Mapping[str, Node]) -> _Shape:
        """Of a ragged_attention."""
        k, v = node.inputs[1:3]
        wide = int(v.shape[2])
        rows = {"BLOCK": 1, "WIDTH": wide, "FIRST": 0, "SAME": k is v}
        return _Shape._made(node, extras, int(k.shape[1]), wide, rows)

    @staticmethod
    def _made(
        node: Node, extras: Mapping[str, Node], g: int, e: int, lying: Mapping[str, int | bool]
    ) -> _Shape:
        h, d = (int(size) for size in node.inputs[0].shape[1:])
        (da, db), (ea, eb) = split_width(d), split_width(e)
        constants = {
            "H": h, "G": g, "D": d, "E": e, **lying,
            "SCALE": float(node["scale"]), "CAUSAL": bool(node["causal"]),
            "WINDOW": int(node["window"]), "CHUNK": int(node["chunk"]),
            "SOFTCAP": float(node["softcap"]),
            "REACH": int(extras["bias"].shape[1]) if "bias" in extras else 0,
            "DA": da, "DB": db, "EA": ea, "EB": eb,
        }  # fmt: skip
        return _Shape(h, g, d, e, constants)

    def tiles(self, heads: int) -> int:
        """Tiles of heads, over all groups."""
        return self.g * -(-(self.h // self.g) // heads)


SINGLES = (Sample(1, 1, 2048), Sample(32, 32, 512))
PROMPTS = (Sample(512, 1, 512), Sample(2048, 1, 2048))
"""What stands for sequences of one new token, and for those of more."""


def _chosen(kernel: Kernel, shape: _Shape, longest: Dim, q: Node) -> tuple[Choice, Choice]:
    """What is taken for each template; a context that is short is cut into fewer splits."""
    wide = shape.d > WIDE
    splits = ATTEND_SPLITS[wide].default(kernel.target)
    known = dict(splits.values)
    try:
        most = -(-upper_bound(longest, kernel.body.bounds) // known["BK"])
    except (IRError, KeyError):
        most = max(ATTEND_SPLITS[wide].values["SPLITS"])
    fewest = power_of_two(most)
    splits = Choice.of(known | {"SPLITS": min(known["SPLITS"], fewest)})
    sizes = Sizes(BITS[q.dtype] // 8, width=shape.d, value_width=shape.e)

    def space(name: str, samples: tuple[Sample, ...], tiles: Tiles, burden: Burdens,
              own: Choice) -> TileSpace:  # fmt: skip
        bucket = Bucket(name, 1, None, samples)
        return tiles_space(tiles, bucket, q.shape[0], kernel.target, sizes, burden, own,
                           {"SPLITS": fewest})  # fmt: skip

    groups, repeat = shape.g, shape.h // shape.g
    few = splits_burden(kernel.target, groups, repeat)
    many = tokens_burden(kernel.target, groups, repeat)
    own = ATTEND_TOKENS[wide].default(kernel.target)
    if not kernel.target.deterministic:  # else nothing is taken apart
        splits = kernel.choose(space("singles", SINGLES, ATTEND_SPLITS[wide], few, splits))
    return (
        splits,
        kernel.choose(space("prompts", PROMPTS, ATTEND_TOKENS[wide], many, own)),
    )


def _without_launch(choice: Choice) -> dict[str, int]:
    """The choices that a template takes as constexprs."""
    return {n: v for n, v in choice.values if n not in ("WARPS", "STAGES")}


def _result(kernel: Kernel, node: Node, results: dict[Node, Place]) -> tuple[Node, Place]:
    for result, place in results.items():
        base = result
        while base.op.name == "reshape" and base is not node:
            base = base.inputs[0]
        if base is node and result not in kernel.places:
            return result, place
    return node, kernel.scratch_for(node.shape, "f32")

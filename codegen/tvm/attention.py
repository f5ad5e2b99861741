"""The attention template: softmax over splits of the keys, never a row of scores longer than a
split.

softmax(softcap(scale q k^T) + bias) v (Milakov and Gimelshein, 2018; Dao et al., 2022 and 2023).
Keys are cut into splits at fixed places, whatever else a step holds. A split gives each row its
largest score, the sum of its weights and its weighted values; splits fold together in their order.
So a row's result depends on its own sequence alone, however the work is shared out:

- many tokens (prefill): an item is a run of query tokens of one group of heads; it takes all
  splits, one after another, in register tiles of rows, each up to its own last key.
- one token (decode): an item is one split of all groups or some; keys pass as they lie in memory.
  Who finishes the last split of a sequence folds them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from ...ir.node import Node
from ...ir.target import Target
from ..space import Bucket, Choice, Sample
from ..space import Space as TuningSpace
from .fetch import LINE, fetch
from .function import Kernel
from .isa import LANES, Isa, isa_of
from .loops import Place, Work
from .rows import kept_nodes
from .values import Expr, bind, bytes_of, i64


@dataclass(frozen=True)
class Space:
    """Tile sizes: keys of a split, keys that decode takes of all groups in turn (where it reads
    words it takes the run or two that it scores), rows (tokens x heads of a group) of a prefill
    item, rows of a register tile.
    """

    keys: int = 256
    stream: int = 64
    rows: int = 64
    register_rows: int = 8


SPACE = Space()
ROWS_AT_ONCE = 4
"""By so much larger prefill items are where tile registers multiply: what every item does to all
keys, turning them round, is then a quarter of the time that the products of SPACE.rows take.
"""
ROWS_BYTES = 1 << 19
"""What an item's queries and results take at most of the second cache."""
ANY = Bucket("1-", 1, None, (Sample(1, 1, 2048), Sample(8, 8, 512), Sample(512)))
VALUES = {"keys": (128, 256, 512), "stream": (32, 64, 128), "rows": (32, 64, 128, 256)}
"""What may be chosen, for decode and prefill alike: a row's sums do not depend on its step."""


@dataclass(frozen=True)
class Item:
    """What one work item is about: its place in the batch, its tokens, the keys it may see.

    `query` is the row of the first token, `position` its position, `count` the tokens; keys run
    from `low` to `high`.
    """

    sequence: Expr
    group: Expr
    query: Expr
    position: Expr
    count: Expr
    low: Expr
    high: Expr


@dataclass(frozen=True)
class Memory:
    """Keys or values that lie in memory as they are: [slot, group, width], of which the elements
    from `start` on count.
    """

    buffer: tirx.Buffer
    dtype: str
    start: int = 0

    def fetch(self, slot: Expr, groups: tuple[Expr, Expr]) -> None:
        """Ask for a token's entries of a range of groups, a line of the cache at a time."""
        width = int(self.buffer.shape[2])
        step = max(1, LINE // int(bytes_of(self.dtype)))
        first = bind(groups[0] * i64(width))
        count = tirx.floordiv((groups[1] - groups[0]) * i64(width) + i64(step - 1), i64(step))
        with T.serial(i64(0), count) as line:
            at = bind(first + line * i64(step))
            place = [slot, tirx.floordiv(at, i64(width)), tirx.floormod(at, i64(width))]
            fetch(self.buffer, place, near=2)


@dataclass(frozen=True)
class Attention:
    """One attention op of a kernel, however its keys are stored: sizes, options, and how
    elements are read.

    `key(work, item, slot, d)` and `value(work, item, slot, e)` read an element where
    `slot(item, j)` is key j's place; keys lie side by side in runs of `run` (0: all of them).
    `query(work, item, i, head, d)` reads a query, whose dtype is `dtype`; `seen(item, i)` is the
    range of keys that token i sees, `visible(work, item, i, head, j)` a further condition,
    `bias(work, item, i, head, j)` what is added to a score; None for nothing. `memory` is where
    keys and values lie as they are, `factors` [slot, group] what their codes are multiplied by.
    `alone`: no two tokens share their keys, and an item is one token.
    """

    kernel: Kernel
    heads: int
    groups: int
    width: int
    value_width: int
    scale: float
    softcap: float
    slot: Callable[[Item, Expr], Expr]
    run: int
    key: Callable[[Work, Item, Expr, Expr], Expr]
    value: Callable[[Work, Item, Expr, Expr], Expr]
    query: Callable[[Work, Item, Expr, Expr, Expr], Expr]
    store: Callable[[Item, Expr, Expr, Expr, Expr], None]
    seen: Callable[[Item, Expr], tuple[Expr, Expr]]
    visible: Callable[[Work, Item, Expr, Expr, Expr], Expr] | None
    bias: Callable[[Work, Item, Expr, Expr, Expr], Expr] | None
    sink: Callable[[Work, Expr], Expr] | None
    dtype: str
    memory: tuple[Memory, Memory] | None = None
    factors: tuple[tirx.Buffer, tirx.Buffer] | None = None
    alone: bool = False

    @property
    def repeat(self) -> int:
        """Query heads of a group."""
        return self.heads // self.groups

    @property
    def in_runs(self) -> bool:
        """Whether LANES keys from a multiple of LANES on lie side by side, in pages that may be
        anywhere.
        """
        return self.run > 0 and self.run % LANES == 0

    @property
    def space(self) -> Space:
        """The tile sizes."""
        own = _own_space(self.kernel.isa, self.width, self.value_width)
        return self.kernel.chosen(ANY.name, own)

    @property
    def tokens(self) -> int:
        """Query tokens of a prefill item."""
        return 1 if self.alone else max(1, self.space.rows // self.repeat)

    def head(self, item: Item, r: Expr) -> tuple[Expr, Expr]:
        """(token within the item, head) of a row of its group."""
        if self.repeat == 1:
            return r, item.group
        token = bind(tirx.floordiv(r, i64(self.repeat)))
        return token, bind(item.group * i64(self.repeat) + tirx.floormod(r, i64(self.repeat)))

    def places(
        self, item: Item, start: Expr, *, only_own: bool = False
    ) -> Callable[[int | Expr], Expr]:
        """The slots of the keys start, start + 1, ... of a run of LANES; keys that are not there
        have the slot of another, of the sequence's own keys if `only_own`.
        """
        end = bind(tirx.max(item.high - i64(1), i64(0)))
        if self.run == 0:
            first, most = bind(self.slot(item, i64(0))), end
            return lambda i: first + tirx.min(start + i64(i), most)
        if self.in_runs:
            whole = lambda j: tirx.floordiv(j, i64(LANES)) * i64(LANES)  # noqa: E731
            held = bind(tirx.max(tirx.min(start, whole(end)), whole(item.low)))
            first = bind(self.slot(item, held))
            if only_own:
                most = bind(end - held)
                return lambda i: first + tirx.min(i64(i), most)
            return lambda i: first + i64(i)

        def each(i: int | Expr) -> Expr:
            return bind(self.slot(item, bind(tirx.max(tirx.min(start + i64(i), end), item.low))))

        return each


@dataclass(frozen=True)
class Span:
    """The part of a split that is at work: its first key `base`, and keys `begin` to `end` counted
    from there.
    """

    base: Expr
    begin: Expr
    end: Expr

    @staticmethod
    def of(split: Expr, keys: int, low: Expr, high: Expr) -> Span:
        """The keys from low to high that lie in a split of so many keys; `end` is less than
        `begin` where there are none.
        """
        base = bind(split * i64(keys))
        begin = bind(tirx.max(low - base, i64(0)))
        return Span(base, begin, bind(tirx.min(high - base, i64(keys))))

    def blocks(self, size: int) -> tuple[Expr, Expr]:
        """The blocks of so many keys that hold the span."""
        first = bind(tirx.floordiv(self.begin, i64(size)))
        return first, bind(tirx.floordiv(self.end + i64(size - 1), i64(size)))


def _own_space(isa: Isa, width: int, value_width: int) -> Space:
    """The template's own sizes for queries and values so wide."""
    if not isa.has_bf16_tiles:
        return SPACE
    rows = SPACE.rows * ROWS_AT_ONCE
    while rows > SPACE.rows and rows * (2 * width + 4 * value_width) > ROWS_BYTES:
        rows //= 2
    return replace(SPACE, rows=rows)


def attention_spaces(node: Node, target: Target) -> tuple[TuningSpace, ...]:
    """The space of an attention over ragged rows."""
    own = _own_space(isa_of(target), int(node.inputs[0].shape[-1]), int(node.shape[-1]))
    default = Choice.of({name: getattr(own, name) for name in VALUES})
    return (TuningSpace(ANY, node.shape[0], default, VALUES, dtype="bf16"),)


def splits(item: Item, size: int) -> tuple[Expr, Expr]:
    """The splits of so many keys that an item's keys lie in."""
    keys = i64(size)
    return tirx.floordiv(item.low, keys), tirx.floordiv(item.high + keys - i64(1), keys)


def result_place(
    kernel: Kernel, node: Node, results: Mapping[Node, Place]
) -> tuple[Place, dict[Node, Place]]:
    """Where an anchor's value goes, and which nodes are done with it: the node's own result, a
    view of a result that is a reshape of it, or scratch for what follows.
    """
    if node in results:
        return results[node], {node: results[node]}
    if len(results) == 1:
        ((result, place),) = results.items()
        inner = result
        while inner.op.name == "reshape":
            inner = inner.inputs[0]
        if inner is node:
            return kernel.view(place, node.shape), {result: place}
    place = kernel.scratch(node)
    return place, {node: place}


def pulled_once(kernel: Kernel, x: Node) -> dict[Node, str]:
    """x as a whole buffer only where its value by index would compute something twice."""
    kept = kept_nodes({x: kernel.places[kernel.body.inputs[0]]}, kernel.work().sources)
    return {x: "f32"} if kept else {}

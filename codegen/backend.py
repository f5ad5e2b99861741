"""What a backend tells the passes, as plain values: which ops its templates take, how it wants
weights laid out.

The passes may not import code generation; the compiler hands them a Backend.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from ..ir.graph import Graph
from ..ir.node import OPS, Node
from ..ir.ops import tensor as t
from ..ir.target import Target
from .cost import Cost
from .space import Choice, Choices, Space


@dataclass(frozen=True)
class Template:
    """A kind of kernel: the ops it is built around, and the ops it takes in before and behind
    them.

    An op in `prologue` or `epilogue` is always correct there; whether it costs a pass over
    memory is the template's affair. Those in `redone` are done anew at each read of what is larger
    than its parts. Those in `before`, which go over whole rows, are taken in as the anchor's first
    operand, where nothing else reads them and another anchor has made what they read. With
    `several`, more than one value of the epilogue may be a result, all of as many columns.
    """

    anchors: frozenset[str]
    prologue: frozenset[str] = frozenset()
    epilogue: frozenset[str] = frozenset()
    redone: frozenset[str] = frozenset()
    before: frozenset[str] = frozenset()
    several: bool = False


@dataclass(frozen=True)
class Layout:
    """A packed weight: `columns` rows of w[N, K] side by side, `depth` consecutive k of each
    next to one another.

    [N, K] becomes [ceil(N / columns), ceil(K / depth), columns, depth], without the last axis
    where depth is 1; what is added is zero. With `pairs`, that many stretches of `depth` lie
    interleaved, [.., ceil(K / (depth pairs)), columns, depth, pairs]: the low and the high halves
    of packed bytes are then consecutive k each. With `sides`, N is that many equal parts, each a
    whole number of blocks, and the blocks of the parts take turns: those that are read together
    (gate and up) lie side by side in memory. `word` is the name that packed_linear carries.
    """

    columns: int
    depth: int
    pairs: int = 1
    sides: int = 1

    @property
    def word(self) -> str:
        """The layout's name, such as n16k2."""
        depth = f"k{self.depth}" if self.depth > 1 else ""
        pairs = f"x{self.pairs}" if self.pairs > 1 else ""
        return f"n{self.columns}{depth}{pairs}" + (f"s{self.sides}" if self.sides > 1 else "")

    @staticmethod
    def parse(word: str) -> Layout:
        """The layout that a word names."""
        blocks, _, sides = word.removeprefix("n").partition("s")
        columns, _, rest = blocks.partition("k")
        depth, _, pairs = rest.partition("x")
        return Layout(int(columns), int(depth or 1), int(pairs or 1), int(sides or 1))

    def with_sides(self, sides: int) -> Layout:
        """This layout with the blocks of so many parts in turn."""
        return replace(self, sides=sides)

    def in_turn(self, blocks: Node, axis: int) -> Node:
        """Blocks along an axis, part after part, with those of the parts in turn."""
        return _exchanged(blocks, axis, self.sides)

    def in_order(self, blocks: Node, axis: int) -> Node:
        """What in_turn was given."""
        return _exchanged(blocks, axis, int(blocks.shape[axis]) // self.sides)

    def packed(self, w: Node) -> Node:
        """w[N, K] or w[E, N, K] in this layout, as pad, reshape and transpose nodes."""
        blocks = self._interleaved(w) if self.pairs > 1 else self._blocks(w)
        return self.in_turn(blocks, len(w.shape) - 2)

    def _blocks(self, w: Node) -> Node:
        *lead, n, k = (int(d) for d in w.shape)
        blocks, depth = -(-n // self.columns), -(-k // self.depth)
        after = (0,) * len(lead) + (blocks * self.columns - n, depth * self.depth - k)
        padded = t.pad(w, before=(0,) * len(after), after=after, value=0.0) if any(after) else w
        inner = (self.depth,) if self.depth > 1 else ()
        split = t.reshape(padded, shape=(*lead, blocks, self.columns, depth, *inner))
        first = len(lead)
        tail = (first + 3,) if inner else ()
        order = (*range(first), first, first + 2, first + 1, *tail)
        return t.transpose(split, permutation=order)

    def _interleaved(self, w: Node) -> Node:
        """w[.., N, K], K a multiple of depth pairs, with its stretches interleaved."""
        *lead, n, k = (int(d) for d in w.shape)
        blocks, steps = -(-n // self.columns), k // (self.depth * self.pairs)
        after = (*(0 for _ in lead), blocks * self.columns - n, 0)
        padded = t.pad(w, before=(0,) * len(after), after=after, value=0.0) if any(after) else w
        shape = (*lead, blocks, self.columns, steps, self.pairs, self.depth)
        first = len(lead)
        order = (*range(first), *(first + i for i in (0, 2, 1, 4, 3)))
        return t.transpose(t.reshape(padded, shape=shape), permutation=order)


def _exchanged(x: Node, axis: int, outer: int) -> Node:
    """x whose axis is [outer, inner], as [inner, outer]."""
    shape, size = x.shape, int(x.shape[axis])
    if outer in (1, size):
        return x
    split = t.reshape(x, shape=(*shape[:axis], outer, size // outer, *shape[axis + 1 :]))
    order = [*range(len(split.shape))]
    order[axis : axis + 2] = [axis + 1, axis]
    return t.reshape(t.transpose(split, permutation=tuple(order)), shape=shape)


@dataclass(frozen=True)
class Backend:
    """A code generator as the passes see it: templates by name, and the layout of packed weights
    by dtype; `integer_dots`: whether quantized linears want what they read in int8 too;
    `few_columns`: those of a linear that rows make as fast.
    """

    name: str
    templates: Mapping[str, Template] = field(default_factory=dict[str, Template])
    layouts: Mapping[str, Layout] = field(default_factory=dict[str, Layout])
    integer_dots: bool = False
    few_columns: int = 0

    def template_of(self, op: str) -> str | None:
        """The template that an op anchors, if one does."""
        return next((name for name, t in self.templates.items() if op in t.anchors), None)


@dataclass(frozen=True)
class KernelBody:
    """A kernel to compile: its graph, and the template chosen by grouping ("" lets the anchor
    decide).
    """

    body: Graph
    template: str = ""


@dataclass(frozen=True)
class KernelReport:
    """What became of a kernel: `function` is its name in the library (equal bodies share one),
    `ops` its ops in order, `cost` formulas over the dims, `source()` the generated text,
    which opens with the IR it came from; `choices` are those that tuning made, by bucket, kept
    under `digest`, which is empty where nothing may be chosen.
    """

    name: str
    function: str
    template: str
    ops: str
    cost: Cost
    source: Callable[[], str]
    digest: str = ""
    choices: Choices = field(default_factory=dict[str, Choice])


@dataclass(frozen=True)
class Tunable:
    """A kernel in which something may be chosen: its canonical body, what its choices are keyed by,
    its cost, and a space for each bucket.
    """

    body: Graph
    digest: str
    cost: Cost
    spaces: tuple[Space, ...]


def integer_dot(target: Target) -> str:
    """What a target makes integer dot products by, a kind that tvm/dots.py explains; nothing where
    it has none.
    """
    if target.has("avx512f", "avx512_vnni"):
        return "vnni512"
    if target.has("avx_vnni", "avx2"):
        return "vnni256"
    return "pairs" if target.has("avx2") else ""


def cpu_backend(target: Target) -> Backend:
    """What the CPU's templates take, for a target; needs no compiler to ask."""
    rows = frozenset(
        name
        for name, op in OPS.items()
        if op.traits & {"elementwise", "movement", "reduction", "index", "cache"}
        or name in _ROWS_ALSO
    )
    templates = {
        "rows": Template(rows, rows, rows),
        "linear": Template(_LINEARS, rows, rows, several=True),
        "expert_linear": Template(_EXPERT_LINEARS, rows, rows),
        "selection": Template(frozenset({"paged_selected_keys"}), rows),
        "attention": Template(
            frozenset({"attention", "paged_attention", "ragged_attention"}), rows, _RESHAPES
        ),
        "conv": Template(frozenset({"causal_conv", "state_conv"}), rows, rows, several=True),
        "scan": Template(frozenset({"linear_scan", "state_scan"}), rows, _RESHAPES, _SUMS),
        "context": Template(frozenset({"token_context", "paged_context"}), rows),
        "loop": Template(frozenset({"token_loop", "state_loop"}), rows),
    }
    layouts = {d: Layout(16, 1) for d in ("f64", "f32", "f16", "bf16", "u8")}
    layouts["u4"] = Layout(16, 2)
    if target.has("avx512f", "avx512_bf16"):
        layouts["bf16"] = Layout(16, 2)
    integer = bool(integer_dot(target))
    if integer:
        layouts |= {"u8": Layout(16, 4), "u4": Layout(16, 4, 2)}
    return Backend("tvm", templates, layouts, integer, few_columns=4)


def gpu_backend(target: Target) -> Backend:
    """What the GPU's templates take; weights are read as the model has them, row by row."""
    rows = frozenset(
        name
        for name, op in OPS.items()
        if op.traits & {"elementwise", "movement", "reduction", "index", "cache"}
        or name in _ROWS_ALSO
    )
    loads = frozenset(n for n in rows if OPS[n].traits & {"elementwise", "movement", "index"})
    templates = {
        "rows": Template(rows - {"conv1d"}, rows, rows),
        "linear": Template(
            frozenset({"linear", "quantized_linear"}), loads, loads, before=frozenset({"rms_norm"})
        ),
        "expert_linear": Template(
            frozenset({"expert_linear", "quantized_expert_linear"}), loads, loads
        ),
        "attention": Template(frozenset({"paged_attention", "ragged_attention"}), loads, _RESHAPES),
        "conv": Template(frozenset({"state_conv"}), loads),
        "scan": Template(frozenset({"state_scan"}), loads),
        "context": Template(frozenset({"token_context", "paged_context"}), loads),
        "loop": Template(frozenset({"token_loop", "ragged_loop", "state_loop"}), loads),
    }
    return Backend("triton", templates)


def backend_of(target: Target) -> Backend:
    """The backend that generates code for a target."""
    return cpu_backend(target) if target.kind == "cpu" else gpu_backend(target)


_LINEARS = frozenset(
    {"linear", "packed_linear", "packed_quantized_linear", "packed_integer_linear"}
)
_EXPERT_LINEARS = frozenset(
    {
        "expert_linear",
        "packed_expert_linear",
        "packed_quantized_expert_linear",
        "packed_integer_expert_linear",
    }
)
_ROWS_ALSO = frozenset(
    {
        "constant",
        "iota",
        "dim_value",
        "item",
        "softmax",
        "rms_norm",
        "layer_norm",
        "cumsum",
        "cumprod",
        "cummax",
        "logcumsumexp",
        "topk",
        "sort",
        "matmul",
        "conv1d",
    }
)
_RESHAPES = frozenset({"reshape"})
_SUMS = frozenset({"add", "sub", "mul", "neg", "maximum", "minimum", "where"})

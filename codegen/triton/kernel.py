"""A kernel under construction: its functions as text, the values that lie whole in memory, and its
launches in order.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from ...ir.dims import Dim, as_dim, product, upper_bound
from ...ir.errors import IRError
from ...ir.graph import Graph
from ...ir.node import Node, input_
from ...ir.ops.serving import updated
from ...ir.target import Target
from ...ir.types import BITS, CacheType, TensorType
from ..errors import CodegenError
from ..space import DEFAULT, Bucket, Choice, Choices, Space
from .elementwise import MATHEMATICS
from .pull import Place, Pull, Source
from .spaces import bucket_of
from .text import Writer


@dataclass(frozen=True)
class Start:
    """A launch: an entry, what it is given, and how many programs of how many warps run it.

    `constants` are the entry's constexprs; names in `dims` become i32 arguments. Where both of
    `unless` are equal there is nothing to do. `workspace` is scratch that compiled code may use for
    its own ends, `tile` the choice that the launch came of, where there were others. `product` are
    rows, columns and depth of a product of matrices that the vendor's library makes, of pointers x,
    w and y: there is no entry then.
    """

    entry: str
    pointers: tuple[str, ...]
    dims: tuple[str, ...]
    grid: tuple[Dim, ...]
    constants: tuple[tuple[str, int], ...] = ()
    warps: int = 4
    stages: int = 3
    unless: tuple[Dim, Dim] | None = None
    workspace: str | None = None
    tile: Choice | None = None
    product: tuple[Dim, int, int] | None = None


@dataclass(frozen=True)
class Form:
    """The launches that serve steps of up to `most` rows; None for any number."""

    most: int | None
    starts: tuple[Start, ...]


@dataclass
class Kernel:
    """The functions and launches of one kernel body.

    `pointers` are the arguments by name with their dtypes: x0, x1, .. the inputs, y0, .. the
    results, s0, .. scratch of `scratch` bytes. `refused` are tiles that a form may not have,
    `spaces` what could be chosen, `taken` what was by name of its bucket.
    """

    name: str
    body: Graph
    target: Target
    choices: Choices = field(default_factory=dict)
    refused: Mapping[int | None, Collection[Choice]] = field(default_factory=dict)
    places: dict[Node, Place] = field(default_factory=dict[Node, Place])
    pointers: dict[str, str] = field(default_factory=dict[str, str])
    scratch: list[Dim] = field(default_factory=list[Dim])
    functions: list[str] = field(default_factory=list[str])
    imports: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    starts: list[Start] = field(default_factory=list[Start])
    known: dict[str, str] = field(default_factory=dict[str, str])
    bucket: int | None = None
    spaces: list[Space] = field(default_factory=list[Space])
    taken: dict[str, Choice] = field(default_factory=dict[str, Choice])
    _least: int = 1
    _count: int = 0
    _taken: int = 0

    def begin(self, bucket: int | None, places: Mapping[Node, Place], least: int = 1) -> None:
        """Begin the form for steps of `least` up to `bucket` rows: nothing but the arguments has a
        place, and scratch is free again.
        """
        self.places, self.starts, self.bucket, self._taken = dict(places), [], bucket, 0
        self._least = least

    @property
    def rows(self) -> Bucket:
        """The rows of this form, and what stands for them where something is measured."""
        return bucket_of(bucket_name(self.bucket), self._least, self.bucket)

    def choose(self, space: Space) -> Choice:
        """What was chosen in a space, where it is one of its choices, or else its default."""
        self.spaces.append(space)
        chosen = self.choices.get(space.bucket.name, DEFAULT)
        if not chosen.values or not space.allows(chosen):
            return space.default
        self.taken[space.bucket.name] = chosen
        return chosen

    def most(self, size: Dim, otherwise: int) -> int:
        """The greatest that a dim can be, where the body's bounds tell."""
        try:
            return int(upper_bound(size, self.body.bounds))
        except (IRError, KeyError):
            return otherwise

    def argument(self, name: str, node: Node) -> Place:
        """Declare a pointer argument that holds a node's whole value."""
        place = Place.of(name, node, self.body.bounds)
        self.pointers[name] = place.dtype
        self.places[node] = place
        return place

    def scratch_for(self, shape: Sequence[Dim], dtype: str) -> Place:
        """A scratch buffer that nothing else of this form is in; forms share what there is."""
        size = product((*shape, max(BITS[dtype], 8) // 8))
        number = self._taken
        while number < len(self.scratch) and self.pointers[f"s{number}"] != dtype:
            number += 1
        if number == len(self.scratch):
            self.scratch.append(size)
        else:
            self.scratch[number] = as_dim(sympy.Max(self.scratch[number], size))
        self._taken, name = number + 1, f"s{number}"
        self.pointers[name] = dtype
        return Place.of(name, _of(TensorType(dtype, tuple(shape))), self.body.bounds)

    def named(self, suffix: str) -> str:
        """A name for a function of this kernel."""
        self._count += 1
        return f"{self.name}_{suffix}{self._count}"

    def shared(self, suffix: str, text: str) -> str:
        """The name of a function whose text has {name} for it; forms share those that are equal."""
        if text not in self.known:
            self.known[text] = self.named(suffix)
            self.functions.append(text.replace("{name}", self.known[text], 1))
        return self.known[text]

    def use(self, template: str, *functions: str) -> None:
        """Import functions of a template."""
        self.imports.setdefault(template, set()).update(functions)

    def pull(self, writer: Writer, extra: Mapping[Node, Source] | None = None) -> Pull:
        """Pulls in a function: values that lie in memory can be read, and those of `extra`."""
        pull = Pull(writer)

        def source(place: Place) -> Source:
            return lambda at, mask: pull.load(place, at, mask)

        sources = {n: source(p) for n, p in self.places.items() if isinstance(n.type, TensorType)}
        pull.sources = {**sources, **(extra or {})}
        return pull

    def text(self) -> str:
        """The file that holds the kernel's functions."""
        body = "\n\n\n".join(self.functions)
        wanted = {f for f in MATHEMATICS if f"{f}(" in body or f", {f})" in body}
        imports = {**self.imports, **({"mathematics": wanted} if wanted else {})}
        lines = ["import triton", "import triton.language as tl"]
        for template in sorted(imports):
            names = ", ".join(sorted(imports[template]))
            lines.append(f"from ferrule.codegen.triton.templates.{template} import {names}")
        return "\n".join(lines) + "\n\n\n" + body + "\n"


def bucket_name(bucket: int | None) -> str:
    """What the choice for a form is kept under."""
    return "many" if bucket is None else f"{bucket}"


def _of(kind: TensorType) -> Node:
    return input_(name="scratch", type=kind)


def function(name: str, parameters: Sequence[str], lines: Sequence[str]) -> str:
    """The text of a jitted function."""
    body = "\n".join(lines) or "    pass"
    return f"@triton.jit\ndef {name}({', '.join(parameters)}):\n{body}"


@dataclass
class Hook:
    """A hook under construction: its parameters behind `env`, what it writes and pulls."""

    parameters: tuple[str, ...]
    writer: Writer
    pull: Pull

    def function(self, name: str, env: Sequence[str]) -> str:
        """The hook's text; it takes the pointers and dims that it uses out of `env`, which holds
        those of these names.
        """
        used = environment(self.writer)
        opened = [f"    {n} = env[{i}]" for i, n in enumerate(env) if n in used]
        return function(name, ("env", *self.parameters), [*opened, *self.writer.lines])


@dataclass(frozen=True)
class Call:
    """A call of a template: `pointers` and `sizes` behind the environment, in order ("" for what is
    not there), hooks and choices by keyword.
    """

    template: str
    function: str
    operands: tuple[str | Dim | None, ...]
    hooks: Mapping[str, Hook]
    constants: Mapping[str, int | float | bool | None]
    grid: tuple[Dim, ...]
    chosen: Mapping[str, int] = field(default_factory=dict[str, int])
    warps: int = 4
    stages: int = 3
    unless: tuple[Dim, Dim] | None = None
    tile: Choice | None = None


def emit_call(kernel: Kernel, call: Call, hidden: int = 0) -> None:
    """Add the launch of an entry that calls a template; `hidden` bytes of scratch are for compiled
    code.
    """
    kernel.use(call.template, call.function)
    top = Writer()
    given = [_operand(top, o) for o in call.operands]
    env = environment(*(h.writer for h in call.hooks.values()), top)
    for keyword, hook in call.hooks.items():
        text = hook.function("{name}", env)
        given.append(f"{keyword}={kernel.shared(keyword.lower(), text)}")
    given += [f"{k}={v!r}" for k, v in call.constants.items()]
    given += [f"{k}={k}" for k in call.chosen]
    tail = "," if len(env) == 1 else ""
    lines = [f"    env = ({', '.join(env)}{tail})", f"    {call.function}(env, {', '.join(given)})"]
    dims = {d for w in (*(h.writer for h in call.hooks.values()), top) for d in w.dims}
    pointers, used = (tuple(n for n in env if (n in dims) is d) for d in (False, True))
    constants = [f"{c}: tl.constexpr" for c in call.chosen]
    text = function("{name}", (*pointers, *used, *constants), lines)
    name = kernel.shared(call.function, text)
    workspace = kernel.scratch_for((hidden,), "u8").name if hidden else None
    kernel.starts.append(
        Start(name, pointers, used, call.grid, tuple(call.chosen.items()), call.warps, call.stages,
              call.unless, workspace, call.tile)
    )  # fmt: skip


def _operand(top: Writer, operand: str | Dim | None) -> str:
    if operand is None:
        return "None"
    return top.pointer(operand) if isinstance(operand, str) else top.dim(operand)


def environment(*writers: Writer) -> tuple[str, ...]:
    """The pointers and dims that functions use, in a fixed order."""
    pointers = dict.fromkeys(a for w in writers for a in w.arguments)
    dims = sorted({d for w in writers for d in w.dims})
    return (*pointers, *dims)


def ceiling(d: Dim, by: int) -> Dim:
    """d / by, rounded up."""
    if by == 1:
        return d
    if isinstance(d, int):
        return -(-d // by)
    return as_dim(sympy.floor((d + by - 1) / sympy.Integer(by)))


def floor_by(d: Dim, by: int) -> Dim:
    """d / by, rounded down."""
    return d // by if isinstance(d, int) or by == 1 else as_dim(sympy.floor(d / sympy.Integer(by)))


def cache_type(node: Node) -> CacheType:
    """The type of a cache node."""
    if not isinstance(node.type, CacheType):
        raise CodegenError(f"a cache was wanted, not {node.type}")
    return node.type


def cache_of(node: Node) -> Node:
    """The cache argument that a chain of updates goes to; the node itself where it is no cache."""
    while isinstance(node.type, CacheType) and not node.op.has("leaf"):
        below, _ = updated(node)
        assert below is not None, node
        node = below
    return node

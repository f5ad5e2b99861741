"""The plan: what a built model runs, call by call, as plain data (standard library only).

The compiler writes a `Plan` to plan.json and the runtime reads it: nothing here knows a kernel, a
tensor or a device. Dims are integers or small expressions over the step's dims, so that one plan
serves every batch.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import prod
from types import MappingProxyType
from typing import Literal, NoReturn, TypeGuard, cast, get_args

FORMAT = 1
ALIGNMENT = 64  # bytes; kernels load whole vectors of aligned memory

Expr = int | str | tuple["str | Expr", ...]
"""A dim: 16, "T", or ("op", a, b) with op one of * + // max min."""

Kind = Literal["input", "weight", "workspace", "cache", "result"]
# Blocks in the cache pool, and states: known at load time, so they have no bounds in a plan.
POOL_DIM, STATE_DIM = "C", "Z"

DTYPE_BITS: Mapping[str, int] = MappingProxyType(
    {"f64": 64, "f32": 32, "f16": 16, "bf16": 16, "f8e4m3": 8, "f8e5m2": 8}
    | {"i64": 64, "i32": 32, "i16": 16, "i8": 8, "u8": 8, "bool": 8, "i4": 4, "u4": 4, "i2": 2}
)


class PlanError(ValueError):
    """A plan that does not hold together: the message says where, what is given and what wanted."""


def evaluate_dim(expr: Expr, dims: Mapping[str, int]) -> int:
    """The value of a dim for the dims of a step: `("+", "T", 1)` with T = 5 is 6."""
    if type(expr) is int:
        return expr
    if type(expr) is str:
        return _lookup(expr, dims)
    operator, left, right = cast("tuple[str, Expr, Expr]", expr)
    return _apply(operator, evaluate_dim(left, dims), evaluate_dim(right, dims))


def _lookup(name: str, dims: Mapping[str, int]) -> int:
    try:
        return dims[name]
    except KeyError:
        raise PlanError(f"dim {name!r} has no value; given: {', '.join(dims) or 'none'}") from None


def _apply(operator: str, left: int, right: int) -> int:
    match operator:
        case "*":
            return left * right
        case "+":
            return left + right
        case "//":
            return left // right
        case "max":
            return max(left, right)
        case "min":
            return min(left, right)
        case _:
            raise PlanError(f"no dim operator {operator!r}; known: * + // max min")


def evaluate_shape(shape: Iterable[Expr], dims: Mapping[str, int]) -> tuple[int, ...]:
    """Every dim of `shape` as a number."""
    return tuple(evaluate_dim(d, dims) for d in shape)


def dims_of(expr: Expr) -> Iterator[str]:
    """The names that a dim expression reads."""
    if isinstance(expr, str):
        yield expr
    elif isinstance(expr, tuple):
        for part in expr[1:]:
            yield from dims_of(part)


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a dense tensor; dtypes under eight bits are packed along the last dim."""
    *rows, last = tuple(shape) or (1,)
    size = (last * DTYPE_BITS[dtype] + 7) // 8
    return size * prod(rows)


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of an input or a result of an entry."""

    name: str
    dtype: str
    shape: tuple[Expr, ...]

    @staticmethod
    def from_json(value: object, where: str) -> "TensorSpec":
        """Read one `{"name", "dtype", "shape"}` object."""
        fields = _Fields(value, where, ("name", "dtype", "shape"))
        return TensorSpec(fields.text("name"), fields.dtype(), fields.shape("shape"))


@dataclass(frozen=True)
class Argument:
    """One tensor of a call: where it lives, its dtype and its shape.

    `offset` is the place in the workspace in bytes, a multiple of 64; the other kinds go by `name`.
    """

    kind: Kind
    name: str | None = None
    offset: int = 0
    dtype: str = "f32"
    shape: tuple[Expr, ...] = ()

    @staticmethod
    def from_json(value: object, where: str) -> "Argument":
        """Read one argument; a name is wanted for every kind but workspace."""
        fields = _Fields(value, where, ("kind", "name", "offset", "dtype", "shape"))
        kind = fields.choice("kind", get_args(Kind))
        name = fields.text("name", default="") or None
        if name is None and kind != "workspace":
            fields.fail("name", f"a name for an argument of kind {kind!r}")
        offset = fields.count("offset", default=0)
        if offset % ALIGNMENT:
            fields.fail("offset", f"a multiple of {ALIGNMENT}")
        return Argument(cast(Kind, kind), name, offset, fields.dtype(), fields.shape("shape"))


@dataclass(frozen=True)
class Call:
    """One kernel call of a step; `origin` is the model source, `ops` what was fused into it."""

    kernel: str
    arguments: tuple[Argument, ...]
    origin: str = ""
    ops: str = ""
    label: str = ""

    @staticmethod
    def from_json(value: object, where: str) -> "Call":
        """Read one call and its arguments."""
        fields = _Fields(value, where, ("kernel", "arguments", "origin", "ops", "label"))
        kernel = fields.text("kernel")
        where = f"{where} ({kernel})"
        arguments = tuple(
            Argument.from_json(a, f"{where}.arguments[{i}]")
            for i, a in enumerate(fields.items("arguments"))
        )
        texts = (fields.text(k, default="") for k in ("origin", "ops", "label"))
        return Call(kernel, arguments, *texts)


@dataclass(frozen=True)
class Entry:
    """A sequence of calls, run in order. `inputs` and `results` fix the order of a signature."""

    calls: tuple[Call, ...]
    inputs: tuple[TensorSpec, ...] = ()
    results: tuple[TensorSpec, ...] = ()

    @staticmethod
    def from_json(value: object, where: str) -> "Entry":
        """Read an entry; where its signature is not listed it is taken from the arguments."""
        fields = _Fields(value, where, ("calls", "inputs", "results"))
        calls = tuple(
            Call.from_json(c, f"{where}.calls[{i}]") for i, c in enumerate(fields.items("calls"))
        )
        specs = (
            tuple(
                TensorSpec.from_json(s, f"{where}.{key}[{i}]")
                for i, s in enumerate(fields.items(key, default=()))
            )
            for key in ("inputs", "results")
        )
        return Entry(calls, *specs)

    def signature(self, kind: Literal["input", "result"]) -> tuple[TensorSpec, ...]:
        """The entry's inputs or results: as listed, or in the order in which calls name them."""
        listed = self.inputs if kind == "input" else self.results
        found = {
            a.name: TensorSpec(a.name, a.dtype, a.shape)
            for call in self.calls
            for a in call.arguments
            if a.kind == kind and a.name is not None
        }
        return listed or tuple(found.values())


@dataclass(frozen=True)
class CacheSpec:
    """One cache: physically [C, block, *entry]; the same block table serves all caches. With
    `state` an entry belongs to a sequence, not to a token: physically [Z, *entry].
    """

    name: str
    dtype: str
    entry: tuple[int, ...]
    state: bool = False

    @property
    def entry_bytes(self) -> int:
        """Bytes that one token takes, or the state of one sequence."""
        return tensor_bytes(self.dtype, self.entry)

    def array(self, blocks: int, block: int, states: int) -> tuple[int, ...]:
        """The shape of the array behind it, in pools of so many blocks and states."""
        return (states, *self.entry) if self.state else (blocks, block, *self.entry)

    @staticmethod
    def from_json(value: object, where: str) -> "CacheSpec":
        """Read one cache; its entry is a list of sizes."""
        fields = _Fields(value, where, ("name", "dtype", "entry", "state"))
        entry = fields.shape("entry")
        if not all(isinstance(d, int) for d in entry):
            fields.fail("entry", "a list of integers")
        sizes = cast("tuple[int, ...]", entry)
        return CacheSpec(fields.text("name"), fields.dtype(), sizes, fields.flag("state"))


@dataclass(frozen=True)
class Plan:
    """Everything a step runs. `dims` maps a dim to its (least, greatest) value."""

    entries: Mapping[str, Entry]
    dims: Mapping[str, tuple[int, int]]
    caches: tuple[CacheSpec, ...] = ()
    block: int = 16
    workspace_bytes: int = 0
    limits: Mapping[str, int] = field(default_factory=dict[str, int])
    format: int = FORMAT

    def to_json(self) -> str:
        """The plan as JSON text, one call to a line; `Plan.from_json` reads it back."""
        return _write(self)

    @staticmethod
    def from_json(text: str | bytes) -> "Plan":
        """Read and check a plan; raises `PlanError`."""
        return _read(text)

    def check(self) -> None:
        """Raise `PlanError` where an argument names a dim, cache or place that is not there."""
        caches = {c.name for c in self.caches}
        for name, entry in self.entries.items():
            for i, call in enumerate(entry.calls):
                for j, argument in enumerate(call.arguments):
                    where = f"entries.{name}.calls[{i}] ({call.kernel}).arguments[{j}]"
                    self._check_argument(argument, caches, where)

    def _check_argument(self, argument: Argument, caches: set[str], where: str) -> None:
        known = {*self.dims, POOL_DIM, STATE_DIM}
        for name in {n for d in argument.shape for n in dims_of(d)} - known:
            raise PlanError(f"{where}: dim {name!r} is not one of {', '.join(sorted(known))}")
        if argument.kind == "cache" and argument.name not in caches:
            listed = ", ".join(sorted(caches)) or "none"
            raise PlanError(f"{where}: no cache {argument.name!r}; the plan has {listed}")
        if argument.kind == "workspace":
            end = argument.offset + tensor_bytes(argument.dtype, self.largest(argument.shape))
            if end > self.workspace_bytes:
                raise PlanError(
                    f"{where}: ends at byte {end} of a workspace of {self.workspace_bytes}"
                )

    def largest(self, shape: Iterable[Expr]) -> tuple[int, ...]:
        """The shape with every dim at its greatest value."""
        return evaluate_shape(shape, {name: high for name, (_, high) in self.dims.items()})

    def weights(self) -> dict[str, Argument]:
        """The weights that any call reads, by name."""
        return {
            a.name: a
            for entry in self.entries.values()
            for call in entry.calls
            for a in call.arguments
            if a.kind == "weight" and a.name is not None
        }

    def kernels(self) -> tuple[str, ...]:
        """The names of all kernels, each once, in the order of first use."""
        calls = (call for entry in self.entries.values() for call in entry.calls)
        return tuple(dict.fromkeys(call.kernel for call in calls))

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that a step reads, each counted once."""
        return sum(tensor_bytes(w.dtype, self.largest(w.shape)) for w in self.weights().values())

    @property
    def token_bytes(self) -> int:
        """Bytes of KV cache that one token takes, over all layers."""
        return sum(cache.entry_bytes for cache in self.caches if not cache.state)

    @property
    def state_bytes(self) -> int:
        """Bytes of recurrent state that one sequence takes, over all layers, at any length."""
        return sum(cache.entry_bytes for cache in self.caches if cache.state)

    @property
    def block_bytes(self) -> int:
        """Bytes of one block of tokens, over all caches."""
        return self.token_bytes * self.block

    def sequence_bytes(self, context: int) -> int:
        """Bytes that a sequence of `context` tokens takes: its state, and whole blocks."""
        return self.state_bytes + -(-context // self.block) * self.block_bytes

    def sequences_that_fit(self, budget: int, context: int) -> int:
        """How many sequences of `context` tokens `budget` bytes of cache and states hold."""
        return budget // max(1, self.sequence_bytes(context))


class _Fields:
    """One JSON object of a plan, read field by field; every error names the place."""

    def __init__(self, value: object, where: str, known: tuple[str, ...]) -> None:
        self.where = where
        if not isinstance(value, dict):
            raise PlanError(f"{where}: wanted an object, given {_short(value)}")
        self.value = cast("dict[str, object]", value)
        for key in self.value:
            if key not in known:
                near = get_close_matches(key, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise PlanError(f"{where}: no field {key!r}{hint} known: {', '.join(known)}")

    def fail(self, key: str, wanted: str) -> NoReturn:
        """Raise, saying what the field holds and what was wanted."""
        given = _short(self.value[key]) if key in self.value else "nothing"
        raise PlanError(f"{self.where}.{key}: wanted {wanted}, given {given}")

    def text(self, key: str, default: str | None = None) -> str:
        """A string, or the default where the field is absent or null."""
        value = self.value.get(key)
        if value is None and default is not None:
            return default
        return value if isinstance(value, str) else self.fail(key, "text")

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """A string out of `known`."""
        value = self.value.get(key)
        if isinstance(value, str) and value in known:
            return value
        self.fail(key, f"one of {', '.join(known)}")

    def dtype(self) -> str:
        """The field `dtype`."""
        return self.choice("dtype", tuple(DTYPE_BITS))

    def count(self, key: str, default: int | None = None) -> int:
        """An integer, zero or more."""
        value = self.value.get(key, default)
        return value if _is_count(value) else self.fail(key, "an integer, 0 or more")

    def flag(self, key: str) -> bool:
        """True or false; false where the field is absent."""
        value = self.value.get(key, False)
        return value if isinstance(value, bool) else self.fail(key, "true or false")

    def items(self, key: str, default: tuple[object, ...] | None = None) -> list[object]:
        """A list of anything."""
        value = self.value.get(key, default)
        if not isinstance(value, (list, tuple)):
            self.fail(key, "a list")
        return list(cast("list[object]", value))

    def shape(self, key: str) -> tuple[Expr, ...]:
        """A list of dim expressions."""
        return tuple(self._dim(key, d) for d in self.items(key))

    def _dim(self, key: str, value: object) -> Expr:
        if _is_count(value):
            return value
        if isinstance(value, str) and value.isidentifier():
            return value
        if isinstance(value, (list, tuple)):
            match cast("list[object]", value):
                case [str(operator), left, right] if operator in ("*", "+", "//", "max", "min"):
                    return (operator, self._dim(key, left), self._dim(key, right))
                case _:
                    pass
        self.fail(key, "dims: an integer, a name, or [op, a, b] with op of * + // max min")

    def pairs(self, key: str) -> dict[str, tuple[int, int]]:
        """An object of [least, greatest] pairs."""
        return {name: self._pair(key, name, pair) for name, pair in self.mapping(key).items()}

    def _pair(self, key: str, name: str, value: object) -> tuple[int, int]:
        if isinstance(value, (list, tuple)):
            match cast("list[object]", value):
                case [int(least), int(greatest)] if 0 <= least <= greatest:
                    return (least, greatest)
                case _:
                    pass
        self.fail(key, f"[least, greatest] for {name!r}")

    def mapping(self, key: str) -> dict[str, object]:
        """An object; an absent one is empty."""
        value = self.value.get(key, {})
        return (
            cast("dict[str, object]", value)
            if isinstance(value, dict)
            else self.fail(key, "an object")
        )


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _short(value: object) -> str:
    text = json.dumps(value, default=repr)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(text: str | bytes) -> Plan:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise PlanError(f"plan: not JSON: {error}") from None
    known = ("format", "dims", "entries", "caches", "block", "workspace_bytes", "limits")
    fields = _Fields(value, "plan", known)
    if (given := fields.count("format")) != FORMAT:
        raise PlanError(f"plan.format: given {given}, this version reads {FORMAT}")
    limits = fields.mapping("limits")
    if not all(map(_is_count, limits.values())):
        fields.fail("limits", "an object of integers")
    entries = {n: Entry.from_json(e, f"entries.{n}") for n, e in fields.mapping("entries").items()}
    caches = enumerate(fields.items("caches", default=()))
    plan = Plan(
        entries=entries,
        dims=fields.pairs("dims"),
        caches=tuple(CacheSpec.from_json(c, f"caches[{i}]") for i, c in caches),
        block=fields.count("block", default=16),
        workspace_bytes=fields.count("workspace_bytes", default=0),
        limits=cast("dict[str, int]", limits),
    )
    plan.check()
    return plan


def _write(plan: Plan) -> str:
    entries = ",\n".join(f"  {json.dumps(n)}: {_write_entry(e)}" for n, e in plan.entries.items())
    head = {
        "format": plan.format,
        "dims": dict(plan.dims),
        "caches": [vars(c) for c in plan.caches],
        "block": plan.block,
        "workspace_bytes": plan.workspace_bytes,
        "limits": dict(plan.limits),
    }
    lines = "".join(f'"{key}": {json.dumps(value)},\n' for key, value in head.items())
    return f'{{{lines}"entries": {{\n{entries}\n}}}}\n'


def _write_entry(entry: Entry) -> str:
    calls = ",\n   ".join(
        json.dumps({**vars(c), "arguments": [vars(a) for a in c.arguments]}) for c in entry.calls
    )
    signature = {"inputs": entry.inputs, "results": entry.results}
    lists = "".join(
        f', "{key}": {json.dumps([vars(s) for s in specs])}'
        for key, specs in signature.items()
        if specs
    )
    return f'{{"calls": [\n   {calls}]{lists}}}'

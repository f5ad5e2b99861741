"""What a GPU runs for each kernel of a plan, as plain data (standard library only): binaries, and
the launches that make up a kernel.

The compiler writes a `LaunchTable` to launches.json and the runtime reads it. Dims are those of the
kernel's own arguments, read off their shapes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from .plan import Expr, PlanError, evaluate_dim

FORMAT = 1
LAUNCHES = "launches.json"
FEED = "feed_tokens"
"""The function that puts tokens of the step before in the place of a step's own, where it is there:
tokens[i] = max(argmax[fed[i]], 0) where fed[i] is 0 or more. Its arguments: tokens i32[T],
fed i32[T], argmax i32[R], and tokens again."""
FED = "fed"
SCRATCH_ALIGNMENT = 256
"""Bytes of which the start of a scratch buffer is a multiple."""


@dataclass(frozen=True)
class Binary:
    """Machine code of one entry: its file, its symbol, and what it takes.

    `threads` of a program; `shared`, `spilled` and `stack` in bytes (of the whole program, of a
    thread); `hidden` pointers follow the arguments and are null.
    """

    file: str
    symbol: str
    threads: int
    shared: int = 0
    registers: int = 0
    spilled: int = 0
    hidden: int = 0


@dataclass(frozen=True)
class Pointer:
    """A pointer argument: the call's argument of this number, or scratch of this number."""

    kind: str
    number: int
    dtype: str


@dataclass(frozen=True)
class Launch:
    """One launch: a binary, its pointers, then its dims as i32, over a grid of programs.

    It is left out of a step in which both of `unless` are equal. `entry` and `constants` name the
    function that the binary was compiled from, in the source beside it. `workspace` is scratch that
    the binary wants for its own ends, the first of its hidden pointers.

    Where `product` is given there is no binary: rows, columns and depth of y[rows, columns] =
    x[rows, depth] w[columns, depth]^T, which the vendor's library makes of the pointers x, w and y,
    all of one dtype, with float32 sums.
    """

    binary: str
    pointers: tuple[Pointer, ...]
    dims: tuple[str, ...]
    grid: tuple[Expr, ...]
    unless: tuple[Expr, Expr] | None = None
    entry: str = ""
    constants: tuple[tuple[str, int], ...] = ()
    workspace: Pointer | None = None
    product: tuple[Expr, int, int] | None = None


@dataclass(frozen=True)
class Form:
    """The launches for up to `most` rows; None for any number."""

    most: int | None
    launches: tuple[Launch, ...]


@dataclass(frozen=True)
class Solve:
    """Where a dim is read off: an axis of an argument has the size factor dim + rest."""

    argument: int
    axis: int
    factor: int = 1
    rest: int = 0


@dataclass(frozen=True)
class Function:
    """A kernel of the plan: how its dims are found, its scratch in bytes, its forms by `rows`."""

    source: str
    rows: Expr
    dims: Mapping[str, Solve]
    scratch: tuple[Expr, ...]
    forms: tuple[Form, ...]

    def solve(self, shapes: Sequence[Sequence[int]]) -> dict[str, int]:
        """The dims for arguments of these shapes."""
        return {n: (shapes[s.argument][s.axis] - s.rest) // s.factor for n, s in self.dims.items()}

    def form(self, dims: Mapping[str, int]) -> Form:
        """The form that serves these dims."""
        rows = evaluate_dim(self.rows, dims)
        for form in self.forms:
            if form.most is None or rows <= form.most:
                return form
        raise PlanError(f"{rows} rows: the kernel was built for {self.forms[-1].most} at most")

    def scratch_offsets(
        self, dims: Mapping[str, int], alignment: int = SCRATCH_ALIGNMENT
    ) -> tuple[list[int], int]:
        """Where each scratch buffer begins, and the bytes of all."""
        offsets: list[int] = []
        end = 0
        for size in self.scratch:
            offsets.append(end)
            end += -(-evaluate_dim(size, dims) // alignment) * alignment
        return offsets, end


@dataclass(frozen=True)
class LaunchTable:
    """The functions by the names that a plan calls them by, the binaries by theirs, and the bytes
    of scratch that any call needs at most.
    """

    functions: Mapping[str, Function]
    binaries: Mapping[str, Binary]
    scratch_bytes: int = 0
    format: int = field(default=FORMAT)

    def to_json(self) -> str:
        """The table as JSON text; `from_json` reads it back."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "LaunchTable":
        """Read a table; raises PlanError where it is no table of this format."""
        try:
            value = json.loads(text)
            if value["format"] != FORMAT:
                raise PlanError(f"launches of format {value['format']}; {FORMAT} is read here")
            functions = {n: _function(f) for n, f in value["functions"].items()}
            binaries = {n: Binary(**b) for n, b in value["binaries"].items()}
            return LaunchTable(functions, binaries, int(value["scratch_bytes"]))
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"launches that cannot be read: {error!r}") from None


def _function(value: dict[str, Any]) -> Function:
    return Function(
        value["source"],
        _expr(value["rows"]),
        {n: Solve(**s) for n, s in value["dims"].items()},
        tuple(_expr(e) for e in value["scratch"]),
        tuple(Form(f["most"], tuple(_launch(s) for s in f["launches"])) for f in value["forms"]),
    )


def _launch(value: dict[str, Any]) -> Launch:
    return Launch(
        value["binary"],
        tuple(Pointer(**p) for p in value["pointers"]),
        tuple(value["dims"]),
        tuple(_expr(e) for e in value["grid"]),
        _pair(value["unless"]),
        value["entry"],
        tuple((n, c) for n, c in value["constants"]),
        Pointer(**value["workspace"]) if value.get("workspace") else None,
        _product(value.get("product")),
    )


def _product(value: Any) -> tuple[Expr, int, int] | None:
    return None if value is None else (_expr(value[0]), int(value[1]), int(value[2]))


def _pair(value: Any) -> tuple[Expr, Expr] | None:
    return None if value is None else (_expr(value[0]), _expr(value[1]))


def _expr(value: Any) -> Expr:
    if isinstance(value, list):
        operator, left, right = cast("list[Any]", value)
        return (str(operator), _expr(left), _expr(right))
    return cast(Expr, value)

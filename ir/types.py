"""Types: what a node's value is, known before it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .dims import Dim, Shape, as_shape, product, shape_text, substitute
from .errors import IRError

BITS: dict[str, int] = {
    "f64": 64, "f32": 32, "f16": 16, "bf16": 16, "f8e4m3": 8, "f8e5m2": 8,
    "i64": 64, "i32": 32, "i16": 16, "i8": 8, "u8": 8, "bool": 8, "i4": 4, "u4": 4, "i2": 2,
}  # fmt: skip
FLOATS = frozenset({"f64", "f32", "f16", "bf16", "f8e4m3", "f8e5m2"})
INTEGERS = frozenset(BITS) - FLOATS - {"bool"}


def check_dtype(dtype: str) -> str:
    """The dtype itself, or an error that lists the known ones."""
    if dtype not in BITS:
        raise IRError(f"no dtype {dtype!r}; known: {', '.join(BITS)}")
    return dtype


@dataclass(frozen=True)
class TensorType:
    """A dense tensor: element type and shape (dims may be symbolic, and are kept canonical)."""

    dtype: str
    shape: Shape

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        object.__setattr__(self, "shape", as_shape(self.shape))

    @property
    def rank(self) -> int:
        """How many dims."""
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        """Whether the elements are floating point."""
        return self.dtype in FLOATS

    def nbytes(self) -> Dim:
        """Bytes of the dense value, a part of a byte rounded up; symbolic where the shape is."""
        bits = BITS[self.dtype]
        count = product(self.shape)
        if bits >= 8:
            return product((count, bits // 8))
        if not isinstance(count, int):
            raise IRError(f"a packed tensor needs a known size, not {self}")
        return (count * bits + 7) // 8

    def with_shape(self, shape: Shape) -> TensorType:
        """The same elements in another shape."""
        return TensorType(self.dtype, shape)

    def with_dtype(self, dtype: str) -> TensorType:
        """The same shape of other elements."""
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}{shape_text(self.shape)}"


@dataclass(frozen=True)
class TupleType:
    """Several results of one node."""

    items: tuple[Type, ...]

    def __str__(self) -> str:
        return f"({', '.join(str(i) for i in self.items)})"


@dataclass(frozen=True)
class CacheType:
    """A paged cache: blocks of `block` slots, each holding one token's entry; or, where `block` is
    0, states, each holding one sequence's entry.

    Physically it is an array [C, block, *entry] of C blocks, or [Z, *entry] of Z states.
    """

    dtype: str
    block: int
    entry: tuple[int, ...]

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if self.block < 0 or any(d < 1 for d in self.entry):
            raise IRError(f"a cache's block and entry are positive, not {self}")

    @property
    def is_state(self) -> bool:
        """Whether an entry belongs to a sequence, not to a token."""
        return self.block == 0

    def array(self, count: Dim) -> Shape:
        """The shape of the array that holds so many blocks, or states."""
        return (count, *self.entry) if self.is_state else (count, self.block, *self.entry)

    def entry_bytes(self) -> int:
        """Bytes that one token takes, or the state of one sequence."""
        count = 1
        for d in self.entry:
            count *= d
        return (count * BITS[self.dtype] + 7) // 8

    def __str__(self) -> str:
        entry = ", ".join(str(d) for d in self.entry)
        if self.is_state:
            return f"state<{self.dtype}>[{entry}]"
        return f"cache<{self.dtype}>[{self.block}; {entry}]"


Type = TensorType | TupleType | CacheType


def substitute_type(t: Type, values: Mapping[str, Dim]) -> Type:
    """The type with named dims replaced."""
    if isinstance(t, TensorType):
        return t.with_shape(tuple(substitute(d, values) for d in t.shape))
    if isinstance(t, TupleType):
        return TupleType(tuple(substitute_type(i, values) for i in t.items))
    return t

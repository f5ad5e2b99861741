"""Rows that are sorted by their expert, while a model is captured.

Expert layers sort the choices of all rows by expert, count them, and put each expert to its own run
of the sorted rows. The tracer knows no such sizes, but the order of rows is of no matter to what is
done row by row: here sorting leaves the rows where they are, a run from one count's end to the next
stands for all rows, and what the runs become is joined by masks.

    cat_e f_e(x[order][end_{e-1} : end_e])     is     sum_e where(key == e, f_e(x), 0)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

Tensor = torch.Tensor
Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Rows:
    """How many rows the experts from `low` up to `high` have: some, whatever the data is."""

    low: int
    high: int

    def __add__(self, other: Any) -> Rows:
        if isinstance(other, int) and other == 0:
            return self
        if not isinstance(other, Rows) or {self.low, other.low} & {self.high, other.high} == set():
            raise TypeError("rows of experts that do not follow one another have no common number")
        return Rows(min(self.low, other.low), max(self.high, other.high))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Rows:
        if isinstance(other, Rows) and other.low == self.low and other.high < self.high:
            return Rows(other.high, self.high)
        raise TypeError("how many rows an expert has depends on the data")

    def __eq__(self, other: object) -> bool:
        if isinstance(other, int) and other != 0:
            raise TypeError("how many rows an expert has depends on the data")
        return isinstance(other, Rows) and (self.low, self.high) == (other.low, other.high)

    def __gt__(self, other: object) -> bool:
        if other != 0 or not isinstance(other, int):
            raise TypeError("how many rows an expert has depends on the data")
        return True

    __hash__ = None  # type: ignore[assignment]

    def item(self) -> Rows:
        """As an element of an array gives its number."""
        return self


class Counts(list[Rows]):
    """The counts of all experts as an array of numpy or a list has them."""

    def cumsum(self, axis: int = 0) -> Counts:
        """Where each expert's rows end."""
        return Counts(Rows(0, rows.high) for rows in self)

    def tolist(self) -> list[Rows]:
        """As a list."""
        return list(self)


def some_of_each(experts: int) -> Counts:
    """How many rows each of so many experts has."""
    return Counts(Rows(n, n + 1) for n in range(experts))


@dataclass
class _Marks:
    """What is known of a tensor: that it is the order of rows, over and modulo `by`; that it holds
    where runs end; the expert whose run it stands for; of how many experts it has the numbers;
    that it is one count.
    """

    order: bool = False
    over: int = 1
    modulo: int = 0
    ends: bool = False
    run: int | None = None
    experts: int = 0
    count: Rows | None = None


@dataclass
class _SortedRows(TorchFunctionMode):
    """Answers for sorted rows; every other call goes on as it is."""

    marks: dict[int, _Marks] = field(default_factory=dict[int, _Marks])
    alive: list[Tensor] = field(default_factory=list[Tensor])  # ids are keys
    key: Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What a call gives where it sorts rows or reads runs of them; else the call itself."""
        named = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        answer = _ANSWERS.get(name)
        found = NotImplemented if answer is None else answer(self, *args, **named)
        if found is not NotImplemented:
            return found
        result = func(*args, **named)
        if name not in ("__get__", "size", "dim"):
            self._carry((args, named), result, name)
        return result

    def _of(self, x: Any) -> _Marks:
        return self.marks.get(id(x)) or _Marks()

    def _mark(self, x: Tensor, marks: _Marks) -> Tensor:
        self.alive.append(x)
        self.marks[id(x)] = marks
        return x

    def _carry(self, given: Any, result: Any, name: str) -> None:
        """What is made of a run is of that run; what is moved is what it was."""
        leaves = [x for x in pytree.tree_leaves(given) if id(x) in self.marks]
        made = [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]
        if not leaves:
            return
        runs = {self._of(x).run for x in leaves} - {None}
        for each in made:
            marks = self._of(leaves[0]) if name in _MOVES else _Marks()
            run = runs.pop() if len(runs) == 1 else None
            runs = {run} - {None}
            if run is not None or name in _MOVES:
                self._mark(each, _Marks(**{**vars(marks), "run": run}))

    # -- order

    def sort(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The rows as they are, and their order."""
        order = self.argsort(x)
        return NotImplemented if order is NotImplemented else torch.return_types.sort((x, order))

    def argsort(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The order that rows have already."""
        if self._of(x).order:
            return x
        if not isinstance(x, Tensor) or x.dim() != 1 or isinstance(x.shape[0], int):
            return NotImplemented
        if x.is_floating_point() or x.dtype == torch.bool:
            return NotImplemented
        self.key = x
        self.alive.append(x)
        return self._mark(torch.arange(x.shape[0]), _Marks(order=True))

    def over(self, x: Any, by: Any, *args: Any, **kwargs: Any) -> Any:
        """Which token a choice is of: its place over the number of choices."""
        if not self._of(x).order or not isinstance(by, int):
            return NotImplemented
        marks = _Marks(order=True, over=by, run=self._of(x).run)
        return self._mark(torch.arange(x.shape[0]) // by, marks)

    def modulo(self, x: Any, by: Any) -> Any:
        """Which of its token's choices one is."""
        if not self._of(x).order or not isinstance(by, int):
            return NotImplemented
        marks = _Marks(order=True, modulo=by, run=self._of(x).run)
        return self._mark(torch.arange(x.shape[0]) % by, marks)

    # -- counts

    def topk(self, x: Any, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> Any:
        """Values and numbers of experts, of which there are as many as were chosen among."""
        with torch._C.DisableTorchFunction():
            found = torch.topk(x, k, dim, *args, **kwargs)
        if isinstance(x.shape[dim], int):
            self._mark(found.indices, _Marks(experts=x.shape[dim]))
        return found

    def bincount(self, x: Tensor, weights: Any = None, minlength: int = 0) -> Any:
        """How often there is each number."""
        count = minlength or self._of(x).experts
        if weights is not None or not count:
            return NotImplemented
        each = x[:, None] == torch.arange(count)
        return each.sum(0)

    def cumsum(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Where runs end, for counts."""
        if not _is_counts(x):
            return NotImplemented
        with torch._C.DisableTorchFunction():
            found = torch.cumsum(x, 0)
        return self._mark(found, _Marks(ends=True))

    def numbers(self, x: Any) -> Any:
        """Counts that depend on the data, or where runs end."""
        if not _is_counts(x):
            return NotImplemented
        counts = some_of_each(x.shape[0])
        return counts.cumsum() if self._of(x).ends else counts

    def unbind(self, x: Any, dim: int = 0) -> Any:
        """Counts one by one: each a number once it is asked for."""
        counts = self.numbers(x)
        if counts is NotImplemented:
            return NotImplemented
        with torch._C.DisableTorchFunction():
            each = torch.unbind(x)
        return tuple(self._mark(e, _Marks(count=n)) for e, n in zip(each, counts, strict=True))

    def item(self, x: Any) -> Any:
        """One count."""
        return self._of(x).count or NotImplemented

    # -- runs

    def take(self, x: Any, index: Any) -> Any:
        """All rows, for a run of them; rows in their order, for a table of rows in any."""
        run = _run_of(index)
        if run is not None:
            return self._mark(x[:], _Marks(**{**vars(self._of(x)), "run": run}))
        if self._of(x).order and _keeps_rows(index):
            with torch._C.DisableTorchFunction():
                return self._mark(x[index], self._of(x))
        marks = self._of(index)
        if marks.order and isinstance(x, Tensor) and not marks.modulo:
            rows = x.repeat_interleave(marks.over, 0) if marks.over > 1 else x[:]
            return self._mark(rows, _Marks(run=marks.run))
        if isinstance(index, tuple) and len(index) > 1 and all(map(_is_all, index[1:])):
            rows = self.take(x, index[0]) if self._of(index[0]).order else NotImplemented
            if rows is NotImplemented:
                return NotImplemented
            return self._mark(rows[(slice(None), *index[1:])], self._of(rows))
        if isinstance(index, tuple) and len(index) == 2:
            first, second = map(self._of, index)
            if first.order and first.over == second.modulo > 1:
                return self._mark(x.flatten(0, 1), _Marks(run=first.run))
        return NotImplemented

    def split(self, x: Any, sizes: Any, dim: int = 0) -> Any:
        """A run for each expert."""
        if not isinstance(sizes, Sequence) or not any(isinstance(s, Rows) for s in sizes):
            return NotImplemented
        return tuple(self._mark(x[:], _Marks(run=rows.low)) for rows in sizes)

    def cat(self, tensors: Any, dim: int = 0) -> Any:
        """What the runs became, in one."""
        runs = [self._of(x).run for x in tensors]
        if dim != 0 or self.key is None or not runs or runs != [*range(len(runs))]:
            return NotImplemented
        total = self._masked(tensors[0], 0)
        for run, rows in enumerate(tensors[1:], 1):
            total = total + self._masked(rows, run)
        return total

    def _masked(self, rows: Tensor, run: int | None) -> Tensor:
        if run is None or self.key is None:
            return rows
        mine = (self.key == run).view(-1, *(1 for _ in rows.shape[1:]))
        return torch.where(mine, rows, torch.zeros((), dtype=rows.dtype))

    def put(self, x: Tensor, index: Any, value: Any) -> Any:
        """Rows written in their order, or those of one run."""
        run, marks = _run_of(index), self._of(index)
        if run is None and not (marks.order and marks.over == 1 and not marks.modulo):
            return NotImplemented
        run = marks.run if run is None else run
        if run is None or self.key is None:
            x.copy_(value)
            return None
        mine = (self.key == run).view(-1, *(1 for _ in x.shape[1:]))
        x.copy_(torch.where(mine, value, x))
        return None

    def add_rows(
        self, x: Tensor, dim: int, index: Any, source: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Sums of the choices of each token."""
        total = self.added(x, dim, index, source, *args, **kwargs)
        if total is NotImplemented:
            return NotImplemented
        x.copy_(total)
        return x

    def added(
        self, x: Tensor, dim: int, index: Any, source: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """The tensor with the choices of each token added."""
        marks = self._of(index)
        if not marks.order or dim != 0 or "sum" not in (*args, kwargs.get("reduce", "sum")):
            return NotImplemented
        rows = self._masked(
            source, marks.run if self._of(source).run is None else self._of(source).run
        )
        return x + rows.reshape(-1, marks.over, *rows.shape[1:]).sum(1).to(x.dtype)


def _is_all(index: Any) -> bool:
    """Whether an index takes an axis whole, or puts one there."""
    return index is None or index is ... or (isinstance(index, slice) and index == slice(None))


def _keeps_rows(index: Any) -> bool:
    """Whether an index takes all rows, and puts axes of one behind them: `[:, None]`."""
    parts = index if isinstance(index, tuple) else (index,)
    return parts[:1] == (slice(None),) and all(map(_is_all, parts[1:]))


def _is_counts(x: Any) -> bool:
    """Whether a tensor is a whole number for each of so many experts, unknown as yet."""
    if not isinstance(x, Tensor) or x.dim() != 1 or not isinstance(x.shape[0], int):
        return False
    # Inside torch.vmap what is fake has no such attribute.
    fake = isinstance(x, torch._subclasses.FakeTensor) and getattr(x, "constant", x) is None
    return fake and not x.is_floating_point() and x.dtype != torch.bool


def _run_of(index: Any) -> int | None:
    """The expert whose run a slice is of."""
    first = index[0] if isinstance(index, tuple) and index else index
    if not isinstance(first, slice):
        return None
    low, high = first.start, first.stop
    if isinstance(high, Rows) and high.low == 0:
        begin = 0 if low in (None, 0) else low.high if isinstance(low, Rows) else -1
        if begin == high.high - 1:
            return begin
        raise TypeError("a run of the rows of several experts")
    return low.high if isinstance(low, Rows) and high is None else None


_MOVES = frozenset(
    {"view", "reshape", "flatten", "unsqueeze", "squeeze", "repeat", "expand", "expand_as", "to",
     "cpu", "long", "int", "contiguous", "detach", "clone", "type"}
)  # fmt: skip
_ANSWERS: Mapping[str, Function] = {
    "sort": _SortedRows.sort,
    "argsort": _SortedRows.argsort,
    **dict.fromkeys(("__floordiv__", "floor_divide", "div"), _SortedRows.over),
    **dict.fromkeys(("__mod__", "remainder"), _SortedRows.modulo),
    "topk": _SortedRows.topk,
    "bincount": _SortedRows.bincount,
    "cumsum": _SortedRows.cumsum,
    **dict.fromkeys(("tolist", "numpy"), _SortedRows.numbers),
    "unbind": _SortedRows.unbind,
    "item": _SortedRows.item,
    "__getitem__": _SortedRows.take,
    **dict.fromkeys(("split", "split_with_sizes"), _SortedRows.split),
    **dict.fromkeys(("cat", "concat", "vstack"), _SortedRows.cat),
    "__setitem__": _SortedRows.put,
    **dict.fromkeys(("index_add_", "scatter_add_", "scatter_reduce_"), _SortedRows.add_rows),
    **dict.fromkeys(("index_add", "scatter_add", "scatter_reduce"), _SortedRows.added),
}


@contextmanager
def rows_as_they_are() -> Iterator[None]:
    """Let sorted rows stay where they are, and runs of them stand for all."""
    with _SortedRows():
        yield

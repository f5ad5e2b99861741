"""Rows that the data chooses, while a model is captured.

Expert layers loop over `torch.where(chosen == expert)`, take the rows there, and add what becomes
of them to the rows that they came from. The tracer knows no such sizes. Here a mask stands for all
of its places, in order: reading at them takes every row, writing at them is masked. Between the two
a model computes row by row, or the passes refuse it: what mixes rows mixes tokens. A condition such
as `mask.any()` holds: what it guards has no rows where it does not.

    y[i] += f(x[i])  for i = where(m)     is     y += where(m, f(x), 0)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from .sorted_rows import some_of_each

Tensor = torch.Tensor
Function = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class _Places:
    """Where a mask holds: numbers along one of its axes."""

    mask: Tensor
    axis: int


@dataclass(frozen=True, eq=False)
class _Sum:
    """Rows taken from a tensor, and what was added to them."""

    source: Tensor
    places: tuple[_Places, ...]
    added: Any = None


class _ChosenRows(TorchFunctionMode):
    """Answers for places that the data chooses; every other call goes on as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[int, _Places] = {}
        self.tables: dict[int, Tensor] = {}  # of nonzero: the mask
        self.known: dict[int, Tensor] = {}  # numbers of experts, real tensors in a trace of fakes
        self.sums: dict[int, _Sum] = {}
        self.some: set[int] = set()
        self.counts: dict[int, tuple[Tensor, int]] = {}  # of bincount: what, and how many numbers
        self.alive: list[Any] = []  # ids are keys: what they name must live as long as the mode

    def __torch_function__(
        self,
        func: Function,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """What a call gives where it finds or uses places; else the call itself."""
        named = dict(kwargs or {})
        if args and id(args[0]) in self.known and self._all_known(args, named):
            return self._counted(func, args, named)
        name = getattr(func, "__name__", "")
        answer = _ANSWERS.get(name)
        if answer is not None:
            found = answer(self, *args, **named)
            if found is not NotImplemented:
                return found
        if name in _OF_SHAPE:
            return func(*args, **named)
        plain: tuple[Any, dict[str, Any]] = pytree.tree_map(self._plain, (args, named))
        return func(*plain[0], **plain[1])

    def _plain(self, leaf: Any) -> Any:
        """What stands for itself elsewhere: the places that the data will choose, and numbers."""
        if id(leaf) in self.places:
            found = self.places[id(leaf)]
            return torch.nonzero(found.mask, as_tuple=True)[found.axis]
        if id(leaf) in self.tables:
            return torch.nonzero(self.tables[id(leaf)])
        if id(leaf) in self.counts:
            x, minlength = self.counts[id(leaf)]
            return torch.bincount(x, minlength=minlength)
        if id(leaf) in self.known:
            number = _numbers_of(leaf)
            return number if leaf.dim() == 0 else torch.tensor(number)
        return leaf

    # -- numbers that are known

    def _all_known(self, args: Any, kwargs: Any) -> bool:
        leaves = pytree.tree_leaves((args, kwargs))
        return all(id(leaf) in self.known for leaf in leaves if isinstance(leaf, Tensor))

    def _counted(self, func: Function, args: Any, kwargs: Any) -> Any:
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            result = func(*args, **kwargs)
        return pytree.tree_map(self._note_known, result)

    def _note_known(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            self.known[id(leaf)] = self._kept(leaf)
        return leaf

    def _kept(self, value: Any) -> Any:
        self.alive.append(value)
        return value

    # -- places

    def where(self, condition: Any, *rest: Any, **kwargs: Any) -> Any:
        """The places of a mask, one tensor an axis; `where` of three is another matter."""
        if rest or kwargs or not isinstance(condition, Tensor) or condition.dim() == 0:
            return NotImplemented
        mask = self._kept(condition if condition.dtype == torch.bool else condition != 0)
        return tuple(self._numbers(mask, axis) for axis in range(mask.dim()))

    def nonzero(self, condition: Tensor, as_tuple: bool = False) -> Any:
        """The places of a mask as a tuple of tensors or as one table [places, axes]."""
        if as_tuple or condition.dim() == 0:
            return self.where(condition)
        columns = self.where(condition)
        table = self._kept(torch.stack(columns, dim=1))
        self.tables[id(table)] = self.places[id(columns[0])].mask
        return table

    def _numbers(self, mask: Tensor, axis: int) -> Tensor:
        # As many as there are places; what stands here is not read.
        made = self._kept(torch.arange(math.prod(mask.shape), device=mask.device))
        self.places[id(made)] = _Places(mask, axis)
        return made

    def unbind(self, x: Any, dim: int = 0) -> Any:
        """The rows of a table as numbers, where the mask's sizes are known; its columns; counts."""
        if id(x) in self.counts:
            return tuple(some_of_each(self.counts[id(x)][1]))
        mask = self.tables.get(id(x))
        if mask is None:
            return NotImplemented
        if dim in (1, -1):
            return tuple(self._numbers(mask, axis) for axis in range(mask.dim()))
        if mask.dim() != 1 or not isinstance(mask.shape[0], int):
            return NotImplemented
        with _disable_current_modes(), torch._C.DisableTorchFunction():
            rows = [torch.tensor([n]) for n in range(mask.shape[0])]
        return tuple(map(self._note_known, rows))

    def tolist(self, x: Any) -> Any:
        """The numbers of all places, where the mask's size is known; of counts, that they are."""
        if id(x) in self.counts:
            return some_of_each(self.counts[id(x)][1])
        mask = self._line(x)
        if mask is None or not isinstance(mask.shape[0], int):
            return NotImplemented
        return [[n] for n in range(mask.shape[0])] if id(x) in self.tables else [*range(len(mask))]

    def same(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Places in another shape or dtype: a table of one column is a line of numbers."""
        mask = self._line(x)
        flat = all(not isinstance(a, int) or a == -1 for a in args)
        return NotImplemented if mask is None or not flat or kwargs else self._numbers(mask, 0)

    def _line(self, x: Any) -> Tensor | None:
        found = self.places.get(id(x))
        mask = self.tables.get(id(x)) if found is None else found.mask
        return mask if mask is not None and mask.dim() == 1 else None

    # -- conditions

    def any(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Whether a mask holds anywhere."""
        if args or kwargs or not isinstance(x, Tensor) or x.dtype != torch.bool:
            return NotImplemented
        with torch._C.DisableTorchFunctionSubclass():
            found = self._kept(torch.logical_or(x, x).any())
        self.some.add(id(found))
        return found

    def truth(self, x: Any) -> Any:
        """Yes, where the question is whether there are any rows."""
        return True if id(x) in self.some else NotImplemented

    def bincount(self, x: Tensor, weights: Any = None, minlength: int = 0) -> Any:
        """How often there is each number."""
        if weights is not None or minlength < 1:
            return NotImplemented
        # The tracer knows no length for it; what stands here is not read.
        made = self._kept(torch.zeros(minlength, dtype=torch.int64))
        self.counts[id(made)] = (x, minlength)
        return made

    # -- rows

    def take(self, x: Any, index: Any) -> Any:
        """Every row, for rows at places."""
        if id(x) in self.tables and isinstance(index, tuple) and len(index) == 2:
            every, axis = index
            if every == slice(None) and isinstance(axis, int):
                return self._numbers(self.tables[id(x)], axis)
        parts = self._parts(x, index)
        if parts is None:
            return NotImplemented
        basic, places = parts
        if not places:
            return self._numbered(x, basic) if self._has_numbers(index) else NotImplemented
        plain = x[tuple(slice(None) if isinstance(p, _Places) else p for p in basic)]
        first = _first_axis(basic)
        if first is None or not _fits(plain, places, first):
            return NotImplemented
        made = self._kept(_spread_rows(plain, places, first).clone())
        if all(p == slice(None) for p in basic[len(places) :]):
            self.sums[id(made)] = _Sum(x, places)
        return made

    def select(self, x: Any, dim: int, index: Any) -> Any:
        """Rows at places, by another name."""
        if id(index) not in self.places or dim not in (0, -x.dim()):
            return NotImplemented
        return self.take(x, index)

    def add(self, x: Any, other: Any, **kwargs: Any) -> Any:
        """A sum that remembers which rows it adds to."""
        known = self.sums.get(id(x))
        if known is None or known.added is not None or kwargs:
            return NotImplemented
        made = self._kept(torch.add(x, other))
        if made.shape == x.shape:
            self.sums[id(made)] = _Sum(known.source, known.places, other)
        return made

    def put(self, x: Tensor, index: Any, value: Any) -> Any:
        """A masked write of every row, for a write of rows at places."""
        parts = self._parts(x, index)
        if parts is None or not isinstance(value, Tensor):
            return NotImplemented
        basic, places = parts
        whole = all(p == slice(None) for p in basic[len(places) :])
        if not places or not whole or not _fits(x, places, 0):
            return NotImplemented
        known = self.sums.get(id(value))
        same = known is not None and known.source is x and _alike(known.places, places)
        if known is not None and same and known.added is not None:
            return self._write(x, places, known.added, adds=True)
        return self._write(x, places, value, adds=False)

    def index_add(self, x: Tensor, dim: int, index: Any, source: Tensor, **kwargs: Any) -> Any:
        """A masked sum, for sums into rows at places."""
        places = self.places.get(id(index))
        if places is None or dim not in (0, -x.dim()) or kwargs or not _fits(x, (places,), 0):
            return NotImplemented
        self._write(x, (places,), source, adds=True)
        return x

    def _write(self, x: Tensor, places: tuple[_Places, ...], value: Any, *, adds: bool) -> None:
        mask, axes = places[0].mask, [p.axis for p in places]
        rest = x.shape[len(axes) :]
        count = math.prod(mask.shape)
        value = torch.as_tensor(value, dtype=x.dtype).expand(count, *rest)
        value = value.reshape(*mask.shape, *rest) if mask.dim() > 1 else value
        wide = mask.view(*mask.shape, *(1 for _ in rest))
        others = [a for a in range(mask.dim()) if a not in axes]
        order = [*(sorted(axes).index(a) for a in axes), *range(len(axes), x.dim())]
        if adds or others:
            value = torch.where(wide, value, torch.zeros((), dtype=x.dtype))
            value = value.sum(others) if others else value
        plain = order == [*range(x.dim())]
        if adds:
            x.add_(value if plain else value.permute(order))
            return
        hit = wide.any(dim=others[0]) if len(others) == 1 else wide
        hit, value = (hit, value) if plain else (hit.permute(order), value.permute(order))
        x.copy_(torch.where(hit, value, x))

    def _parts(self, x: Any, index: Any) -> tuple[list[Any], tuple[_Places, ...]] | None:
        """The parts of an index, masks as the places of their axes; None where it has others."""
        if not isinstance(x, Tensor):
            return None
        parts: list[Any] = []
        for each in index if isinstance(index, tuple) else (index,):
            if id(each) in self.places:
                parts.append(self.places[id(each)])
            elif id(each) in self.known:
                if each.numel() != 1 or each.dim() > 1:
                    return None
                number = _numbers_of(each)
                number = number if each.dim() == 0 else number[0]
                parts.append(number if each.dim() == 0 else slice(number, number + 1))
            elif isinstance(each, Tensor) and each.dtype == torch.bool and each.dim() > 0:
                parts.extend(_Places(each, axis) for axis in range(each.dim()))
            elif each is None or isinstance(each, (int, slice)):
                parts.append(each)
            else:
                return None
        places = tuple(p for p in parts if isinstance(p, _Places))
        same = all(p.mask is places[0].mask for p in places)
        distinct = len({p.axis for p in places}) == len(places)
        return (parts, places) if same and distinct else None

    def _numbered(self, x: Tensor, parts: list[Any]) -> Any:
        """x at a known number; where x has no such row, no place has the number: any row does."""
        first = parts[0]
        if isinstance(first, int) and isinstance(x.shape[0], int):
            parts = [min(first, x.shape[0] - 1), *parts[1:]]
        return x[tuple(parts)]

    def _has_numbers(self, index: Any) -> bool:
        return any(id(i) in self.known for i in (index if isinstance(index, tuple) else (index,)))


def _numbers_of(known: Tensor) -> Any:
    """The elements as Python has them: outside the trace, which would note that it was asked."""
    with _disable_current_modes(), torch._C.DisableTorchFunction():
        return known.tolist()


def _first_axis(parts: Sequence[Any]) -> int | None:
    """The axis of the basic index's result at which its places begin, in a row; None if apart."""
    at = [n for n, p in enumerate(parts) if isinstance(p, _Places)]
    if at != [*range(at[0], at[-1] + 1)]:
        return None
    return sum(not isinstance(p, int) for p in parts[: at[0]])


def _fits(x: Tensor, places: tuple[_Places, ...], first: int) -> bool:
    """Whether the axes of x from the first on are as long as the mask's."""
    if x.dim() < first + len(places):
        return False
    missing = places[0].mask.dim() - len(places)
    sizes = [(x.shape[first + n], p.mask.shape[p.axis]) for n, p in enumerate(places)]
    return missing <= 1 and all(bool(a == b) for a, b in sizes)


def _alike(a: Sequence[_Places], b: Sequence[_Places]) -> bool:
    return [(id(p.mask), p.axis) for p in a] == [(id(p.mask), p.axis) for p in b]


def _spread_rows(x: Tensor, places: tuple[_Places, ...], first: int) -> Tensor:
    """x with its axes from the first on as one: a row for each place of the mask, in order."""
    mask, axes = places[0].mask, [p.axis for p in places]
    lead, rest = x.shape[:first], x.shape[first + len(axes) :]
    order = sorted(range(len(axes)), key=lambda n: axes[n])
    if order != [*range(len(axes))]:
        after = range(first + len(axes), x.dim())
        x = x.permute([*range(first), *(first + n for n in order), *after])
    if mask.dim() == 1:
        return x
    missing = [a for a in range(mask.dim()) if a not in axes]
    for axis in missing:
        x = x.unsqueeze(first + axis)
    wide = x.expand(*lead, *mask.shape, *rest) if missing else x
    return wide.flatten(first, first + mask.dim() - 1)


_OF_SHAPE = frozenset({"__get__", "numel", "nelement", "size", "dim", "__len__", "is_complex"})
_ANSWERS: Mapping[str, Function] = {
    "where": _ChosenRows.where,
    "nonzero": _ChosenRows.nonzero,
    "argwhere": _ChosenRows.nonzero,
    "unbind": _ChosenRows.unbind,
    "tolist": _ChosenRows.tolist,
    **dict.fromkeys(
        ("squeeze", "flatten", "view", "reshape", "to", "long", "contiguous", "detach"),
        _ChosenRows.same,
    ),
    "any": _ChosenRows.any,
    "__bool__": _ChosenRows.truth,
    "bincount": _ChosenRows.bincount,
    "__getitem__": _ChosenRows.take,
    "index_select": _ChosenRows.select,
    **dict.fromkeys(("add", "__add__", "__iadd__", "add_"), _ChosenRows.add),
    "__setitem__": _ChosenRows.put,
    "index_add_": _ChosenRows.index_add,
}


@contextmanager
def all_rows_for_chosen() -> Iterator[None]:
    """Let masks stand for all of their rows."""
    with _ChosenRows():
        yield

"""Binds the calls of a plan to kernels and memory, once for each set of dims."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple, Protocol

from ..ir.plan import Argument, Call, Entry, Plan, PlanError, evaluate_shape, tensor_bytes
from .call_list import CallList, Calls
from .errors import StepError
from .ffi import tvm_ffi
from .tensors import Array, aligned_bytes, place, to_tensor
from .weights import Weights

Kernel = Callable[..., None]
Dims = Mapping[str, int]
Tensors = tuple[tvm_ffi.Tensor, ...]
BoundCall = tuple[Kernel, Tensors, Call]
Choose = Callable[[list[tvm_ffi.Tensor]], Tensors]


class _Order(NamedTuple):
    """An entry's arguments, each once, and its calls, which choose theirs among them."""

    arguments: tuple[Argument, ...]
    calls: tuple[tuple[Kernel, Choose, Call], ...]


class Kernels(Protocol):
    """What binding needs of a library."""

    def __getitem__(self, name: str) -> Kernel: ...

    def call_list(self, calls: Calls) -> CallList | None:
        """The calls as the library itself makes them; None where it has no means for it."""
        ...


@dataclass(frozen=True)
class Bound:
    """The calls of an entry for some dims; `together` makes them all at once."""

    calls: tuple[BoundCall, ...]
    together: CallList | None


class Binder:
    """The memory of one plan, and its calls bound to it.

    `steps` are byte buffers for inputs and results, by name: a tensor lies at the start of its
    buffer, whatever its shape in a step. Weights are bound once; what depends on dims is kept for
    the `variants` sets of dims used last.
    """

    def __init__(
        self,
        plan: Plan,
        kernels: Kernels,
        weights: Weights | Mapping[str, Array],
        caches: Mapping[str, Array],
        steps: Mapping[str, Array],
        variants: int = 64,
    ) -> None:
        self.plan = plan
        self.workspace = aligned_bytes(plan.workspace_bytes)
        self._kernels = kernels
        named = {name: kernels[name] for name in plan.kernels()}
        self._steps = steps
        self._weights = {n: to_tensor(_weight(weights, a)) for n, a in plan.weights().items()}
        self._caches = {n: to_tensor(a) for n, a in caches.items()}
        self._orders = {name: self._order(entry, named) for name, entry in plan.entries.items()}
        self._variants = variants
        self._bound: OrderedDict[tuple[object, ...], Bound] = OrderedDict()

    def bind(self, entry: str, dims: Dims) -> Bound:
        """The calls of an entry for these dims, ready to run."""
        key = (entry, *dims.items())
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bind(entry, dims)
            self._bound[key] = bound
            if len(self._bound) > self._variants:
                self._bound.popitem(last=False)
        else:
            self._bound.move_to_end(key)
        return bound

    def _order(self, entry: Entry, kernels: Mapping[str, Kernel]) -> _Order:
        places: dict[Argument, int] = {}
        calls: list[tuple[Kernel, Choose, Call]] = []
        for call in entry.calls:
            chosen = [places.setdefault(a, len(places)) for a in call.arguments]
            calls.append((kernels[call.kernel], _choose(chosen), call))
        return _Order(tuple(places), tuple(calls))

    def _bind(self, entry: str, dims: Dims) -> Bound:
        if entry not in self._orders:
            raise PlanError(f"no entry {entry!r}; the plan has {', '.join(self._orders)}")
        order = self._orders[entry]
        tensors = [self._tensor(argument, dims) for argument in order.arguments]
        calls = tuple((kernel, choose(tensors), call) for kernel, choose, call in order.calls)
        return Bound(calls, self._kernels.call_list([(k, given) for k, given, _ in calls]))

    def _tensor(self, argument: Argument, dims: Dims) -> tvm_ffi.Tensor:
        if argument.kind == "weight":
            return self._weights[argument.name or ""]
        if argument.kind == "cache":
            return self._caches[argument.name or ""]
        return to_tensor(self.view(argument, dims))

    def view(self, argument: Argument, dims: Dims) -> Array:
        """The memory of an input, result or workspace argument, as an array."""
        shape = evaluate_shape(argument.shape, dims)
        if argument.kind == "workspace":
            return place(self.workspace, argument.offset, argument.dtype, shape)
        memory = self._steps.get(argument.name or "")
        if memory is None:
            listed = ", ".join(self._steps)
            raise PlanError(f"no {argument.kind} {argument.name!r}; a step has {listed}")
        if (size := tensor_bytes(argument.dtype, shape)) > memory.nbytes:
            raise PlanError(f"{argument.name} {shape}: {size} bytes of a buffer of {memory.nbytes}")
        return place(memory, 0, argument.dtype, shape)


def run_bound(bound: Bound) -> None:
    """Run bound calls in order; an error names the kernel, its ops and its origin."""
    if bound.together is not None:
        failed = bound.together.run()
        if failed is not None:
            place, message = failed
            raise _failed(bound.calls[place][-1], message)
        return
    call = None
    try:
        for kernel, arguments, call in bound.calls:  # noqa: B007 (call is read by the handler)
            kernel(*arguments)
    except Exception as error:
        raise _failed(call, str(error)) from error


def run_timed(bound: Bound) -> list[float]:
    """Run bound calls in order as `run_bound` does, and give the seconds of each."""
    call, times, clock = None, list[float](), time.perf_counter
    try:
        begin = clock()
        for kernel, arguments, call in bound.calls:  # noqa: B007 (call is read by the handler)
            kernel(*arguments)
            end = clock()
            times.append(end - begin)
            begin = end
    except Exception as error:
        raise _failed(call, str(error)) from error
    return times


def _failed(call: Call | None, error: str) -> StepError:
    assert call is not None, "only a call raises"
    ops = f" ({call.ops})" if call.ops else ""
    origin = f" from {call.origin}" if call.origin else ""
    return StepError(f"kernel {call.kernel!r}{ops}{origin} failed: {error}")


def _choose(places: list[int]) -> Choose:
    """What takes the tensors of these places out of a list."""
    if len(places) > 1:
        return itemgetter(*places)
    return lambda tensors: tuple(tensors[place] for place in places)


def _weight(weights: Weights | Mapping[str, Array], argument: Argument) -> Array:
    name, shape = argument.name or "", evaluate_shape(argument.shape, {})
    if isinstance(weights, Weights):
        return weights.select(name, argument.dtype, shape)
    return weights[name]

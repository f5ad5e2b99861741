"""What there is to tune in a plan: each kernel's spaces, the sizes to measure them at, and the
candidates that the cost model leaves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..codegen.backend import KernelBody, Tunable
from ..codegen.space import DEFAULT, Burden, Choice, Sample, Space, prune
from ..ir.dims import Dim, names_in, substitute
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.plan import Argument, Call, Plan, dims_of
from ..ir.target import Target
from .hardware import Hardware
from .trial_arguments import step_dims

OVERLAP = 0.2  # of the shorter of reading and computing, what the longer does not hide


@dataclass(frozen=True)
class Task:
    """One bucket of one kernel: what it is called with, how often in a step, at which sizes it is
    measured. `indices` is what whole numbers among its arguments stay below.
    """

    kernel: str
    ops: str
    calls: int
    tunable: Tunable
    space: Space
    samples: tuple[Sample, ...]
    arguments: tuple[Argument, ...]
    bounds: Mapping[str, tuple[int, int]]
    block: int
    indices: int

    @property
    def name(self) -> str:
        """The kernel and its bucket."""
        return f"{self.kernel} [{self.space.bucket.name}]"

    @property
    def body(self) -> Graph:
        """The kernel's canonical body."""
        return self.tunable.body

    def candidates(self, machine: Hardware) -> tuple[Choice, ...]:
        """The choices that the model does not rule out, likeliest first."""
        return prune(self.space.choices(), lambda choice: self.seconds(choice, machine))

    def refined(self, winner: Choice, machine: Hardware) -> tuple[Choice, ...]:
        """The choices near a winner that the model does not rule out."""
        return prune(self.space.refined(winner), lambda choice: self.seconds(choice, machine))

    def weight(self, machine: Hardware) -> float:
        """The seconds that no choice goes below, of all calls of a step at all samples."""
        return self.calls * self.seconds(DEFAULT, machine)

    def expected(self, machine: Hardware) -> float:
        """How many times as fast as the template's own the model takes the likeliest choice for."""
        found = self.candidates(machine)
        if not found:
            return 0.0
        return self.seconds(self.space.default, machine) / self.seconds(found[0], machine)

    def seconds(self, choice: Choice, machine: Hardware) -> float:
        """What the model says a choice takes at all samples together; the roofline for DEFAULT."""
        return sum(self._seconds(choice, sample, machine) for sample in self.samples)

    def _seconds(self, choice: Choice, sample: Sample, machine: Hardware) -> float:
        cost, dims = self.tunable.cost, self._body_dims(sample)
        burden = self.space.burden(choice, sample.tokens) if choice.values else Burden()
        moved = _number(cost.bytes_read, dims) + _number(cost.bytes_written, dims)
        operations = _number(cost.operations, dims) * burden.operations
        reading = machine.seconds(moved * burden.bytes, 0.0)
        computing = machine.seconds(0.0, operations, self.space.dtype)
        return max(reading, computing) + OVERLAP * min(reading, computing)

    def _body_dims(self, sample: Sample) -> dict[str, int]:
        dims = step_dims(sample, self.bounds, self.block)
        # A kernel of the rows that need logits is written over T, as its twin over all tokens is.
        tokens = {"T": sample.tokens} if "T" in dims else {}
        return {**dims, **tokens, "L": max(sample.context, sample.tokens)}


def tasks_of(plan: Plan, bodies: Mapping[str, KernelBody], target: Target) -> list[Task]:
    """The buckets of all kernels of a plan in which something may be chosen; equal kernels once."""
    found: dict[str, tuple[Call, Tunable, int]] = {}
    for name, kernel in bodies.items():
        calls = _calls(plan, name)
        made = tunable_of(kernel.body, target) if calls else None
        if made is None:
            continue
        first, _, before = found.get(made.digest, (calls[0], made, 0))
        found[made.digest] = (first, made, before + len(calls))
    return [t for call, made, count in found.values() for t in _tasks(plan, call, made, count)]


def tunable_of(body: Graph, target: Target) -> Tunable | None:
    """What may be chosen in a kernel, by the backend of a target; None where nothing may be."""
    if target.kind == "cpu":
        from ..codegen.tvm import tunable
    else:
        from ..codegen.triton.digest import tunable
    return tunable(body, target)


def _calls(plan: Plan, kernel: str) -> list[Call]:
    """The calls of a kernel in one step: entries share them."""
    for entry in plan.entries.values():
        if calls := [c for c in entry.calls if c.kernel == kernel]:
            return calls
    return []


def _tasks(plan: Plan, call: Call, made: Tunable, count: int) -> Iterator[Task]:
    for space in made.spaces:
        samples = _samples(plan, call, space)
        if samples:
            yield Task(
                kernel=call.kernel,
                ops=call.ops,
                calls=count,
                tunable=made,
                space=space,
                samples=samples,
                arguments=call.arguments,
                bounds=dict(plan.dims),
                block=plan.block,
                indices=_indices(made.body),
            )


def _samples(plan: Plan, call: Call, space: Space) -> tuple[Sample, ...]:
    """The sizes to measure a bucket at: up to what the plan allows; one where the rows are fixed,
    as they are in a module, whose dims are taken at their largest.
    """
    bounds = {name: high for name, (_, high) in plan.dims.items()}
    if "T" in bounds and names_in(space.rows):
        context = plan.limits.get("max_context", bounds.get("M", 1) * plan.block)
        return space.bucket.within(_most(call, bounds), context)
    rows = _number(space.rows, bounds)
    inside = space.bucket.low <= rows <= (space.bucket.high or rows)
    return (Sample(rows),) if inside else ()


def _most(call: Call, bounds: Mapping[str, int]) -> int:
    """The most rows that a call of a language model's step has; of those that need logits, one a
    sequence, though who asks for the scores of a prompt needs more.
    """
    names = {n for a in call.arguments for d in a.shape for n in dims_of(d)}
    by_rows = "R" in names and "T" not in names
    return min(bounds["R"], bounds.get("N", bounds["R"])) if by_rows else bounds["T"]


def _number(value: Dim, dims: Mapping[str, int]) -> int:
    number = substitute(value, dims)
    if not isinstance(number, int):
        raise IRError(f"{value} is no number for {dims}")
    return number


def _indices(body: Graph) -> int:
    """The number of experts of a kernel that chooses among them, else 1."""
    shapes = [n.inputs[1].shape for n in body.nodes() if n.op.name.endswith("expert_linear")]
    return min((int(s[0]) for s in shapes if isinstance(s[0], int)), default=1)

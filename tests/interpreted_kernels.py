"""Kernel bodies lowered for a GPU and run through Triton's interpreter, against the reference."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from ferrule.codegen.backend import KernelBody
from ferrule.codegen.triton.build import build_kernels
from ferrule.codegen.triton.kernel import cache_of
from ferrule.compiler.check_kernels import as_torch
from ferrule.compiler.interpreted import InterpretedDriver
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import substitute
from ferrule.ir.graph import Graph
from ferrule.ir.launches import LAUNCHES, LaunchTable
from ferrule.ir.node import Node
from ferrule.ir.plan import Argument, Call, Entry, Plan, tensor_bytes
from ferrule.ir.target import Target
from ferrule.ir.types import TensorType
from ferrule.runtime.cuda.binding import Binding
from ferrule.runtime.tensors import place
from kernels import as_array, compare, value_of


class Interpreted:
    """Bodies lowered for a target, in one interpreting process; `close` ends it."""

    def __init__(self, bodies: Mapping[str, Graph], target: str = "cuda:sm_90") -> None:
        self.bodies = bodies
        self._folder = tempfile.TemporaryDirectory()
        self.path = Path(self._folder.name)
        wanted = {name: KernelBody(body) for name, body in bodies.items()}
        self.reports = build_kernels(wanted, Target.parse(target), self.path, machine_code=False)
        self.table = LaunchTable.from_json((self.path / LAUNCHES).read_bytes())
        self.driver = InterpretedDriver(self.path, 16 << 20)

    def close(self) -> None:
        self.driver.close()
        self._folder.cleanup()

    def check(
        self, name: str, inputs: Mapping[str, torch.Tensor] | None = None, **dims: int
    ) -> None:
        """Run a kernel on random inputs (or those given) at some dims, and compare every result."""
        body = self.bodies[name]
        values = [value_of(i, inputs or {}, dims) for i in body.inputs]
        wanted = evaluate(body, [v.clone() for v in values], {}, dims, wide=True)
        for node, have, want in zip(
            body.outputs, self.run(name, values, dims), wanted, strict=True
        ):
            compare(node.type.dtype, have, want, f"{name} {node} at {dims}")

    def run(
        self, name: str, values: list[torch.Tensor], dims: Mapping[str, int]
    ) -> list[torch.Tensor]:
        """The results; memory is poisoned before, appended caches are given back."""
        body = self.bodies[name]
        outputs = [o for o in body.outputs if isinstance(o.type, TensorType)]
        start = self.driver.allocate(0)
        addresses: list[int] = []
        arguments: list[Argument] = []
        given = dict(zip(body.inputs, values, strict=True))
        for node in (*body.inputs, *outputs):
            value = given.get(node) if len(arguments) < len(values) else None
            shape = tuple(value.shape) if value is not None else _shape(node, dims)
            addresses.append(self.driver.allocate(tensor_bytes(node.type.dtype, shape)))
            arguments.append(Argument("input", f"a{len(arguments)}", 0, node.type.dtype, shape))
            if value is not None:
                self.driver.write(addresses[-1], as_array(value, node))
        scratch = self.driver.allocate(self.table.scratch_bytes)
        call = Call(self.reports[name].function, tuple(arguments))
        places = dict(zip((a.name for a in arguments), addresses, strict=True))
        plan = Plan({"main": Entry((call,))}, {})
        binding = Binding(plan, self.table, lambda a: places[a.name], scratch)
        self.driver.run(self.driver.pack(binding.bind("main", dims)))
        found = [
            as_torch(place(self.driver.bytes, at, a.dtype, a.shape).copy(), a)
            for at, a in zip(addresses, arguments, strict=True)
        ]
        self.driver.release(start)
        after = dict(zip(body.inputs, found, strict=False))
        done = dict(zip(outputs, found[len(body.inputs) :], strict=True))
        return [done[o] if o in done else after[cache_of(o)] for o in body.outputs]


def _shape(node: Node, dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(int(substitute(d, dims)) for d in node.shape)

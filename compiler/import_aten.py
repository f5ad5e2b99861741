"""Import: an exported program becomes a graph of the IR, op by op, through one table.

Nothing is raised here to norms or rotary or experts: rules do that. Ops without an entry are
decomposed by torch where
torch can; the rest are reported at once, each with the line of model source that called it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx import Node as FxNode

from ..ir.dims import equal_shapes
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_, parameter
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .aten import (
    complexes,
    contraction,
    creation,
    elementwise,
    functions,
    index,
    movement,
    ranking,
    recurrent,
    reduction,
    solving,
    spectrum,
    trigonometry,
)
from .aten.spectrum import Spectrum
from .aten.table import DTYPES, Builder, Call, Complex, Unsupported
from .capture import Captured
from .checkpoint import OverlaidWeights, Weights
from .errors import CompileError
from .fixed_values import FixedValues
from .import_loops import SCAN, import_scan, steps_of
from .sources import origin
from .traced_sizes import OpenSizeError, TracedSizes

_PLAIN: Mapping[str, Builder] = {
    **elementwise.TABLE,
    **functions.TABLE,
    **trigonometry.TABLE,
    **ranking.TABLE,
    **movement.TABLE,
    **creation.TABLE,
    **reduction.TABLE,
    **index.TABLE,
    **contraction.TABLE,
    **recurrent.TABLE,
    **solving.TABLE,
    **spectrum.TABLE,
}
TABLE: Mapping[str, Builder] = {
    name: spectrum.taking_spectra(name, complexes.taking_complex(name, builder))
    for name, builder in _PLAIN.items()
}


@dataclass(frozen=True, eq=False)
class Imported:
    """The graph, its weights by parameter name, and the tree that rebuilds the module's own result
    (None for logits).
    """

    graph: Graph
    weights: Weights
    tree: Any = None


def import_captured(captured: Captured) -> Imported:
    """The graph of a captured program: parameters named as in the state dict, dims named, origins
    for every node.
    """
    if captured.imported is not None:
        done: Imported = captured.imported
        return replace(done, graph=replace(done.graph, bounds=dict(captured.bounds)))
    program = decomposed(captured.program)
    importer = _Importer(program, captured)
    outputs, names = importer.run()
    graph = Graph(
        name=captured.name,
        inputs=importer.inputs(),
        outputs=outputs,
        output_names=names,
        bounds=dict(captured.bounds),
        origins={n: tuple(places) for n, places in importer.origins.items()},
    )
    return Imported(graph, OverlaidWeights(captured.weights, importer.constants), captured.tree)


# -- ops that torch decomposes


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """The program with ops that have no entry taken apart by torch, as far as it can."""
    known = torch.export.default_decompositions()
    for _ in range(4):
        missing = {n.target for n in _calls(program) if _builder(n) is None}
        chosen: dict[Any, Any] = {op: known[op] for op in missing if op in known}
        if not chosen:
            return program
        program = program.run_decompositions(chosen)
    return program


def _needed(program: ExportedProgram) -> list[FxNode]:
    """The calls that the results need, in order: assertions and what only they read are left
    out.
    """
    reached: set[FxNode] = set()
    stack = [n for n in _results(program).values() if isinstance(n, FxNode)]
    while stack:
        node = stack.pop()
        if node not in reached:
            reached.add(node)
            stack.extend([] if _is_size(node) else node.all_input_nodes)
    return [n for n in program.graph.nodes if n in reached and n.op == "call_function"]


def _calls(program: ExportedProgram) -> list[FxNode]:
    """The needed calls, those of the loops' steps among them."""
    inner = [n for step in steps_of(program) for n in step.graph.nodes if n.op == "call_function"]
    return [*_needed(program), *inner]


def _results(program: ExportedProgram) -> dict[str, Any]:
    """The user's outputs by name: nodes, or constants that the module returns. Buffers that it
    updates are no results.
    """
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    specs = program.graph_signature.output_specs
    wanted: dict[str, Any] = {}
    for value, spec in zip(output.args[0], specs, strict=True):
        if spec.kind == OutputKind.USER_OUTPUT:
            name = value.name if isinstance(value, FxNode) else f"constant{len(wanted)}"
            wanted[name if name not in wanted else f"{name}_{len(wanted)}"] = value
    return wanted


def _is_size(node: FxNode) -> bool:
    return isinstance(
        node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)
    )


def _builder(node: FxNode) -> Builder | None:
    """The builder of a call: by overload first, then by name."""
    if node.target in (operator.getitem, SCAN) or _is_size(node):
        return _passed_over
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    space, _, name = node.target._schema.name.partition("::")
    prefix = "" if space == "aten" else f"{space}."
    overload = node.target._overloadname
    return TABLE.get(f"{prefix}{name}.{overload}") or TABLE.get(prefix + name)


def _passed_over(*_: Any, **__: Any) -> Any:
    raise AssertionError("sizes, items and loops are no ops of the table")


# -- the importer


@dataclass
class _Importer:
    program: ExportedProgram
    captured: Captured
    values: dict[FxNode, Any] = field(default_factory=dict)
    origins: dict[Node, list[str]] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    placeholders: dict[str, Node] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sizes = TracedSizes(self.captured.dims, self.captured.bounds)
        specs = self.program.graph_signature.input_specs
        self.specs = {s.arg.name: s for s in specs if hasattr(s.arg, "name")}
        self.fixed = FixedValues(self.program.graph, self._weight)

    def run(self) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        """The nodes of the results and their names."""
        needed = _needed(self.program)
        self._refuse_unknown(_calls(self.program))
        self._read_placeholders()
        self.import_calls(needed)
        if self.problems:
            problems = "\n".join(self.problems)
            raise CompileError(f"ops that cannot be imported:\n{problems}")
        return self._outputs()

    def import_calls(self, nodes: Sequence[FxNode]) -> None:
        """Import calls in order; what cannot be is a problem that `run` tells."""
        for node in nodes:
            if not self._is_ready(node):
                continue
            try:
                self._import(node)
            except (Unsupported, IRError, OpenSizeError, TypeError) as error:
                # A TypeError is a call by arguments that the builder does not have.
                self.problems.append(f"  {node.target}, {self._where(node)}: {error}")

    def inputs(self) -> tuple[Node, ...]:
        """The graph's inputs, in the order of the module's arguments."""
        return tuple(self.placeholders.values())

    def _refuse_unknown(self, needed: Iterable[FxNode]) -> None:
        unknown: dict[str, list[str]] = {}
        for node in needed:
            if _builder(node) is None and node not in self.fixed:
                unknown.setdefault(str(node.target), []).append(self._where(node))
        if unknown:
            lines = [
                f"  {op}: {', '.join(dict.fromkeys(places))}" for op, places in unknown.items()
            ]
            raise CompileError(
                f"{len(unknown)} ops are unknown to the importer:\n" + "\n".join(lines)
            )

    def _where(self, node: FxNode) -> str:
        return origin(node.meta, self.captured.prefix)

    # placeholders

    def _read_placeholders(self) -> None:
        users = iter(self.captured.input_names)
        for node in self.program.graph.nodes:
            if node.op == "get_attr":
                self.values[node] = getattr(self.program.graph_module, node.target)
            if node.op != "placeholder":
                continue
            spec = self.specs.get(node.name)
            if spec is None or spec.kind == InputKind.USER_INPUT:
                self._read_input(node, next(users, node.name))
            elif node.users and spec.target is not None:
                self.values[node] = self._read_weight(node, spec)

    def _read_input(self, node: FxNode, name: str) -> None:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            self.values[node] = value
            return
        made = input_(name=name, type=self.type_of(value))
        self.placeholders[name] = made
        self.values[node] = made

    def _read_weight(self, node: FxNode, spec: Any) -> Any:
        """A parameter, by its name in the module's state dict; a buffer or constant lies in the
        program.
        """
        name = spec.target.removeprefix(self.captured.prefix)
        held = self._held(spec)
        value = node.meta["val"]
        kind = self.type_of(value)
        if held is not None and held.dim() == 0 and not held.is_complex():
            return t.scalar(held.item(), kind.dtype)  # a number: rules read its value
        if held is not None:
            self.constants[name] = held
        if not value.is_complex():
            return parameter(name=name, type=kind)
        pairs = parameter(name=name, type=TensorType(kind.dtype, (*kind.shape, 2)))
        last = len(kind.shape)
        ends = (t.slice_(pairs, axis=last, start=i, stop=i + 1) for i in (0, 1))
        return Complex(*(t.reshape(part, shape=kind.shape) for part in ends))

    def _held(self, spec: Any) -> torch.Tensor | None:
        """The value of a constant, or of a buffer that no file holds."""
        from torch._subclasses.fake_tensor import FakeTensor

        if spec.kind == InputKind.PARAMETER:
            return None
        state, constants = self.program.state_dict, self.program.constants
        value: Any = constants.get(spec.target, state.get(spec.target))
        stored = spec.target.removeprefix(self.captured.prefix) in self.captured.weights
        if stored or value is None or isinstance(value, FakeTensor):
            return None
        return value.detach()

    def _weight(self, node: FxNode) -> torch.Tensor | None:
        """A placeholder's weight, buffer or constant; None for an input."""
        spec = self.specs.get(node.name)
        if spec is None or spec.kind == InputKind.USER_INPUT or spec.target is None:
            return None
        held = self._held(spec)
        if held is not None:
            return held
        name = str(spec.target).removeprefix(self.captured.prefix)
        if name not in self.captured.weights:
            return None
        value = self.captured.weights[name]
        return torch.view_as_complex(value) if node.meta["val"].is_complex() else value

    # calls

    def _is_ready(self, node: FxNode) -> bool:
        """Whether every input was imported: what follows a problem is no problem of its own."""
        return _is_size(node) or all(i in self.values or _is_size(i) for i in node.all_input_nodes)

    def _import(self, node: FxNode) -> None:
        if _is_size(node):
            return
        if node.target is operator.getitem:
            source, at = node.args
            assert isinstance(source, FxNode), source
            self.values[node] = self.values[source][at]
            if self.values[node] is None:
                del self.values[node]
                raise Unsupported(
                    f"result {at} of {source.target} is read, which has no place here"
                )
            return
        if node.target is SCAN:
            self.values[node] = import_scan(self, node)
            self._note([r for r in self.values[node] if r is not None], node)
            return
        builder = _builder(node)
        if builder is None:
            self.values[node] = self._of_weights(node)
            return
        args = tuple(self._resolve(a) for a in node.args)
        kwargs = {k: self._resolve(v) for k, v in node.kwargs.items()}
        traced = tuple(a.meta["val"] if isinstance(a, FxNode) else a for a in node.args)
        result = builder(Call(node.meta["val"], traced, self.to_dim), *args, **kwargs)
        self._check(node, result)
        self.values[node] = result
        self._note(result, node)

    def _of_weights(self, node: FxNode) -> Any:
        """What a call of weights alone gives, as constants."""
        value = self.fixed.value(node)
        parts = value if isinstance(value, (list, tuple)) else (value,)
        made: list[Node] = []
        for at, part in enumerate(parts):
            name = f"computed.{node.name}.{at}"
            self.constants[name] = part.contiguous()
            made.append(parameter(name=name, type=self.type_of(part)))
        return made if isinstance(value, (list, tuple)) else made[0]

    def _resolve(self, argument: Any) -> Any:
        """An argument as builders take it: nodes for tensors, dims for sizes, the rest as it is."""
        if isinstance(argument, FxNode):
            value = argument.meta.get("val")
            if argument in self.values:
                return self.values[argument]
            return self.to_dim(value)
        if isinstance(argument, (list, tuple)):
            return [self._resolve(a) for a in argument]
        return argument

    def to_dim(self, value: Any) -> Any:
        """A traced size in our dims; numbers as they are."""
        if isinstance(value, (torch.SymInt, torch.SymFloat)):
            return self.sizes.dim(value.node.expr)
        return self.sizes.dim(value) if isinstance(value, sympy.Expr) else value

    def type_of(self, value: torch.Tensor) -> TensorType:
        """The type of a traced tensor."""
        return TensorType(DTYPES[value.dtype], tuple(self.to_dim(d) for d in value.shape))

    def _check(self, node: FxNode, result: Any) -> None:
        """The type that came out must be the one that torch traced."""
        results, traced = _flat(result), _flat(node.meta["val"])
        for made, value in zip(results, traced, strict=False):
            if not isinstance(made, Node) or not isinstance(value, torch.Tensor):
                continue
            wanted = self.type_of(value)
            if made.dtype != wanted.dtype or (
                str(made.type) != str(wanted) and not _same(made, wanted)
            ):
                raise IRError(f"imported as {made.type}, traced as {wanted}")

    def _note(self, result: Any, node: FxNode) -> None:
        """Write down where new nodes came from."""
        place = self._where(node)
        roots = tuple(
            n
            for part in _flat(result)
            for n in (part if isinstance(part, Complex) else _signals(part))
        )
        stack = [n for n in roots if isinstance(n, Node)]
        while stack:
            made = stack.pop()
            if made in self.origins or made.op.name in ("input", "parameter"):
                continue
            self.origins[made] = [place]
            stack.extend(made.inputs)

    # results

    def _outputs(self) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        nodes, names = [], []
        for name, value in _results(self.program).items():
            made = self.values.get(value) if isinstance(value, FxNode) else None
            if isinstance(made, (Complex, Spectrum)):
                raise CompileError(f"result {name} is complex; a real one was wanted")
            if not isinstance(made, Node):
                raise CompileError(f"result {name} is {value!r}; a tensor was wanted")
            nodes.append(made)
            names.append("logits" if self.captured.is_language_model else name)
        return tuple(nodes), tuple(names)


def _same(made: Node, wanted: TensorType) -> bool:
    return equal_shapes(made.shape, wanted.shape)


def _signals(value: Any) -> tuple[Any, ...]:
    """What a spectrum is made of; anything else itself."""
    return value.signals if isinstance(value, Spectrum) else (value,)


def _flat(value: Any) -> Sequence[Any]:
    if isinstance(value, (Complex, Spectrum)):
        return (value,)
    return value if isinstance(value, (list, tuple)) else (value,)

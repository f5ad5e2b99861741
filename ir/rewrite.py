"""Rewriting: a pattern is a graph with holes, built by the same ops; a rule is a named function.

    rules = Rules("norms")
    x, w, eps = hole("x"), hole("w"), value("eps")

    @rules.on(mul(w, mul(x, rsqrt(add(mean(mul(x, x)), eps)))))
    def raise_rms_norm(root, x, w, eps): ...

A rule returns a node, a mapping of nodes, or None where it does not apply after all. Rule sets add.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .dims import equal_shapes
from .errors import IRError
from .graph import Graph
from .node import Node, Op
from .types import FLOATS, TensorType

MOST_SWEEPS = 32
Result = Node | Mapping[Node, Node] | None
Binding = dict[str, Any]


class Pattern:
    """What a node must look like: a hole, or an op over patterns."""

    is_pattern = True

    def applied(self, op: Op, inputs: tuple[Any, ...], attributes: Mapping[str, Any]) -> Pattern:
        """The pattern of an op whose inputs are patterns or nodes."""
        return OpPattern(op, tuple(as_pattern(i) for i in inputs), dict(attributes))

    def match(self, node: Node, binding: Binding) -> Iterator[Binding]:
        """Every way in which the node fits, each with the holes bound."""
        raise NotImplementedError


@dataclass(frozen=True)
class Hole(Pattern):
    """Anything, or anything that a test accepts; the same hole twice is the same node twice."""

    name: str
    test: Callable[[Node], bool] | None = None

    def match(self, node: Node, binding: Binding) -> Iterator[Binding]:
        """Bind the hole, or check that it is bound to this node already."""
        if self.name in binding:
            if binding[self.name] is node:
                yield binding
        elif self.test is None or self.test(node):
            yield {**binding, self.name: node}


@dataclass(frozen=True)
class Value:
    """An attribute's value to capture by name."""

    name: str


@dataclass(frozen=True)
class ScalarPattern(Pattern):
    """A constant, or a constant broadcast or cast; binds its Python value."""

    name: str

    def match(self, node: Node, binding: Binding) -> Iterator[Binding]:
        """Bind the number."""
        number = scalar_value(node)
        if number is not None and binding.get(self.name, number) == number:
            yield {**binding, self.name: number}


@dataclass(frozen=True)
class OpPattern(Pattern):
    """An op over patterns; attributes not named are free."""

    op: Op
    inputs: tuple[Pattern, ...]
    attributes: dict[str, Any] = field(hash=False)

    def match(self, node: Node, binding: Binding) -> Iterator[Binding]:
        """Match op, attributes, then inputs; in both orders where the op is commutative."""
        if node.op is not self.op or len(node.inputs) != len(self.inputs):
            return
        bound = self._attributes(node, binding)
        if bound is None:
            return
        orders = (
            itertools.permutations(node.inputs) if self.op.has("commutative") else (node.inputs,)
        )
        for inputs in orders:
            yield from _match_all(self.inputs, inputs, bound)

    def _attributes(self, node: Node, binding: Binding) -> Binding | None:
        bound = dict(binding)
        for key, wanted in self.attributes.items():
            given = node[key]
            if isinstance(wanted, Value):
                if bound.setdefault(wanted.name, given) != given:
                    return None
            elif wanted != given:
                return None
        return bound


@dataclass(frozen=True)
class AnyOf(Pattern):
    """One pattern or another."""

    choices: tuple[Pattern, ...]

    def match(self, node: Node, binding: Binding) -> Iterator[Binding]:
        """Try each choice in order."""
        for choice in self.choices:
            yield from choice.match(node, binding)


def hole(name: str, test: Callable[[Node], bool] | None = None) -> Hole:
    """A hole that any node fills, or any that the test accepts."""
    return Hole(name, test)


def number(name: str) -> ScalarPattern:
    """A hole for a constant; the rule gets its Python value."""
    return ScalarPattern(name)


def value(name: str) -> Value:
    """A hole for an attribute's value."""
    return Value(name)


def any_of(*choices: Any) -> AnyOf:
    """A pattern that fits where one of the choices does."""
    return AnyOf(tuple(as_pattern(c) for c in choices))


def as_pattern(given: Any) -> Pattern:
    """A pattern as it is; a node as the pattern that only it fits."""
    if isinstance(given, Pattern):
        return given
    if isinstance(given, Node):
        return Hole(f"={id(given)}", lambda node: node is given)
    raise IRError(f"a pattern is made of ops, holes and nodes, not {given!r}")


def scalar_value(node: Node) -> float | int | bool | None:
    """The number that a constant holds, seen through casts, reshapes and broadcasts, else None."""
    dtypes: list[str] = []
    while node.op.name in ("broadcast", "reshape", "cast"):
        if node.op.name == "cast":
            dtypes.append(node.dtype)
        node = node.inputs[0]
    if node.op.name != "constant":
        return None
    number = node["value"]
    for dtype in reversed(dtypes):
        number = _cast_number(number, dtype)
    return number


def _cast_number(number: float | int | bool | None, dtype: str) -> float | int | bool | None:
    """The number in a dtype, as cast gives it but for rounding; None where no integer is near."""
    if number is None or dtype == "bool":
        return None if number is None else number != 0
    if dtype in FLOATS:
        return float(number)
    return int(number) if math.isfinite(number) else None


def _match_all(
    patterns: tuple[Pattern, ...], nodes: tuple[Node, ...], binding: Binding
) -> Iterator[Binding]:
    if not patterns:
        yield binding
        return
    for bound in patterns[0].match(nodes[0], binding):
        yield from _match_all(patterns[1:], nodes[1:], bound)


@dataclass(frozen=True)
class Rule:
    """A named rewrite: a pattern and what to put in its place."""

    name: str
    pattern: Pattern
    replace: Callable[..., Result]

    def roots(self) -> frozenset[Op] | None:
        """The ops at which the rule can fire, or None for any."""
        choices = self.pattern.choices if isinstance(self.pattern, AnyOf) else (self.pattern,)
        ops = [c.op for c in choices if isinstance(c, OpPattern)]
        return frozenset(ops) if len(ops) == len(choices) else None

    @functools.cached_property
    def holes(self) -> tuple[str, ...]:
        """What the function takes beside the root; None is passed for what is not bound."""
        return tuple(inspect.signature(self.replace).parameters)[1:]

    def apply(self, node: Node) -> Result:
        """What the rule puts in place of the node, or None."""
        for binding in self.pattern.match(node, {}):
            result = self.replace(node, **{k: binding.get(k) for k in self.holes})
            if result is not None:
                return result
        return None


@dataclass(frozen=True)
class Rules:
    """A set of rules, in order; sets add."""

    name: str
    rules: tuple[Rule, ...] = ()
    _declared: list[Rule] = field(default_factory=list[Rule], compare=False)

    def on(self, pattern: Any) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
        """Declare a rule: the function gets the root and the holes that its parameters name."""

        def declare(function: Callable[..., Result]) -> Callable[..., Result]:
            self._declared.append(Rule(function.__name__, as_pattern(pattern), function))
            return function

        return declare

    def all(self) -> tuple[Rule, ...]:
        """Every rule in the order of declaration."""
        return (*self.rules, *self._declared)

    def __add__(self, other: Rules) -> Rules:
        return Rules(f"{self.name}+{other.name}", (*self.all(), *other.all()))


def rewrite(
    graph: Graph,
    rules: Rules,
    fired: dict[str, int] | None = None,
    most_sweeps: int = MOST_SWEEPS,
) -> Graph:
    """The graph after the rules fire wherever they can, until none does.

    Counts what fired, by rule name, into `fired`. A rule that never settles is refused by name, and
    so are rules whose replacement changes a type or that replace nodes in a circle. A rule that
    moves something along a chain fires once a sweep: `most_sweeps` is for long chains.
    """
    by_op, counts = _by_root(rules), {} if fired is None else fired
    for _ in range(most_sweeps):
        sweep = _sweep(graph, by_op)
        if not sweep.mapping:
            return graph
        graph = _replaced(graph, sweep)
        for name in sweep.names:
            counts[name] = counts.get(name, 0) + 1
    names = ", ".join(repr(n) for n in sorted(set(_sweep(graph, by_op).names)))
    if not names:
        return graph
    raise IRError(f"rule {names} still fires after {most_sweeps} sweeps over {graph.name!r}")


@dataclass(frozen=True)
class _Sweep:
    """What one look at every node found: replacements, and the rules that gave them."""

    mapping: dict[Node, Node]
    names: list[str]


def _by_root(rules: Rules) -> Callable[[Node], list[Rule]]:
    """The rules that can fire at a node, in order of declaration."""
    everything = [(rule, rule.roots()) for rule in rules.all()]
    table: dict[Op, list[Rule]] = {}

    def find(node: Node) -> list[Rule]:
        if node.op not in table:
            table[node.op] = [r for r, roots in everything if roots is None or node.op in roots]
        return table[node.op]

    return find


def _sweep(graph: Graph, by_op: Callable[[Node], list[Rule]]) -> _Sweep:
    """One replacement for each node at which a rule fires.

    Of two that replace the same node the second waits for the next sweep.
    """
    sweep = _Sweep({}, [])
    for node in graph.nodes():
        for rule in by_op(node):
            found = _fired(graph, rule, node)
            if found and not (found.keys() & sweep.mapping.keys()):
                sweep.mapping.update(found)
                sweep.names.append(rule.name)
                break
    return sweep


def _fired(graph: Graph, rule: Rule, node: Node) -> dict[Node, Node]:
    try:
        result = rule.apply(node)
    except IRError as error:
        where = "; ".join(graph.origin(node)) or graph.name
        raise IRError(f"rule {rule.name!r} at {node!r} of {where}: {error}") from error
    if result is None:
        return {}
    found = {node: result} if isinstance(result, Node) else result
    changed = {old: new for old, new in found.items() if old is not new}
    for old, new in changed.items():
        if not _same_type(old, new):
            where = f"rule {rule.name!r} over {graph.name!r}"
            raise IRError(f"{where} turns {old!r} into {new!r}: the type may not change")
    return changed


def _same_type(old: Node, new: Node) -> bool:
    if isinstance(old.type, TensorType) and isinstance(new.type, TensorType):
        return old.dtype == new.dtype and equal_shapes(old.shape, new.shape)
    return old.type == new.type


def _replaced(graph: Graph, sweep: _Sweep) -> Graph:
    try:
        return graph.replace(sweep.mapping)
    except IRError as error:
        names = ", ".join(sorted(set(sweep.names)))
        raise IRError(f"rules {names} over {graph.name!r}: {error}") from error

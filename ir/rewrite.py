"""Rewriting: a pattern is a graph with holes, built by the same ops; a rule is a named function.

    rules = Rules("norms")
    x, w, eps = hole("x"), hole("w"), value("eps")

    @rules.on(mul(w, mul(x, rsqrt(add(mean(mul(x, x)), eps)))))
    def raise_rms_norm(root, x, w, eps): ...

A rule returns a node, a mapping of nodes, or None where it does not apply after all. Rule sets add.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .dims import equal_shapes
from .errors import IRError
from .graph import Graph
from .node import Node, Op
from .types import TensorType

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
        """Match the op, the attributes, then the inputs, in both orders where the op is commutative."""
        if node.op is not self.op or len(node.inputs) != len(self.inputs):
            return
        bound = self._attributes(node, binding)
        if bound is None:
            return
        orders = itertools.permutations(node.inputs) if self.op.has("commutative") else (node.inputs,)
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
    while node.op.name in ("broadcast", "reshape", "cast"):
        if node.op.name == "cast" and node.inputs[0].dtype == "bool":
            return None
        node = node.inputs[0]
    return node["value"] if node.op.name == "constant" else None


def _match_all(patterns: tuple[Pattern, ...], nodes: tuple[Node, ...], binding: Binding) -> Iterator[Binding]:
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

    def apply(self, node: Node) -> Result:
        """What the rule puts in place of the node, or None."""
        wanted = list(inspect.signature(self.replace).parameters)[1:]
        for binding in self.pattern.match(node, {}):
            result = self.replace(node, **{k: binding.get(k) for k in wanted})
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
        """Declare a rule: the decorated function gets the root and the holes that its parameters name."""

        def declare(function: Callable[..., Result]) -> Callable[..., Result]:
            self._declared.append(Rule(function.__name__, as_pattern(pattern), function))
            return function

        return declare

    def all(self) -> tuple[Rule, ...]:
        """Every rule in the order of declaration."""
        return (*self.rules, *self._declared)

    def __add__(self, other: Rules) -> Rules:
        return Rules(f"{self.name}+{other.name}", (*self.all(), *other.all()))


def rewrite(graph: Graph, rules: Rules, fired: dict[str, int] | None = None) -> Graph:
    """The graph after the rules fire wherever they can, until none does.

    Counts what fired, by rule name, into `fired`. A rule that never settles is refused by name, and so is one whose
    replacement changes a type.
    """
    by_op = _by_root(rules)
    for _ in range(MOST_SWEEPS):
        mapping = _sweep(graph, by_op, fired)
        if not mapping:
            return graph
        graph = graph.replace(mapping)
    names = sorted({name for name, _ in _last_fired(graph, by_op)})
    raise IRError(f"rules {names} of {rules.name!r} still fire after {MOST_SWEEPS} sweeps over {graph.name!r}")


def _by_root(rules: Rules) -> Callable[[Node], list[Rule]]:
    anywhere = [r for r in rules.all() if r.roots() is None]
    table: dict[Op, list[Rule]] = {}
    for rule in rules.all():
        for op in rule.roots() or ():
            table.setdefault(op, []).append(rule)
    return lambda node: table.get(node.op, []) + anywhere


def _sweep(graph: Graph, by_op: Callable[[Node], list[Rule]], fired: dict[str, int] | None) -> dict[Node, Node]:
    """One replacement for each node at which a rule fires; two that touch the same node wait for the next sweep."""
    mapping: dict[Node, Node] = {}
    for node in graph.nodes():
        for rule in by_op(node):
            found = _fired(graph, rule, node)
            if found and not (found.keys() & mapping.keys()):
                mapping.update(found)
                if fired is not None:
                    fired[rule.name] = fired.get(rule.name, 0) + 1
                break
    return mapping


def _fired(graph: Graph, rule: Rule, node: Node) -> dict[Node, Node]:
    result = rule.apply(node)
    if result is None:
        return {}
    found = {node: result} if isinstance(result, Node) else dict(result)
    changed = {old: new for old, new in found.items() if old is not new}
    for old, new in changed.items():
        if not _same_type(old, new):
            raise IRError(f"rule {rule.name!r} turns {old!r} of {graph.name!r} into {new!r}: the type may not change")
    return changed


def _same_type(old: Node, new: Node) -> bool:
    if isinstance(old.type, TensorType) and isinstance(new.type, TensorType):
        return old.dtype == new.dtype and equal_shapes(old.shape, new.shape)
    return str(old.type) == str(new.type)


def _last_fired(graph: Graph, by_op: Callable[[Node], list[Rule]]) -> Iterator[tuple[str, Node]]:
    for node in graph.nodes():
        for rule in by_op(node):
            if _fired(graph, rule, node):
                yield rule.name, node

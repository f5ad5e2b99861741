"""Nodes and ops: immutable, interned; an op is declared once, by its type rule.

Interning makes equality identity: building the same thing twice gives the same object, so a common subexpression cannot
exist twice.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, overload

from .dims import Shape
from .errors import IRError
from .types import TensorType, TupleType, Type

OPS: dict[str, Op] = {}
_interned: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()


class Node:
    """One value of a program: an op applied to nodes, with plain attributes and a type."""

    __slots__ = ("__weakref__", "_attributes", "inputs", "op", "type")
    op: Op
    inputs: tuple[Node, ...]
    type: Type
    _attributes: tuple[tuple[str, Any], ...]

    def __init__(self) -> None:
        raise TypeError("nodes are built by calling an op")

    @property
    def attributes(self) -> Mapping[str, Any]:
        """The attributes by name, in the order of the op's declaration."""
        return dict(self._attributes)

    def __getitem__(self, name: str) -> Any:
        for key, value in self._attributes:
            if key == name:
                return value
        known = ", ".join(key for key, _ in self._attributes) or "none"
        raise IRError(f"{self.op.name} has no attribute {name!r}; it has {known}")

    @property
    def tensor(self) -> TensorType:
        """The type, which must be a tensor's."""
        if not isinstance(self.type, TensorType):
            raise IRError(f"{self.op.name} gives {self.type}, a tensor was wanted")
        return self.type

    @property
    def shape(self) -> Shape:
        """The shape of a tensor node."""
        return self.tensor.shape

    @property
    def dtype(self) -> str:
        """The element type of a tensor node."""
        return self.tensor.dtype

    def with_inputs(self, inputs: tuple[Node, ...]) -> Node:
        """The same op and attributes on other inputs; the type is inferred again."""
        if inputs == self.inputs:
            return self
        return self.op.build(inputs, self.attributes)

    def __repr__(self) -> str:
        return f"<{self.op.name} : {self.type}>"

    def __reduce__(self) -> Any:
        raise TypeError("nodes do not pickle; print the graph instead")


class Op:
    """An operation: name, meaning (its docstring), type rule, traits."""

    def __init__(self, rule: Callable[..., Type], family: str, traits: frozenset[str]) -> None:
        self.rule, self.family, self.traits = rule, family, traits
        self.name = rule.__name__.rstrip("_")
        self.doc = inspect.getdoc(rule) or ""
        parameters = inspect.signature(rule).parameters.values()
        self.attribute_names = tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.__doc__ = self.doc

    def has(self, trait: str) -> bool:
        """Whether the op was declared with a trait."""
        return trait in self.traits

    def __call__(self, *inputs: Any, **attributes: Any) -> Any:
        """A node, or a pattern where an input is a pattern."""
        for value in inputs:
            if not isinstance(value, Node):
                if hasattr(value, "is_pattern"):
                    return value.applied(self, inputs, attributes)
                raise IRError(f"{self.name}: inputs are nodes, not {value!r}")
        return self.build(inputs, attributes)

    def build(self, inputs: tuple[Node, ...], attributes: Mapping[str, Any]) -> Node:
        """The interned node; raises IRError where the type rule refuses."""
        values = self._complete(attributes)
        key = (self, inputs, values)
        try:
            found = _interned.get(key)
        except TypeError as error:
            raise IRError(f"{self.name}: attributes are plain hashable values: {error}") from error
        return found if found is not None else self._new(key, self.infer(inputs, dict(values)))

    def infer(self, inputs: tuple[Node, ...], attributes: Mapping[str, Any]) -> Type:
        """The type that the rule gives for these inputs and attributes."""
        try:
            return self.rule(*(i.type for i in inputs), **attributes)
        except TypeError as error:
            raise IRError(f"{self.name}: {error}") from error
        except IRError as error:
            raise IRError(f"{self.name}: {error}") from None

    def _complete(self, attributes: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        unknown = attributes.keys() - set(self.attribute_names)
        if unknown:
            wanted = ", ".join(self.attribute_names) or "none"
            raise IRError(f"{self.name} takes no {sorted(unknown)}; its attributes: {wanted}")
        missing = [n for n in self.attribute_names if n not in attributes and n not in self.defaults]
        if missing:
            raise IRError(f"{self.name} needs {', '.join(missing)}")
        # -0.0 == 0.0 and True == 1 in Python: the interning key must tell them apart.
        return tuple((n, _tagged(attributes.get(n, self.defaults.get(n)))) for n in self.attribute_names)

    def _new(self, key: tuple[Any, ...], result: Type) -> Node:
        node = object.__new__(Node)
        node.op, node.inputs, node._attributes = self, key[1], key[2]
        node.type = result
        _interned[key] = node
        return node

    def __repr__(self) -> str:
        return f"<op {self.name}>"


class _NegativeZero(float):
    """-0.0, which must not be interned as 0.0."""

    def __hash__(self) -> int:
        return 0x5A

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NegativeZero)


class _NotANumber(float):
    """NaN as one value that equals itself, so that nodes with it are interned."""

    def __hash__(self) -> int:
        return 0x7FF8

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NotANumber)


def _tagged(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return _NotANumber(value)
    if isinstance(value, float) and value == 0 and str(value)[0] == "-":
        return _NegativeZero(value)
    return tuple(_tagged(v) for v in value) if isinstance(value, tuple) else value


@overload
def op(rule: Callable[..., Type]) -> Op: ...
@overload
def op(*traits: str) -> Callable[[Callable[..., Type]], Op]: ...
def op(*arguments: Any) -> Any:
    """Declare an op by its type rule: positional parameters are input types, keyword-only ones are attributes.

    Arguments of the decorator are traits, such as "elementwise". The family is the module's name.
    """
    if len(arguments) == 1 and callable(arguments[0]):
        return _declare(arguments[0], frozenset())
    return lambda rule: _declare(rule, frozenset(arguments))


def _declare(rule: Callable[..., Type], traits: frozenset[str]) -> Op:
    declared = Op(rule, rule.__module__.rsplit(".", 1)[-1], traits)
    if declared.name in OPS:
        raise IRError(f"op {declared.name!r} is declared twice")
    OPS[declared.name] = declared
    return declared


def op_named(name: str) -> Op:
    """The op with this name, or an error with the nearest one."""
    import difflib

    if name in OPS:
        return OPS[name]
    near = difflib.get_close_matches(name, OPS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise IRError(f"no op {name!r}{hint} known: {', '.join(sorted(OPS))}")


@op("leaf")
def input_(*, name: str, type: Type) -> Type:
    """A value given at run time."""
    return type


@op("leaf")
def parameter(*, name: str, type: TensorType) -> TensorType:
    """A weight, by its name in the model's state dict."""
    return type


@op
def item(t: TupleType, *, index: int) -> Type:
    """One result of a node that has several."""
    if not isinstance(t, TupleType):
        raise IRError(f"a tuple was wanted, not {t}")
    if not 0 <= index < len(t.items):
        raise IRError(f"index {index} of a tuple of {len(t.items)}")
    return t.items[index]


def walk(roots: tuple[Node, ...]) -> Iterator[Node]:
    """Every node that the roots reach, inputs first, each once, in a deterministic order."""
    seen: set[Node] = set()
    for root in roots:
        stack: list[tuple[Node, int]] = [(root, 0)]
        while stack:
            node, at = stack.pop()
            if node in seen:
                continue
            if at < len(node.inputs):
                stack.append((node, at + 1))
                if node.inputs[at] not in seen:
                    stack.append((node.inputs[at], 0))
                continue
            seen.add(node)
            yield node

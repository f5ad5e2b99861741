"""Nodes and ops: immutable, interned; an op is declared once, by its type rule.

Interning makes equality identity: building the same thing twice gives the same object, so a common
subexpression cannot exist twice.
"""

from __future__ import annotations

import difflib
import inspect
import operator
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, cast, overload

from .dims import Shape, as_dim, as_shape
from .errors import IRError
from .types import FLOATS, CacheType, TensorType, TupleType, Type, check_dtype

OPS: dict[str, Op] = {}
_interned: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()


class Node:
    """One value of a program: an op applied to nodes, with plain attributes and a type.

    Attributes are in the order of the op's declaration and in canonical form: a float where the op
    declares a float, whatever equal number was given.
    """

    __slots__ = ("__weakref__", "attributes", "inputs", "op", "type")
    op: Op
    inputs: tuple[Node, ...]
    attributes: Mapping[str, Any]
    type: Type

    def __init__(self) -> None:
        raise TypeError("nodes are built by calling an op")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise TypeError(f"nodes do not change: {self!r}.{name}")

    def __getitem__(self, name: str) -> Any:
        if name in self.attributes:
            return self.attributes[name]
        known = ", ".join(self.attributes) or "none"
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

    def __reduce__(self) -> NoReturn:
        raise TypeError("nodes do not pickle; print the graph instead")


class Op:
    """An operation: name, meaning (its docstring), type rule, traits."""

    def __init__(self, rule: Callable[..., Type], family: str, traits: frozenset[str]) -> None:
        self.rule, self.family, self.traits = rule, family, traits
        self.name = rule.__name__.rstrip("_")
        self.doc = inspect.getdoc(rule) or ""
        self.__doc__ = self.doc
        parameters = inspect.signature(rule).parameters.values()
        attributes = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
        self.attribute_names = tuple(p.name for p in attributes)
        self.defaults = {p.name: p.default for p in attributes if p.default is not p.empty}
        self._forms = {p.name: _annotation(p) for p in attributes}
        single = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        rest = [p for p in parameters if p.kind is p.VAR_POSITIONAL]
        self.input_names = tuple(p.name for p in single)
        self.variadic = bool(rest)
        self._kinds = tuple(_KINDS.get(_annotation(p)) for p in single)
        self._rest_kind = _KINDS.get(_annotation(rest[0])) if rest else None

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
        self._check_inputs(tuple(i.type for i in inputs))
        values = self._complete(inputs, attributes)
        key = (self, inputs, tuple(_key(v) for v in values.values()))
        try:
            found = _interned.get(key)
        except TypeError as error:
            raise IRError(f"{self.name}: attributes are plain hashable values: {error}") from error
        if found is None:
            found = _new_node(self, inputs, values, self.infer(inputs, values))
            _interned[key] = found
        return found

    def infer(self, inputs: tuple[Node, ...], attributes: Mapping[str, Any]) -> Type:
        """The type that the rule gives for these inputs and attributes."""
        try:
            return self.rule(*(i.type for i in inputs), **attributes)
        except IRError as error:
            raise IRError(f"{self.name}: {error}") from None

    def _check_inputs(self, types: tuple[Type, ...]) -> None:
        kinds, count = self._kinds, len(types)
        if count != len(kinds) and not (self.variadic and count > len(kinds)):
            wanted = ", ".join(self.input_names) + (", ..." if self.variadic else "")
            raise IRError(f"{self.name} takes {wanted or 'no inputs'}, not {count} inputs")
        for at, given in enumerate(types):
            kind = kinds[at] if at < len(kinds) else self._rest_kind
            if kind is not None and not isinstance(given, kind):
                wanted = _KIND_NAMES[kind]
                raise IRError(f"{self.name}: input {at} is {given}, {wanted} was wanted")

    def _complete(self, inputs: tuple[Node, ...], given: Mapping[str, Any]) -> dict[str, Any]:
        """Every attribute, in order and in canonical form."""
        unknown = given.keys() - self._forms.keys()
        if unknown:
            wanted = ", ".join(self.attribute_names) or "none"
            raise IRError(f"{self.name} takes no {sorted(unknown)}; its attributes: {wanted}")
        missing = [n for n in self._forms if n not in given and n not in self.defaults]
        if missing:
            raise IRError(f"{self.name} needs {', '.join(missing)}")
        dtype = given.get("dtype") or getattr(inputs[0].type if inputs else None, "dtype", "")
        return {
            name: self._canonical(name, form, given.get(name, self.defaults.get(name)), dtype)
            for name, form in self._forms.items()
        }

    def _canonical(self, name: str, form: str, value: Any, dtype: str) -> Any:
        try:
            if form == _NUMBER:
                return canonical_number(value, dtype)
            return _CANONICAL.get(form, _plain)(value)
        except (TypeError, ValueError, OverflowError, IRError) as error:
            raise IRError(f"{self.name}: {name} = {value!r} is no {form} ({error})") from None

    def __repr__(self) -> str:
        return f"<op {self.name}>"


def _new_node(made: Op, inputs: tuple[Node, ...], attributes: dict[str, Any], result: Type) -> Node:
    node = object.__new__(Node)
    object.__setattr__(node, "op", made)
    object.__setattr__(node, "inputs", inputs)
    object.__setattr__(node, "attributes", MappingProxyType(attributes))
    object.__setattr__(node, "type", result)
    return node


# -- attributes in canonical form, by the annotation that the rule gives them

_NUMBER = "float | int | bool"
_KINDS: dict[str, type[Type]] = {
    "TensorType": TensorType,
    "CacheType": CacheType,
    "TupleType": TupleType,
}
_KIND_NAMES = {TensorType: "a tensor", CacheType: "a cache", TupleType: "a tuple"}


def _annotation(parameter: inspect.Parameter) -> str:
    given = parameter.annotation
    return given if isinstance(given, str) else getattr(given, "__name__", str(given))


def canonical_number(value: float | int | bool, dtype: str) -> float | int | bool:
    """A number as the Python type of a dtype's elements; refused where that would change it."""
    kind = bool if dtype == "bool" else float if check_dtype(dtype) in FLOATS else int
    number = kind(value)
    if number != value and value == value:
        raise IRError(f"not a value of {dtype}")
    return number


def _float(value: Any) -> float:
    if isinstance(value, bool | str):
        raise TypeError("a number was wanted")
    return float(value)


def _int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError("an integer was wanted")
    return operator.index(value)


def _bool(value: Any) -> bool:
    if value not in (0, 1):
        raise TypeError("true or false was wanted")
    return bool(value)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a string was wanted")
    return value


def _plain(value: Any) -> Any:
    return tuple(map(_plain, cast(list[Any], value))) if isinstance(value, list) else value


_CANONICAL: dict[str, Callable[[Any], Any]] = {
    "float": _float,
    "int": _int,
    "bool": _bool,
    "str": _string,
    "Dim": as_dim,
    "Shape": as_shape,
    "tuple[Dim, ...]": lambda value: tuple(map(as_dim, value)),
    "tuple[int, ...]": lambda value: tuple(map(_int, value)),
    "tuple[str, ...]": lambda value: tuple(map(_string, value)),
}


def _key(value: Any) -> Any:
    """What tells attributes apart: 1, 1.0 and True are equal in Python, as are 0.0 and -0.0."""
    if isinstance(value, tuple):
        return tuple(map(_key, cast(tuple[Any, ...], value)))
    return (type(value), repr(value)) if isinstance(value, float | bool) else value


@overload
def op(rule: Callable[..., Type], /) -> Op: ...
@overload
def op(*traits: str) -> Callable[[Callable[..., Type]], Op]: ...
def op(*arguments: Any) -> Any:
    """Declare an op by its type rule: positional parameters are input types, keyword-only ones are
    attributes.

    Arguments of the decorator are traits, such as "elementwise". The family is the module's name,
    or what the module calls FAMILY.
    """
    if len(arguments) == 1 and callable(arguments[0]):
        return _declare(cast(Callable[..., Type], arguments[0]), frozenset())

    def declare(rule: Callable[..., Type]) -> Op:
        return _declare(rule, frozenset(arguments))

    return declare


def _declare(rule: Callable[..., Type], traits: frozenset[str]) -> Op:
    module = getattr(rule, "__globals__", {})
    family = module.get("FAMILY", rule.__module__.rsplit(".", 1)[-1])
    declared = Op(rule, family, traits)
    if declared.name in OPS:
        raise IRError(f"op {declared.name!r} is declared twice")
    OPS[declared.name] = declared
    return declared


def op_named(name: str) -> Op:
    """The op with this name, or an error with the nearest one."""
    if name in OPS:
        return OPS[name]
    near = difflib.get_close_matches(name, OPS, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise IRError(f"no op {name!r}{hint} known: {', '.join(sorted(OPS))}")


@op("leaf")
def input_(*, name: str, type: Type) -> Type:
    """A value given at run time."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name):
        raise IRError(f"an input's name is letters, digits, dots and underscores, not {name!r}")
    return type


@op("leaf")
def parameter(*, name: str, type: TensorType) -> TensorType:
    """A weight, by its name in the model's state dict."""
    return type


@op
def item(t: TupleType, *, index: int) -> Type:
    """One result of a node that has several."""
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

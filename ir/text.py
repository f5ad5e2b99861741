"""The text of a graph: printer and parser together, because they change together.

    graph step(%tokens: i32[T], %kv: cache<bf16>[16; 8, 64]) where T in [1, 512] {
      %0 = parameter {name = "embed.weight"} : bf16[8192, 64]
      %1 = take %0 %tokens {axis = 0} : bf16[T, 64]   from model.embed (llama.py:71)
      return %1 as hidden
    }

parse_graph(print_graph(g)) == g, origins included. Attributes at their defaults are left out, and
so is an attribute `type`, which is the node's own. A graph inside an attribute (a kernel's body) is
printed in place, indented.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, cast

import sympy

from . import ops as _ops  # declares the ops that a text may name
from .dims import dim_text, parse_dim
from .errors import IRError
from .graph import Graph
from .node import Node, Op, input_, op_named
from .types import BITS, CacheType, TensorType, TupleType, Type

assert _ops
_INDENT = "  "


def print_graph(graph: Graph, origins: bool = True) -> str:
    """The graph as text, a line a node, each with where it came from unless origins is false."""
    return "\n".join(_graph_lines(graph, "", origins)) + "\n"


def node_lines(graph: Graph) -> dict[Node, str]:
    """Each node's line, as print_graph writes it, for quoting in messages."""
    names = _names(graph)
    body = (n for n in graph.nodes() if n not in graph.inputs)
    return {n: "\n".join(_node_lines(graph, n, names, _INDENT, True)) for n in body}


def _graph_lines(graph: Graph, indent: str, origins: bool) -> list[str]:
    names = _names(graph)
    inputs = ", ".join(f"{names[i]}: {i.type}" for i in graph.inputs)
    bounds = ", ".join(f"{n} in [{lo}, {hi}]" for n, (lo, hi) in sorted(graph.bounds.items()))
    lines = [f"graph {graph.name}({inputs}){' where ' + bounds if bounds else ''} {{"]
    inner = indent + _INDENT
    given = set(graph.inputs)
    for node in graph.nodes():
        if node not in given:
            lines += _node_lines(graph, node, names, inner, origins)
    pairs = zip(graph.outputs, graph.output_names, strict=True)
    results = ", ".join(f"{names[o]} as {n}" for o, n in pairs)
    return [*lines, f"{inner}return {results}", f"{indent}}}"]


def _names(graph: Graph) -> dict[Node, str]:
    names = {i: f"%{i['name']}" for i in graph.inputs}
    if len(set(names.values())) != len(graph.inputs):
        raise IRError(f"inputs of {graph.name} share a name: {', '.join(names.values())}")
    rest = (n for n in graph.nodes() if n not in names)
    return names | {n: f"%{at}" for at, n in enumerate(rest)}


def _node_lines(
    graph: Graph, node: Node, names: dict[Node, str], indent: str, origins: bool
) -> list[str]:
    head = " ".join([f"{indent}{names[node]} = {node.op.name}", *(names[i] for i in node.inputs)])
    shown = [(k, v) for k, v in node.attributes.items() if not _is_implied(node.op, k, v)]
    attributes = [f"{k} = {_value_text(v, indent, origins)}" for k, v in shown]
    body = f" {{{', '.join(attributes)}}}" if attributes else ""
    places = [_escaped(p) for p in graph.origin(node)] if origins else []
    source = f"   from {'; '.join(places)}" if places else ""
    return f"{head}{body} : {node.type}{source}".split("\n")


def _is_implied(op: Op, key: str, value: Any) -> bool:
    if key == "type":
        return True
    if key not in op.defaults or isinstance(value, Graph | sympy.Expr):
        return False
    # repr, because 0.0 == -0.0 and True == 1
    return value is op.defaults[key] or repr(value) == repr(op.defaults[key])


def _value_text(value: Any, indent: str, origins: bool) -> str:
    if isinstance(value, Graph):
        return "\n".join(_graph_lines(value, indent, origins))
    if isinstance(value, tuple):
        values = cast(tuple[object, ...], value)
        inner = ", ".join(_value_text(v, indent, origins) for v in values)
        return f"({inner},)" if len(values) == 1 else f"({inner})"
    if isinstance(value, str):
        return f'"{_escaped(value, also=chr(34))}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return dim_text(value) if isinstance(value, sympy.Expr) else str(value)


_ESCAPES = {"\\": "\\\\", "\n": "\\n", "\r": "\\r", '"': '\\"', ";": "\\;"}
_MEANINGS = {"n": "\n", "r": "\r"}


def _escaped(text: str, also: str = ";") -> str:
    return "".join(_ESCAPES[c] if c in "\\\n\r" + also else c for c in text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda m: _MEANINGS.get(m[1], m[1]), text)


# -- parsing


def parse_graph(text: str) -> Graph:
    """The graph that a text denotes; raises IRError with the line where it is not well formed."""
    reader = _Reader(text)
    try:
        graph = reader.graph()
        reader.end()
    except _Located:
        raise
    except IRError as error:
        raise reader.located(str(error)) from None
    return graph


class _Located(IRError):
    """An error that already says where in the text it is."""


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


class _Reader:
    """A recursive-descent reader over the text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def located(self, message: str, at: int | None = None) -> IRError:
        """The error with the line at a place, here unless given."""
        at = self.at if at is None else at
        number = self.text.count("\n", 0, at) + 1
        return _Located(
            f"{message}\n  line {number}: {self.text.split(chr(10))[number - 1].strip()}"
        )

    def fail(self, wanted: str) -> IRError:
        near = self.text[self.at : self.at + 20].split("\n")[0]
        return self.located(f"{wanted} was wanted at {near!r}" if near else f"{wanted} was wanted")

    def skip(self) -> None:
        found = _compiled(r"\s*").match(self.text, self.at)
        self.at = found.end() if found else self.at

    def sees(self, pattern: str) -> bool:
        self.skip()
        return _compiled(pattern).match(self.text, self.at) is not None

    def accept(self, mark: str) -> bool:
        word = r"\b" if mark[-1].isalnum() else ""
        if not self.sees(re.escape(mark) + word):
            return False
        self.at += len(mark)
        return True

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.fail(repr(mark))

    def match(self, pattern: str, wanted: str) -> str:
        self.skip()
        found = _compiled(pattern).match(self.text, self.at)
        if not found:
            raise self.fail(wanted)
        self.at = found.end()
        return found.group()

    def end(self) -> None:
        self.skip()
        if self.at != len(self.text):
            raise self.fail("the end")

    def separate(self, close: str) -> bool:
        """Whether another item follows: a comma, or the closing mark, which is taken."""
        if self.accept(","):
            return not self.accept(close)
        self.expect(close)
        return False

    # -- graphs

    def graph(self) -> Graph:
        self.expect("graph")
        name = self.match(r"[\w.\-]+", "a graph's name")
        values: dict[str, Node] = {}
        inputs = self._inputs(values)
        bounds = self._bounds() if self.accept("where") else {}
        self.expect("{")
        origins: dict[Node, tuple[str, ...]] = {}
        while not self.accept("return"):
            self._line(values, origins)
        outputs, names = self._results(values)
        self.expect("}")
        return Graph(name, inputs, outputs, names, bounds, origins)

    def _inputs(self, values: dict[str, Node]) -> tuple[Node, ...]:
        self.expect("(")
        more = not self.accept(")")
        while more:
            name = self._new_name(values)
            self.expect(":")
            values[name] = input_(name=name[1:], type=self.type())
            more = self.separate(")")
        return tuple(values.values())

    def _new_name(self, values: Mapping[str, Node]) -> str:
        begin = self.at
        name = self.match(r"%[\w.]+", "a node or return")
        if name in values:
            raise self.located(f"{name} is defined twice", begin)
        return name

    def _bounds(self) -> dict[str, tuple[int, int]]:
        bounds: dict[str, tuple[int, int]] = {}
        while True:
            name = self.match(r"\w+", "a dim's name")
            self.expect("in")
            pair = self.match(r"\[-?\d+, *-?\d+\]", "bounds such as [1, 8]")
            low, high = pair[1:-1].split(",")
            bounds[name] = (int(low), int(high))
            if not self.accept(","):
                return bounds

    def _line(self, values: dict[str, Node], origins: dict[Node, tuple[str, ...]]) -> None:
        self.skip()
        begin = self.at
        try:
            name, node = self._node(values)
        except _Located:
            raise
        except IRError as error:
            raise self.located(str(error), begin) from None
        values[name] = node
        if self.accept("from"):
            places = self.match(r"(?:[^\\\n]|\\.)+", "a place in a model's source")
            found = re.findall(r"(?:[^\\;]|\\.)+", places)
            origins[node] = tuple(_unescaped(p.strip()) for p in found)

    def _node(self, values: Mapping[str, Node]) -> tuple[str, Node]:
        name = self._new_name(values)
        self.expect("=")
        declared = op_named(self.match(r"\w+", "an op"))
        inputs: list[Node] = []
        while self.sees("%"):
            inputs.append(self._value(values))
        attributes = self._attributes() if self.accept("{") else {}
        self.expect(":")
        wanted = self.type()
        if "type" in declared.attribute_names:
            attributes.setdefault("type", wanted)
        node = declared.build(tuple(inputs), attributes)
        if node.type != wanted:
            raise IRError(f"{node.op.name} gives {node.type}, the text says {wanted}")
        return name, node

    def _value(self, values: Mapping[str, Node]) -> Node:
        self.skip()
        begin = self.at
        name = self.match(r"%[\w.]+", "a value")
        if name not in values:
            raise self.located(f"{name} is not defined above", begin)
        return values[name]

    def _results(self, values: Mapping[str, Node]) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        outputs: list[Node] = []
        names: list[str] = []
        while True:
            outputs.append(self._value(values))
            self.expect("as")
            names.append(self.match(r"[\w.\-]+", "an output's name"))
            if not self.accept(","):
                return tuple(outputs), tuple(names)

    # -- attributes

    def _attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        more = not self.accept("}")
        while more:
            key = self.match(r"\w+", "an attribute")
            if key in found:
                raise self.located(f"attribute {key} is given twice")
            self.expect("=")
            found[key] = self.attribute()
            more = self.separate("}")
        return found

    def attribute(self) -> Any:
        if self.sees('"'):
            return _unescaped(self.match(r'"(?:[^"\\]|\\.)*"', "a string")[1:-1])
        if self.sees(r"\("):
            return self._tuple()
        if self.sees(r"graph\s+[\w.\-]+\("):
            return self.graph()
        if self.sees(_TYPE):
            return self.type()
        return _plain(self._expression(",})"))

    def _tuple(self) -> Any:
        begin = self.at
        self.expect("(")
        values: list[Any] = []
        more = not self.accept(")")
        while more:
            values.append(self.attribute())
            more = self.separate(")")
        # "(T + 1)*S" opens with a parenthesis too, and is a dim
        if self.sees(r"[-+*/]"):
            self.at = begin
            return _plain(self._expression(",})"))
        return tuple(values)

    def _expression(self, stops: str) -> str:
        """The text up to one of the stops outside parentheses."""
        self.skip()
        begin, depth = self.at, 0
        for at in range(begin, len(self.text)):
            c = self.text[at]
            if depth == 0 and c in stops:
                self.at = at
                return self.text[begin:at].strip()
            depth += (c in "([") - (c in ")]")
        raise self.fail(f"one of {stops!r}")

    # -- types

    def type(self) -> Type:
        if self.accept("("):
            items: list[Type] = []
            more = not self.accept(")")
            while more:
                items.append(self.type())
                more = self.separate(")")
            return TupleType(tuple(items))
        if self.accept("cache<"):
            return self._cache()
        if self.accept("state<"):
            return self._state()
        dtype = self.match(r"\w+", "a type")
        self.expect("[")
        return TensorType(dtype, tuple(parse_dim(d) for d in self._dims()))

    def _cache(self) -> CacheType:
        dtype = self.match(r"\w+", "a dtype")
        self.expect(">")
        self.expect("[")
        block = int(self.match(r"\d+", "a block size"))
        self.expect(";")
        return CacheType(dtype, block, tuple(int(d) for d in self._dims()))

    def _state(self) -> CacheType:
        dtype = self.match(r"\w+", "a dtype")
        self.expect(">")
        self.expect("[")
        return CacheType(dtype, 0, tuple(int(d) for d in self._dims()))

    def _dims(self) -> list[str]:
        dims: list[str] = []
        more = not self.accept("]")
        while more:
            dims.append(self._expression(",]"))
            more = self.separate("]")
        return dims


_TYPE = rf"(?:{'|'.join(BITS)})\[|cache<|state<"
_WORDS = {"true": True, "false": False, "None": None}


def _plain(text: str) -> Any:
    """A bool, number or dim."""
    if text in _WORDS:
        return _WORDS[text]
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d+\.\d*(e[-+]?\d+)?|\d+e[-+]?\d+|inf|nan)", text):
        return float(text)
    return parse_dim(text)

"""The text of a graph: printer and parser together, because they change together.

    graph step(%tokens: i32[T], %kv: cache<bf16>[16; 8, 64]) where T in [1, 512] {
      %0 = parameter {name = "embed.weight"} : bf16[8192, 64]
      %1 = take %0 %tokens {axis = 0} : bf16[T, 64]   from model.embed (llama.py:71)
      return %1 as hidden
    }

parse_graph(print_graph(g)) == g, origins included. A graph inside an attribute (a kernel's body) is printed in place, indented.
"""

from __future__ import annotations

import re
from typing import Any

import sympy

from . import ops as _ops  # declares the ops that a text may name
from .dims import dim_text, parse_dim
from .errors import IRError
from .graph import Graph
from .node import Node, input_, op_named
from .types import BITS, FLOATS, CacheType, TensorType, TupleType, Type

assert _ops
_INDENT = "  "


def print_graph(graph: Graph, origins: bool = True) -> str:
    """The graph as text, each line one node, with where it came from at the end unless origins is false."""
    return "\n".join(_graph_lines(graph, "", origins)) + "\n"


def node_lines(graph: Graph) -> dict[Node, str]:
    """Each node's line, as print_graph writes it, for quoting in messages."""
    names = _names(graph)
    return {n: "\n".join(_node_lines(graph, n, names, "", True)) for n in graph.nodes() if n not in graph.inputs}


def _graph_lines(graph: Graph, indent: str, origins: bool) -> list[str]:
    names = _names(graph)
    inputs = ", ".join(f"{names[i]}: {i.type}" for i in graph.inputs)
    bounds = ", ".join(f"{n} in [{lo}, {hi}]" for n, (lo, hi) in sorted(graph.bounds.items()))
    lines = [f"graph {graph.name}({inputs}){' where ' + bounds if bounds else ''} {{"]
    inner = indent + _INDENT
    for node in graph.nodes():
        if node not in graph.inputs:
            lines += _node_lines(graph, node, names, inner, origins)
    results = ", ".join(f"{names[o]} as {n}" for o, n in zip(graph.outputs, graph.output_names, strict=True))
    return [*lines, f"{inner}return {results}", f"{indent}}}"]


def _names(graph: Graph) -> dict[Node, str]:
    names = {i: f"%{i['name']}" for i in graph.inputs}
    if len(set(names.values())) != len(graph.inputs):
        raise IRError(f"inputs of {graph.name} share a name: {', '.join(names.values())}")
    rest = (n for n in graph.nodes() if n not in names)
    return names | {n: f"%{at}" for at, n in enumerate(rest)}


def _node_lines(graph: Graph, node: Node, names: dict[Node, str], indent: str, origins: bool) -> list[str]:
    head = " ".join([f"{indent}{names[node]} = {node.op.name}", *(names[i] for i in node.inputs)])
    shown = [(k, v) for k, v in node.attributes.items() if not _is_default(node, k, v)]
    attributes = [f"{k} = {_value_text(node, v, indent, origins)}" for k, v in shown]
    body = f" {{{', '.join(attributes)}}}" if attributes else ""
    source = f"   from {'; '.join(graph.origin(node))}" if origins and graph.origin(node) else ""
    return f"{head}{body} : {node.type}{source}".split("\n")


def _is_default(node: Node, key: str, value: Any) -> bool:
    default = node.op.defaults.get(key, _is_default)
    return type(default) is type(value) and default == value


def _value_text(node: Node, value: Any, indent: str, origins: bool) -> str:
    if isinstance(value, Graph):
        return "\n".join(_graph_lines(value, indent, origins))
    if isinstance(value, tuple):
        inner = ", ".join(_value_text(node, v, indent, origins) for v in value)
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if node.op.name == "constant" and isinstance(value, int | float):
        return _constant_text(value, node.dtype)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(float(value))
    return dim_text(value) if isinstance(value, int | sympy.Expr) else str(value)


def _constant_text(value: float | int | bool, dtype: str) -> str:
    if dtype == "bool":
        return "true" if value else "false"
    return repr(float(value)) if dtype in FLOATS else str(int(value))


# -- parsing

_TOKEN = re.compile(
    r"""\s*(?:(?P<string>"(?:[^"\\]|\\.)*")|(?P<name>%?[A-Za-z_0-9][\w.]*)|(?P<number>[-+]?(?:\d[\d.]*(?:e[-+]?\d+)?|inf|nan)\b)"""
    r"""|(?P<mark>[-+*/(){}\[\],:;=<>]))""",
    re.VERBOSE,
)


def parse_graph(text: str) -> Graph:
    """The graph that a text denotes; raises IRError with the line where it is not well formed."""
    reader = _Reader(text)
    graph = reader.graph()
    reader.end()
    return graph


class _Reader:
    """A recursive-descent reader over the text."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def fail(self, wanted: str) -> IRError:
        line = self.text.count("\n", 0, self.at) + 1
        quoted = self.text.split("\n")[line - 1].strip()
        near = self.text[self.at : self.at + 20].split("\n")[0]
        return IRError(f"line {line}: {wanted} was wanted at {near!r}\n  {quoted}")

    def skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def accept(self, mark: str) -> bool:
        self.skip()
        if not self.text.startswith(mark, self.at):
            return False
        end = self.at + len(mark)
        if mark[-1].isalnum() and end < len(self.text) and (self.text[end].isalnum() or self.text[end] == "_"):
            return False
        self.at = end
        return True

    def expect(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.fail(repr(mark))

    def match(self, pattern: str, wanted: str) -> str:
        self.skip()
        found = re.compile(pattern).match(self.text, self.at)
        if not found:
            raise self.fail(wanted)
        self.at = found.end()
        return found.group()

    def end(self) -> None:
        self.skip()
        if self.at != len(self.text):
            raise self.fail("the end")

    def graph(self) -> Graph:
        self.expect("graph")
        name = self.match(r"[\w.\-]+", "a graph's name")
        values: dict[str, Node] = {}
        inputs = self._inputs(values)
        bounds = self._bounds()
        self.expect("{")
        origins: dict[Node, tuple[str, ...]] = {}
        while not self.accept("return"):
            self._line(values, origins)
        outputs, names = self._results(values)
        self.expect("}")
        return Graph(name, inputs, outputs, names, bounds, origins)

    def _inputs(self, values: dict[str, Node]) -> tuple[Node, ...]:
        inputs: list[Node] = []
        self.expect("(")
        while not self.accept(")"):
            name = self.match(r"%[\w.]+", "an input")
            self.expect(":")
            values[name] = input_(name=name[1:], type=self.type())
            inputs.append(values[name])
            self.accept(",")
        return tuple(inputs)

    def _bounds(self) -> dict[str, tuple[int, int]]:
        bounds: dict[str, tuple[int, int]] = {}
        if not self.accept("where"):
            return bounds
        while True:
            name = self.match(r"\w+", "a dim's name")
            self.expect("in")
            pair = self.match(r"\[-?\d+, *-?\d+\]", "bounds such as [1, 8]")
            low, high = pair[1:-1].split(",")
            bounds[name] = (int(low), int(high))
            if not self.accept(","):
                return bounds

    def _line(self, values: dict[str, Node], origins: dict[Node, tuple[str, ...]]) -> None:
        begin = self.at
        name = self.match(r"%\w+", "a node or return")
        self.expect("=")
        declared = op_named(self.match(r"\w+", "an op"))
        inputs: list[Node] = []
        self.skip()
        while self.text.startswith("%", self.at):
            inputs.append(self._value(values))
            self.skip()
        attributes = self._attributes() if self.accept("{") else {}
        self.expect(":")
        wanted = self.type()
        self._build(values, name, declared.build, tuple(inputs), attributes, wanted, begin)
        if self.accept("from"):
            places = self.match(r"[^\n]+", "a place in a model's source")
            origins[values[name]] = tuple(p.strip() for p in places.split(";"))

    def _build(
        self, values: dict[str, Node], name: str, build: Any, inputs: tuple[Node, ...],
        attributes: dict[str, Any], wanted: Type, begin: int,
    ) -> None:  # fmt: skip
        quoted = self.text[begin : self.at].strip().split("\n")[0]
        line = self.text.count("\n", 0, self.at) + 1
        try:
            node = build(inputs, attributes)
        except IRError as error:
            raise IRError(f"{error}\n  line {line}: {quoted}") from None
        if str(node.type) != str(wanted):
            raise IRError(f"{node.op.name} gives {node.type}, the text says {wanted}\n  line {line}: {quoted}")
        values[name] = node

    def _value(self, values: dict[str, Node]) -> Node:
        begin = self.at
        name = self.match(r"%[\w.]+", "a value")
        if name not in values:
            self.at = begin
            raise self.fail(f"a value defined above, not {name},")
        return values[name]

    def _results(self, values: dict[str, Node]) -> tuple[tuple[Node, ...], tuple[str, ...]]:
        outputs: list[Node] = []
        names: list[str] = []
        while True:
            self.skip()
            outputs.append(self._value(values))
            self.expect("as")
            names.append(self.match(r"[\w.]+", "an output's name"))
            if not self.accept(","):
                return tuple(outputs), tuple(names)

    def _attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while not self.accept("}"):
            key = self.match(r"\w+", "an attribute")
            self.expect("=")
            found[key] = self.attribute()
            self.accept(",")
        return found

    def attribute(self) -> Any:
        self.skip()
        if self.text.startswith('"', self.at):
            return _unquoted(self.match(r'"(?:[^"\\]|\\.)*"', "a string"))
        if self.text.startswith("(", self.at):
            return self._tuple()
        if re.compile(r"graph\s+[\w.\-]+\(").match(self.text, self.at):
            return self.graph()
        if re.compile(rf"(?:{'|'.join(BITS)})\[|cache<").match(self.text, self.at):
            return self.type()
        return _plain(self._balanced(",}"))

    def _tuple(self) -> tuple[Any, ...]:
        begin = self.at
        self.expect("(")
        values: list[Any] = []
        while not self.accept(")"):
            values.append(self.attribute_in_tuple())
            self.accept(",")
        # "(T + 1)*2" opens with a parenthesis too, and is a dim
        self.skip()
        if self.at < len(self.text) and self.text[self.at] in "*+-/":
            self.at = begin
            return _plain(self._balanced(",}"))
        return tuple(values)

    def attribute_in_tuple(self) -> Any:
        self.skip()
        if self.text[self.at : self.at + 1] in '"(' or re.compile(r"graph\s").match(self.text, self.at):
            return self.attribute()
        return _plain(self._balanced(",)"))

    def _balanced(self, stops: str) -> str:
        """The text up to one of the stops outside parentheses."""
        self.skip()
        begin, depth = self.at, 0
        while self.at < len(self.text):
            c = self.text[self.at]
            if depth == 0 and c in stops:
                return self.text[begin : self.at].strip()
            depth += (c in "([") - (c in ")]")
            self.at += 1
        raise self.fail(f"one of {stops!r}")

    def type(self) -> Type:
        if self.accept("("):
            items: list[Type] = []
            while not self.accept(")"):
                items.append(self.type())
                self.accept(",")
            return TupleType(tuple(items))
        if self.accept("cache<"):
            return self._cache()
        dtype = self.match(r"\w+", "a type")
        self.expect("[")
        dims = self._dims()
        return TensorType(dtype, tuple(parse_dim(d) for d in dims))

    def _cache(self) -> CacheType:
        dtype = self.match(r"\w+", "a dtype")
        self.expect(">")
        self.expect("[")
        block = int(self.match(r"\d+", "a block size"))
        self.expect(";")
        return CacheType(dtype, block, tuple(int(d) for d in self._dims()))

    def _dims(self) -> list[str]:
        dims: list[str] = []
        while not self.accept("]"):
            dims.append(self._balanced(",]"))
            self.accept(",")
        return dims


def _unquoted(text: str) -> str:
    escapes = {"n": "\n", '"': '"', "\\": "\\"}
    return re.sub(r"\\(.)", lambda m: escapes[m.group(1)], text[1:-1])


def _plain(text: str) -> Any:
    """A bool, number or dim."""
    if text in ("true", "false"):
        return text == "true"
    if text == "None":
        return None
    if re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d+\.\d*(e[-+]?\d+)?|\d+e[-+]?\d+|inf|nan)", text):
        return float(text)
    return parse_dim(text)

"""Two graphs of one model, each for a fixed length, joined to one graph for any length.

What a loop in Python over the tokens, or over chunks of them, leaves in a graph has another shape
at every length. All before it is the same in both graphs but for numbers that follow the length:
those are matched node by node, inputs first. Where the graphs part, the values that the loop makes
are again values of each token, and if they are those of a linear scan at both lengths
(prove_scan.py), the scan takes the loop's place and the matching goes on behind it. Where they are
none, but every token's step is the same (roll_loops.py), a loop with that step does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import sympy

from ..ir.dims import Dim, as_dim
from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node, input_
from ..ir.ops import tensor as t
from ..ir.types import TensorType, TupleType, Type
from ..ir.verify import quote
from .prove_scan import scan_of
from .raise_scans import MOST_INPUTS, MOST_TRIES, post_dominators
from .roll_loops import rolled
from .scan_regions import (
    Region,
    Run,
    fresh_inputs,
    frontier,
    in_dtype,
    is_whole,
    output_of,
    token_axes,
    tokens_first,
)
from .step_tables import step_table
from .token_values import B, S
from .walk_tokens import TokenWalk

Raise = Callable[[Graph], Graph]
Many = tuple[Any, ...]


@dataclass
class JoinLengths:
    """Joins `graphs`, one for each of two lengths, for lengths up to `limit`; `raised` makes ops of
    what is not in a loop.
    """

    graphs: Mapping[int, Graph]
    limit: int
    raised: Raise
    run_part: Run
    twins: dict[Node, Node] = field(default_factory=dict[Node, Node])
    made: dict[Node, Node] = field(default_factory=dict[Node, Node])

    def __post_init__(self) -> None:
        (self.short, self.first), (self.long, self.second) = sorted(self.graphs.items())
        self.origins: dict[Node, tuple[str, ...]] = {}
        self.inputs: tuple[Node, ...] = ()
        self.loops = self.tables = 0
        self.reason = ""  # why the first region was no loop of one step
        self.alike: dict[Any, list[Node]] = {}
        for node in self.second.nodes():
            self.alike.setdefault((node.op, node.inputs), []).append(node)
        self.free = self.first.constants() | self.second.constants()

    def run(self) -> Graph:
        """The graph for any length; raises IRError that names the loop where it is no scan."""
        for node, twin in zip(self.first.inputs, self.second.inputs, strict=True):
            self._pair(node, twin)
        self.inputs = tuple(self.made[i] for i in self.first.inputs)
        self._match()
        while not all(o in self.twins for o in self.first.outputs):
            self.loops += 1
            self.reason = ""
            walk = self._settled()
            if not self._raise_loop(walk):
                raise IRError(self._refusal())
            self._match()
        return self._graph(tuple(self.made[o] for o in self.first.outputs))

    def _graph(self, outputs: tuple[Node, ...]) -> Graph:
        names = self.first.output_names if len(outputs) == len(self.first.outputs) else ()
        bounds = {**self.first.bounds, str(S): (1, self.limit)}
        return Graph(self.first.name, self.inputs, outputs, names, bounds, self.origins)

    # matching

    def _match(self) -> None:
        """Pair every node whose inputs are paired with the node of the other graph that fits."""
        for node in self.first.nodes():
            if node in self.twins:
                continue
            if any(i not in self.twins for i in node.inputs) and not self._tabled(node):
                continue
            beside = (node.op, tuple(self.twins[i] for i in node.inputs))
            # The same numbers first: steps of two loops are paired from their beginnings. Where
            # tokens are shifted, 3:14 goes with 3:17 and not with 0:14.
            choices = sorted(self.alike.get(beside, ()), key=lambda c: _apart(node, c))
            any(self._pair(node, twin) for twin in choices)

    def _tabled(self, node: Node) -> bool:
        """Whether all that a value reads is paired once masks that were made for one length are
        those for any.
        """
        missing = [at for at, i in enumerate(node.inputs) if i not in self.twins]
        if node in self.free or any(node.inputs[at] not in self.free for at in missing):
            return False
        for twin in self.second.nodes():
            if twin.op is not node.op or len(twin.inputs) != len(node.inputs):
                continue
            pairs = list(zip(node.inputs, twin.inputs, strict=True))
            if any(self.twins[a] is not b for a, b in pairs if a in self.twins):
                continue
            tables = [self._table(*pairs[at]) for at in missing]
            if all(made is not None for made in tables):
                for at, made in zip(missing, tables, strict=True):
                    self._settle(*pairs[at], made or pairs[at][0])
                self.tables += len(missing)
                return True
        return False

    def _table(self, node: Node, twin: Node) -> Node | None:
        """A mask for any length, of one for each of two."""
        if twin not in self.free or not isinstance(node.type, TensorType):
            return None
        try:
            kind = self._type(node.type, twin.type)
        except ValueError:
            return None
        if not isinstance(kind, TensorType) or sum(d.has(S) for d in map(_expr, kind.shape)) != 2:
            return None
        (short,), (long,) = (self.run_part((n,), {str(B): 1}, {}) for n in (node, twin))
        return step_table(short, long, kind)

    def _pair(self, node: Node, twin: Node) -> bool:
        joined = self._joined(node, twin)
        if joined is None:
            return False
        self.twins[node], self.made[node] = twin, joined
        self.origins.setdefault(joined, self.first.origin(node))
        return True

    def _joined(self, node: Node, twin: Node) -> Node | None:
        """The node for any length, where numbers in the two follow the length in one way."""
        if node.op is t.constant and node.attributes != twin.attributes:
            return self._joined_number(node, twin)
        if node.op.name == "parameter" and node is not twin:
            return None  # what a model holds is of one size
        inputs = tuple(self.made[i] for i in node.inputs)
        try:
            attributes = {k: self._value(v, twin[k]) for k, v in node.attributes.items()}
            joined = node.op.build(inputs, attributes)
        except (IRError, TypeError, ValueError):
            return None
        fits = str(self._at(joined.type, self.short)) == str(node.type)
        return joined if fits and str(self._at(joined.type, self.long)) == str(twin.type) else None

    def _joined_number(self, node: Node, twin: Node) -> Node | None:
        """A whole number that follows the length, as the value of a dim."""
        a, b = node["value"], twin["value"]
        if node["dtype"] != twin["dtype"] or not all(isinstance(v, int) for v in (a, b)):
            return None
        follows = b - a == self.long - self.short or a * self.long == b * self.short
        return t.dim_value(dim=self._dim(a, b), dtype=node["dtype"]) if follows else None

    def _value(self, a: Any, b: Any) -> Any:
        if a == b:
            return a
        if isinstance(a, tuple) and isinstance(b, tuple):
            pairs = zip(cast("Many", a), cast("Many", b), strict=True)
            return tuple(self._value(x, y) for x, y in pairs)
        if isinstance(a, Type) and isinstance(b, Type):
            return self._type(a, b)
        whole = (int, sympy.Expr)
        if isinstance(a, bool) or not isinstance(a, whole) or not isinstance(b, whole):
            raise ValueError(f"{a} beside {b}")
        return self._dim(a, b)

    def _dim(self, a: Any, b: Any) -> Dim:
        """The dim that is a at the one length and b at the other, on a line between them."""
        slope = sympy.Rational(1, self.long - self.short)
        return as_dim(sympy.expand(a + (b - a) * slope * (S - self.short)))

    def _type(self, a: Type, b: Type) -> Type:
        if isinstance(a, TensorType) and isinstance(b, TensorType) and a.dtype == b.dtype:
            return TensorType(a.dtype, self._value(a.shape, b.shape))
        if a != b:
            raise ValueError(f"{a} beside {b}")
        return a

    def _at(self, kind: Type, length: int) -> Type:
        if isinstance(kind, TensorType):
            return kind.with_shape(tuple(_at(d, length) for d in kind.shape))
        if isinstance(kind, TupleType):
            return TupleType(tuple(self._at(i, length) for i in kind.items))
        return kind

    # loops

    def _settled(self) -> TokenWalk:
        """What is matched so far, raised, and which of it are values of each token."""
        nodes = [n for n, made in self.made.items() if isinstance(made.type, TensorType)]
        outputs = tuple(dict.fromkeys(self.made[n] for n in nodes))
        graph = self.raised(self._graph(outputs).with_outputs(outputs, ()))
        fresh = dict(zip(outputs, graph.outputs, strict=True))
        self.made |= {n: fresh[self.made[n]] for n in nodes}
        self.origins = dict(graph.origins)
        walk = TokenWalk(graph)
        for node in graph.nodes():
            walk.visit(node)
        return walk

    def _raise_loop(self, walk: TokenWalk) -> bool:
        """Put a scan in the place of the first loop; whether there is one."""
        tries: list[tuple[Node, Node, Region]] = []
        for node, twin in self._candidates():
            region = self._region(node, twin, walk)
            if region is None:
                continue
            scan = scan_of(region, self.run_part)
            if scan is not None:
                self._settle(node, twin, region.outside(scan.node))
                return True
            tries.append((node, twin, region))
            if len(tries) == MOST_TRIES:
                break
        return any(self._roll(*each) for each in tries)

    def _roll(self, node: Node, twin: Node, region: Region) -> bool:
        """Put the loop that a region is, step for step, in its place; whether it is one."""
        try:
            made = region.outside(rolled(region))
        except IRError as error:
            self.reason = self.reason or str(error)
            return False
        self._settle(node, twin, made)
        return True

    def _settle(self, node: Node, twin: Node, made: Node) -> None:
        self.twins[node], self.made[node] = twin, made

    def _candidates(self) -> list[tuple[Node, Node]]:
        """Nodes that everything from the first loop on leads through, with their twins behind it:
        both chains end at the logits."""
        begin, other = (
            self._parting(self.first, self.twins),
            self._parting(self.second, self._paired()),
        )
        if begin is None or other is None:
            return []
        chains = [_chain(self.first, begin), _chain(self.second, other)]
        both = list(zip(chains[0][::-1], chains[1][::-1], strict=False))[::-1]
        return [(a, b) for a, b in both if a.op is b.op and a not in self.twins]

    def _paired(self) -> set[Node]:
        return set(self.twins.values())

    def _parting(self, graph: Graph, paired: Collection[Node]) -> Node | None:
        """The first node that reads tokens, has no twin, and is needed for what has none."""
        needed: set[Node] = set()
        stack = [o for o in graph.outputs if o not in paired]
        while stack:
            node = stack.pop()
            if node not in needed:
                needed.add(node)
                stack.extend(i for i in node.inputs if i not in paired)
        behind = set(graph.inputs)
        for node in graph.nodes():
            if any(i in behind for i in node.inputs):
                behind.add(node)
                if node in needed:
                    return node
        return None

    def _region(self, node: Node, twin: Node, walk: TokenWalk) -> Region | None:
        try:
            kind = self._type(node.type, twin.type)
        except ValueError:
            return None
        stand_in = input_(name="loop", type=kind)
        axes = token_axes(stand_in)
        if axes is None or not is_whole(axes) or not stand_in.tensor.is_float:
            return None
        inputs = frontier(node, lambda n: n in self.made and walk.is_token(self.made[n]))
        tokens = [self.made[n] for n in inputs]
        each = [walk.tokens[n].axes for n in tokens]
        if not 1 <= len(inputs) <= MOST_INPUTS or not all(map(is_whole, each)):
            return None
        if not all(n.tensor.is_float for n in tokens):
            return None
        others = [self.twins[n] for n in inputs]
        outputs = {
            self.short: output_of(node, axes, inputs, each, self.short),
            self.long: output_of(twin, axes, others, each, self.long),
        }
        given = tuple(
            in_dtype(tokens_first(n, own), "f32") for n, own in zip(tokens, each, strict=True)
        )
        left = [n for o in outputs.values() for n in Graph("loop", (), (o,)).nodes()]
        if any(i in left for g in self.graphs.values() for i in g.inputs):
            return None
        return Region(outputs, fresh_inputs(each), stand_in, axes, given)

    def _refusal(self) -> str:
        begin = self._parting(self.first, self.twins)
        where = "" if begin is None else f"\n{quote(self.first, begin)}"
        return (
            f"at {self.short} and at {self.long} tokens this model computes in different ways from "
            f"here on, and what it computes is no linear scan over the tokens{self._why()}{where}"
        )

    def _why(self) -> str:
        return f", nor one step for each of them: {self.reason}" if self.reason else ""


def _expr(d: Dim) -> sympy.Expr:
    return sympy.sympify(d)


def _apart(node: Node, twin: Node) -> tuple[int, int]:
    """In how many numbers the attributes of two nodes differ: those that are less at the greater
    length, and all.
    """
    pairs = [p for name, value in node.attributes.items() for p in _pairs(value, twin[name])]
    whole = ((a, b) for a, b in pairs if isinstance(a, int) and isinstance(b, int))
    return sum(b < a for a, b in whole), sum(a != b for a, b in pairs)


def _pairs(a: Any, b: Any) -> list[tuple[Any, Any]]:
    if isinstance(a, tuple) and isinstance(b, tuple):
        both = zip(cast("Many", a), cast("Many", b), strict=False)  # ranks may differ
        return [pair for x, y in both for pair in _pairs(x, y)]
    return [(a, b)]


def step_of(graph: Graph) -> int:
    """The number that divides every length at which all dims of a graph are whole."""
    shapes = [n.shape for n in graph.nodes() if isinstance(n.type, TensorType)]
    dims = {d for shape in shapes for d in shape if not isinstance(d, int) and d.has(S)}
    return int(sympy.ilcm(1, *(sympy.denom(sympy.together(d)) for d in dims)))


def _at(d: Dim, length: int) -> Dim:
    return d if isinstance(d, int) else as_dim(d.subs({S: length}))


def _chain(graph: Graph, begin: Node) -> list[Node]:
    """The nodes that every path from a node to the outputs leads through, in order."""
    through = post_dominators(graph)
    chain: list[Node] = [begin]
    while (after := through.get(chain[-1])) is not None:
        chain.append(after)
    return chain

"""Graphs: equality, views, replacing, substituting dims."""

import networkx as nx
import pytest
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph, rebuild
from ferrule.ir.node import input_, parameter
from ferrule.ir.ops.serving import kernel
from ferrule.ir.ops.tensor import add, broadcast, dim_value, exp, mul, neg, relu, reshape, tanh
from ferrule.ir.text import parse_graph
from ferrule.ir.types import TensorType

B, S = dim("B"), dim("S")
ROWS = TensorType("f32", (B, 8))
x, y = input_(name="x", type=ROWS), input_(name="y", type=ROWS)
BOUNDS = {"B": (1, 4), "S": (1, 9)}


def graph(*outputs, origins=None):
    return Graph("g", (x, y), outputs, (), BOUNDS, origins or {})


def test_what_no_output_reaches_is_not_there():
    w = parameter(name="w", type=ROWS)
    neg(x)
    g = graph(add(x, w), relu(x))
    assert g.nodes() == (x, w, add(x, w), relu(x)) and g.parameters() == (w,)
    assert g.users(x) == (add(x, w), relu(x)) and g.users(y) == ()
    assert g.output("out1") is relu(x) and g.output_names == ("out0", "out1")
    with pytest.raises(IRError, match="no output 'z'; outputs: out0, out1"):
        g.output("z")


def test_equality_is_of_content():
    assert graph(add(x, y)) == graph(add(x, y), origins={x: ("a",)}) and hash(graph(x))
    assert graph(add(x, y)) != graph(add(y, x))
    assert graph(x).with_outputs((y,)) == graph(y)
    with pytest.raises(IRError, match="2 outputs and 1 names"):
        Graph("g", (x,), (x, x), ("a",))
    with pytest.raises(IRError, match="make a name"):
        Graph("a b", (x,), (x,))


def test_networkx_view():
    g = graph(mul(add(x, y), x))
    view = g.to_networkx()
    assert set(view.edges) == {(x, add(x, y)), (y, add(x, y)), (add(x, y), mul(add(x, y), x))} | {
        (x, mul(add(x, y), x))
    }
    assert nx.ancestors(view, add(x, y)) == {x, y} and nx.is_directed_acyclic_graph(view)


def test_replacing():
    g = graph(relu(add(x, y)), neg(add(x, y)))
    assert g.replace({}) == g and g.replace({x: x}) == g
    assert g.replace({add(x, y): mul(x, y)}) == graph(relu(mul(x, y)), neg(mul(x, y)))
    assert g.replace({relu(add(x, y)): x}).outputs == (x, neg(add(x, y)))
    z = input_(name="z", type=ROWS)
    assert g.replace({x: z}).inputs == (z, y)


def test_a_replaced_node_is_replaced_inside_other_replacements():
    a = add(x, y)
    g = graph(relu(a))
    assert g.replace({a: exp(a)}) == graph(relu(exp(a)))
    assert g.replace({a: mul(x, y), relu(a): tanh(a)}) == graph(tanh(mul(x, y)))
    assert g.replace({relu(a): tanh(a), a: exp(a)}) == graph(tanh(exp(a)))
    assert g.replace({x: neg(x)}).outputs == (relu(add(neg(x), y)),)


def test_a_chain_of_replacements_is_followed():
    g = graph(exp(relu(x)))
    assert g.replace({relu(x): neg(x), neg(x): tanh(x)}) == graph(exp(tanh(x)))


def test_what_depends_on_a_replaced_node_stands_for_itself_inside_its_replacement():
    a, b = relu(x), neg(relu(x))
    g = graph(exp(b))
    assert g.replace({a: mul(b, b)}) == graph(exp(neg(mul(b, b))))
    assert g.replace({a: mul(b, b), b: tanh(a)}) == graph(exp(tanh(mul(b, b))))


def test_a_replacement_may_use_what_comes_later():
    late = exp(neg(y))
    g = graph(relu(x), late)
    assert g.replace({relu(x): add(late, x)}) == graph(add(late, x), late)
    assert g.replace({relu(x): late, neg(y): y}) == graph(exp(y), exp(y))


def test_replacements_in_a_circle_are_refused():
    a, b = relu(x), exp(y)
    with pytest.raises(IRError, match="use each other"):
        graph(a, b).replace({a: neg(b), b: tanh(a)})


def test_deep_graphs_are_replaced_without_recursion():
    node = x
    for _ in range(3000):
        node = relu(neg(node))
    late = node
    replaced = graph(exp(y), late).replace({exp(y): add(late, y), x: tanh(x)})
    assert replaced.outputs[0] is add(replaced.outputs[1], y)


def test_origins_go_with_replacements():
    a, b = add(x, y), relu(add(x, y))
    g = graph(b, origins={a: ("adds (m.py:1)",), b: ("relu (m.py:2)",)})
    inner = mul(x, y)
    fused = g.replace({b: exp(inner)})
    assert fused.origins == {exp(inner): ("relu (m.py:2)",), inner: ("relu (m.py:2)",)}
    below = g.replace({a: inner})
    assert below.origin(inner) == ("adds (m.py:1)",)
    assert below.origin(relu(inner)) == ("relu (m.py:2)",)
    both = g.replace({a: inner, b: exp(inner)})
    assert both.origin(exp(inner)) == ("relu (m.py:2)",)
    assert both.origin(inner) == ("adds (m.py:1)",)
    assert g.replace({x: neg(x)}).origin(add(neg(x), y)) == ("adds (m.py:1)",)
    assert g.replace({x: neg(x)}).origin(neg(x)) == ()


def test_substituting_dims():
    long = input_(name="long", type=TensorType("f32", (B, S, 8)))
    flat = reshape(broadcast(x, shape=(S, B, 8)), shape=(B * S * 8,))
    counted = add(flat, broadcast(dim_value(dim=B * S, dtype="f32"), shape=(B * S * 8,)))
    g = Graph("g", (x, long), (counted, long), (), BOUNDS)
    fixed = g.substitute({"B": 3})
    assert fixed.bounds == {"S": (1, 9)} and fixed.inputs[1].shape == (3, S, 8)
    assert str(fixed.outputs[0].type) == "f32[24*S]"
    assert g.substitute({"B": S, "S": B}).substitute({"B": S, "S": B}).outputs == g.outputs
    assert type(g.substitute({"B": 2, "S": 5}).outputs[0].shape[0]) is int


def test_substituting_goes_into_bodies():
    body = Graph("body", (x, y), (add(x, y),), (), BOUNDS)
    g = graph(kernel(x, y, body=body, template="rows"))
    assert g.substitute({"B": 2}).outputs[0]["body"].inputs[0].shape == (2, 8)


def test_rebuilding_keeps_origins():
    g = graph(relu(x), origins={relu(x): ("here",)})
    made = rebuild(g, lambda node, inputs: node.with_inputs(inputs))
    assert made == g and made.origins == g.origins


def test_a_parsed_graph_shares_nodes_with_a_built_one():
    text = "graph g(%x: f32[B, 8], %y: f32[B, 8]) where B in [1, 4], S in [1, 9] {\n"
    text += "  %0 = add %x %y : f32[B, 8]\n  return %0 as out0\n}"
    assert parse_graph(text).outputs[0] is add(x, y) and parse_graph(text) == graph(add(x, y))

"""The verifier names the node, its line and where it came from."""

import pytest
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_, parameter
from ferrule.ir.ops.tensor import add, relu
from ferrule.ir.text import parse_graph
from ferrule.ir.types import TensorType
from ferrule.ir.verify import check_leaves, verify

TEXT = """
graph g(%x: f32[T, 8]) where T in [1, 4] {
  %0 = kernel %x {body = graph body(%x: f32[T, 8]) {
    %0 = relu %x : f32[T, 8]
    return %0 as out0
  }, template = "rows"} : f32[T, 8]
  %1 = neg %0 : f32[T, 8]   from model.layers.0 (m.py:7)
  %2 = exp %1 : f32[T, 8]   from model.layers.1 (m.py:9)
  return %2 as y
}
"""
# These nodes are spoilt below: no other test may hold the same ones.
SPOILT = TEXT.replace("8", "23")


def spoil(node, name, value):
    object.__setattr__(node, name, value)


def test_well_formed_graphs_pass():
    graph = parse_graph(TEXT)
    assert verify(graph) is graph


def test_a_wrong_type_is_quoted():
    graph = parse_graph(SPOILT)
    spoil(graph.outputs[0], "type", TensorType("f16", (3,)))
    with pytest.raises(IRError) as error:
        verify(graph)
    assert str(error.value) == (
        "exp gives f32[T, 23], not f16[3]\n"
        "  line 7: %2 = exp %1 : f16[3]   from model.layers.1 (m.py:9)"
    )


def test_a_refused_input_is_quoted():
    graph = parse_graph(SPOILT.replace("23", "29"))
    spoil(graph.outputs[0].inputs[0], "type", TensorType("i32", (3,)))
    with pytest.raises(IRError) as error:
        verify(graph)
    assert "neg gives f32[T, 29], not i32[3]" in str(error.value)
    assert "line 6: %1 = neg %0" in str(error.value) and "(m.py:7)" in str(error.value)


def test_bodies_are_verified_too():
    graph = parse_graph(SPOILT.replace("23", "31"))
    body = graph.nodes()[1]["body"]
    spoil(body.outputs[0], "type", TensorType("f32", (1,)))
    with pytest.raises(IRError) as error:
        verify(graph)
    assert "relu gives f32[T, 31], not f32[1]\n  line 2: %0 = relu %x" in str(error.value)
    assert "in the body of\n  line 2: %0 = kernel %x" in str(error.value)


x = input_(name="x", type=TensorType("f32", (3,)))
other = input_(name="x", type=TensorType("f16", (3,)))
TWICE = tuple(parameter(name="w", type=t) for t in (x.type, other.type))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (Graph("g", (), (relu(x),)), "inputs used but not declared by g: x"),
        (Graph("g", (x, other), (x,)), "share a name: x, x"),
        (Graph("g", (relu(x),), (x,)), "no inputs"),
        (parse_graph(TEXT.replace("T in", "S in")), r"\['T'\] have no bounds; known: S"),
        (parse_graph(TEXT.replace("[1, 4]", "[5, 4]")), r"dim T of g has bounds \[5, 4\]"),
        (
            Graph("g", (), TWICE),
            r"'w' is both f32\[3\] and f16\[3\]",
        ),
    ],
)  # fmt: skip
def test_refused(graph, message):
    with pytest.raises(IRError, match=message):
        verify(graph)


def test_what_a_phase_may_not_leave_is_named():
    graph = Graph("g", (x,), (add(relu(x), relu(x)),), origins={relu(x): ("m (m.py:1)",)})
    check_leaves(graph, {"input", "add", "relu"}, "lower")
    with pytest.raises(IRError) as error:
        check_leaves(graph, {"input", "add"}, "lower")
    assert str(error.value) == (
        "after phase 'lower' these ops remain: relu\n"
        "  line 2: %0 = relu %x : f32[3]   from m (m.py:1)"
    )

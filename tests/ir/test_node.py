"""Nodes: interned, immutable, their attributes canonical."""

import copy
import gc
import math

import numpy as np
import pytest
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.node import OPS, Node, input_, item, op, op_named, parameter, walk
from ferrule.ir.ops.model import rms_norm
from ferrule.ir.ops.tensor import (
    add,
    constant,
    gelu,
    pad,
    reduce_sum,
    relu,
    reshape,
    softplus,
    topk,
    transpose,
)
from ferrule.ir.types import CacheType, TensorType

T = dim("T")
x = input_(name="x", type=TensorType("f32", (T, 8)))
y = input_(name="y", type=TensorType("f32", (T, 8)))
kv = input_(name="kv", type=CacheType("f32", 16, (2, 8)))


def test_the_same_thing_twice_is_the_same_object():
    assert add(x, y) is add(x, y)
    assert add(x, y) is not add(y, x)
    assert gelu(x) is gelu(x, approximate="none") and gelu(x) is not gelu(x, approximate="tanh")
    assert reshape(x, shape=[8 * T]) is reshape(x, shape=(T * 8,))
    assert transpose(x, permutation=[1, 0]) is transpose(x, permutation=(1, 0))


@pytest.mark.parametrize(
    ("value", "dtype", "same"),
    [
        (1, "f32", 1.0),
        (True, "f32", 1.0),
        (1.0, "i32", 1),
        (1, "bool", True),
        (np.int64(3), "u8", 3),
    ],
)
def test_numbers_take_the_type_of_the_dtype(value, dtype, same):
    node = constant(value=value, dtype=dtype)
    assert node is constant(value=same, dtype=dtype)
    assert type(node["value"]) is type(same)


def test_numbers_that_python_calls_equal_stay_apart():
    assert constant(value=0.0, dtype="f32") is not constant(value=-0.0, dtype="f32")
    assert math.copysign(1, constant(value=-0.0, dtype="f32")["value"]) == -1
    assert constant(value=1, dtype="f32") is not constant(value=1, dtype="i32")
    nan = constant(value=float("nan"), dtype="f32")
    assert nan is constant(value=-float("nan"), dtype="f32") and nan["value"] != nan["value"]
    zeros = {"before": (0, 0), "after": (1, 0)}
    assert pad(x, value=0, **zeros) is pad(x, value=0.0, **zeros)
    assert reduce_sum(x, axes=(0,), keepdims=True) is reduce_sum(x, axes=(0,), keepdims=1)
    assert softplus(x, beta=1) is softplus(x) and type(softplus(x, beta=2)["beta"]) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: constant(value=1.5, dtype="i32"), "value = 1.5 is no float | int | bool"),
        (lambda: constant(value=math.inf, dtype="i32"), "value = inf"),
        (lambda: constant(value=2, dtype="bool"), "value = 2"),
        (lambda: constant(value=1, dtype="f99"), "no dtype 'f99'"),
        (lambda: rms_norm(x, eps="small"), "eps = 'small' is no float"),
        (lambda: reduce_sum(x, axes=(True,)), "axes"),
        (lambda: topk(x, k=1.5, axis=1), "k = 1.5 is no Dim"),
        (lambda: gelu(x, approximate=1), "approximate = 1 is no str"),
        (lambda: reduce_sum(x, axes=(0,), keepdims="yes"), "keepdims = 'yes' is no bool"),
        (lambda: add(x), "add takes x, y, not 1 inputs"),
        (lambda: rms_norm(x, eps=1e-6, epsilon=1), r"takes no \['epsilon'\]; its attributes: eps"),
        (lambda: rms_norm(x), "rms_norm needs eps"),
        (lambda: add(x, 3), "inputs are nodes, not 3"),
        (lambda: relu(kv), r"input 0 is cache<f32>\[16; 2, 8\], a tensor was wanted"),
        (lambda: item(x, index=0), "a tuple was wanted"),
        (lambda: item(topk(x, k=2, axis=1), index=2), "index 2 of a tuple of 2"),
        (lambda: input_(name="a b", type=x.type), "an input's name"),
        (lambda: x["size"], "no attribute 'size'; it has name, type"),
        (lambda: kv.shape, "a tensor was wanted"),
        (lambda: op_named("rms_nrm"), "no op 'rms_nrm'; did you mean 'rms_norm'?"),
    ],
)
def test_refused(make, message):
    with pytest.raises(IRError, match=message):
        make()


def test_nodes_do_not_change_and_are_not_copied():
    with pytest.raises(TypeError, match="do not change"):
        add(x, y).inputs = ()
    with pytest.raises(TypeError):
        add(x, y).attributes["a"] = 1
    with pytest.raises(TypeError, match="calling an op"):
        Node()
    with pytest.raises(TypeError, match="pickle"):
        copy.copy(x)


def test_an_op_is_declared_once_and_knows_itself():
    @op("elementwise")
    def only_here(x: TensorType, *, times: float = 2) -> TensorType:
        """x times over."""
        return x

    try:
        assert only_here.name == "only_here" and only_here.doc == "x times over."
        assert only_here.has("elementwise") and only_here.family == "test_node"
        assert only_here(x, times=3)["times"] == 3.0 and repr(only_here) == "<op only_here>"
        with pytest.raises(IRError, match="declared twice"):
            op(only_here.rule)
    finally:
        del OPS["only_here"]
    assert add.family == "tensor" and rms_norm.family == "model"


def test_deep_graphs_are_walked_and_freed():
    node = x
    for _ in range(20_000):
        node = relu(add(node, y))
    order = list(walk((node,)))
    assert len(order) == 40_002 and order[-1] is node
    places = {n: at for at, n in enumerate(order)}
    assert all(places[i] < places[n] for n in order for i in n.inputs)
    del node, order, places
    gc.collect()


def test_what_nobody_holds_is_forgotten():
    from ferrule.ir.node import _interned

    before = len(_interned)
    kept = parameter(name="kept", type=TensorType("f32", (3,)))
    assert len(_interned) == before + 1
    del kept
    assert len(_interned) == before

"""Rewriting: patterns, rules, and rules that misbehave."""

import pytest
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_, item
from ferrule.ir.ops.model import rms_norm
from ferrule.ir.ops.tensor import (
    add,
    broadcast,
    cast,
    constant,
    exp,
    maximum,
    mul,
    neg,
    relu,
    rsqrt,
    scalar,
    sub,
    tanh,
    topk,
    transpose,
)
from ferrule.ir.rewrite import (
    Rules,
    any_of,
    as_pattern,
    hole,
    number,
    rewrite,
    scalar_value,
    value,
)
from ferrule.ir.types import TensorType

ROWS = TensorType("f32", (6, 8))
x, y, z = (input_(name=n, type=ROWS) for n in "xyz")
a, b = hole("a"), hole("b")


def graph(*outputs, origins=None):
    return Graph("g", (x, y, z), outputs, (), {}, origins or {})


def rules(pattern, function):
    made = Rules("test")
    made.on(pattern)(function)
    return made


def test_commutative_patterns_fit_both_ways():
    def fold(root, a, b):
        return tanh(a) if b is y else None

    only = rules(add(exp(a), b), fold)
    assert rewrite(graph(add(exp(x), y)), only) == graph(tanh(x))
    assert rewrite(graph(add(y, exp(x))), only) == graph(tanh(x))
    ordered = rules(sub(exp(a), b), fold)
    assert rewrite(graph(sub(y, exp(x))), ordered) == graph(sub(y, exp(x)))


def test_every_way_to_fit_is_tried_before_the_rule_gives_up():
    def fold(root, a, b):
        return neg(a) if b is x else None

    both = rules(add(exp(a), exp(b)), fold)
    assert rewrite(graph(add(exp(x), exp(y))), both) == graph(neg(y))


def test_the_same_hole_twice_is_the_same_node_twice():
    squares = rules(mul(a, a), lambda root, a: relu(a))
    assert rewrite(graph(mul(x, x), mul(x, y)), squares) == graph(relu(x), mul(x, y))


def test_holes_with_tests_nodes_and_choices_in_patterns():
    constant_hole = hole("a", lambda n: n.op is constant)
    one = scalar(1, "f32")
    drop = rules(mul(constant_hole, b), lambda root, a, b: b)
    assert rewrite(graph(mul(one, x)), drop) == graph(x)
    exact = rules(add(a, y), lambda root, a: a)
    assert rewrite(graph(add(y, x), add(x, z)), exact) == graph(x, add(x, z))
    either = rules(any_of(exp(a), tanh(a)), lambda root, a: neg(a))
    assert rewrite(graph(add(exp(x), tanh(y))), either) == graph(add(neg(x), neg(y)))
    assert as_pattern(a) is a
    with pytest.raises(IRError, match="a pattern is made of"):
        as_pattern(3)


def test_attributes_are_captured_and_compared():
    seen = []

    def note(root, a, eps):
        seen.append(eps)

    rewrite(graph(rms_norm(x, eps=1e-6)), rules(rms_norm(a, eps=value("eps")), note))
    assert seen == [1e-6]
    back = transpose(transpose(a, permutation=value("p")), permutation=value("p"))
    twice = rules(back, lambda root, a, p: a)
    given = transpose(transpose(x, permutation=(1, 0)), permutation=(1, 0))
    assert rewrite(graph(given), twice) == graph(x)
    tanhs = rules(transpose(a, permutation=(0, 1)), lambda root, a: a)
    kept = graph(transpose(x, permutation=(1, 0)))
    assert rewrite(kept, tanhs) == kept


def test_numbers_are_seen_through_casts_and_broadcasts():
    ones = broadcast(cast(scalar(1, "i32"), dtype="f32"), shape=(6, 8))
    drop = rules(mul(a, number("n")), lambda root, a, n: a if n == 1 else None)
    assert rewrite(graph(mul(ones, x)), drop) == graph(x)
    assert rewrite(graph(mul(x, y)), drop) == graph(mul(x, y))
    assert scalar_value(cast(scalar(2.75, "f32"), dtype="i32")) == 2
    assert scalar_value(cast(scalar(2.75, "f32"), dtype="bool")) is True
    assert scalar_value(cast(scalar(float("inf"), "f32"), dtype="i32")) is None
    assert type(scalar_value(cast(scalar(True, "bool"), dtype="f32"))) is float


def test_a_rule_may_replace_several_nodes():
    def share(root, a, b):
        both = topk(sub(a, b), k=8, axis=1)
        return {root: item(both, index=0), root.inputs[0]: neg(item(both, index=0))}

    inner = exp(x)
    given = graph(maximum(inner, y), inner, origins={maximum(inner, y): ("m",)})
    done = rewrite(given, rules(maximum(exp(a), b), share))
    both = item(topk(sub(x, y), k=8, axis=1), index=0)
    assert done.outputs == (both, neg(both)) and done.origin(both) == ("m",)


def test_replaced_nodes_are_replaced_inside_replacements_of_the_same_sweep():
    made = Rules("two")
    made.on(exp(a))(lambda root, a: tanh(a))
    made.on(relu(b))(lambda root, b: neg(b))
    assert rewrite(graph(relu(exp(x))), made) == graph(neg(tanh(x)))


def test_rules_fire_until_none_does_and_are_counted():
    def lower(root, a):
        return a

    fired = {}
    value_ = x
    for _ in range(5):
        value_ = neg(value_)
    assert rewrite(graph(value_), rules(neg(a), lower), fired) == graph(x)
    assert fired == {"lower": 5}


def test_rule_sets_add_in_order():
    one, two = rules(exp(a), lambda root, a: neg(a)), rules(exp(a), lambda root, a: tanh(a))
    assert rewrite(graph(exp(x)), one + two) == graph(neg(x))
    assert rewrite(graph(exp(x)), two + one) == graph(tanh(x))
    assert (one + two).name == "test+test" and len((one + two).all()) == 2


def test_origins_are_carried():
    def raise_norm(root, a, eps):
        return rms_norm(a, eps=eps)

    pattern = mul(a, rsqrt(add(mul(a, a), number("eps"))))
    given = mul(x, rsqrt(add(mul(x, x), scalar(0.5, "f32"))))
    done = rewrite(graph(given, origins={given: ("norm (m.py:3)",)}), rules(pattern, raise_norm))
    assert done.outputs == (rms_norm(x, eps=0.5),)
    assert done.origin(done.outputs[0]) == ("norm (m.py:3)",)


def test_a_rule_that_never_settles_is_refused_by_name():
    def swap(root, a, b):
        return add(b, a)

    with pytest.raises(IRError, match="rule 'swap' still fires after 32 sweeps over 'g'"):
        rewrite(graph(add(x, y)), rules(add(a, b), swap))


def test_a_rule_that_changes_a_type_is_refused_by_name():
    def widen(root, a):
        return cast(a, dtype="f64")

    with pytest.raises(IRError, match=r"rule 'widen' over 'g' turns .*f32.* into .*f64"):
        rewrite(graph(exp(x)), rules(exp(a), widen))


def test_rules_that_replace_in_a_circle_are_refused_by_name():
    def left(root, a):
        return neg(tanh(y))

    def right(root, a):
        return relu(exp(x))

    with pytest.raises(IRError, match=r"rules left, right over 'g': .* use each other"):
        rewrite(graph(exp(x), tanh(y)), rules(exp(a), left) + rules(tanh(a), right))


def test_an_error_inside_a_rule_names_the_rule_and_the_place():
    def broken(root, a):
        return transpose(a, permutation=(0, 0))

    with pytest.raises(IRError, match=r"rule 'broken' at <exp .* of m.py:4: transpose: \(0, 0\)"):
        rewrite(graph(exp(x), origins={exp(x): ("m.py:4",)}), rules(exp(a), broken))


def test_long_chains_take_more_sweeps_when_allowed():
    def sink(root, a):
        return exp(neg(a)) if a.op is not neg else None

    chain = x
    for _ in range(50):
        chain = exp(chain)
    made = rules(neg(exp(a)), sink)
    with pytest.raises(IRError, match="after 32 sweeps"):
        rewrite(graph(neg(chain)), made)
    wanted = neg(x)
    for _ in range(50):
        wanted = exp(wanted)
    assert rewrite(graph(neg(chain)), made, most_sweeps=60) == graph(wanted)

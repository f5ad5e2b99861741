"""Text: what is printed parses back to the same graph; what does not parse is quoted."""

import pytest
from ferrule.ir.dims import dim
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.node import input_, item, parameter
from ferrule.ir.ops.model import linear, rms_norm
from ferrule.ir.ops.serving import cache_append, kernel
from ferrule.ir.ops.tensor import (
    add,
    concat,
    constant,
    dim_value,
    gelu,
    iota,
    mul,
    pad,
    reduce_sum,
    relu,
    reshape,
    slice_,
    topk,
    transpose,
)
from ferrule.ir.text import node_lines, parse_graph, print_graph
from ferrule.ir.types import CacheType, TensorType
from hypothesis import given, settings
from hypothesis import strategies as st

T, N = dim("T"), dim("N")
LETTERS = "aZ0 _.\"'\\;:{}()%\n\tß=, "
NUMBERS = (0.0, -0.0, 1e-6, 1e30, -1.5, 3, float("inf"), float("-inf"), float("nan"))
TEXT = """\
graph step(%tokens: i32[T], %kv: cache<bf16>[16; 8, 64]) where T in [1, 512] {
  %0 = parameter {name = "embed.weight"} : bf16[8192, 64]
  %1 = take %0 %tokens {axis = 0} : bf16[T, 64]   from model.embed (llama.py:71)
  %2 = rms_norm %1 {eps = 1e-06} : bf16[T, 64]
  %3 = kernel %2 {body = graph body(%x: bf16[T, 64]) {
    %0 = relu %x : bf16[T, 64]
    %1 = add %0 %0 : bf16[T, 64]
    return %1 as out0
  }, template = "rows", options = (("tile", 8), ("unroll", 2))} : bf16[T, 64]
  %4 = topk %3 {k = 2, axis = 1} : (bf16[T, 2], i64[T, 2])
  %5 = item %4 {index = 0} : bf16[T, 2]
  %6 = reshape %5 {shape = (2*T,)} : bf16[2*T]
  return %6 as hidden, %kv as kv
}
"""


def words(rng):
    return "".join(rng.choice(LETTERS) for _ in range(rng.randint(1, 8)))


def random_step(rng, values):
    """One more node over the values [T, 6] made so far, through other shapes and back."""
    x, y = rng.choice(values), rng.choice(values)
    number = constant(value=rng.choice(NUMBERS), dtype="f32")
    most = topk(x, k=rng.randint(1, 6), axis=1, largest=rng.random() < 0.5)
    flat = reshape(transpose(x, permutation=(1, 0)), shape=(6 * T,))
    ring = concat(slice_(x, axis=0, start=1, stop=T), slice_(x, axis=0, start=0, stop=1), axis=0)
    body = Graph(f"b{rng.randint(0, 9)}", (BX,), (relu(mul(BX, BX)), BX), ("a", "b.1"))
    fused = kernel(x, body=body, template=words(rng), options=((words(rng), rng.randint(-3, 3)),))
    return rng.choice([
        add(x, y), mul(x, number), gelu(x, approximate="tanh"), reshape(flat, shape=(T, 6)),
        rms_norm(x, parameter(name=words(rng), type=TensorType("f32", (6,))), eps=1e-6), ring,
        add(x, reduce_sum(item(most, index=0), axes=(1,), keepdims=True)), item(fused, index=0),
        mul(x, dim_value(dim=T * N + 1, dtype="f32")),
        slice_(pad(x, before=(0, 2), after=(0, 0), value=rng.choice(NUMBERS)), axis=1, start=2,
               stop=8),
        add(x, reshape(iota(size=T * 6, dtype="f32"), shape=(T, 6))),
    ])  # fmt: skip


BX = input_(name="x", type=TensorType("f32", (T, 6)))


def random_graph(rng):
    x = input_(name="x.0", type=TensorType("f32", (T, 6)))
    cache = input_(name="kv", type=CacheType("f32", 16, (6,)))
    slots = input_(name="slots", type=TensorType("i32", (T,)))
    values = [x]
    for _ in range(rng.randint(1, 12)):
        values.append(random_step(rng, values))
    outputs = (*rng.sample(values, rng.randint(1, len(values))), cache_append(cache, x, slots))
    places = {
        n: tuple(words(rng).strip() or "m" for _ in range(rng.randint(1, 3))) for n in values[1:]
    }
    bounds = {"T": (1, 512), "N": (1, rng.randint(1, 64))}
    return Graph(f"g-{rng.randint(0, 9)}", (x, cache, slots), outputs, (), bounds, places)


@settings(deadline=None, max_examples=80)
@given(st.randoms(use_true_random=False))
def test_what_is_printed_parses_to_the_same_graph(rng):
    graph = random_graph(rng)
    text = print_graph(graph)
    parsed = parse_graph(text)
    assert parsed == graph
    assert print_graph(parsed) == text
    reached = set(graph.nodes())
    assert dict(parsed.origins) == {n: o for n, o in graph.origins.items() if n in reached}
    assert " from " not in print_graph(graph, origins=False).replace('"', "").split("return")[-1]


def test_the_text_is_canonical():
    assert print_graph(parse_graph(TEXT)) == TEXT
    loose = TEXT.replace("%1 ", "%rows ").replace("   from", " from").replace(", ", " , ")
    loose = loose.replace("[1 , 512]", "[1, 512]").replace("%rows = add", "%1 = add")
    loose = loose.replace("return %rows as out0", "return %1 as out0")
    assert print_graph(parse_graph(loose)) == TEXT


def test_a_type_may_be_written_out():
    text = 'graph g() {\n  %0 = parameter {name = "w", type = f32[3]} : f32[3]\n  return %0 as w\n}'
    assert parse_graph(text).outputs[0] is parameter(name="w", type=TensorType("f32", (3,)))


def test_a_state_is_a_cache_without_blocks():
    text = "graph g(%h: state<f32>[4, 8]) {\n  return %h as h\n}\n"
    graph = parse_graph(text)
    assert graph.inputs[0].type == CacheType("f32", 0, (4, 8))
    assert print_graph(graph) == text


def test_a_line_for_each_node():
    graph = parse_graph(TEXT)
    lines = node_lines(graph)
    assert len(lines) == 7 and graph.inputs[0] not in lines
    assert list(lines.values())[1].strip() == TEXT.split("\n")[2].strip()


def line(new, old="%2 = rms_norm %1 {eps = 1e-06} : bf16[T, 64]"):
    return TEXT.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message", "number"),
    [
        (line("%2 = rms_nrm %1 {eps = 1e-06} : bf16[T, 64]"), "did you mean 'rms_norm'", 4),
        (line("%2 = rms_norm %9 {eps = 1e-06} : bf16[T, 64]"), "%9 is not defined above", 4),
        (line("%1 = rms_norm %1 {eps = 1e-06} : bf16[T, 64]"), "%1 is defined twice", 4),
        (line("%2 = rms_norm %1 {eps = 1e-06} : bf16[T, 32]"), "the text says bf16", 4),
        (line("%2 = rms_norm %1 {eps = 1e-06 : bf16[T, 64]"), "is no float|not a dim|wanted", 4),
        (line("%2 = rms_norm %1 {eps 1e-06} : bf16[T, 64]"), "'=' was wanted", 4),
        (line("%2 = rms_norm %1 {eps = 1, eps = 1} : bf16[T, 64]"), "eps is given twice", 4),
        (line("%2 = rms_norm %1 {eps = small} : bf16[T, 64]"), "eps = small is no float", 4),
        (line("%2 = rms_norm %1 : bf16[T, 64]"), "rms_norm needs eps", 4),
        (line("%2 = rms_norm %1 {eps = 1e-06}"), "':' was wanted", 5),
        (line("%2 = rms_norm %1 {eps = 1e-06} : bf17[T, 64]"), "no dtype 'bf17'", 4),
        (line("%2 = rms_norm %1 {eps = 1e-06} : bf16[T.x, 64]"), "not a dim", 4),
        (line("%0 = relu %y : bf16[T, 64]", "%0 = relu %x : bf16[T, 64]"), "%y is not def", 6),
        (line("%x: bf16[T, 32]", "%x: bf16[T, 64]"), "the text says", 6),
        (line("T in 1", "T in [1, 512]"), "bounds such as", 1),
        (line("%0: i32[T]", "%tokens: i32[T]"), "an input's name", 1),
        (line("return %7 as", "return %6 as"), "%7 is not defined", 13),
        (TEXT + "more", "the end was wanted", 15),
        (TEXT.rsplit("}", 1)[0], "'}' was wanted", 14),
        ("", "'graph' was wanted", 1),
    ],
)  # fmt: skip
def test_what_does_not_parse_is_quoted(text, message, number):
    with pytest.raises(IRError, match=message) as error:
        parse_graph(text)
    quoted = [*text.split("\n"), ""][number - 1].strip()
    assert str(error.value).endswith(f"  line {number}: {quoted}")


def test_inputs_that_share_a_name_are_refused():
    one, two = (input_(name="x", type=TensorType(d, (3,))) for d in ("f32", "f16"))
    with pytest.raises(IRError, match="share a name: %x, %x"):
        print_graph(Graph("g", (one, two), (one,)))


def test_ten_thousand_nodes_in_no_time():
    import time

    x = input_(name="x", type=TensorType("f32", (T, 8)))
    w = parameter(name="w", type=TensorType("f32", (8, 8)))
    value = x
    for at in range(2500):
        scaled = mul(value, constant(value=at, dtype="f32"))
        value = add(reshape(reshape(linear(scaled, w), shape=(8 * T,)), shape=(T, 8)), value)
    graph = Graph("deep", (x,), (value,), (), {"T": (1, 8)})
    begin = time.process_time()
    assert parse_graph(print_graph(graph)) == graph
    assert len(graph.nodes()) > 10_000 and time.process_time() - begin < 4

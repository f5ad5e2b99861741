"""KV cache: bytes a token of every form of attention, and exact values step by step."""

from __future__ import annotations

import numpy as np
import pytest
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.types import CacheType
from ferrule.ir.verify import verify
from ferrule.passes.cache_attention import CacheAttention
from ferrule.passes.cut_region import cheapest_cut, region_behind
from llama_graph import GROUPS, SIZE, VOCAB, llama
from steps import check_paged

HEAD = """graph step(%tokens: i32[T], %positions: i32[T], %query_start: i32[N + 1])
 where N in [1, 4], T in [1, 64] {
  %e = parameter {name = "e", type = f32[31, 12]} : f32[31, 12]
  %x = take %e %tokens {axis = 0} : f32[T, 12]
"""
TAIL = """  %o = reshape %a {shape = (T, 12)} : f32[T, 12]
  return %o as logits
}
"""
BLOCK = 4


def parameter(name: str, *shape: int) -> str:
    kind = f"f32[{', '.join(map(str, shape))}]"
    return f'  %{name} = parameter {{name = "{name}", type = {kind}}} : {kind}\n'


def cached(text: str | Graph) -> Graph:
    """The paged graph, whose values are checked against the ragged one."""
    ragged = verify(parse_graph(text)) if isinstance(text, str) else text
    paged = verify(CacheAttention(block=BLOCK, max_context=64).run(ragged))
    check_paged(ragged, paged, np.random.default_rng(), 31)
    return paged


def entries(graph: Graph) -> list[tuple[int, ...]]:
    return [i.type.entry for i in graph.inputs if isinstance(i.type, CacheType)]


def token_bytes(graph: Graph) -> int:
    return sum(i.type.entry_bytes() for i in graph.inputs if isinstance(i.type, CacheType))


def merged_qkv(attention: str, extra: str = "") -> str:
    """Keys and values as plain slices of one linear with a bias (GPT-2): 4 heads of 3."""
    parts = [
        f"  %{n}0 = slice %y {{axis = 1, start = {i * 12}, stop = {i * 12 + 12}}} : f32[T, 12]\n"
        f"  %{n} = reshape %{n}0 {{shape = (T, 4, 3)}} : f32[T, 4, 3]\n"
        for i, n in enumerate("qkv")
    ]
    head = HEAD + parameter("w", 36, 12) + parameter("b", 36) + extra
    return head + "  %y = linear %x %w %b : f32[T, 36]\n" + "".join(parts) + attention + TAIL


def test_plain_heads_keep_their_keys_and_values():
    paged = cached(
        merged_qkv("  %a = ragged_attention %q %k %v %query_start {scale = 0.5} : f32[T, 4, 3]\n")
    )
    assert entries(paged) == [(4, 3), (4, 3)]
    assert token_bytes(paged) == 2 * 12 * 4


@pytest.mark.parametrize(
    "more",
    [
        "{scale = 0.5, window = 5}",
        "{scale = 0.5, chunk = 4, softcap = 2.0}",
        '%s {scale = 0.5, extras = ("sinks",)}',
        '%s {scale = 0.5, extras = ("slopes",), window = 6}',
        '%t {scale = 0.5, extras = ("bias",)}',
    ],
)
def test_masks_and_extras_stay(more: str):
    operand, _, attributes = more.rpartition("{")
    line = f"  %a = ragged_attention %q %k %v %query_start {operand}{{{attributes} : f32[T, 4, 3]\n"
    text = print_graph(cached(merged_qkv(line, parameter("s", 4) + parameter("t", 4, 7))))
    assert all(word in text for word in attributes.rstrip("}").split(", "))


def test_heads_repeated_by_a_broadcast_are_cached_once():
    ragged = llama(2)
    paged = verify(CacheAttention(block=BLOCK).run(ragged))
    check_paged(ragged, paged, np.random.default_rng(), VOCAB)
    assert entries(paged) == [(GROUPS, SIZE)] * 4
    assert token_bytes(paged) == 2 * 2 * GROUPS * SIZE * 4


def grouped(index: str) -> str:
    """Two key heads read through an index of four, without rotary: 4 query heads of 3."""
    return (
        HEAD
        + parameter("wq", 12, 12)
        + parameter("wk", 6, 12)
        + """  %q0 = linear %x %wq : f32[T, 12]
  %q = reshape %q0 {shape = (T, 4, 3)} : f32[T, 4, 3]
  %k0 = linear %x %wk : f32[T, 6]
  %k1 = neg %k0 : f32[T, 6]
  %k2 = reshape %k1 {shape = (T, 2, 3)} : f32[T, 2, 3]
  %r = iota {size = 4, dtype = "i32"} : i32[4]
  %two = constant {value = 2, dtype = "i32"} : i32[]
"""
        + f"  %i = {index} %r %two : i32[4]\n"
        + """  %k = take %k2 %i {axis = 1} : f32[T, 4, 3]
  %a = ragged_attention %q %k %k %query_start {scale = 0.5} : f32[T, 4, 3]
"""
        + TAIL
    )


@pytest.mark.parametrize("index", ["floordiv", "mod"])
def test_heads_repeated_by_an_index_are_cached_once(index: str):
    paged = cached(grouped(index))
    assert entries(paged) == [(2, 3)]  # k is v too: one cache serves both


def test_one_key_head_for_all_queries():
    text = (
        HEAD
        + parameter("wq", 12, 12)
        + parameter("wk", 3, 12)
        + parameter("wv", 3, 12)
        + """  %q0 = linear %x %wq : f32[T, 12]
  %q = reshape %q0 {shape = (T, 4, 3)} : f32[T, 4, 3]
  %k0 = linear %x %wk : f32[T, 3]
  %k = reshape %k0 {shape = (T, 1, 3)} : f32[T, 1, 3]
  %v0 = linear %x %wv : f32[T, 3]
  %v = reshape %v0 {shape = (T, 1, 3)} : f32[T, 1, 3]
  %a = ragged_attention %q %k %v %query_start {scale = 0.5} : f32[T, 4, 3]
"""
        + TAIL
    )
    assert entries(cached(text)) == [(1, 3), (1, 3)]


LATENT = (
    HEAD
    + parameter("wq", 20, 12)
    + parameter("wd", 8, 12)
    + parameter("wu", 28, 6)
    + parameter("b", 28)
    + parameter("s", 4)
    + """  %q1 = linear %x %wq : f32[T, 20]
  %q = reshape %q1 {shape = (T, 4, 5)} : f32[T, 4, 5]
  %d = linear %x %wd : f32[T, 8]
  %c0 = slice %d {axis = 1, start = 0, stop = 6} : f32[T, 6]
  %r0 = slice %d {axis = 1, start = 6, stop = 8} : f32[T, 2]
  %c = rms_norm %c0 {eps = 1e-05} : f32[T, 6]
  %r = neg %r0 : f32[T, 2]
  %u = linear UP : f32[T, 28]
  %uh = reshape %u {shape = (T, 4, 7)} : f32[T, 4, 7]
  %kn = slice %uh {axis = 2, start = 0, stop = 3} : f32[T, 4, 3]
  %v = slice %uh {axis = 2, start = 3, stop = 7} : f32[T, 4, 4]
  %rr = reshape %r {shape = (T, 1, 2)} : f32[T, 1, 2]
  %rb = broadcast %rr {shape = (T, 4, 2)} : f32[T, 4, 2]
  %k = concat KEYS {axis = 2} : f32[T, 4, 5]
  %a = ragged_attention %q %k %v %query_start ATTRIBUTES : f32[T, 4, 4]
  %o = reshape %a {shape = (T, 16)} : f32[T, 16]
  return %o as logits
}
"""
)


def latent(up: str = "%c %wu", keys: str = "%kn %rb", attributes: str = "{scale = 0.5}") -> str:
    return LATENT.replace("UP", up).replace("KEYS", keys).replace("ATTRIBUTES", attributes)


@pytest.mark.parametrize("keys", ["%kn %rb", "%rb %kn"])
@pytest.mark.parametrize("up", ["%c %wu", "%c %wu %b"])
def test_latent_attention_caches_its_latent(up: str, keys: str):
    paged = cached(latent(up, keys))
    assert entries(paged) == [(1, 6 + 2)]
    assert token_bytes(paged) == 8 * 4


def test_a_bias_that_does_not_drop_out_is_not_absorbed():
    sinks = '%s {scale = 0.5, extras = ("sinks",)}'
    for attributes in (sinks, "{scale = 0.5, softcap = 3.0}"):
        assert entries(cached(latent("%c %wu %b", attributes=attributes))) == [(4, 5), (4, 4)]
        assert entries(cached(latent("%c %wu", attributes=attributes))) == [(1, 8)]


def test_latent_attention_with_grouped_heads():
    """Two key heads for four queries, both made from the latent."""
    text = latent().replace("f32[28, 6]", "f32[14, 6]")
    text = text.replace("f32[28]", "f32[14]").replace("f32[T, 28]", "f32[T, 14]")
    text = text.replace("(T, 4, 7)", "(T, 2, 7)").replace("[T, 4, 7]", "[T, 2, 7]")
    for size in (3, 4, 2, 5):
        text = text.replace(f"f32[T, 4, {size}]\n  %", f"f32[T, 2, {size}]\n  %")
    text = text.replace("(T, 4, 2)", "(T, 2, 2)")
    text = text.replace(
        "%q = reshape %q1 {shape = (T, 4, 5)} : f32[T, 2, 5]",
        "%q = reshape %q1 {shape = (T, 4, 5)} : f32[T, 4, 5]",
    )
    text = text.replace("{scale = 0.5} : f32[T, 2, 4]", "{scale = 0.5} : f32[T, 4, 4]")
    assert entries(cached(text)) == [(1, 8)]


def test_layers_that_share_keys_and_values_share_caches():
    text = (
        HEAD
        + parameter("wq", 12, 12)
        + parameter("wk", 3, 12)
        + """  %q0 = linear %x %wq : f32[T, 12]
  %q = reshape %q0 {shape = (T, 4, 3)} : f32[T, 4, 3]
  %k0 = linear %x %wk : f32[T, 3]
  %k1 = tanh %k0 : f32[T, 3]
  %v1 = sin %k0 : f32[T, 3]
  %k = reshape %k1 {shape = (T, 1, 3)} : f32[T, 1, 3]
  %v = reshape %v1 {shape = (T, 1, 3)} : f32[T, 1, 3]
  %a0 = ragged_attention %q %k %v %query_start {scale = 0.5} : f32[T, 4, 3]
  %q2 = exp %a0 : f32[T, 4, 3]
  %kb = broadcast %k {shape = (T, 4, 3)} : f32[T, 4, 3]
  %vb = broadcast %v {shape = (T, 4, 3)} : f32[T, 4, 3]
  %a = ragged_attention %q2 %kb %vb %query_start {scale = 0.5, window = 3} : f32[T, 4, 3]
"""
        + TAIL
    )
    paged = cached(text)
    assert entries(paged) == [(1, 3), (1, 3)]
    assert print_graph(paged).count("= cache_append") == 2


def test_attention_to_later_tokens_is_refused():
    line = (
        "  %a = ragged_attention %q %k %v %query_start {scale = 0.5, causal = false} : f32[T, 4, 3]"
    )
    with pytest.raises(IRError, match="later tokens"):
        CacheAttention().run(parse_graph(merged_qkv(line + "   from m.attn (m.py:3)\n")))


def test_bounds_and_names_of_what_is_added():
    paged = CacheAttention(block=16, max_context=100).run(llama(1))
    assert paged.bounds["M"] == (1, 7)
    assert [i["name"] for i in paged.inputs][3:] == [
        "context_length", "block_table", "slots", "cache0", "cache1",
    ]  # fmt: skip
    assert paged.output_names == ("logits", "cache0", "cache1")


def test_the_cheapest_cut_is_taken_and_of_equal_ones_the_nearest():
    text = (
        HEAD
        + parameter("w", 8, 12)
        + """  %y = linear %x %w : f32[T, 8]
  %k0 = slice %y {axis = 1, start = 0, stop = 3} : f32[T, 3]
  %k1 = reshape %k0 {shape = (T, 1, 3)} : f32[T, 1, 3]
  %k = broadcast %k1 {shape = (T, 4, 3)} : f32[T, 4, 3]
  %v0 = slice %y {axis = 1, start = 3, stop = 8} : f32[T, 5]
  %v = reshape %v0 {shape = (T, 1, 5)} : f32[T, 1, 5]
  return %k as k, %v as v
}
"""
    )
    roots = parse_graph(text).outputs
    for with_linears in (False, True):
        region = region_behind(roots, "T", with_linears=with_linears)
        cut = cheapest_cut(roots, region, "T")
        assert {n.op.name for n in region.ends} == ({"take"} if with_linears else {"linear"})
        # 3 + 5 elements: as cheap as y, cheaper than x, and nearer to the roots than the slices
        assert cut == {roots[0].inputs[0], roots[1]}


@pytest.mark.parametrize(("dtype", "size"), [("", 4), ("bf16", 2), ("f16", 2)])
def test_caches_of_another_dtype(dtype: str, size: int) -> None:
    paged = verify(CacheAttention(block=BLOCK, max_context=64, dtype=dtype).run(llama()))
    assert token_bytes(paged) == 2 * 2 * GROUPS * SIZE * size


def test_codes_have_a_scale_for_each_token_and_head() -> None:
    paged = verify(CacheAttention(block=BLOCK, max_context=64, dtype="i8").run(llama(1)))
    assert entries(paged) == [(GROUPS, SIZE), (GROUPS,), (GROUPS, SIZE), (GROUPS,)]
    assert token_bytes(paged) == 2 * GROUPS * (SIZE + 4)
    assert parse_graph(print_graph(paged)) == paged
    (attention,) = [n for n in paged.nodes() if n.op.name == "paged_attention"]
    assert attention["extras"] == ("k_scale", "v_scale")


def test_an_unknown_dtype_of_caches_is_refused() -> None:
    with pytest.raises(IRError, match="caches of 'i4'; known: bf16, f16, i8"):
        CacheAttention(dtype="i4").run(llama())

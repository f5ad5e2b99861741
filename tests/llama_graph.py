"""A flattened Llama-shaped graph as text, for the passes of the serving form."""

from __future__ import annotations

from ferrule.ir.graph import Graph
from ferrule.ir.text import parse_graph

HIDDEN, HEADS, GROUPS, SIZE, MLP, VOCAB = 32, 4, 2, 8, 48, 50


def llama(layers: int = 2, dtype: str = "f32") -> Graph:
    """tokens i32[T] -> logits [T, V]: norms, merged qkv and gate/up, rotary from tables, tied
    embeddings.
    """
    lines = [
        "graph step(%tokens: i32[T], %positions: i32[T], %query_start: i32[N + 1])"
        " where N in [1, 4], T in [1, 64] {",
        *_parameter("e", VOCAB, HIDDEN),
        *_parameter("cos", 96, SIZE),
        *_parameter("sin", 96, SIZE),
        f"  %ct = take %cos %positions {{axis = 0}} : f32[T, {SIZE}]",
        f"  %st = take %sin %positions {{axis = 0}} : f32[T, {SIZE}]",
        f"  %c = reshape %ct {{shape = (T, 1, {SIZE})}} : f32[T, 1, {SIZE}]",
        f"  %s = reshape %st {{shape = (T, 1, {SIZE})}} : f32[T, 1, {SIZE}]",
        f"  %x0 = take %e %tokens {{axis = 0}} : f32[T, {HIDDEN}]   from model.embed (m.py:1)",
    ]
    for i in range(layers):
        lines += _layer(i)
    lines += [
        *_parameter("norm", HIDDEN),
        f"  %h = rms_norm %x{layers} %norm {{eps = 1e-05}} : f32[T, {HIDDEN}]",
        f"  %l = linear %h %e : f32[T, {VOCAB}]   from lm_head (m.py:9)",
        "  return %l as logits\n}\n",
    ]
    return parse_graph("\n".join(lines).replace("f32", dtype))


def _parameter(name: str, *shape: int) -> list[str]:
    kind = f"f32[{', '.join(map(str, shape))}]"
    return [f'  %{name} = parameter {{name = "{name}", type = {kind}}} : {kind}']


def _layer(i: int) -> list[str]:
    columns, keys = HEADS * SIZE, GROUPS * SIZE
    return [
        *_parameter(f"n{i}", HIDDEN),
        *_parameter(f"m{i}", HIDDEN),
        *_parameter(f"qkv{i}", columns + 2 * keys, HIDDEN),
        *_parameter(f"o{i}", HIDDEN, columns),
        *_parameter(f"up{i}", 2 * MLP, HIDDEN),
        *_parameter(f"down{i}", HIDDEN, MLP),
        f"  %a{i} = rms_norm %x{i} %n{i} {{eps = 1e-05}} : f32[T, {HIDDEN}]"
        f"   from layers.{i}.norm (m.py:2)",
        f"  %y{i} = linear %a{i} %qkv{i} : f32[T, {columns + 2 * keys}]",
        *_heads(f"q{i}", f"y{i}", 0, HEADS),
        *_heads(f"k{i}", f"y{i}", HEADS, GROUPS),
        *_heads(f"v{i}", f"y{i}", HEADS + GROUPS, GROUPS),
        *_rotary(f"q{i}", HEADS),
        *_rotary(f"k{i}", GROUPS),
        *_repeat(f"k{i}r"),
        *_repeat(f"v{i}"),
        f"  %t{i} = ragged_attention %q{i}r %k{i}rr %v{i}r %query_start {{scale = 0.3}}"
        f" : f32[T, {HEADS}, {SIZE}]",
        f"  %u{i} = reshape %t{i} {{shape = (T, {columns})}} : f32[T, {columns}]",
        f"  %w{i} = linear %u{i} %o{i} : f32[T, {HIDDEN}]",
        f"  %z{i} = add %x{i} %w{i} : f32[T, {HIDDEN}]",
        f"  %b{i} = rms_norm %z{i} %m{i} {{eps = 1e-05}} : f32[T, {HIDDEN}]",
        f"  %d{i} = linear %b{i} %up{i} : f32[T, {2 * MLP}]   from layers.{i}.mlp (m.py:5)",
        f"  %ga{i} = slice %d{i} {{axis = 1, start = 0, stop = {MLP}}} : f32[T, {MLP}]",
        f"  %gb{i} = slice %d{i} {{axis = 1, start = {MLP}, stop = {2 * MLP}}} : f32[T, {MLP}]",
        f"  %gs{i} = silu %ga{i} : f32[T, {MLP}]",
        f"  %g{i} = mul %gs{i} %gb{i} : f32[T, {MLP}]",
        f"  %f{i} = linear %g{i} %down{i} : f32[T, {HIDDEN}]",
        f"  %x{i + 1} = add %z{i} %f{i} : f32[T, {HIDDEN}]",
    ]


def _heads(name: str, source: str, first: int, count: int) -> list[str]:
    start, stop = first * SIZE, (first + count) * SIZE
    flat = f"f32[T, {stop - start}]"
    return [
        f"  %{name}s = slice %{source} {{axis = 1, start = {start}, stop = {stop}}} : {flat}",
        f"  %{name} = reshape %{name}s {{shape = (T, {count}, {SIZE})}} : f32[T, {count}, {SIZE}]",
    ]


def _rotary(name: str, heads: int) -> list[str]:
    """x cos + rotate_half(x) sin, as %{name}r."""
    half, whole = f"f32[T, {heads}, {SIZE // 2}]", f"f32[T, {heads}, {SIZE}]"
    return [
        f"  %{name}a = slice %{name} {{axis = 2, start = 0, stop = {SIZE // 2}}} : {half}",
        f"  %{name}b = slice %{name} {{axis = 2, start = {SIZE // 2}, stop = {SIZE}}} : {half}",
        f"  %{name}n = neg %{name}b : {half}",
        f"  %{name}t = concat %{name}n %{name}a {{axis = 2}} : {whole}",
        f"  %{name}x = mul %{name} %c : {whole}",
        f"  %{name}y = mul %{name}t %s : {whole}",
        f"  %{name}r = add %{name}x %{name}y : {whole}",
    ]


def _repeat(name: str) -> list[str]:
    """Each key head for the query heads of its group, as %{name}r."""
    times = HEADS // GROUPS
    return [
        f"  %{name}e = reshape %{name} {{shape = (T, {GROUPS}, 1, {SIZE})}}"
        f" : f32[T, {GROUPS}, 1, {SIZE}]",
        f"  %{name}g = broadcast %{name}e {{shape = (T, {GROUPS}, {times}, {SIZE})}}"
        f" : f32[T, {GROUPS}, {times}, {SIZE}]",
        f"  %{name}r = reshape %{name}g {{shape = (T, {HEADS}, {SIZE})}} : f32[T, {HEADS}, {SIZE}]",
    ]

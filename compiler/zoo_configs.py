"""Tiny configs of Hugging Face types, derived by rule from the defaults of each config class.

Sizes shrink by what their names say, all kinds of layers stay: of lists with one entry a layer the
first entry of each kind is kept. What no rule can know is data: compiler/zoo_table.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from .zoo_table import OVERRIDES

Fields = dict[str, Any]

LONGEST = 96  # positions of a tiny model
VOCABULARY = 211
LARGE = 64  # a whole number from here on that no rule names is a size, and becomes SMALL
SMALL = 16
WIDTH, HEADS, GROUPS = 48, 6, 2
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

# The first pattern that a field's name (by attribute_map, where it has a common one) matches gives
# its value; a pair (limit, value) leaves values below the limit as they are.
_SIZES: tuple[tuple[str, int | tuple[int, int]], ...] = (
    (r"(decoder_|unpadded_)?vocab_size|vocab_size_per_layer_input", VOCABULARY),
    (r".*vocab_size.*", (LARGE, 31)),
    (r"max_position_embeddings|n_ctx|max_seq_len|model_max_length|max_target_positions", LONGEST),
    (r"context_length", LONGEST),
    (r".*(sliding_window|window_size|window_len|local_attention)(_size)?", 7),
    (r".*chunk_(size|length)|block_size|floor_scale", (2, 8)),
    (r"num_key_value_heads|num_kv_heads|multi_query_heads|swa_num_key_value_heads", (2, GROUPS)),
    (r"(num|n)_.*heads|.*attention_heads|num_query_groups", (2, HEADS)),
    (r"hidden_size|d_model|.*embedding_size|.*embed_proj_dim|embedding_dim|lru_width", WIDTH),
    (r"attention_hidden_size|dim_model_base|adapter_(in|out)_dim|adapter_input_size", WIDTH),
    (r"(moe|expert|shared).*(intermediate|ffn|hidden).*size", (1, 40)),
    (r".*(intermediate|ffn|feed_forward|d_inner).*|dff|dim_ff", (LARGE, 72)),
    (r".*(head_dim|d_head|head_size|kv_channels|headdim|dim_head)", (2, SMALL)),
    (r"rotary_dim", 4),
    (r"kv_lora_rank", 20),
    (r"q_lora_rank", 28),
    (r"n_routed_experts|(moe_)?num_(local_)?experts", (4, 8)),
    (r"n_group|num_expert_group", (2, 4)),
    (r"topk_group", (2, 2)),
    (r".*(_period|_interval|every_n_layers)", (2, 2)),
    (r".*_layer_offset", (1, 1)),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|moe_top_k", (2, 2)),
)


def tiny_config(kind: str) -> Any:
    """The tiny config of a Hugging Face type, every kind of its layers among few."""
    from transformers import CONFIG_MAPPING

    given = OVERRIDES.get(kind, {})
    return _made(CONFIG_MAPPING[kind], given)


def layers_of(config: Any) -> int:
    """How many layers a config's language model has."""
    text = config.get_text_config(decoder=True)
    for name in ("num_hidden_layers", "decoder_layers", "num_decoder_layers", "num_blocks"):
        if isinstance(count := getattr(text, name, None), int):
            return count
    return 1


def _made(kind: Any, given: Mapping[str, Any]) -> Any:
    """A config of this class: its defaults made small, beside what is given; None among that
    leaves a field at its default.
    """
    default = _defaults(kind, given)
    fields = {**shrunk(default, given), **given}
    for name, part in kind.sub_configs.items():
        asked = given.get(name, {})
        fields[name] = _part(default, name, part, asked)
    return kind(**{n: v for n, v in fields.items() if v is not None})


def _defaults(kind: Any, given: Mapping[str, Any]) -> Any:
    """A config with the defaults of its class; where those do not fit each other, with what is
    given.
    """
    try:
        return kind()
    except Exception:
        return kind(**{n: v for n, v in given.items() if v is not None})


def _part(whole: Any, name: str, part: Any, given: Mapping[str, Any]) -> Any:
    """A config within a config: of the type that is given, its declared class, or the class that
    the default has.
    """
    if not hasattr(part, "model_type") or not dataclasses.is_dataclass(part):
        part = type(getattr(whole, name))
    return _made(part, given)


def shrunk(config: Any, given: Mapping[str, Any]) -> Fields:
    """The fields of a config that are to be smaller, by name; where the number of layers is given,
    lists with one entry a layer are left to the class.
    """
    # What varies by layer has no value of its own to getattr.
    names = [f.name for f in dataclasses.fields(config) if f.name not in config.sub_configs]
    values = {n: vars(config).get(n, getattr(type(config), n, None)) for n in names}
    common = {own: shared for shared, own in type(config).attribute_map.items()}
    made: Fields = {}
    for name, value in values.items():
        smaller = _smaller(_known_name(name, common.get(name, name)), value)
        if smaller != value:
            made[name] = smaller
    layers = _layers(values, common)
    if not any(isinstance(layers.get(n), int) for n in given):
        made |= layers
    made |= _heads(values)
    made |= {n: v for n, v in _TOKENS.items() if n in values}
    made |= {"is_decoder": True} if "is_decoder" in values else {}
    rope = values.get("rope_parameters")
    if isinstance(rope, dict) and (small := _small_rope(rope)) != rope:
        made["rope_parameters"] = small
    return made


def _known_name(own: str, shared: str) -> str:
    """Whichever of a field's names the rules know, the shared one first: some classes share theirs
    by names of long ago.
    """
    return next((n for n in (shared, own) if any(re.fullmatch(p, n) for p, _ in _SIZES)), shared)


def _heads(values: Fields) -> Fields:
    """Grouped heads, but not behind one latent; a head's size where no default gives it, or where
    it is what the width leaves for each.
    """
    made: Fields = {}
    if "num_key_value_heads" in values and values["num_key_value_heads"] != 1:
        made["num_key_value_heads"] = HEADS if "kv_lora_rank" in values else GROUPS
    heads, width = values.get("num_attention_heads"), values.get("hidden_size")
    if "head_dim" in values and isinstance(heads, int) and isinstance(width, int):
        own = values["head_dim"]
        made["head_dim"] = WIDTH // HEADS if own is None or own * heads == width else SMALL
    return made


def _smaller(name: str, value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if name in _TOKENS or name.endswith(("_token_id", "_index", "_token")):
        return min(value, 3)
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            limit, size = size if isinstance(size, tuple) else (1, size)
            return size if value >= limit else value
    return SMALL if value >= LARGE else value


_COUNTS = r"(num_|n_)?(hidden_|encoder_|decoder_)*(layers|layer|blocks)"


def _layers(values: Fields, common: Mapping[str, str]) -> Fields:
    """Few layers, one of each kind at least: counts, and lists with one entry a layer."""
    counts = {
        n: v
        for n, v in values.items()
        if isinstance(v, int) and re.fullmatch(_COUNTS, common.get(n, n))
    }
    most = max(counts.values(), default=0)
    lists = {
        n: list(v)
        for n, v in values.items()
        if isinstance(v, (list, tuple)) and len(v) == most and most > 2
    }
    numbers = [n for n, v in lists.items() if v == [*range(most)]]  # every layer, by its number
    kept = _first_of_each({n: v for n, v in lists.items() if n not in numbers}, most)
    made: Fields = {n: len(kept) if v == most else min(v, 2) for n, v in counts.items()}
    made |= {n: [v[at] for at in kept] for n, v in lists.items()}
    return made | {n: [*range(len(kept))] for n in numbers}


def _first_of_each(lists: Mapping[str, list[Any]], most: int) -> list[int]:
    """The layers where a kind occurs first, two layers at least."""
    kinds: dict[str, int] = {}
    for at in range(most):
        kinds.setdefault(str([v[at] for v in lists.values()]), at)
    kept = sorted(kinds.values())
    return kept if len(kept) >= 2 else [*range(min(2, most))]


def _small_rope(rope: Fields) -> Fields:
    """Rotary parameters for few positions; nested where layers differ in theirs."""
    made = {k: _small_rope(v) if isinstance(v, dict) else v for k, v in rope.items()}
    if isinstance(made.get("original_max_position_embeddings"), int):
        made["original_max_position_embeddings"] = LONGEST // 4
    return made

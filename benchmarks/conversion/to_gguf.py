"""A checkpoint as a GGUF file for llama.cpp.

    python -m benchmarks.conversion.to_gguf CHECKPOINT OUTPUT bf16|int8|int4

Matrices are BF16, Q8_0 or Q4_0 throughout, embeddings and head included; vectors are float32, as
llama.cpp wants them. The file has no vocabulary: it is run on token ids. Tensors are converted one
at a time and written as they come.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = {"bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
FILE_TYPES = {"bf16": "MOSTLY_BF16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
ROWS = 4096  # converted at a time: float32 copies stay small
PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a parameter: model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight."""
    stem, _, kind = name.rpartition(".")
    if stem in WHOLES:
        return f"{WHOLES[stem]}.{kind}"
    number, _, part = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{PARTS[part]}.{kind}"


def interleaved(value: np.ndarray, heads: int) -> np.ndarray:
    """The rows of q or k in the order of llama.cpp's rotation, which turns neighbours, where
    Hugging Face's turns halves.
    """
    shape = value.shape
    return value.reshape(heads, 2, shape[0] // heads // 2, *shape[1:]).swapaxes(1, 2).reshape(shape)


def tensors(checkpoint: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter with its bits as uint16 (bfloat16), mapped."""
    path = checkpoint / "model.safetensors"
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    for name, entry in header.items():
        if name.startswith("__"):  # metadata, padding
            continue
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{path}: {name} is {entry['dtype']}, wanted BF16")
        begin, shape = 8 + length + entry["data_offsets"][0], tuple(entry["shape"])
        yield name, np.memmap(path, np.uint16, "r", begin, shape)


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def converted(bits: np.ndarray, form: str) -> np.ndarray:
    """The bytes of a matrix in a format, a row of blocks a row; a vector as float32."""
    if bits.ndim == 1:
        return widened(bits)
    if form == "bf16":
        return np.ascontiguousarray(bits).view(np.uint8)
    kind = import_module("gguf").GGMLQuantizationType[FORMATS[form]]
    quantize = import_module("gguf.quants").quantize
    parts = [quantize(widened(bits[i : i + ROWS]), kind) for i in range(0, len(bits), ROWS)]
    return np.concatenate(parts)


def write_settings(writer: Any, config: Mapping[str, Any], form: str) -> None:
    """The sizes that llama.cpp reads, and that there is no vocabulary."""
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    head_size = config.get("head_dim") or hidden // heads
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    writer.add_file_type(import_module("gguf").LlamaFileType[FILE_TYPES[form]])


def main() -> None:
    """Convert a checkpoint."""
    checkpoint, output, form = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    family = config["model_type"]
    gguf: Any = import_module("gguf")
    writer = gguf.GGUFWriter(output, family, use_temp_file=False)
    write_settings(writer, config, form)
    kind = gguf.GGMLQuantizationType[FORMATS[form]]
    for name, bits in tensors(checkpoint):
        rotated = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
        part = name.split(".")[-2]
        if family == "llama" and part in rotated:  # qwen2 is rotated as Hugging Face does
            bits = interleaved(bits, config[rotated[part]])
        value = converted(bits, form)
        writer.add_tensor(gguf_name(name), value, raw_dtype=kind if bits.ndim > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

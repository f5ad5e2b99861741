"""Makes random checkpoints in the Hugging Face format, one tensor in memory at a time.

    python -m benchmarks.checkpoints /tmp/llama-1b [--shape llama-1b]

Weights are bfloat16 of standard deviation 0.02, with the embedded model's tokenizer beside them,
so that every command works on a checkpoint; its vocabulary is larger than the tokenizer's, its
text is noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parent.parent / "examples/models/tiny-llama"
_EVERY = {
    "max_position_embeddings": 131072,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
_QWEN2 = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
LLAMA_1B = {
    **_LLAMA,
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    **_EVERY,
}
QWEN2_HALF_B = {
    **_QWEN2,
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    **_EVERY,
}
TINYLLAMA_1B = {
    **_LLAMA,
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 5632,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    **_EVERY,
}
SHAPES: Mapping[str, Mapping[str, object]] = {
    "llama-1b": LLAMA_1B,
    "qwen2-0.5b": QWEN2_HALF_B,
    "tinyllama-1.1b": TINYLLAMA_1B,
}


def checkpoint_of(folder: Path, config: Mapping[str, object]) -> Path:
    """The folder, holding a checkpoint of this shape: the one that is there, or a new one.

    One of another shape is an error: its figures would be taken for this one's.
    """
    if not (folder / "model.safetensors").is_file():
        return write_checkpoint(folder, config)
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if differing := [k for k, v in config.items() if found.get(k) != v]:
        raise SystemExit(f"{folder}: a checkpoint of another shape ({', '.join(differing)} differ)")
    return folder


def write_checkpoint(folder: Path, config: Mapping[str, object], seed: int = 0) -> Path:
    """The folder, holding the config, a tokenizer and random bfloat16 weights of standard
    deviation 0.02; norms are ones.
    """
    import torch
    from ferrule.ir.plan import TensorSpec
    from ferrule.runtime.weights import WeightsWriter
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}  # tied ones are named once
    specs = [TensorSpec(name, "bf16", shape) for name, shape in shapes.items()]
    torch.manual_seed(seed)
    with WeightsWriter(folder / "model.safetensors", specs) as writer:
        for name, shape in shapes.items():
            value = torch.empty(shape, dtype=torch.bfloat16)
            is_norm = name.endswith("norm.weight")
            value = value.fill_(1.0) if is_norm else value.normal_(0, 0.02)
            writer.write(name, value.view(torch.uint16).numpy())
    return folder


def main() -> None:
    """Write the checkpoint that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=list(SHAPES), default="llama-1b")
    parser.add_argument("--layers", type=int, help="fewer than the shape has")
    given = parser.parse_args()
    config = dict(SHAPES[given.shape])
    if given.layers:
        config["num_hidden_layers"] = given.layers
    folder = write_checkpoint(given.folder, config)
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size / 1e9:.2f} GB of random weights")


if __name__ == "__main__":
    main()

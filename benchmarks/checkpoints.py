"""Makes random checkpoints in the Hugging Face format, one tensor in memory at a time.

    python -m benchmarks.checkpoints /tmp/llama-1b

The default is a Llama shape of 1.2 billion parameters in bfloat16, with the embedded model's
tokenizer beside it, so that every command works on it; its vocabulary is larger than the
tokenizer's, its text is noise.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from ferrule.ir.plan import TensorSpec
from ferrule.runtime.weights import WeightsWriter

TOKENIZER = Path(__file__).resolve().parent.parent / "examples/models/tiny-llama"
LLAMA_1B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "tie_word_embeddings": True,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    "bos_token_id": 0,
    "eos_token_id": 0,
    "dtype": "bfloat16",
}


def write_checkpoint(folder: Path, config: dict[str, object], seed: int = 0) -> Path:
    """The folder, holding the config, a tokenizer and random bfloat16 weights of standard
    deviation 0.02.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOKENIZER / name, folder / name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}  # tied ones are named once
    specs = [TensorSpec(name, "bf16", shape) for name, shape in shapes.items()]
    torch.manual_seed(seed)
    with WeightsWriter(folder / "model.safetensors", specs) as writer:
        for name, shape in shapes.items():
            writer.write(name, _random(name, shape).view(torch.uint16).numpy())
    return folder


def _random(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if len(shape) == 1:
        return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02)


def main() -> None:
    """Write the checkpoint that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=LLAMA_1B["num_hidden_layers"])
    given = parser.parse_args()
    folder = write_checkpoint(given.folder, {**LLAMA_1B, "num_hidden_layers": given.layers})
    size = (folder / "model.safetensors").stat().st_size
    print(f"{folder}: {size / 1e9:.2f} GB of random weights")


if __name__ == "__main__":
    main()

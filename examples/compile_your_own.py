"""Compile a language model that was written by hand: no configuration, no tokenizer, no library."""

from __future__ import annotations

import torch
from torch import nn

import ferrule


class Block(nn.Module):
    """Attention over what came before, then an MLP; both with residuals."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's result for x[B, S, width]."""
        batch, length, width = x.shape
        qkv = self.qkv(self.before_attention(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.mlp(self.before_mlp(x))


class Tiny(nn.Module):
    """Learned positions, two blocks, and the embedding again at the end."""

    def __init__(
        self, vocabulary: int = 300, width: int = 60, heads: int = 5, context: int = 96
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        nn.init.normal_(self.tokens.weight, std=0.05)  # it is the output matrix too
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, S, V] of ids [B, S]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.tokens(input_ids) + self.places(places)
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.tokens.weight.T


@torch.no_grad()
def eager(model: nn.Module, prompt: list[int], count: int) -> list[int]:
    """The greedy continuation, every token computed from the whole sequence."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def main() -> None:
    """Compile, generate for two prompts at once, compare with PyTorch."""
    torch.manual_seed(0)
    model = Tiny().eval()
    artifact = ferrule.compile(model, max_context=96, max_batch=2)
    sampling = ferrule.SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    prompts = [[5, 17, 200], [9, 8, 7, 6, 5, 4, 3, 2, 1]]
    for prompt, completion in zip(prompts, artifact.generate(prompts, sampling), strict=True):
        wanted = eager(model, prompt, 20)
        print(prompt, "->", list(completion.token_ids))
        assert list(completion.token_ids) == wanted, wanted


if __name__ == "__main__":
    main()

"""What a GPU's figures are held against: a decoder in plain torch, compiled layer by layer and
recorded as one CUDA graph (as gpt-fast does), and transformers with a static cache under
torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Run = Callable[[], object]
ROOM = 64
"""Tokens that a cache of fixed length has room for behind those that are there."""


def wait(model: PreTrainedModel) -> None:
    """Wait for the device that a model is on."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x[B, heads, S, D] turned by the angles of its positions."""
    low, high = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-high, low), dim=-1) * sin


class PlainLlama:
    """A Llama's forward by the weights of transformers' model, with a cache of fixed length: logits
    of the last token of ids[B, S] at places pos[S].
    """

    def __init__(
        self, model: PreTrainedModel, batch: int, length: int, *, compiled: bool = True
    ) -> None:
        config: Any = model.config
        self.model: Any = model.model
        self.head: Any = model.get_output_embeddings()
        device, dtype = self.head.weight.device, self.head.weight.dtype
        shape = (batch, config.num_key_value_heads, length, self.model.layers[0].self_attn.head_dim)
        self.caches = [
            tuple(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
            for _ in self.model.layers
        ]
        self.visible = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        self.block = torch.compile(self._block, dynamic=False) if compiled else self._block

    def _block(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, pos: Tensor, layer: Any,
        keys: Tensor, values: Tensor, whole: bool,
    ) -> Tensor:  # fmt: skip
        batch, count, _ = x.shape
        own, mlp = layer.self_attn, layer.mlp
        h = layer.input_layernorm(x)
        q, k, v = (
            p(h).view(batch, count, -1, own.head_dim).transpose(1, 2)
            for p in (own.q_proj, own.k_proj, own.v_proj)
        )
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
        keys.index_copy_(2, pos, k)
        values.index_copy_(2, pos, v)
        if whole:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        else:
            y = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True)
        x = x + own.o_proj(y.transpose(1, 2).reshape(batch, count, -1))
        h = layer.post_attention_layernorm(x)
        return x + mlp.down_proj(F.silu(mlp.gate_proj(h)) * mlp.up_proj(h))

    @torch.inference_mode()
    def __call__(self, ids: Tensor, pos: Tensor, *, whole: bool = False) -> Tensor:
        """Logits [B, V]; `whole`: these are the first tokens, and all there are."""
        x = self.model.embed_tokens(ids)
        cos, sin = self.model.rotary_emb(x, pos[None])
        mask = self.visible[pos][None, None]
        for layer, (keys, values) in zip(self.model.layers, self.caches, strict=True):
            x = self.block(x, cos, sin, mask, pos, layer, keys, values, whole)
        return self.head(self.model.norm(x[:, -1:]))[:, -1]


def plain_decode(model: PreTrainedModel, count: int, context: int) -> Run:
    """A decode step of PlainLlama behind so many tokens, greedy, as one CUDA graph."""
    peer = PlainLlama(model, count, context + 8)
    ids = torch.randint(0, 1000, (count, 1), device=model.device)
    pos = torch.full((1,), context - 1, device=model.device)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            peer(ids, pos).argmax(-1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        peer(ids, pos).argmax(-1)

    def run() -> None:
        graph.replay()
        wait(model)

    return run


def plain_prefill(model: PreTrainedModel, prompt: int) -> Run:
    """A prompt by PlainLlama, whole."""
    peer = PlainLlama(model, 1, prompt)
    ids = torch.randint(0, 1000, (1, prompt), device=model.device)
    pos = torch.arange(prompt, device=model.device)

    def run() -> None:
        peer(ids, pos, whole=True)
        wait(model)

    return run


def transformers_decode(model: PreTrainedModel, count: int, context: int) -> Run:
    """A decode step of transformers with a static cache, compiled by torch with CUDA graphs."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=context + ROOM)
    ids = torch.randint(0, 1000, (count, context - 1), device=model.device)
    step = torch.compile(model.forward, mode="reduce-overhead")
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)

    # The cache counts its tokens by itself, so that each step is one token longer: ROOM is for
    # those that are timed.
    place = torch.full((1, 1), context - 1, device=model.device)

    def run() -> None:
        with torch.inference_mode():
            step(input_ids=ids[:, :1], position_ids=place, past_key_values=cache, use_cache=True)
        wait(model)

    return run


def transformers_prefill(model: PreTrainedModel, prompt: int) -> Run:
    """A prompt by transformers with a static cache, whole, compiled by torch for its length."""
    from transformers import StaticCache

    cache = StaticCache(config=model.config, max_cache_len=prompt)
    ids = torch.randint(0, 1000, (1, prompt), device=model.device)
    step = torch.compile(model.forward, dynamic=False)

    def run() -> None:
        with torch.inference_mode():
            cache.reset()
            step(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        wait(model)

    # The cache makes its memory at its first use, which is no part of what is compiled.
    with torch.inference_mode():
        model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return run

"""Capture helpers: each has the values of the library's function; none stands in for another."""

from __future__ import annotations

import importlib
import inspect
from functools import partial
from typing import Any

import pytest
import torch
from ferrule.compiler.capture import capture
from ferrule.compiler.capture_helpers import HELPERS
from ferrule.compiler.helped import helped
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.reference import evaluate
from torch import nn


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape) * 0.7


def mamba(length: int) -> tuple[list[torch.Tensor], dict[str, object]]:
    x, dt, b, c = (rand(2, size, length) for size in (6, 6, 5, 5))
    more = {"D": rand(6), "z": rand(2, 6, length), "delta_bias": rand(6), "delta_softplus": True}
    return [x, dt, -rand(6, 5).exp(), b, c], more


def mamba2(length: int) -> tuple[list[torch.Tensor], dict[str, object]]:
    x, dt = rand(2, length, 6, 3), rand(2, length, 6)
    b, c = rand(2, length, 2, 5), rand(2, length, 2, 5)
    more = {"chunk_size": 4, "D": rand(6), "dt_bias": rand(6), "dt_softplus": True}
    return [x, dt, -rand(6).exp(), b, c], {**more, "dt_limit": (0.3, 1.5)}


def delta(length: int) -> tuple[list[torch.Tensor], dict[str, object]]:
    q, k = rand(2, length, 2, 5), rand(2, length, 2, 5)
    v, g, beta = rand(2, length, 4, 3), -rand(2, length, 4).abs(), rand(2, length, 4).sigmoid()
    more = {"chunk_size": 8, "use_qk_l2norm_in_kernel": True}
    return [q, k, v, g, beta], more


def kimi(length: int) -> tuple[list[torch.Tensor], dict[str, object]]:
    q, k, v, g = (rand(2, length, 3, 5) for _ in range(4))
    more = {"chunk_size": 8, "use_qk_l2norm_in_kernel": True}
    return [q, k, v, -g.abs(), rand(2, length, 3).sigmoid()], more


def rwkv(length: int) -> tuple[list[torch.Tensor], dict[str, object]]:
    return [rand(6), rand(6), 4 * rand(2, length, 6), rand(2, length, 6)], {}


CASES = {
    "mamba": ("mamba_selective_scan", mamba),
    "mamba2": ("mamba2_chunk_scan", mamba2),
    "qwen3_next": ("torch_chunk_gated_delta_rule", delta),
    "rwkv": ("rwkv_linear_attention", rwkv),
    "kimi_linear": ("chunk_kimi_delta_attention", kimi),
}


@pytest.mark.parametrize("model", CASES)
def test_each_helper_has_the_values_of_the_library(model: str):
    pytest.importorskip("transformers")
    name, arguments = CASES[model]
    library = importlib.import_module(f"transformers.models.{model}.modeling_{model}")
    for length in (1, 4, 19):
        args, more = arguments(length)
        wanted, given = getattr(library, name)(*args, **more), HELPERS[name](*args, **more)
        if isinstance(wanted, tuple):
            assert given[1] is None
            wanted, given = wanted[0], given[0]
        torch.testing.assert_close(given, wanted, rtol=2e-5, atol=2e-5)


def matrix_memory() -> partial[Any]:
    library = importlib.import_module("transformers.models.xlstm.modeling_xlstm")
    return partial(
        library.wrap_chunkwise_arbitrary_sequence_length,
        mlstm_chunkwise_kernel=library.mlstm_chunkwise_native_autograd,
        mlstm_sequence_kernel=library.mlstm_recurrent_sequence_native,
        mlstm_step_kernel=library.mlstm_recurrent_step_native,
        chunk_size=4,
    )


@pytest.mark.parametrize("length", [1, 4, 19])
def test_a_helper_stands_in_where_a_model_holds_a_function_with_arguments(length: int):
    pytest.importorskip("transformers")
    model, before = nn.Module(), matrix_memory()
    model.run = before
    given = {n: 3 * rand(2, 3, length, 5) for n in ("query", "key", "value")}
    given |= {n: 4 * rand(2, 3, length) for n in ("fgate", "igate")}
    (wanted, states), known = before(**given), HELPERS[before.func.__name__]
    torch.testing.assert_close(known(**given), (wanted, states), rtol=2e-5, atol=2e-5)
    with helped(model):
        assert inspect.unwrap(model.run.func) is before.func is not model.run.func
        torch.testing.assert_close(model.run(**given)[0], wanted, rtol=2e-5, atol=2e-5)
    assert model.run is before


def selective_scan_fn(x, dt, A, B, C, **_):
    """As the library's, one token after another."""
    state, rows = x.new_zeros(*x.shape[:2], A.shape[1]), []
    for i in range(x.shape[2]):
        step = dt[:, :, i, None]
        state = state * (step * A).exp() + step * x[:, :, i, None] * B[:, None, :, i]
        rows.append((state * C[:, None, :, i]).sum(-1))
    return torch.stack(rows, -1)


def chunk_gated_delta_rule(q, k, v, g, beta):
    """Something else by the name of a library's function."""
    return (q + k) * beta[..., None] + v * g[..., None], None


class Scanning(nn.Module):
    """A language model whose scan is a loop in Python over the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(31, 6)
        self.gates, self.out = nn.Linear(6, 6 + 4 + 4), nn.Linear(6, 31)
        self.rates = nn.Parameter(-torch.rand(6, 4))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        dt, b, c = (y.transpose(1, 2) for y in self.gates(x).split((6, 4, 4), dim=-1))
        y = selective_scan_fn(x.transpose(1, 2), dt.sigmoid(), self.rates, b, c)
        return self.out(x + y.transpose(1, 2))


def test_a_loop_over_the_tokens_exports_for_any_length():
    model = Scanning().eval()
    imported = import_captured(capture(model, max_context=64))
    assert [n.op.name for n in imported.graph.nodes()].count("linear_scan") == 1
    weights = {p["name"]: imported.weights[p["name"]] for p in imported.graph.parameters()}
    for length in (1, 5, 33):
        ids = torch.randint(0, 31, (2, length))
        (given,) = evaluate(imported.graph, [ids], weights)
        torch.testing.assert_close(given, model(ids), rtol=1e-5, atol=1e-5)


class Mixing(nn.Module):
    """A function that has a library's name and does something else."""

    def forward(self, q, k, v, g, beta):
        return chunk_gated_delta_rule(q, k, v, g, beta)[0]


def test_a_function_of_the_name_with_other_values_is_left():
    given = [rand(2, 5, 3, 4) for _ in range(3)] + [rand(2, 5, 3) for _ in range(2)]
    model, before = Mixing(), chunk_gated_delta_rule
    with helped(model):
        assert torch.equal(model(*given), before(*given)[0])
    assert chunk_gated_delta_rule is before

"""`ferrule.compile`: language models, and modules of any signature."""

from pathlib import Path
from typing import Any

import pytest
import torch
from ferrule.compiler.errors import CompileError
from ferrule.compiler.module import CompiledModule
from models import zoo
from torch import nn
from torch.export import Dim

import ferrule


class Pair(nn.Module):
    """Pytrees in and out: a dict, a tuple, a keyword, a number."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(13, 29), nn.LayerNorm(29)

    def forward(
        self,
        batch: dict[str, torch.Tensor],
        pair: tuple[torch.Tensor, float],
        *,
        bias: torch.Tensor,
    ) -> dict[str, Any]:
        x, scale = pair
        y = self.norm(self.inner(batch["x"] * scale)) + bias
        return {"y": y, "more": (y.argmax(-1), batch["keep"] & (x > 0)), "sum": x.sum(0)}


class Encoder(nn.Module):
    """Attention to both sides, in one program for any length."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        b, s = ids.shape
        q, k, v = self.qkv(self.embed(ids)).view(b, s, 3, 3, 8).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(b, s, 24)).mean(1)


def compiled(module: nn.Module, *args: Any, **options: Any) -> CompiledModule:
    return ferrule.compile(module, args=args, progress=False, **options)


def arguments() -> tuple[tuple[Any, ...], dict[str, Any]]:
    batch = {"x": torch.randn(5, 13), "keep": torch.rand(5, 29) > 0.5}
    return (batch, (torch.randn(5, 29), 0.7)), {"bias": torch.randn(29)}


def test_a_module_is_called_by_its_own_signature_and_saved(tmp_path: Path):
    module = Pair().eval()
    args, kwargs = arguments()
    made = ferrule.compile(module, args=args, kwargs=kwargs, progress=False)
    made.artifact.save(tmp_path / "pair")
    again = CompiledModule.load(tmp_path / "pair")
    for call in (made, again):
        args, kwargs = arguments()
        torch.testing.assert_close(
            call(*args, **kwargs), module(*args, **kwargs), rtol=1e-4, atol=1e-4
        )
    with pytest.raises(TypeError, match="the module was compiled for"):
        made(*args)
    with pytest.raises(TypeError, match=r"given torch\.float64, wanted torch\.float32"):
        made(*args, bias=kwargs["bias"].double())
    with pytest.raises(ValueError, match="given shape"):
        made(*args, bias=torch.zeros(28))


def test_dims_stay_open_where_asked():
    module = Encoder().eval()
    shapes = {"ids": {0: Dim("batch", max=6), 1: Dim("length", max=40)}}
    made = compiled(module, torch.randint(0, 50, (3, 17)), dynamic_shapes=shapes)
    for shape in ((1, 1), (6, 40), (2, 23)):
        ids = torch.randint(0, 50, shape)
        torch.testing.assert_close(made(ids), module(ids), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="the plan has 1 to 40"):
        made(torch.zeros(1, 41, dtype=torch.int64))


def test_a_dim_without_a_bound_is_refused():
    shapes = {"ids": {1: Dim("length")}}
    with pytest.raises(CompileError, match="no upper bound"):
        compiled(Encoder().eval(), torch.zeros(2, 9, dtype=torch.int64), dynamic_shapes=shapes)


def test_a_module_in_bfloat16():
    module = nn.Sequential(nn.Linear(33, 65), nn.GELU(), nn.Linear(65, 7)).bfloat16().eval()
    x = torch.randn(4, 33, dtype=torch.bfloat16)
    made = compiled(module, x)
    torch.testing.assert_close(made(x), module(x), rtol=2e-2, atol=2e-2)
    assert made(x).dtype == torch.bfloat16


class Nothing(nn.Module):
    """Gives its argument back, and a constant."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, torch.arange(3)


def test_results_that_nothing_computes_are_results():
    made = compiled(Nothing(), torch.randn(2, 3))
    x = torch.randn(2, 3)
    torch.testing.assert_close(made(x), (x, torch.arange(3)))


def test_an_unknown_option_is_refused_with_the_nearest():
    with pytest.raises(TypeError, match="did you mean 'max_batch'"):
        ferrule.compile(nn.Linear(2, 2), max_bach=3)  # pyright: ignore[reportCallIssue]


def test_arguments_are_for_modules():
    with pytest.raises(TypeError, match="args and kwargs are for a module"):
        ferrule.compile("some/model", args=(1,))


def test_a_model_is_saved_and_loaded_with_its_end_tokens(tmp_path: Path):
    model = zoo.build("llama")
    made = ferrule.compile(model, max_context=64, max_batch=2, progress=False)
    made.save(tmp_path / "built")
    again = ferrule.load(tmp_path / "built")
    params = ferrule.SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
    prompt = zoo.prompts(1)[0]
    wanted, _ = zoo.eager_greedy(model, prompt, 9)
    for artifact in (made, again):
        (completion,) = artifact.generate(prompt, params)
        assert list(completion.token_ids) == wanted
        assert completion.text == ""
    assert again.new_engine().ends == frozenset([2])
    assert model.config.use_cache  # the caller's model is as it was


def test_another_dtype_leaves_the_callers_model_alone():
    model = zoo.build("scratch_plain")
    made = ferrule.compile(model, dtype="bfloat16", max_context=64, max_batch=2, progress=False)
    assert made.manifest["dtype"] == "bf16"
    assert {c.dtype for c in made.plan.caches} == {"bf16"}
    assert next(model.parameters()).dtype == torch.float32

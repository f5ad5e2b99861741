"""Models that can be served in no form say so, with the module that it begins in."""

import re

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.capture import capture
from ferrule.compiler.errors import CompileError
from ferrule.compiler.refusals import in_plain_words
from ferrule.runtime.errors import RequestError
from ferrule.runtime.sampling import SamplingParams
from torch import nn


class Mean(nn.Module):
    """Every token's is that of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.mean(1, keepdim=True)


class Noise(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(x.shape)


class Counted(nn.Module):
    """Every token's is of how many there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.shape[1]


class Chosen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x[:, 0].sum() > 0 else x


class LM(nn.Module):
    """A layer that is looked at, and one that does not export."""

    def __init__(self, first: nn.Module, last: nn.Module | None = None) -> None:
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(20, 8), first, last or Chosen()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.words(ids))) @ self.words.weight.T


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (Mean(), r"depends on the tokens behind it, from first \(test_probed\.py:\d+\)"),
        (
            Counted(),
            r"depends on how many tokens are behind it, from first \(test_probed\.py:\d+\)",
        ),
        (Noise(), r"by random numbers, from first \(test_probed\.py:\d+\)"),
    ],
)
def test_what_is_no_causal_model_is_told_so(first: nn.Module, why: str):
    with pytest.raises(CompileError, match=f"LM is no causal language model: .*{why}"):
        capture(LM(first))


def test_what_exports_and_is_no_causal_model_is_told_so():
    with pytest.raises(CompileError, match=r"model: .*depends on the tokens behind it, from first"):
        build_in_temporary(LM(Mean(), nn.Identity()), Options(max_context=16, progress=False))


def test_what_is_one_keeps_its_refusal_in_plain_words():
    with pytest.raises(
        CompileError, match=r"at test_probed\.py:\d+: .*the tokens' values"
    ) as found:
        capture(LM(nn.Identity()))
    assert "GuardOnDataDependent" not in str(found.value)


class Rowwise(nn.Module):
    """Wants several rows of ids a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids.reshape(-1, 4, ids.shape[-1])).sum(1)
        return x @ self.words.weight.T


def test_sizes_have_names():
    with pytest.raises(CompileError, match=r"\[-1, 4, S\].* size B\*S .*token ids \[B, S\]"):
        capture(Rowwise())


class Looping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = [self.words(ids[at]) for at in range(ids.shape[0])]
        return torch.stack(rows) @ self.words.weight.T


def test_a_size_that_becomes_a_number_is_named():
    with pytest.raises(CompileError, match=r"test_probed\.py:\d+, where the number of sequences"):
        capture(Looping())


def test_the_tracers_advice_is_left_out():
    said = (
        "M does not export, at m.py:5: UserError: Constraints violated (S)! For more information, "
        'run with TORCH_LOGS="+dynamic".\n  - You marked S as dynamic but your code specialized it '
        "to be a constant (19). If you're using mark_dynamic, either remove it"
    )
    plain = in_plain_words(said)
    assert re.fullmatch(r"M does not export, at m\.py:5: .*makes a fixed number of .*tokens", plain)


class Padded(nn.Module):
    """Leaves out what is behind so many tokens as are no padding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8, padding_idx=2)
        self.out = nn.Linear(8, 20)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        real = (ids != 2).sum(1)
        kept = torch.arange(ids.shape[1]) < real[:, None]
        return self.out(self.words(ids) * kept[..., None].float())


def test_padding_that_is_counted_is_refused_in_prompts_and_ends_a_sequence():
    torch.manual_seed(0)
    model = Padded().eval()
    options = Options(max_context=32, max_batch=2, chunk=8, block=4, progress=False)
    artifact = build_in_temporary(model, options)
    assert artifact.manifest["absent"]["token"] == 2
    assert re.search(r"test_probed\.py:\d+", artifact.manifest["absent"]["place"])
    with pytest.raises(
        RequestError, match=r"token 2 stands at place 2 of the prompt: it is padding"
    ):
        artifact.new_engine().submit([5, 6, 2, 7])
    with torch.no_grad():
        model.out.weight.zero_()
        model.out.bias.copy_(torch.arange(20) == 2)
    artifact = build_in_temporary(model, options)
    asked = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    (made,) = artifact.generate([[5, 6, 7]], asked)
    assert list(made.token_ids) == [2] and made.finish_reason == "stop"

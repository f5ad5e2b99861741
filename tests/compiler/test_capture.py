"""Capture: any batch, any length, the model left as it was; refusals that say why and where."""

import re

import pytest
import torch
from ferrule.compiler.build import Options, build_in_temporary
from ferrule.compiler.capture import capture
from ferrule.compiler.errors import CompileError
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.reference import evaluate
from ferrule.runtime.errors import RequestError
from models import zoo
from models.tables import CountedLM, MaskTableLM
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention


def test_one_program_serves_any_batch_and_length():
    model = zoo.build("llama")
    captured = capture(model)
    assert captured.bounds == {"B": (1, 1024), "S": (1, 96)}
    for shape in ((1, 1), (4, 31)):
        ids = torch.randint(0, 211, shape)
        found = captured.program.module()(ids)
        torch.testing.assert_close(found, zoo.logits_of(model, ids))


def test_the_model_is_left_as_it_was():
    model = zoo.build("qwen3_moe").train()
    before = (
        model.config.use_cache,
        model.get_experts_implementation(),
        dict(model.named_parameters()),
    )
    capture(model)
    assert model.training
    assert before[0] == model.config.use_cache
    assert before[1] == model.get_experts_implementation()
    assert all(before[2][name] is p for name, p in model.named_parameters())


def test_parameters_on_the_meta_device_cost_no_memory():
    model = zoo.build("scratch_plain")
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is not None:
                module._parameters[name] = nn.Parameter(weight.detach().to("meta"))
    captured = capture(model)
    assert set(captured.dims.values()) == {"B", "S"}
    assert all(p.is_meta for p in model.parameters())


def test_max_context_bounds_the_length():
    assert capture(zoo.build("scratch_plain"), max_context=40).bounds["S"] == (1, 40)


@pytest.mark.parametrize("name", ["scratch_plain", "scratch_interleaved"])
def test_a_table_of_positions_bounds_the_length(name: str):
    assert capture(zoo.build(name)).bounds["S"] == (1, 96)


def test_a_context_beyond_a_learned_table_names_the_table():
    with pytest.raises(
        CompileError, match=r"max_context 200 .*96 rows .*scratch\.py:\d+.*96 tokens"
    ):
        capture(zoo.build("scratch_plain"), max_context=200)


def test_a_context_beyond_a_sliced_table_is_refused():
    with pytest.raises(CompileError, match="96"):
        capture(zoo.build("scratch_interleaved"), max_context=200)


class Switch(nn.Module):
    """Takes another way at lengths above a limit; below it, may be captured."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(31, 8), nn.Linear(8, 31)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        places = torch.arange(ids.shape[1])
        if places.max() + 1 > 50:
            x = x * 2
        return self.out(x)


def test_a_decision_that_all_lengths_share_is_taken():
    captured = capture(Switch(), max_context=50)
    assert not [n for n in captured.program.graph.nodes if "mul" in n.name]


def test_a_decision_that_lengths_differ_in_names_its_line():
    with pytest.raises(
        CompileError, match=r"different lengths: at test_capture\.py:\d+ .*max_context"
    ):
        capture(Switch(), max_context=60)


class Peeking(Switch):
    """Decides by what the tokens are, which no graph can."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(ids) * (2 if ids.sum() > 3 else 1))


def test_an_unexportable_model_is_refused_with_its_line(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(CompileError, match=r"Peeking does not export, at test_capture\.py:\d+"):
        capture(Peeking())
    assert "def forward" not in capsys.readouterr().err  # of torch, which prints what it refuses


class Fixed(Switch):
    """Works for one length alone."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.out(self.words(ids).reshape(-1, 19, 8) + torch.ones(ids.shape[1], 8))


def test_a_length_that_is_fixed_is_refused():
    with pytest.raises(CompileError, match=r"Fixed does not export|one batch or length alone"):
        capture(Fixed())


def test_a_module_that_gives_no_logits_is_told_how_to_be_compiled():
    class Pooled(Switch):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.words(ids).mean(1)

    with pytest.raises(CompileError, match=r"logits \[B, S, V\].*\[3, 8\]|args="):
        capture(Pooled())


def test_any_module_is_captured_with_its_arguments():
    module = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3))
    captured = capture(module, args=(torch.randn(4, 5),))
    assert not captured.is_language_model
    batch = torch.export.Dim("rows", min=1, max=64)
    open_ = capture(module, args=(torch.randn(4, 5),), dynamic_shapes=({0: batch},))
    assert list(open_.bounds.values()) == [(1, 64)]


def test_the_whole_of_a_square_table_is_no_case_of_its_own():
    model = zoo.randomize(MaskTableLM())
    captured = capture(model, max_context=24)
    assert captured.bounds["S"] == (1, 24)
    imported = import_captured(captured)
    for shape in ((1, 1), (3, 2), (2, 23), (1, 24)):
        ids = torch.randint(0, 31, shape)
        (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
        torch.testing.assert_close(found, model(ids))
    with pytest.raises(CompileError, match="24"):
        capture(model, max_context=25)


def test_positions_that_are_counted_bound_the_length():
    model = zoo.randomize(CountedLM())
    assert capture(model).bounds["S"] == (1, 22)  # positions begin at 2
    with pytest.raises(CompileError, match=r"max_context 23 .*24 rows .*22 tokens"):
        capture(model, max_context=23)


class Late(nn.Module):
    """Loops over the tokens; the step is another one from some token on."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.late = late
        self.words, self.gates = nn.Embedding(31, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 31)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        gates, state, rows = self.gates(x).sigmoid(), torch.zeros_like(x[:, 0]), []
        for t in range(ids.shape[1]):
            kept = gates[:, t] * (0.5 if t >= self.late else 1.0)
            state = kept * state + x[:, t]
            rows.append(state)
        return self.out(torch.stack(rows, dim=1))


def test_a_loop_that_goes_another_way_behind_many_tokens_is_refused():
    model = zoo.randomize(Late(40))
    assert capture(model, max_context=40).bounds["S"] == (1, 40)
    with pytest.raises(CompileError, match="computes differently at 60 tokens"):
        capture(model, max_context=60)


class Narrowed(Switch):
    """Sums a window of the tokens from some length on."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        place = torch.arange(ids.shape[1])
        apart = place[:, None] - place[None, :]
        seen = apart >= 0
        if ids.shape[1] > 50:
            seen = seen & (apart < self.window)
        return self.out(x + seen.float() @ x)


def test_a_window_from_some_length_on_is_taken_where_it_is_as_wide():
    assert capture(Narrowed(50), max_context=90).bounds["S"] == (51, 90)
    with pytest.raises(CompileError, match="computes differently at 50 tokens"):
        capture(Narrowed(40), max_context=90)


class Pairs(Switch):
    """Sums over whole pairs of tokens, for those behind them; sequences lie side by side."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x, (batch, length) = self.words(ids), ids.shape
        pairs = x[:, : 2 * (length // 2)].reshape(batch, length // 2, 2, 8).sum(2)
        ended = torch.arange(length // 2) < (torch.arange(length)[:, None] + 1) // 2
        return self.out(x + ended.float() @ pairs)


def test_whether_a_part_is_all_of_a_value_is_no_case_of_its_own():
    model = zoo.randomize(Pairs())
    captured = capture(model, max_context=24)
    imported = import_captured(captured)
    for shape in ((2, 9), (3, 4), (2, 23), (2, 24)):
        ids = torch.randint(0, 31, shape)
        (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
        torch.testing.assert_close(found, model(ids))


class Remembering(Switch):
    """Keeps the last tokens' rows, tokens first, for a call that never comes."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids).transpose(0, 1)
        kept = x[-16:].detach()
        return self.out(x.transpose(0, 1)) + 0.0 * kept[-1, 0, 0]


def test_keeping_the_last_tokens_is_no_way_of_its_own():
    assert capture(Remembering(), max_context=64).bounds["S"] == (1, 64)


class Written(Pairs):
    """Writes into a part."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        part = x[:, : 2 * (ids.shape[1] // 2)]
        part += 1
        return super().forward(ids) + self.out(x)


def test_a_write_into_a_part_is_refused():
    # It would have to reach the whole.
    with pytest.raises(CompileError, match=r"Written does not export|is written to"):
        capture(zoo.randomize(Written()), max_context=24)


class Turning(nn.Module):
    """A branch in Python on the length."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(31, 6)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        if ids.shape[1] > 70:
            x = x * 2
        return x @ self.words.weight.T


def test_a_branch_on_the_length_bounds_it_and_is_named():
    captured = capture(Turning())
    assert captured.bounds["S"] == (1, 70)
    assert re.fullmatch(r"S <= 70, test_capture\.py:\d+", captured.bounded_by)
    with pytest.raises(CompileError, match=r"max_context 70 is served; .* S <= 70, test_capture"):
        capture(Turning(), max_context=90)


def test_prompts_beyond_a_branch_are_refused_with_its_line():
    options = Options(max_batch=2, chunk=8, block=4, progress=False)
    artifact = build_in_temporary(Turning().eval(), options)
    assert artifact.manifest["bounded_by"].startswith("S <= 70, test_capture.py:")
    with pytest.raises(RequestError, match=r"80 tokens, the limit is 69 .*in the model, S <= 70"):
        artifact.new_engine().submit([1] * 80)


def test_a_table_that_bounds_the_length_is_named():
    assert re.match(
        r"S <= 96, |the table of 96 rows at", capture(zoo.build("scratch_plain")).bounded_by
    )


class Attending(Switch):
    """Attention that is causal behind more than one token, called by a name of its own."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        return self.out(attention(x, x, x, None, 0.0, ids.shape[1] > 1))


def test_attention_may_be_causal_where_there_is_more_than_one_token():
    model = Attending().eval()
    imported = import_captured(capture(model, max_context=12))
    for shape in ((2, 1), (3, 12)):
        ids = torch.randint(0, 31, shape)
        (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
        torch.testing.assert_close(found, model(ids), rtol=1e-5, atol=1e-5)
    assert attention is nn.functional.scaled_dot_product_attention

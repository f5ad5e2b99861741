"""The build: what an artifact holds, and what becomes of builds that fail."""

import errno
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from ferrule.compiler import build as building
from ferrule.compiler.bisect import bisect
from ferrule.compiler.build import Options, StoppedError, build_in_temporary, compile_to
from ferrule.compiler.errors import CompileError
from ferrule.compiler.models import open_model
from ferrule.compiler.opt import run_text
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.ops import tensor
from ferrule.ir.text import parse_graph
from ferrule.passes.base import Phase
from ferrule.runtime.artifact import load
from ferrule.runtime.weights import WeightsWriter
from models import zoo
from safetensors.torch import load_file, save_file
from torch import nn

TINY = Path(__file__).resolve().parents[2] / "examples/models/tiny-llama"
QUIET = Options(max_context=96, max_batch=3, chunk=24, progress=False)


def checkpoint(folder: Path, name: str = "llama") -> Path:
    """A tiny checkpoint in a directory, without a tokenizer."""
    zoo.build(name).save_pretrained(folder)
    return folder


def test_an_artifact_says_what_it_is_and_how_it_was_made(tmp_path: Path):
    source = checkpoint(tmp_path / "source")
    made = compile_to(source, tmp_path / "built", QUIET)
    manifest = load(tmp_path / "built").manifest
    assert made.path == tmp_path / "built"
    assert manifest["source"] == str(source)
    assert manifest["limits"] == {"max_context": 96, "max_batch": 3, "chunk": 24, "window": 0}
    assert manifest["dims"]["T"] == [1, 24]
    assert manifest["parity"]["top1"] == 1.0
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    names = {p["name"] for p in manifest["report"]["passes"]}
    assert {"canonicalize", "cache-attention", "group-kernels"} <= names
    assert manifest["report"]["left"] == []
    used = {c.kernel for c in made.plan.entries["decode"].calls}
    assert used == set(manifest["report"]["kernels"])
    parse_graph((tmp_path / "built/graph.ir").read_text())
    assert not list(tmp_path.glob(".ferrule-*"))


def test_layers_that_are_equal_share_their_kernels(tmp_path: Path):
    config = zoo.config("llama")
    config.num_hidden_layers = 5
    deep = zoo.randomize(type(zoo.build("llama"))(config).eval())
    few, many = build_in_temporary(zoo.build("llama"), QUIET), build_in_temporary(deep, QUIET)
    assert len(many.plan.kernels()) == len(few.plan.kernels())


def test_every_dump_can_be_read_and_passed_on(tmp_path: Path):
    options = replace(QUIET, dump=tmp_path / "dump", stop_after="merge-linears")
    with pytest.raises(StoppedError, match="merge-linears"):
        compile_to(zoo.build("scratch_plain"), tmp_path / "built", options)
    dumps = sorted((tmp_path / "dump").iterdir())
    assert dumps[0].name.startswith("00-")
    assert dumps[-1].name.endswith("merge-linears.ir")
    text = dumps[1].read_text()
    assert parse_graph(run_text(text, "canonicalize")) == parse_graph(text)
    assert not (tmp_path / "built").exists()


def test_what_is_in_the_way_is_left_alone(tmp_path: Path):
    (tmp_path / "built").mkdir()
    (tmp_path / "built/letter.txt").write_text("dear")
    with pytest.raises(CompileError, match="something is there already"):
        compile_to(TINY, tmp_path / "built", QUIET)
    assert (tmp_path / "built/letter.txt").read_text() == "dear"


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_a_build_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
):
    def write(*_: object) -> None:
        raise fault

    monkeypatch.setattr(WeightsWriter, "write", write)
    full = isinstance(fault, OSError)
    with pytest.raises(CompileError if full else KeyboardInterrupt, match="full" if full else None):
        compile_to(zoo.build("scratch_plain"), tmp_path / "built", QUIET)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [{"max_batch": 0}, {"chunk": 2}, {"max_context": 1}])
def test_options_that_make_no_sense_are_refused(given: dict[str, int]):
    with pytest.raises(CompileError, match=r"is 1 or more|is 2 or more|no room for"):
        replace(QUIET, **given)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("no/such/place", {}, "no such directory"),
        (str(TINY.parent), {}, "no config.json"),
        (TINY, {"dtype": "float64"}, "no dtype 'float64'"),
        (TINY, {"target": "cuda:sm_42"}, "no cuda architecture 'sm_42'"),
        (TINY, {"target": "cpu:znver9"}, "did you mean 'znver"),
    ],
)
def test_what_cannot_be_opened_is_refused(model: str | Path, options: dict[str, str], message: str):
    with pytest.raises((CompileError, IRError), match=message):
        build_in_temporary(model, replace(QUIET, **options))


def test_missing_and_misshapen_weights_are_all_named(tmp_path: Path):
    source = checkpoint(tmp_path / "source")
    weights = load_file(source / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    weights["model.norm.weight"] = torch.ones(47)
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(CompileError) as refused:
        build_in_temporary(source, QUIET)
    text = str(refused.value)
    assert "model.layers.0.mlp.up_proj.weight: missing" in text
    assert "model.norm.weight: [47] given, [48] wanted" in text


class Mixing(nn.Module):
    """Puts every feature in order over the tokens: no attention, and yet it mixes them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        return x.sort(1).values @ self.embed.weight.T


def test_an_op_that_mixes_tokens_is_named_with_its_line():
    why = r"(?s)Mixing is no causal language model: .*tokens behind it.*sort.*test_build.py"
    with pytest.raises(CompileError, match=why):
        build_in_temporary(Mixing(), QUIET)


class Holes(nn.Module):
    """Attention under a mask of no known family: every token sees those at an even distance, later
    ones too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Embedding(31, 16), nn.Linear(16, 48)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.embed(ids))[:, None].chunk(3, -1)
        at = torch.arange(ids.shape[1])
        distance = at[:, None] - at[None, :]
        mask = distance % 2 == 0
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return mixed[:, 0] @ self.embed.weight.T


def test_a_mask_of_no_known_family_is_shown():
    why = r"(?s)Holes is no causal .*tokens behind it.*no known family.*x\.x\.x.*test_build.py"
    with pytest.raises(CompileError, match=why):
        build_in_temporary(Holes(), QUIET)


class Undecided(nn.Module):
    """Asks about the values of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if ids.sum() > 10:
            return self.embed(ids)
        return -self.embed(ids)


def test_a_model_that_does_not_export_is_refused_with_its_line():
    with pytest.raises(CompileError, match=r"Undecided does not export, at test_build.py:\d+"):
        build_in_temporary(Undecided(), QUIET)


@dataclass(frozen=True)
class SpoilScales:
    """A wrong pass: the root of every mean square is halved."""

    name: ClassVar[str] = "spoil-scales"

    def run(self, graph: Graph) -> Graph:
        """The graph with every rms_norm's result doubled."""
        norms = [n for n in graph.nodes() if n.op.name == "rms_norm"]
        two = tensor.constant(value=2.0, dtype="f32")
        return graph.replace({n: tensor.mul(n, two) for n in norms[1:2]})


@pytest.fixture
def spoiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipeline with a wrong pass in its middle."""
    right = building.language_model

    def wrong(*arguments: object) -> tuple[Phase, ...]:
        phases = right(*arguments)  # pyright: ignore[reportArgumentType]
        return (*phases[:3], Phase("spoil", (SpoilScales(),)), *phases[3:])

    monkeypatch.setattr(building, "language_model", wrong)


@pytest.mark.usefixtures("spoiled")
def test_a_wrong_pass_fails_the_build_and_is_named():
    model = zoo.build("llama")
    with pytest.raises(CompileError, match="departs from eager f32"):
        build_in_temporary(model, QUIET)
    options = replace(QUIET, parity=False)
    built = build_in_temporary(model, options)
    found = bisect(open_model(model), options, built)
    assert "spoil-scales" in found.where
    assert "post_attention_layernorm" in found.node or "input_layernorm" in found.node
    assert json.loads(json.dumps(found.to_json()))["agrees"] is False


def test_bisect_finds_nothing_where_nothing_departs():
    model = zoo.build("scratch_plain")
    found = bisect(open_model(model), QUIET, build_in_temporary(model, QUIET))
    assert found.agrees, str(found)
    assert any("group-kernels" in name for name in found.checked)
    assert any(name.startswith("decode call") for name in found.checked)

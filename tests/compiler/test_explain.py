"""Kernels beside the roofline: bytes, bounds, totals, the page, the command."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ferrule.compiler.cli import app
from ferrule.compiler.explain import Load, explain, step_dims
from ferrule.compiler.explain_page import page
from ferrule.compiler.hardware import Hardware
from ferrule.compiler.roofline import Explanation, KernelLine, StepLines
from ferrule.compiler.step_times import example_batch, step_times
from ferrule.ir.errors import IRError
from ferrule.runtime.artifact import load
from ferrule.runtime.costs import Traffic
from typer.testing import CliRunner

MACHINE = Hardware("toy", 1e9, {"f32": 1e10, "bf16": 4e10, "i8": 1e11}, 1e10)


@pytest.fixture(autouse=True)
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for the machine to be measured."""
    monkeypatch.setattr("ferrule.compiler.explain.hardware", lambda *_: MACHINE)


def line(weights: int, operations: dict[str, int], seconds: float | None = None) -> KernelLine:
    traffic = Traffic(weights, 0, 1000)
    return KernelLine("k", "linear", "linear", "", 1, traffic, operations, seconds).on(MACHINE)


def test_a_kernel_is_bound_by_the_slower_of_reading_and_computing() -> None:
    reads, computes = line(10**6, {"i8": 10**6}, 2e-3), line(10**6, {"i8": 10**9}, 20e-3)
    assert (reads.bound, computes.bound) == ("memory", "compute")
    assert reads.limit == pytest.approx(1e6 / 1e9 + 1000 / 1e10)
    assert computes.limit == pytest.approx(1e9 / 1e11)
    assert computes.ratio == pytest.approx(0.5)


def test_operations_are_held_against_the_peak_of_their_dtype() -> None:
    mixed = line(0, {"bf16": 10**9, "f32": 10**9, "f16": 10**9})
    assert mixed.computing == pytest.approx(1 / 40 + 1 / 10 + 1 / 10)


def test_a_step_is_bound_by_what_most_of_its_limit_comes_from() -> None:
    lines = (line(10**6, {}, 3e-3), line(10**6, {"i8": 10**9}, 20e-3))
    step = StepLines("mixed", {"T": 4}, lines)
    assert step.bound == "compute" and step.seconds == pytest.approx(23e-3)
    assert step.limit == pytest.approx(sum(k.limit or 0 for k in lines))
    assert StepLines("mixed", {}, lines[:1]).bound == "memory"


def test_what_was_not_measured_has_no_times() -> None:
    bare = KernelLine("k", "rows", "add", "", 1, Traffic(0, 0, 8), {"f32": 2})
    assert (bare.limit, bare.bound, bare.ratio) == (None, None, None)
    assert StepLines("decode", {}, (bare,)).to_json()["total"]["seconds"] is None


def test_a_decode_step_reads_each_weight_and_the_cache_and_of_the_table_a_row(tiny: Path) -> None:
    artifact = load(tiny)
    for sequences, context in ((1, 100), (3, 37)):
        asked = Load(sequences=sequences, context=context)
        (step,) = explain(artifact, entry="decode", measure=False, load=asked).steps
        # 6 layers of k and v, 2 heads of 64 each, in bfloat16
        assert step.traffic.caches == sequences * context * 6 * 2 * 2 * 64 * 2
        # The table is the logits' weight too, and lies there once more for the lookup.
        rows, table = sequences * 256 * 2, 8192 * 256 * 2
        angles = 2 * artifact.plan.limits["max_context"] * 64 * 2
        taken = 2 * sequences * 64 * 2
        whole = artifact.plan.weight_bytes - angles
        assert step.traffic.weights in (whole + rows + taken, whole - table + rows + taken)


def test_a_prompt_computes_for_each_of_its_tokens(tiny: Path) -> None:
    artifact = load(tiny)
    one, many = (
        explain(artifact, entry="mixed", measure=False, load=Load(tokens, context=64)).steps[0]
        for tokens in (1, 64)
    )
    gates = [next(k for k in s.kernels if "silu" in k.ops) for s in (one, many)]
    assert gates[1].work > 40 * gates[0].work
    assert gates[0].traffic.weights == gates[1].traffic.weights


def test_steps_that_the_limits_do_not_allow_are_refused(tiny: Path) -> None:
    plan = load(tiny).plan
    wrong = (
        (Load(context=129), "context = 129: wanted 1 to 128"),
        (Load(sequences=5), "sequences = 5: wanted 1 to 4"),
        (Load(tokens=65), "tokens = 65: wanted 1 to 64"),
        (Load(tokens=9, context=8), "tokens = 9: wanted 1 to 8"),
        (Load(tokens=7, sequences=2), "7 tokens of 2 sequences"),
        (Load(tokens=0), "tokens = 0"),
        (Load(context=0), "context = 0"),
        (Load(sequences=0), "sequences = 0"),
    )
    for asked, message in wrong:
        with pytest.raises(IRError, match=message):
            step_dims(plan, "mixed", asked)
    with pytest.raises(IRError, match="no entry 'encode'"):
        explain(load(tiny), entry="encode", measure=False)


def test_an_example_step_gives_each_sequence_blocks_of_its_own(tiny: Path) -> None:
    plan = load(tiny).plan
    batch = example_batch(plan, step_dims(plan, "mixed", Load(10, 2, 40)))
    assert batch.query_start == [0, 5, 10] and batch.context_length == [40, 40]
    assert batch.positions == [35, 36, 37, 38, 39] * 2
    assert batch.block_table == [[0, 1, 2], [3, 4, 5]]
    assert batch.slots == [35, 36, 37, 38, 39, 83, 84, 85, 86, 87]
    assert batch.logit_rows == [4, 9] and len(set(batch.tokens)) == 10


def test_every_call_is_timed_in_the_order_of_the_step(tiny: Path) -> None:
    artifact = load(tiny)
    times = step_times(artifact, "decode", step_dims(artifact.plan, "decode", Load(context=9)))
    assert len(times) == len(artifact.plan.entries["decode"].calls)
    assert min(times) > 0


def test_what_counts_of_several_steps_may_be_chosen(tiny: Path) -> None:
    (step,) = explain(load(tiny), entry="decode", load=Load(context=9), of=lambda _: 3.0).steps
    assert step.seconds == 3.0 * step.count


class Parts(HTMLParser):
    """The tags of a page, with what they refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(v) for k, v in attrs if k in ("src", "href", "data", "srcset")]


def test_the_page_loads_nothing_and_shows_every_kernel(tiny: Path) -> None:
    found = explain(load(tiny), load=Load(context=16))
    text, parts = page(found), Parts()
    parts.feed(text)
    assert not parts.links and not {"script", "link", "img", "iframe"} & set(parts.tags)
    assert not re.search(r"url\(|@import|https?://", text)
    assert parts.tags.count("svg") == 2 * len(found.steps) == 4
    for step in found.steps:
        assert all(f'<td class="word">{k.kernel}</td>' in text for k in step.kernels)
    assert "light-dark(" in text and "color-scheme: light dark" in text


def test_the_page_escapes_what_a_model_says() -> None:
    evil = KernelLine("k<i>", "rows", "add", "<script>x</script>", 1, Traffic(), {"f32": 1}, 1e-6)
    step = StepLines("decode", {"T": 1}, (evil.on(MACHINE),))
    text = page(Explanation("<b>model</b>", (step,), MACHINE))
    assert "<script" not in text and "<b>" not in text and "<i>" not in text


def test_the_command_lists_kernels_and_writes_the_page(tiny: Path, tmp_path: Path) -> None:
    flags = ["--tokens", "8", "--sequences", "2", "--context", "20"]
    place = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["explain", str(tiny), *flags, "--json", "--html", str(place)])
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert found["machine"]["peak"] == MACHINE.peak
    decode, mixed = found["steps"]
    assert decode["dims"] == {"T": 2, "N": 2, "R": 2, "M": 2, "C": 4, "L": 20}
    assert mixed["dims"]["T"] == 8
    for step in (decode, mixed):
        assert step["total"]["bytes"] == sum(k["bytes"] for k in step["kernels"])
        assert step["total"]["bound"] in ("memory", "compute")
        assert all(k["seconds"] > 0 and k["limit"] >= 0 for k in step["kernels"])
    assert place.read_text().startswith("<!doctype html>")
    shown = CliRunner().invoke(app, ["explain", str(tiny), "--entry", "decode", *flags])
    assert "1 GB/s from memory" in shown.output and "memory allows" in shown.output

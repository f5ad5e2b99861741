"""What of the GPU benchmark needs no GPU: how sections are guarded, the peer in plain torch, single
kernels (interpreted), batches.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_cuda import FakeCuda
from ferrule.compiler.interpreted import InterpretedDriver
from ferrule.ir.target import Target
from ferrule.runtime.cuda.device import CudaDevice
from models import zoo

from benchmarks import gpu, gpu_kernels, gpu_tried
from benchmarks import gpu_sections as sections
from benchmarks.gpu_peers import PlainLlama
from benchmarks.gpu_summary import WANTED, summary_lines, verdicts
from benchmarks.gpu_worker import BROKEN, Line, Sections, run_sections

TARGET = Target.parse("cuda:sm_90")


WORKER = """
import json, os, sys, time
for name in json.loads(sys.argv[1]):
    print(json.dumps({"begin": name}), flush=True)
    print("a library says hello", flush=True)
    if name == "hang":
        time.sleep(60)
    if name == "crash":
        print("no such address", file=sys.stderr)
        os._exit(7)
    if name == "lost":
        print(json.dumps({"what": name, "failed": "illegal address"}), flush=True)
        sys.exit(3)
    print(json.dumps({"what": name, "value": 1}), flush=True)
"""


def test_what_takes_its_process_with_it_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    lines: list[Line] = []
    wanted = Sections([sys.executable, str(script)], {"": 20.0, "hang": 1.0}, lines.append)
    wanted.run(["one", "crash", "hang", "lost", "two"], 60.0)
    assert [line["what"] for line in lines] == ["one", "crash", "hang", "lost", "two"]
    said = [line.get("failed", "") for line in lines]
    assert said[1] == "the process ended with status 7: no such address"
    assert said[2] == "took too long, and was ended" and said[3] == "illegal address"
    lines.clear()
    wanted.run(["one"], -1.0)
    assert lines == [{"what": "one", "left_out": "out of time"}]


def test_a_process_that_does_not_begin_says_why_and_is_not_tried_for_ever() -> None:
    lines: list[Line] = []
    Sections([sys.executable, "-c", "import nothing_like_it"], {"": 20.0}, lines.append).run(
        ["one", "two"], 60.0
    )
    assert [line["what"] for line in lines] == ["one", "two"]
    assert all("No module named 'nothing_like_it'" in line["failed"] for line in lines)


def test_a_section_that_fails_is_named_and_ends_a_process_whose_device_is_lost() -> None:
    def good() -> Iterator[Line]:
        yield {"value": 1}

    def bad() -> Iterator[Line]:
        yield {"begun": True}
        raise ValueError("no such kernel")

    lines: list[Line] = []
    wanted = [("one", bad), ("two", good)]
    assert run_sections(wanted, lines.append, lambda: True) == 0
    shown = [line for line in lines if "begin" not in line]
    assert [line["what"] for line in shown] == ["one", "one", "two"]
    assert shown[1]["failed"] == "ValueError: no such kernel"
    assert run_sections(wanted, lines.append, lambda: False) == BROKEN


def test_what_is_judged_is_measured(tmp_path: Path) -> None:
    found = list(sections.sections(sections.Bench(tmp_path, 1)))
    names = [section.name for section in found]
    assert len(set(names)) == len(names)
    assert {s.group for s in found} == {
        "kernels", "model", "int4", "peers", "tests", "tuned", "choices",
    }  # fmt: skip
    for count in (1, 32, 128):
        assert {f"{p}decode {count}" for p in ("", "plain torch ", "transformers ")} <= set(names)
    assert {w.section for w in WANTED} <= set(names)


def test_sections_are_asked_for_by_group_or_by_part_of_a_name() -> None:
    found = gpu.names_of("tuned, plain torch prefill")
    assert found[0] == "memory" and "tune" in found and "tuned decode 1" in found
    assert [n for n in found if "plain" in n] == [
        "plain torch prefill 2048", "plain torch prefill 8192",
    ]  # fmt: skip
    assert not any(n.startswith(("linear", "decode", "int4")) for n in found)
    with pytest.raises(SystemExit, match="--sections 'nothing': wanted one of choices, int4"):
        gpu.names_of("nothing")


def test_a_second_call_knows_what_the_first_found() -> None:
    lines: list[Line] = [
        {"what": "decode 32", "seconds": 0.004}, {"what": "int4 decode 32", "seconds": 0.002},
        {"what": "prefill 2048", "seconds": 0.05}, {"what": "decode 128", "failed": "ValueError"},
    ]  # fmt: skip
    assert gpu.known_of(lines) == {"decoded": {" 32": 0.004}, "prefilled": {"2048": 0.05}}


def test_a_linear_is_tried_with_what_the_model_leaves(tmp_path: Path) -> None:
    cuda = FakeCuda(None, size=64 << 20, seconds=lambda launch: 1e-4 * (2 + len(launch.symbol) % 2))
    machine = sections.Machine("cpu", lambda _: CudaDevice(library=cuda), lambda: None)
    bench = sections.Bench(tmp_path, 1, machine=machine)
    (line,) = gpu_tried.choices(bench, gpu_tried.Tried(1, 96, 128, 4))
    assert line["own"].startswith("gemv_codes BK") and line["seconds"] > 0
    assert line["best"] in line["microseconds"] or line["best"] == line["own"]
    assert len(line["microseconds"]) >= 4 and not line["faults"]
    assert not cuda.allocated


def test_the_summary_says_what_is_enough_what_is_not_and_what_is_missing() -> None:
    lines: list[Line] = [
        {"what": "decode 1", "share_of_bandwidth": 0.9}, {"what": "first token", "seconds": 7.0},
        {"what": "int4 decode 1", "failed": "ValueError: no"},
    ]  # fmt: skip
    found = "\n".join(summary_lines(lines))
    assert "ok   decode 1 " in found and "0.9 of the read bandwidth, >= 0.85" in found
    assert list(verdicts(lines[0])) == [v for v in found.splitlines() if " decode 1 " in v][:1]
    assert "MISS first token" in found and "not measured (ValueError: no)" in found


def test_what_cannot_be_built_is_tried_once(tmp_path: Path) -> None:
    tries: list[str] = []

    class Failing(sections.Bench):
        def _compile(self, text: str) -> None:
            tries.append(text)
            raise ValueError("no such op")

    for _ in range(2):  # the second is another process
        bench = Failing(tmp_path, 1)
        with pytest.raises((ValueError, RuntimeError), match="no such op"):
            bench.build("int4")
    bench.place("").with_suffix(".tried").touch()
    with pytest.raises(RuntimeError, match="its build did not end"):
        bench.build()
    assert tries == ["int4"]


def test_who_ends_the_benchmark_ends_its_sections(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(
        "import json, os, time\n"
        'print(json.dumps({"pid": os.getpid()}), flush=True)\n'
        "time.sleep(60)\n"
    )

    def ended(line: Line) -> None:
        lines.append(line)
        raise SystemExit(143)

    lines: list[Line] = []
    with pytest.raises(SystemExit):
        Sections([sys.executable, str(script)], {"": 20.0}, ended).run(["one"], 60.0)
    with pytest.raises(ProcessLookupError):
        os.kill(lines[0]["pid"], 0)


def test_our_sections_run_to_the_end_on_a_driver_that_holds_to_the_rules(tmp_path: Path) -> None:
    shape = {
        "vocab_size": 4100, "hidden_size": 64, "intermediate_size": 96,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    machine = sections.Machine(
        "cpu", lambda _: CudaDevice(library=FakeCuda(None, size=64 << 20)), lambda: None
    )
    bench = sections.Bench(
        tmp_path, 1, shape, chunk=16, context=32, machine=machine, batches=(1, 3), prompts=(24,)
    )
    bench.note(lambda known: setattr(known, "bandwidth", 1e9))
    ours = [
        ("build", sections.build), ("logits", sections.logits),
        ("decode 1", lambda b: sections.decode(b, 1)),
        ("decode 3", lambda b: sections.decode(b, 3)),
        ("prefill", lambda b: sections.prefill(b, 24)),
        ("calls", lambda b: sections.calls(b, sections.decode_batch(3, 32))),
        ("calls of prefill", lambda b: sections.calls(b, sections.prefill_batch(16, 0, 16))),
    ]  # fmt: skip
    lines: list[Line] = []
    run_sections([(n, lambda s=s: s(bench)) for n, s in ours], lines.append, lambda: True)
    shown = [line for line in lines if "begin" not in line]
    assert [line.get("failed") for line in shown] == [None] * 7, shown
    # Two sequences more read their caches; of the embeddings a row a token is read, not all.
    one, three = (next(li for li in shown if li["what"] == f"decode {n}") for n in (1, 3))
    cache = bench.context * 2 * 2 * 16 * 2
    assert three["bytes"] - one["bytes"] == pytest.approx(2 * cache, abs=600)
    step = next(li for li in shown if li["what"] == "calls")
    assert step["entry"] == "decode" and step["dims"]["T"] == 3 and step["seconds"] > 0
    assert {"kernel", "count", "seconds", "share"} <= step["kernels"][0].keys()
    assert set(bench.known.decoded) == {" 1", " 3"} and bench.known.prefilled["24"] > 0


@torch.inference_mode()
def test_plain_torch_gives_the_logits_of_transformers() -> None:
    model = zoo.build("llama")
    ids = torch.randint(0, 100, (2, 7))
    peer = PlainLlama(model, 2, 16, compiled=False)
    wanted = model(ids).logits
    torch.testing.assert_close(peer(ids[:, :6], torch.arange(6), whole=True), wanted[:, 5])
    torch.testing.assert_close(peer(ids[:, 6:], torch.tensor([6])), wanted[:, 6])


@pytest.mark.parametrize("rows", [1, 19])
def test_a_linear_alone(rows: int, tmp_path: Path) -> None:
    inputs = gpu_kernels.linear_inputs(rows, 24, 40)
    made = gpu_kernels.Alone.of(
        gpu_kernels.linear_body(24, 40, 64), TARGET, tmp_path,
        lambda folder: InterpretedDriver(folder, 1 << 20), inputs, {"T": rows}, (rows, 24),
        machine_code=False,
    )  # fmt: skip
    x, w = (gpu_kernels.floats(inputs[n]) for n in "xw")
    np.testing.assert_allclose(gpu_kernels.floats(made.values()), x @ w.T, rtol=0.02, atol=0.02)
    assert made.seconds(1) > 0
    made.close()


def test_attention_over_a_prompt_alone(tmp_path: Path) -> None:
    tokens, heads, groups, width = 19, 4, 2, 16
    inputs = gpu_kernels.attention_inputs(tokens, heads, groups, width)
    made = gpu_kernels.Alone.of(
        gpu_kernels.attention_body(heads, groups, width, tokens), TARGET, tmp_path,
        lambda folder: InterpretedDriver(folder, 1 << 20), inputs,
        {"T": tokens, "N": 1, "M": 2, "C": 2}, (tokens, heads, width), machine_code=False,
    )  # fmt: skip
    q, k, v = (
        torch.from_numpy(gpu_kernels.floats(inputs[n]).reshape(-1, h, width))[:tokens].transpose(
            0, 1
        )
        for n, h in (("q", heads), ("keys", groups), ("values", groups))
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q[None], k[None], v[None], is_causal=True, enable_gqa=True
    )[0].transpose(0, 1)
    found = gpu_kernels.floats(made.values())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0.03, atol=0.03)
    made.close()


def test_batches_are_what_a_step_takes() -> None:
    batch = sections.decode_batch(3, 33)
    assert batch.is_decode and not batch.wants_logits
    assert len({*batch.slots}) == 3 and all(
        s // 16 in t for s, t in zip(batch.slots, batch.block_table, strict=True)
    )
    prompt = sections.prefill_batch(8, 16, 40)
    assert list(prompt.positions) == list(range(16, 24)) and prompt.context_length == (24,)

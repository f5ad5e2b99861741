"""The command line: each command on the embedded model, and errors as one message."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ferrule.compiler.cli import app
from ferrule.runtime.artifact import load
from ferrule.runtime.sampling import SamplingParams
from typer.testing import CliRunner, Result

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=text)


def ferrule(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ferrule", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)


def test_help_answers_at_once():
    ferrule("--help")  # the first call may compile bytecode
    begin = time.perf_counter()
    done = ferrule("--help")
    assert time.perf_counter() - begin < 1.0
    for command in ("compile", "run", "chat", "plan", "tune", "explain", "opt", "verify"):
        assert command in done.stdout


def test_run_continues_a_prompt(tiny: Path):
    done = call("run", tiny, "def add(a, b):", "--max-tokens", "7")
    assert done.exit_code == 0, done.output
    params = SamplingParams(temperature=0.0, max_tokens=7)
    (wanted,) = load(tiny).generate("def add(a, b):", params)
    assert done.output == f"def add(a, b):{wanted.text}\n"


def test_run_reads_a_prompt_from_the_input_and_samples_by_seed(tiny: Path):
    flags = ("--max-tokens", "9", "--temperature", "1.0", "--ignore-eos", "--seed")
    found = [call("run", tiny, "-", *flags, seed, text="import").output for seed in ("1", "1", "2")]
    assert found[0] == found[1] != found[2]
    assert found[0].startswith("import")


def test_chat_keeps_the_conversation(tiny: Path):
    done = call("chat", tiny, "--max-tokens", "6", "--temperature", "0", text="Hello\nAgain\n")
    assert done.exit_code == 0, done.output
    artifact, params = load(tiny), SamplingParams(temperature=0.0, max_tokens=6)
    messages = [{"role": "user", "content": "Hello"}]
    (first,) = artifact.generate(artifact.chat_ids(messages), params)
    messages += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "Again"},
    ]
    (second,) = artifact.generate(artifact.chat_ids(messages), params)
    assert done.output == f"{first.text}\n{second.text}\n"


def test_plan_is_right_to_the_byte(tiny: Path):
    found = json.loads(call("plan", tiny, "--json").output)
    artifact = load(tiny)
    assert found["weight_bytes"] == artifact.weights.nbytes
    # 6 layers, k and v of 2 heads of 64 in bfloat16
    assert found["token_bytes"] == 6 * 2 * 2 * 64 * 2
    assert found["cache_bytes"] == found["blocks"] * 16 * found["token_bytes"]
    parts = ("weight_bytes", "workspace_bytes", "cache_bytes", "step_bytes")
    assert found["total_bytes"] == sum(found[p] for p in parts)
    assert "KV cache, one token" in call("plan", tiny).output


def test_plan_keeps_to_a_budget(tiny: Path):
    found = json.loads(call("plan", tiny, "--json", "--memory", "16.5M").output)
    assert found["total_bytes"] <= 16.5 * 2**20
    assert found["fitting"]["128"] >= 1
    refused = call("plan", tiny, "--memory", "1M")
    assert refused.exit_code == 1
    assert "holds no sequence" in str(refused.exception)


def test_explain_lists_every_kernel_with_its_model_line(tiny: Path):
    found = json.loads(call("explain", tiny, "--json", "--no-measure", "--entry", "decode").output)
    (step,) = found["steps"]
    lines, calls = step["kernels"], load(tiny).plan.entries["decode"].calls
    assert sum(line["count"] for line in lines) == len(calls)
    assert {line["kernel"] for line in lines} == {c.kernel for c in calls}
    gated = next(line for line in lines if "silu" in line["ops"])
    assert "mlp" in gated["origin"] and "modeling_llama.py" in gated["origin"]
    assert gated["count"] == 6
    # gate and up, 768 by 256 each, a multiply-add counted as two
    assert sum(gated["operations"].values()) >= 6 * 2 * 2 * 768 * 256
    assert gated["weight_bytes"] == 6 * 2 * 768 * 256 * 2
    assert found["machine"] is None and gated["seconds"] is None
    assert "model source" in call("explain", tiny, "--no-measure").output


def test_opt_runs_passes_over_text(tiny: Path, tmp_path: Path):
    lines = ("%0 = neg %x : f32[2]", "%1 = neg %0 : f32[2]", "return %1 as y")
    source = "graph g(%x: f32[2]) {\n  " + "\n  ".join(lines) + "\n}\n"
    done = call("opt", "--passes", "canonicalize", text=source)
    assert done.output == "graph g(%x: f32[2]) {\n  return %x as y\n}\n"
    assert call("opt", tiny / "graph.ir").output == (tiny / "graph.ir").read_text()
    assert "max_context=4096" in call("opt", "--list").output
    wrong = call("opt", "--passes", "canonicalise", text=source)
    assert "did you mean 'canonicalize'" in str(wrong.exception)


def test_verify_measures_anew(tiny: Path):
    found = json.loads(call("verify", tiny, "--json").output)
    assert found["top1"] == load(tiny).manifest["parity"]["top1"]
    assert found["positions"] == len(found["errors"])


def test_compile_writes_an_artifact_and_says_so(tmp_path: Path):
    place = tmp_path / "made"
    model = ROOT / "examples/models/tiny-llama"
    limits = ("--max-context", "64", "--max-batch", "2", "--chunk", "32", "--quiet")
    done = ferrule("compile", model, "-o", place, *limits)
    assert done.returncode == 0, done.stderr
    assert str(place) in done.stdout
    assert "parity with eager" in done.stdout
    assert load(place).plan.limits["max_context"] == 64


def test_errors_are_one_message(tiny: Path, tmp_path: Path):
    altered = tmp_path / "altered"
    shutil.copytree(tiny, altered)
    with (altered / "weights.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    for arguments, status, message in (
        (("run", altered, "x"), 1, "altered"),
        (("run", tmp_path, "x"), 1, "no artifact here"),
        (("run", tiny, "word " * 400), 1, "the limit is 127"),
        (("compile", tmp_path / "none", "-o", tmp_path / "out"), 1, "no such directory"),
        (("run", tiny, "x", "--temperature", "hot"), 2, "temperature"),
        (("run", tiny, "x", "--tempreature", "1"), 2, "--temperature"),
        (("plan", tiny, "--memory", "much"), 2, "no size"),
    ):
        done = ferrule(*arguments)
        assert done.returncode == status, (arguments, done.stderr)
        assert message in done.stderr.replace("│", "").replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("text", "wanted"), [("512", 512), ("4K", 4096), ("1.5MiB", 3 << 19)])
def test_sizes_are_read_as_they_are_written(text: str, wanted: int):
    from ferrule.compiler.cli import _bytes

    assert _bytes(text) == wanted


@pytest.mark.parametrize(
    ("topic", "shown", "hidden"),
    [
        ("listgroup", ["Engine:", "Limits:", "Listening:"], ["--seed"]),
        ("engine", ["Engine:", "--seed", "--pace"], ["--port"]),
        ("Limits", ["--max-waiting"], ["--seed"]),
        ("seed", ["--seed"], ["--pace"]),
        ("--kv-memory", ["--kv-memory"], ["--swap-memory"]),
        ("memory", ["--kv-memory", "--swap-memory"], ["--pace"]),
        ("no-enable-prefix-caching", ["--no-enable-prefix-caching"], ["--port"]),
        ("page", ["--seed", "--port", "--help"], []),
    ],
)
def test_help_by_topics(topic, shown, hidden):
    done = CliRunner().invoke(app, ["serve", f"--help={topic}"])
    assert done.exit_code == 0, done.output
    assert all(word in done.output for word in shown), done.output
    assert not any(word in done.output for word in hidden), done.output


def test_help_of_no_topic():
    done = CliRunner().invoke(app, ["serve", "--help=sead"])
    assert done.exit_code == 2 and "did you mean 'seed'?" in done.output
    done = CliRunner().invoke(app, ["serve", "--", "--help=seed"])
    assert "no artifact here" in str(done.exception)

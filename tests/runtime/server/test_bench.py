"""Benchmarks measure what happened: counts are exact, times add up."""

import asyncio
import json

import numpy as np
import pytest
from ferrule.runtime.bench.datasets import Source
from ferrule.runtime.bench.http import HttpError, Target
from ferrule.runtime.bench.load import Load, Ramp, Served, arrivals, measure, report
from ferrule.runtime.bench.local import latency, startup, throughput
from ferrule.runtime.bench.prompts import Ask, RandomPrompts, file_asks
from ferrule.runtime.bench.statistics import percentiles_of, summary
from ferrule.runtime.errors import RequestError


def test_a_load_on_a_server(server):
    server.runner.delay = 0.003
    asks = RandomPrompts(12, 20, 10, 0.5, prefix=4, vocabulary=256, seed=1).asks()
    load = Load(model="fox", rate=100.0, goodput={"ttft": 60_000.0}, percentiles=(50.0, 99.0))
    found = asyncio.run(measure(Target(server.url, {}), asks, load))
    server.runner.delay = 0.0
    assert (found["completed"], found["failed"]) == (12, 0)
    assert found["total_input_tokens"] == sum(len(a.prompt) for a in asks)
    assert found["total_output_tokens"] == sum(a.output_tokens for a in asks)
    assert found["output_lens"] == [a.output_tokens for a in asks]
    assert found["request_goodput"] == pytest.approx(found["request_throughput"])
    for ttft, gaps in zip(found["ttfts"], found["itls"], strict=True):
        assert ttft > 0 and all(gap >= 0 for gap in gaps)
    assert found["p50_ttft_ms"] == pytest.approx(found["median_ttft_ms"])
    assert found["mean_e2el_ms"] > found["mean_ttft_ms"]
    assert 1 <= found["max_concurrent_requests"] <= 12
    wanted = "duration request_throughput output_throughput total_token_throughput errors"
    wanted += " std_itl_ms p99_tpot_ms start_times generated_texts max_output_tokens_per_s"
    assert set(wanted.split()) <= set(found)


def test_failures_are_counted_with_their_reason(server):
    asks = [Ask((5,), 2), Ask((999,), 2)]
    found = asyncio.run(measure(Target(server.url, {}), asks, Load(model="fox")))
    assert (found["completed"], found["failed"]) == (1, 1)
    assert found["errors"][0] == "" and "token id 999" in found["errors"][1]


def test_chat_and_limits_on_concurrency(server):
    load = Load(endpoint="/v1/chat/completions", max_concurrency=1)
    asks = [Ask("hi", 3)] * 4
    found = asyncio.run(measure(Target(server.url, {}), asks, load))
    assert found["completed"] == 4 and found["max_concurrent_requests"] == 1


def test_the_client_reads_resources(server):
    target = Target(server.url, {})
    assert asyncio.run(target.get("/version")) == {"version": "test"}
    with pytest.raises(HttpError, match="status 404"):
        asyncio.run(target.get("/nothing"))


def test_arrivals_are_a_poisson_process():
    times = np.array(arrivals(Load(rate=50.0, seed=4), 4000))
    gaps = np.diff(times)
    assert times[0] == 0 and gaps.mean() == pytest.approx(0.02, rel=0.06)
    assert gaps.std() == pytest.approx(0.02, rel=0.08)
    assert arrivals(Load(), 3) == [0.0] * 3


def test_a_report_of_known_times():
    served = [
        Served(5, 10.0, 10.1, [0.2, 0.3], 10.6, 3, "", "", [10.1, 10.3, 10.6]),
        Served(7, 10.5, 11.0, [], 11.0, 1, "", "", [11.0]),
        Served(0, 10.2, ended=10.3, error="no"),
    ]
    found = report(served, 2.0, Load(goodput={"ttft": 200.0, "tpot": 300.0}))
    assert (found["completed"], found["failed"]) == (2, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (12, 4)
    assert found["request_goodput"] == 0.5 and found["output_throughput"] == 2.0
    assert found["mean_ttft_ms"] == pytest.approx(300) and found["mean_tpot_ms"] == pytest.approx(
        250
    )
    assert found["mean_itl_ms"] == pytest.approx(250)
    assert found["max_concurrent_requests"] == 2 and found["max_output_tokens_per_s"] == 4


def test_percentiles():
    assert percentiles_of([1.0, 2.0, 3.0])["50"] == 2.0
    assert summary("x", [], (99.0,))["p99_x_ms"] == 0.0


def test_prompts_repeat_and_share_their_prefix():
    wanted = RandomPrompts(5, 10, 4, 0.3, prefix=6, vocabulary=900, seed=2)
    asks = wanted.asks()
    assert asks == wanted.asks() and len({a.prompt[:6] for a in asks}) == 1
    assert all(13 <= len(a.prompt) <= 19 and max(a.prompt) < 900 for a in asks)


def test_a_ramp_changes_the_rate():
    even = arrivals(Load(ramp=Ramp("linear", 10.0, 100.0), burstiness=1e6), 2001)
    gaps = np.diff(even)
    assert gaps[0] == pytest.approx(0.1, rel=0.01) and gaps[-1] == pytest.approx(0.01, rel=0.01)
    assert gaps[999] == pytest.approx(1 / 55, rel=0.01)
    assert Ramp("exponential", 1.0, 100.0).rate(0.5) == pytest.approx(10.0)


def test_prefixes_are_repeated():
    wanted = Source("prefix_repetition", count=20, input=5, prefix=7, prefixes=4, vocabulary=900)
    asks = wanted.asks()
    beginnings = [a.prompt[:7] for a in asks]
    assert {beginnings.count(b) for b in beginnings} == {5} and len(set(beginnings)) == 4
    assert {len(a.prompt) for a in asks} == {12} and asks == wanted.asks()
    assert len({a.prompt[7:] for a in asks}) == 20


def test_datasets_of_files(tmp_path, tokenizer):
    def turns(*texts):
        return {"conversations": [{"value": text} for text in texts]}

    path = tmp_path / "file"
    path.write_text(json.dumps([turns("a prompt", "answer"), turns("alone"), turns("b", "short")]))
    asks = Source("sharegpt", path, 9, tokenizer=tokenizer).asks()
    assert asks == [Ask("a prompt", 6)]
    assert len(Source("sharegpt", path, 9, output=3).asks()) == 2
    with pytest.raises(RequestError, match="needs --tokenizer"):
        Source("sharegpt", path).asks()
    path.write_text("shall I compare\nthee to a day\n" * 4)
    asks = Source("sonnet", path, 3, input=90, prefix=45, tokenizer=tokenizer).asks()
    assert len(asks) == 3 and {a.output_tokens for a in asks} == {150}
    assert len({a.prompt[:90] for a in asks}) == 1 and "thee to a day\n" in asks[0].prompt
    path.write_text("Timestamp,Model,Request tokens,Response tokens\n1,GPT-4,17,5\n2,GPT-4,3,0\n")
    (ask,) = Source("burstgpt", path, 5).asks()
    assert (len(ask.prompt), ask.output_tokens) == (17, 5)
    lines = [{"category": c, "turns": [c + "?", "then"]} for c in ("math", "qa")]
    path.write_text("\n".join(map(json.dumps, lines)))
    assert Source("spec_bench", path, category="qa").asks() == [Ask("qa?", 256)]
    with pytest.raises(RequestError, match="no file of burstgpt"):
        Source("burstgpt", path).asks()
    with pytest.raises(RequestError, match="wanted one of random"):
        Source("hub").asks()
    with pytest.raises(RequestError, match="needs --dataset-path"):
        Source("custom").asks()


def test_rows_of_data_sets(tmp_path, tokenizer):
    rows = [
        {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "one"},
                      {"role": "assistant", "content": "abc"}]},
        {"conversations": [{"from": "human", "value": "two"}, {"from": "gpt", "value": "abcd"}]},
        {"instruction": "three", "input": "more", "output": "abcde"},
        {"question": "four", "answer": "abcdef"},
        {"turns": ["five"]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "six"}]}]},
    ]  # fmt: skip
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "train-0.jsonl").write_text("\n".join(map(json.dumps, rows[:3])))
    (folder / "sub" / "train-1.json").write_text(json.dumps(rows[3:]))
    (folder / "test.json").write_text(json.dumps(rows[:1]))
    asks = Source("hf", folder, tokenizer=tokenizer).asks()
    wanted = {"one": 3, "two": 4, "three\nmore": 5, "four": 6}
    assert {a.prompt: a.output_tokens for a in asks} == wanted
    assert len(Source("hf", folder, 2, tokenizer=tokenizer).asks()) == 2
    every = Source("hf", folder, output=7).asks()
    assert {a.prompt for a in every} == {*wanted, "five", "six"}
    assert every == Source("hf", folder, output=7).asks()
    assert [a.prompt for a in every] != [
        a.prompt for a in Source("hf", folder, output=7, seed=1).asks()
    ]
    assert Source("hf", folder, output=1, split="test").asks() == [Ask("one", 1)]
    with pytest.raises(
        RequestError, match=r"no files of the split 'dev'; data files: train-1\.json"
    ):
        Source("hf", folder, split="dev").asks()
    other = tmp_path / "other.jsonl"
    other.write_text('{"label": 1}')
    with pytest.raises(RequestError, match=r"other.jsonl, row 1: nobody asks: columns label"):
        Source("hf", other, output=1).asks()


def test_a_sweep_of_rates(server, tmp_path):
    from ferrule.compiler.cli import app
    from typer.testing import CliRunner

    path = tmp_path / "sweep.json"
    command = ["bench", "serve", "--base-url", server.url, "--num-prompts", "3", "--model", "fox"]
    command += ["--random-input-len", "5", "--random-output-len", "4", "--vocabulary", "200"]
    command += ["--percentile-metrics", "ttft,tpot", "--goodput", "ttft:9000"]
    done = CliRunner().invoke(app, [*command, "--request-rate", "40,90,inf", "-o", str(path)])
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    assert [run["request_rate"] for run in found["runs"]] == [40.0, 90.0, "inf"]
    assert [run["completed"] for run in found["runs"]] == [3, 3, 3]
    title, *lines = done.stdout.rstrip().splitlines()[-4:]
    assert title.split() == [
        "rate",
        "req/s",
        "tok/s",
        "good/s",
        "p50",
        "ttft",
        "p99",
        "ttft",
        "p50",
        "tpot",
        "p99",
        "tpot",
    ]
    assert [line.split()[0] for line in lines] == ["40.00", "90.00", "inf"]
    for wrong in ("1,x", "0", "-1,2"):
        assert CliRunner().invoke(app, [*command, "--request-rate", wrong]).exit_code == 2


def test_prompts_of_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n\n{"prompt": "b", "output_tokens": 3}\n{"prompt": "c"}\n')
    assert file_asks(path, 2, 9) == [Ask("a", 9), Ask("b", 3)]
    path.write_text("[]\n")
    with pytest.raises(RequestError, match=r"prompts\.jsonl:1: wanted an object"):
        file_asks(path, 2, 9)


def test_the_command_writes_its_result(server, tmp_path):
    from ferrule.compiler.cli import app
    from typer.testing import CliRunner

    command = ["bench", "serve", "--base-url", server.url, "--num-prompts", "3", "--model", "fox"]
    command += ["--random-input-len", "5", "--random-output-len", "4", "--vocabulary", "200"]
    path = tmp_path / "result.json"
    limits = ["--goodput", "ttft:9000", "tpot:9000"]
    done = CliRunner().invoke(app, [*command, *limits, "-o", str(path)])
    assert done.exit_code == 0, done.output
    assert "Successful requests:                             3" in done.output
    assert "Output token throughput (tok/s):" in done.output and "P99 TTFT (ms):" in done.output
    found = json.loads(path.read_text())
    assert found["total_output_tokens"] == 12 and found["model_id"] == "fox"
    assert found["request_goodput"] == pytest.approx(found["request_throughput"])
    folder = ["--save-result", "--result-dir", str(tmp_path / "own"), "--result-filename", "r.json"]
    metrics = ["--percentile-metrics", "ttft", "--metric-percentiles", "50,90"]
    ramp = ["--ramp-up-strategy", "linear", "--ramp-up-start-rps", "50", "--ramp-up-end-rps", "99"]
    extra = ["--backend", "openai-chat", "--extra-body", '{"min_tokens": 4}', "--port", "1"]
    text = tmp_path / "prompts.jsonl"
    text.write_text('{"prompt": "a"}\n' * 3)
    own = ["--dataset-path", str(text), "--custom-output-len", "4"]
    done = CliRunner().invoke(app, [*command, *folder, *metrics, *ramp, *extra, *own])
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "own/r.json").read_text())
    assert "p90_ttft_ms" in found and "mean_itl_ms" not in found
    assert found["output_lens"] == [4, 4, 4] and found["backend"] == "openai-chat"
    for broken in (["--backend", "x"], ["--percentile-metrics", "x"], ["--ramp-up-end-rps", "5"]):
        assert CliRunner().invoke(app, [*command, *broken]).exit_code == 2
    wrong = CliRunner().invoke(app, [*command, "--goodput", "speed:1"])
    assert wrong.exit_code == 2
    failing = CliRunner().invoke(app, [*command, "--vocabulary", "90000"])
    assert failing.exit_code == 1 and "3 requests failed" in failing.output


def test_local_benchmarks_of_an_artifact(toy):
    import ferrule

    artifact = ferrule.load(toy, threads=1)
    asks = RandomPrompts(3, 5, 4, vocabulary=60).asks()
    found = throughput(artifact, asks)
    assert (found["num_requests"], found["total_num_tokens"]) == (3, 27)
    assert found["requests_per_second"] == pytest.approx(3 / found["elapsed_time"])
    found = latency(artifact, asks, iterations=3, warmups=1)
    assert len(found["latencies"]) == 3
    assert found["avg_latency"] == pytest.approx(np.mean(found["latencies"]))
    found = startup(toy, iterations=1)
    (cold,) = found["cold_total_startup_time"]
    assert cold > found["cold_load_time"][0] > 0

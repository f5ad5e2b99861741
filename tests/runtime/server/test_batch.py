"""Batches: every request once, whatever kills the process and wherever."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ferrule.runtime.errors import RequestError
from ferrule.runtime.server.app import build_app
from ferrule.runtime.server.batch import read_lines, run_batch
from ferrule.runtime.server.metrics import ServerMetrics
from ferrule.runtime.server.models import Models
from ferrule.runtime.server.service import Service
from ferrule.runtime.server.settings import Settings
from scripted import ScriptRunner, served

HERE = Path(__file__).parent


def write_requests(path, count):
    lines = [
        {
            "custom_id": f"r{n}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "fox", "prompt": f"the {n}", "max_tokens": 1 + n % 7},
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def do(tokenizer, requests, output, delay=0.0):
    runner = ScriptRunner()
    runner.delay = delay
    metrics = ServerMetrics(64)
    models = Models([served("fox", tokenizer, runner, metrics)])
    service = Service(models, Settings(), metrics)
    app = build_app(service, "test")
    return asyncio.run(run_batch(app, service, read_lines(requests), output, at_once=4))


def results(output):
    return [json.loads(line) for line in output.read_text().splitlines()]


def test_every_request_is_answered(tokenizer, tmp_path):
    requests = write_requests(tmp_path / "in.jsonl", 20)
    with requests.open("a") as file:
        bad = {"custom_id": "bad", "url": "/v1/completions", "body": {"prompt": "a", "x": 1}}
        file.write(json.dumps(bad) + "\n\n")
    done = do(tokenizer, requests, tmp_path / "out.jsonl")
    assert (done.total, done.earlier, done.completed, done.failed) == (21, 0, 20, 1)
    found = {r["custom_id"]: r["response"] for r in results(tmp_path / "out.jsonl")}
    assert len(found) == 21 and found["bad"]["status_code"] == 400
    for n in range(20):
        assert found[f"r{n}"]["body"]["usage"]["completion_tokens"] == 1 + n % 7
    again = do(tokenizer, requests, tmp_path / "out.jsonl")
    assert (again.earlier, again.completed, again.failed) == (21, 0, 0)
    assert len(results(tmp_path / "out.jsonl")) == 21


def test_a_broken_last_line_is_done_again(tokenizer, tmp_path):
    requests, output = write_requests(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    do(tokenizer, requests, output)
    whole = output.read_bytes()
    for cut in (1, 40, len(whole) // 2, len(whole) - 1):
        output.write_bytes(whole[:cut])
        do(tokenizer, requests, output)
        assert sorted(r["custom_id"] for r in results(output)) == [f"r{n}" for n in range(6)]


def test_killed_again_and_again_nothing_is_lost_or_twice(tokenizer, tmp_path):
    requests, output = write_requests(tmp_path / "in.jsonl", 120), tmp_path / "out.jsonl"
    program = (
        f"import sys; sys.path.insert(0, {str(HERE)!r}); from pathlib import Path;"
        f"import test_batch as t; print('go', flush=True);"
        f"t.do(Path({str(tokenizer)!r}), Path({str(requests)!r}), Path({str(output)!r}), 0.004)"
    )
    generator, kills = random.Random(5), 0
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
        assert process.stdout.readline()
        time.sleep(generator.uniform(0.05, 0.3))
        kills += process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert kills
    last = do(tokenizer, requests, output)
    assert sorted(r["custom_id"] for r in results(output)) == sorted(f"r{n}" for n in range(120))
    assert last.earlier + last.completed == 120


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"in\.jsonl:1: not JSON"),
        ("[]", "wanted an object"),
        ('{"custom_id": 1}', "wanted custom_id"),
        ('{"custom_id": "a", "url": "/x", "body": {}}', "given '/x'"),
        (
            '{"custom_id": "a", "url": "/v1/completions", "body": {"stream": true}}',
            "does not stream",
        ),
        ('{"custom_id": "a", "url": "/v1/completions", "body": {}}\n' * 2, "there twice"),
    ],
)
def test_files_that_are_no_batches(tmp_path, text, message):
    path = tmp_path / "in.jsonl"
    path.write_text(text)
    with pytest.raises(RequestError, match=message):
        read_lines(path)


def test_an_output_of_something_else_is_left_alone(tokenizer, tmp_path):
    requests, output = write_requests(tmp_path / "in.jsonl", 2), tmp_path / "out.jsonl"
    output.write_text("not ours\n")
    with pytest.raises(RequestError, match="no results of a batch"):
        do(tokenizer, requests, output)
    assert output.read_text() == "not ours\n"

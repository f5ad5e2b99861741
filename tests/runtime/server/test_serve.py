"""`ferrule serve` as a process over a compiled model: clients, SIGTERM, kill and restart."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.slow


class Process:
    """A server process on a free port, or on the one that it is given."""

    def __init__(self, artifact, log, *flags, port=None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = port or free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        command = [sys.executable, "-m", "ferrule", "serve", str(artifact), "--threads", "1"]
        command += ["--port", str(self.port), *flags]
        self.process = subprocess.Popen(command, stderr=log.open("ab"), cwd=ROOT)

    def __enter__(self):
        end = time.monotonic() + 60
        while not self.is_ready():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)

    def is_ready(self):
        try:
            with urllib.request.urlopen(f"{self.url}/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def client(self):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def running(artifact, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    with Process(artifact, log, "--served-model-name", "tiny") as process:
        yield process


def test_answers_are_those_of_the_artifact(running, artifact):
    from ferrule import SamplingParams, load

    here = load(artifact, threads=1)
    messages = [{"role": "user", "content": "What is a compiler?"}]
    params = SamplingParams(temperature=0.0, max_tokens=24)
    (wanted,) = here.generate([here.chat_ids(messages)], params)
    with running.client() as client:
        done = client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=24
        )
        stream = client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=24, stream=True
        )
        streamed = "".join(c.choices[0].delta.content or "" for c in stream)
    assert done.choices[0].message.content == wanted.text == streamed
    assert done.usage.prompt_tokens == len(wanted.prompt_token_ids)
    assert done.usage.completion_tokens == len(wanted.token_ids)


def test_a_schema_holds_on_a_real_model(running):
    schema = {
        "type": "object",
        "properties": {"kind": {"enum": ["a", "b"]}},
        "required": ["kind"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with running.client() as client:
        done = client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "a or b?"}],
            response_format=wanted,
            max_tokens=128,
            seed=1,
        )
    assert json.loads(done.choices[0].message.content)["kind"] in ("a", "b")


def test_many_clients_at_once(running):
    texts = {}

    def ask(number):
        with running.client() as client:
            done = client.completions.create(
                model="tiny", prompt=f"{number % 3} is", temperature=0, max_tokens=16
            )
            texts[number] = done.choices[0].text

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(texts) == 12
    with urllib.request.urlopen(f"{running.url}/stats") as answer:
        live = json.loads(answer.read())["models"]["tiny"]
    assert (live["running"], live["waiting"], live["kv_blocks_used"]) == (0, 0, 0)


def test_a_termination_lets_a_stream_end(artifact, tmp_path):
    with Process(artifact, tmp_path / "log") as process, process.client() as client:
        stream = client.completions.create(
            model="tiny",
            prompt="a",
            max_tokens=150,
            stream=True,
            extra_body={"ignore_eos": True},
            stream_options={"include_usage": True},
        )
        next(iter(stream))
        process.process.send_signal(signal.SIGTERM)
        usage = [chunk.usage for chunk in stream][-1]
        assert usage.completion_tokens == 150
        assert process.process.wait(15) == 0


def test_a_kill_in_a_stream_and_a_restart(artifact, tmp_path):
    flags = ("--swap-directory", str(tmp_path / "swap"))
    asked = {"model": "tiny", "prompt": "a", "temperature": 0, "extra_body": {"ignore_eos": True}}
    with Process(artifact, tmp_path / "log", *flags) as process, process.client() as client:
        wanted = client.completions.create(**asked, max_tokens=9).choices[0].text
        (left,) = (tmp_path / "swap").iterdir()
        connection = http.client.HTTPConnection("127.0.0.1", process.port, timeout=60)
        body = {"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        assert answer.read(100).startswith(b"data: ")
        os.kill(process.process.pid, signal.SIGKILL)
        with pytest.raises(http.client.IncompleteRead) as caught:
            answer.read()
        assert b"[DONE]" not in caught.value.partial
    with Process(artifact, tmp_path / "log", *flags, port=process.port) as process:
        ready = cpu_seconds(process.process.pid)
        with process.client() as client:
            assert client.completions.create(**asked, max_tokens=9).choices[0].text == wanted
        assert not left.exists(), "what was swapped by the process that was killed"
    # Ready within 2 s where a core is free: by CPU time, as tests share cores.
    assert ready < 2.0, f"{ready} s of CPU time before it was ready"


def cpu_seconds(pid):
    """What a process, without its children, has had of CPUs."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def test_a_file_of_options_reaches_the_engine(artifact, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{{ messages[0].content }}!")
    swap = tmp_path / "swap"
    config = tmp_path / "serve.toml"
    config.write_text(
        f"""scheduling-policy = "fair"
client_weight = ["a=2"]
max-num-seqs = 2
max-model-len = 128
max-num-batched-tokens = 32
pace = 1.5
enable-prefix-caching = false
swap-directory = "{swap}"
swap-memory = "1M"
chat-template = "{template}"
api-key = ["k"]
"""
    )
    flags = ("--config", str(config), "--pace", "3.0")
    with Process(artifact, tmp_path / "log", *flags) as process:
        with urllib.request.urlopen(f"{process.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        (info,) = [line for line in lines if line.startswith("ferrule:cache_config_info{")]
        for wanted in (
            'scheduling_policy="fair"',
            'max_num_seqs="2"',
            'max_model_len="128"',
            'max_num_batched_tokens="32"',
            'pace="3.0"',
            'enable_prefix_caching="False"',
            'swap_store="disk"',
        ):
            assert wanted in info, (wanted, info)
        assert list(swap.glob("swap-*"))
        asked = {"messages": [{"role": "user", "content": "hi"}]}
        headers = {"content-type": "application/json", "authorization": "Bearer k"}
        request = urllib.request.Request(
            f"{process.url}/tokenize", json.dumps(asked).encode(), headers
        )
        with urllib.request.urlopen(request) as answer:
            tokens = json.loads(answer.read())
        asked = {"prompt": "hi!", "add_special_tokens": False}
        request = urllib.request.Request(
            f"{process.url}/tokenize", json.dumps(asked).encode(), headers
        )
        with urllib.request.urlopen(request) as answer:
            plain = json.loads(answer.read())
        assert (tokens["tokens"], tokens["max_model_len"]) == (plain["tokens"], 128)


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--scheduling-policy", "best"), "fcfs, priority, fair, shortest"),
        (("--max-num-seqs", "99"), "max_batch=99: wanted 1 to 4"),
        (("--max-num-batched-tokens", "2"), "token_budget=2: wanted 4 or more"),
        (("--pace", "0.5"), "pace=0.5: wanted more than 1"),
        (("--client-weight", "a=2"), "weights: wanted with policy"),
        (("--ssl-keyfile", "x"), "go together"),
        (("--config", "no-such.toml"), "no-such.toml"),
    ],
)
def test_wrong_options_are_told(artifact, flags, wanted):
    command = [sys.executable, "-m", "ferrule", "serve", str(artifact), "--port", "0", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode in (1, 2)
    assert wanted in " ".join(done.stderr.replace("\u2502", " ").split()), done.stderr

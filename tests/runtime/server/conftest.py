"""Fixtures over the scripted server beside this file, which the tests import by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
TINY = Path(__file__).resolve().parents[3] / "examples/models/tiny-llama"

pytest.importorskip("fastapi", reason="the server is an extra")
openai = pytest.importorskip("openai", reason="the test client")

from scripted import ScriptRunner, serving, write_tokenizer  # noqa: E402 (found by the path above)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("server") / "tokenizer")


@pytest.fixture(scope="module")
def server(tokenizer):
    """One server for the tests of a file; its script is `server.runner.script`."""
    with serving(tokenizer, {"fox": ScriptRunner(), "dog": ScriptRunner()}) as running:
        yield running


@pytest.fixture
def script(server):
    """The script of the first model, empty for each test."""
    server.runner.script.clear()
    yield server.runner.script
    server.runner.script.clear()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as each:
        yield each


@pytest.fixture(scope="session")
def artifact(tmp_path_factory):
    """The embedded model, compiled once for the session."""
    pytest.importorskip("tvm", reason="compiling needs TVM")
    import ferrule

    built = ferrule.compile(
        str(TINY), max_context=256, max_batch=4, chunk=64, parity=False, progress=False
    )
    return built.save(tmp_path_factory.mktemp("served") / "tiny")

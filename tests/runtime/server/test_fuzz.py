"""Whatever a client sends, it gets an answer that is no 5xx, and nothing stays behind."""

import asyncio
import json
import os

import numpy as np
import pytest
from ferrule.runtime.server import fields
from ferrule.runtime.server.app import build_app
from ferrule.runtime.server.batch import _post
from ferrule.runtime.server.embedding import AloneEmbedder
from ferrule.runtime.server.items import InputBody, ResponseBody
from ferrule.runtime.server.messages import MessagesBody, PromptBody
from ferrule.runtime.server.metrics import ServerMetrics
from ferrule.runtime.server.models import Models, ServedModel
from ferrule.runtime.server.service import Service
from ferrule.runtime.server.settings import Settings
from ferrule.runtime.text import Text
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scripted import VOCABULARY, ScriptRunner, served

# More of them where somebody wants to know: FERRULE_FUZZ=10000.
EXAMPLES = int(os.environ.get("FERRULE_FUZZ", "400"))
MESSAGES = [{"role": "user", "content": "a"}]
ENDPOINTS = {
    "/v1/completions": (fields.CompletionBody, {"prompt": "th"}),
    "/v1/chat/completions": (fields.ChatBody, {"messages": MESSAGES}),
    "/v1/responses": (ResponseBody, {"input": "hi"}),
    "/v1/responses/input_tokens": (InputBody, {"input": "hi"}),
    "/v1/messages": (MessagesBody, {"messages": MESSAGES, "max_tokens": 2}),
    "/v1/messages/count_tokens": (PromptBody, {"messages": MESSAGES}),
    "/v1/embeddings": (fields.EmbeddingBody, {"model": "vec", "input": "hi"}),
    "/pooling": (fields.PoolingBody, {"model": "vec", "messages": MESSAGES}),
    "/classify": (fields.InputBody, {"input": "hi"}),
    "/score": (fields.ScoreBody, {"model": "vec", "text_1": "a", "text_2": "b"}),
    "/rerank": (fields.RerankBody, {"model": "vec", "query": "a", "documents": ["b"]}),
    "/tokenize": (fields.TokenizeBody, {"prompt": "hi"}),
    "/detokenize": (fields.DetokenizeBody, {"tokens": [104]}),
}
TEXT = st.text(max_size=12) | st.sampled_from(["", "fox", "none", "auto", "user", "json", "\ud800"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.sampled_from([2**31, 2**63, -(2**63) - 1, 10**30])
    | st.floats(allow_nan=True)
    | TEXT
)
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "function",
        "name",
        "parameters",
        "json",
        "regex",
        "choice",
        "id",
        "call_id",
        "output",
        "summary",
        "arguments",
        "input",
        "tool_use_id",
        "encrypted_content",
    ]
) | st.text(max_size=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


# Values that are often good, so that half of the requests get through to the engine.
LIKELY = {
    "temperature": st.floats(0, 3) | st.sampled_from([5e-324, 1e-46, 1e39, 1.7e308]),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 300),
    "min_p": st.floats(0, 1),
    "n": st.integers(1, 3),
    "seed": st.integers(-(2**63), 2**63 - 1),
    "stop": st.lists(st.sampled_from(["e", "qu", "the", " "]), max_size=2),
    "max_tokens": st.integers(1, 5),
    "min_tokens": st.integers(0, 5),
    "logprobs": st.integers(0, 20) | st.booleans(),
    "top_logprobs": st.integers(0, 20),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "repetition_penalty": st.floats(0.1, 2),
    "logit_bias": st.dictionaries(st.integers(0, 257).map(str), st.floats(-100, 100), max_size=3),
    "bad_words": st.lists(st.sampled_from(["e", "the"]), max_size=2),
    "allowed_token_ids": st.lists(st.integers(0, 257), min_size=1, max_size=4),
    "echo": st.booleans(),
    "stream": st.booleans(),
    "ignore_eos": st.booleans(),
    "user": st.text(min_size=1, max_size=3),
    "priority": st.integers(-2, 2),
    "prompt": st.text(max_size=9) | st.lists(st.text(min_size=1, max_size=3), max_size=3),
    "input": st.text(max_size=9),
    "tokens": st.lists(st.integers(0, 257), max_size=5),
    "stream_options": st.just({"include_usage": True}),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "tool_choice": st.sampled_from(["none", "auto", "required"]),
    "tools": st.just([{"type": "function", "function": {"name": "f"}}]),
}


@st.composite
def likely(draw):
    """A good body with fields that are probably good."""
    path = draw(st.sampled_from(sorted(ENDPOINTS)))
    kind, good = ENDPOINTS[path]
    names = [name for name in LIKELY if name in kind.model_fields]
    if not names:
        return path, good
    chosen = draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    return path, {**good, **{name: draw(LIKELY[name]) for name in chosen}}


@st.composite
def requests(draw):
    """A good body with a few fields replaced by anything."""
    path = draw(st.sampled_from(sorted(ENDPOINTS)))
    kind, good = ENDPOINTS[path]
    names = st.sampled_from(sorted(kind.model_fields)) | st.text(max_size=5)
    changes = draw(st.dictionaries(names, VALUES, max_size=3))
    short = {n: 3 for n in ("max_tokens", "max_output_tokens") if n in kind.model_fields}
    return path, {**short, **good, **changes}


class Halves(AloneEmbedder):
    """Embeds a prompt as two numbers."""

    def embed(self, prompts):
        return [np.array([len(p), p[0]], np.float32) for p in prompts]


class Loop:
    """An application on a loop of its own, called without connections."""

    def __init__(self, tokenizer):
        metrics = ServerMetrics(256)
        runner = ScriptRunner(max_context=64, blocks=64)
        self.model = served("fox", tokenizer, runner, metrics, limit=256)
        vectors = ServedModel("vec", Text(tokenizer), 64, VOCABULARY, embedder=Halves())
        service = Service(Models([self.model, vectors]), Settings(), metrics)
        self.app = build_app(service, "test")
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self._start())

    async def _start(self):
        self.model.front.start()

    def post(self, path, raw):
        return self.loop.run_until_complete(_post(self.app, path, raw))

    def settled(self):
        """What the engine holds once it has nothing to do."""
        return self.loop.run_until_complete(self._settled())

    async def _settled(self):
        while self.model.front.engine.has_work:
            await asyncio.sleep(0.001)
        return await self.model.front.stats()


@pytest.fixture(scope="module")
def application(tokenizer):
    found = Loop(tokenizer)
    yield found
    found.model.front.close()
    found.loop.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(requests() | likely())
@example(("/v1/completions", {"prompt": "th", "logprobs": 0, "n": 2, "echo": True}))
def test_any_body_is_answered(application, request_):
    path, body = request_
    status, answer = application.post(path, json.dumps(body).encode())
    assert status in (200, 400, 404, 429), (path, body, answer)
    if status != 200:
        error = json.loads(answer)["error"]
        assert set(error) == {"message", "type", "param", "code"} and error["message"]
        assert error["code"], (path, body, error)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.sampled_from(sorted(ENDPOINTS)), st.binary(max_size=60))
def test_any_bytes_are_answered(application, path, raw):
    assert application.post(path, raw)[0] == 400


def test_nothing_stays_behind(application):
    front = application.model.front
    stats = application.settled()
    assert (front.requests, front.sequences, stats.running, stats.waiting) == (0, 0, 0, 0)
    assert stats.blocks_used == 0
    front.engine.check()

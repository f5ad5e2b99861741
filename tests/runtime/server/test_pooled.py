"""/v1/embeddings, /pooling, /classify, /score and /rerank."""

import asyncio
import base64
import http.client
import json
import shutil
import time

import numpy as np
import openai
import pytest
from ferrule.runtime.engine import Engine
from ferrule.runtime.pooling import Pooling, probabilities, unit
from ferrule.runtime.server.app import build_app
from ferrule.runtime.server.batch import read_lines, run_batch
from ferrule.runtime.server.command import artifact_service
from ferrule.runtime.server.embedding import AloneEmbedder, EngineEmbedder
from ferrule.runtime.server.front import EngineFront
from ferrule.runtime.server.metrics import ServerMetrics
from ferrule.runtime.server.models import Models, ServedModel
from ferrule.runtime.server.service import Service
from ferrule.runtime.server.settings import Settings
from ferrule.runtime.text import Text
from scripted import VOCABULARY, Running, ScriptRunner, wait_for
from test_errors import post
from tokenizers import processors


def test_a_model_that_generates_gives_no_embeddings(client):
    with pytest.raises(openai.BadRequestError, match="gives no embeddings") as caught:
        client.embeddings.create(model="fox", input="a")
    assert caught.value.code == "unsupported_model"


class Lengths(AloneEmbedder):
    """Embeds a prompt as its length and its first token."""

    def embed(self, prompts):
        return [np.array([len(p), p[0]], np.float32) for p in prompts]


def test_embeddings(tokenizer):
    model = ServedModel("vec", Text(tokenizer), 64, VOCABULARY, embedder=Lengths())
    with (
        Running(Service(Models([model]), Settings(), ServerMetrics(64))) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client,
    ):
        done = client.embeddings.create(model="vec", input=["a", "bcd"], encoding_format="float")
        for found, wanted in zip(done.data, ([1.0, 97.0], [3.0, 98.0]), strict=True):
            np.testing.assert_allclose(found.embedding, unit(np.array(wanted)), rtol=1e-6)
        assert done.usage.prompt_tokens == 4
        # The client asks for base64 by itself and decodes it.
        done = client.embeddings.create(model="vec", input=[98, 99])
        np.testing.assert_allclose(done.data[0].embedding, unit(np.array([2.0, 98.0])), rtol=1e-6)
        raw = post(running, "/v1/embeddings", {"input": "a", "encoding_format": "base64"})[1]
        values = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
        np.testing.assert_allclose(values, unit(np.array([1.0, 97.0])), rtol=1e-6)
        cut = client.embeddings.create(model="vec", input="abc", dimensions=1)
        assert cut.data[0].embedding == [1.0]
        plain = post(running, "/v1/embeddings", {"input": ["abc"], "normalize": False})[1]
        assert plain["data"][0]["embedding"] == [3.0, 97.0]
        last = {"input": "abc", "normalize": False, "truncate_prompt_tokens": 2}
        assert post(running, "/v1/embeddings", last)[1]["data"][0]["embedding"] == [2.0, 98.0]
        with pytest.raises(openai.BadRequestError, match=r"dimensions: given 3, the .* 2"):
            client.embeddings.create(model="vec", input="a", dimensions=3)
        with pytest.raises(openai.BadRequestError, match="does not generate"):
            client.completions.create(model="vec", prompt="a")
        status, error = post(running, "/classify", {"input": "a"})
        assert status == 400 and "is no classifier" in error["error"]["message"]


def test_a_conversation_is_embedded_as_its_template_writes_it(tokenizer):
    model = ServedModel("vec", Text(tokenizer), 64, VOCABULARY, embedder=Lengths())
    with Running(Service(Models([model]), Settings(), ServerMetrics(64))) as running:
        said = [{"role": "user", "content": "a"}, {"role": "assistant", "content": [TEXT_PART]}]
        asked = {"messages": said, "normalize": False}

        def found(**extra):
            status, body = post(running, "/v1/embeddings", asked | extra)
            assert status == 200, body
            (only,) = body["data"]
            assert body["usage"]["prompt_tokens"] == only["embedding"][0]
            return only["embedding"]

        plain = "<user>a</user><assistant>bc</assistant>"
        assert found() == [len(plain), ord("<")]
        assert found(add_generation_prompt=True)[0] == len(plain + "<reply>")
        assert found(continue_final_message=True)[0] == len(plain) - len("</assistant>")
        effort = {"chat_template_kwargs": {"reasoning_effort": "low"}}
        assert found(**effort)[0] == len(plain + "<effort>low</effort>")
        assert found(truncate_prompt_tokens=3) == [3, ord("n")]
        status, body = post(running, "/pooling", {"messages": said, "encoding_format": "float"})
        assert status == 200 and body["data"][0]["data"] == [len(plain), ord("<")]
        for wrong, param, code in (
            ({"messages": said, "input": "a"}, "input", "invalid_value"),
            ({"input": "a", "add_generation_prompt": True}, "add_generation_prompt", None),
            ({"messages": said, "chat_template": "x"}, "chat_template", "unsupported_parameter"),
            ({"messages": []}, "messages", "invalid_value"),
            ({}, "input", "missing_required_parameter"),
            ({"messages": said * 9}, "messages", "context_length_exceeded"),
        ):
            status, body = post(running, "/v1/embeddings", wrong)
            assert (status, body["error"]["param"]) == (400, param), body
            assert code in (None, body["error"]["code"]), body


TEXT_PART = {"type": "text", "text": "bc"}


class Slow(AloneEmbedder):
    """Takes its time, and counts what it was asked for."""

    def __init__(self):
        self.asked = 0

    def embed(self, prompts):
        self.asked += len(prompts)
        time.sleep(0.05)
        return [np.ones(1, np.float32) for _ in prompts]


def test_many_texts_end_with_their_client_or_their_time(tokenizer):
    slow = Slow()
    model = ServedModel("vec", Text(tokenizer), 64, VOCABULARY, embedder=slow)
    settings = Settings(request_seconds=0.3)
    with Running(Service(Models([model]), settings, ServerMetrics(64))) as running:
        status, error = post(running, "/v1/embeddings", {"input": ["a"] * 400})
        assert (status, error["error"]["code"]) == (504, "timeout")
        assert post(running, "/score", {"text_1": "a", "text_2": ["b"] * 400})[0] == 504
        asked = slow.asked
        time.sleep(0.2)
        assert slow.asked <= asked + 8 < 400
        assert len(post(running, "/v1/embeddings", {"input": ["a"] * 20})[1]["data"]) == 20


class Directions(AloneEmbedder):
    """Embeds a prompt as a unit vector by its first letter: equal ones are equal texts."""

    def embed(self, prompts):
        return list(np.eye(4, dtype=np.float32)[[p[0] % 4 for p in prompts]])


def test_scores_and_ranks(tokenizer):
    model = ServedModel("vec", Text(tokenizer), 64, VOCABULARY, embedder=Directions())
    with Running(Service(Models([model]), Settings(), ServerMetrics(64))) as running:
        one = post(running, "/score", {"text_1": "a", "text_2": ["b", "a!", "c"]})[1]
        assert [d["score"] for d in one["data"]] == [0.0, 1.0, 0.0]
        assert one["usage"]["prompt_tokens"] == 5
        found = post(running, "/score", {"text_1": ["a", "b"], "text_2": ["a", "c"]})[1]
        assert [d["score"] for d in found["data"]] == [1.0, 0.0]
        status, error = post(running, "/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]})
        assert status == 400 and "2 texts beside 3" in error["error"]["message"]
        body = {"query": "bee", "documents": ["ant", "bat", "cat", "bug"], "top_n": 2}
        ranked = post(running, "/rerank", body)[1]["results"]
        assert [(r["index"], r["document"]["text"]) for r in ranked] == [(1, "bat"), (3, "bug")]
        assert [r["relevance_score"] for r in ranked] == [1.0, 1.0]


@pytest.mark.slow
def test_embeddings_of_a_compiled_encoder(tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tvm")
    import ferrule

    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    torch.manual_seed(5)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    encoder = last_hidden(torch, bert)
    length = {"input_ids": {1: torch.export.Dim("S", min=1, max=40)}}
    ids = torch.randint(0, 256, (1, 9))
    compiled = ferrule.compile(encoder, args=(ids,), dynamic_shapes=length, progress=False)
    path = compiled.artifact.save(tmp_path / "bert")
    shutil.copytree(tokenizer, path / "tokenizer")
    service = artifact_service({"bert": ferrule.load(path, threads=1)}, Settings())
    with (
        Running(service) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client,
    ):
        texts = ["a short text", "b"]
        done = client.embeddings.create(model="bert", input=texts, encoding_format="float")
        for text, found in zip(texts, done.data, strict=True):
            with torch.no_grad():
                mean = encoder(torch.tensor([list(text.encode())]))[0].mean(0)
            np.testing.assert_allclose(found.embedding, mean / mean.norm(), atol=1e-4)
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="bert", input="x" * 41)
        assert caught.value.code == "context_length_exceeded"


@pytest.mark.slow
def test_embeddings_by_pooling_of_a_model_that_generates(tokenizer, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tvm")
    import ferrule

    config = transformers.Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        max_position_embeddings=40,
    )
    torch.manual_seed(6)
    model = transformers.Qwen3ForCausalLM(config).eval()
    compiled = ferrule.compile(model, pooling="last", tokenizer=tokenizer, progress=False)
    path = compiled.save(tmp_path / "qwen")
    service = artifact_service({"qwen": ferrule.load(path, threads=1)}, Settings())
    with (
        Running(service) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client,
    ):
        texts = [chr(98 + n % 20) * (1 + n % 40) for n in range(100)]
        done = client.embeddings.create(model="qwen", input=texts, encoding_format="float")
        for text, found in zip(texts, done.data, strict=True):
            with torch.no_grad():
                ids = torch.tensor([list(text.encode())])
                last = model.model(ids).last_hidden_state[0, -1]
            np.testing.assert_allclose(found.embedding, last / last.norm(), atol=1e-4)
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="qwen", input="x" * 41)
        assert caught.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="does not generate"):
            client.chat.completions.create(
                model="qwen", messages=[{"role": "user", "content": "a"}]
            )
        steps = service.models["qwen"].front.engine.steps
        assert steps < 60, f"{steps} steps for 100 texts"


def last_hidden(torch, model):
    """The last hidden states of a model as a module of its own."""

    class LastHidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids=input_ids).last_hidden_state

    return LastHidden()


class RowRunner(ScriptRunner):
    """Rows of two numbers: how many tokens there are, and the last one; scores, where one is
    wanted.
    """

    def __init__(self, width=2, **sizes):
        super().__init__(**sizes)
        self.vocabulary, self.batches = width, []

    def step(self, batch):
        super().step(batch)
        self.batches.append(len(batch.context_length))
        rows = [(batch.positions[r] + 1, batch.tokens[r]) for r in batch.logit_rows]
        return np.zeros(len(rows), np.int32), np.array(rows, np.float32)[:, : self.vocabulary]


def got(running, path):
    """Status and text of a page."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    connection.request("GET", path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


def pooled_service(tokenizer, pooling, runner, settings=None):
    """A model of an engine that pools, and its metrics."""
    settings, metrics = settings or Settings(), ServerMetrics(64)
    engine = Engine(runner, Text(tokenizer), pooling=pooling)
    front = EngineFront(engine, metrics.of("vec"), limit=settings.max_waiting + engine.max_batch)
    embedder = EngineEmbedder(front, pooling, 2 * engine.max_batch)
    model = ServedModel("vec", Text(tokenizer), 64, VOCABULARY, front, embedder)
    return Service(Models([model]), settings, metrics)


def test_texts_of_a_request_share_steps_and_are_counted(tokenizer):
    runner = RowRunner()
    service = pooled_service(tokenizer, Pooling("last", False, VOCABULARY), runner)
    with Running(service) as running:
        texts = ["a" * (n % 9) + "b" for n in range(50)]
        status, found = post(running, "/pooling", {"input": texts})
        assert status == 200 and found["id"].startswith("pool-")
        assert [d["data"] for d in found["data"]] == [[len(t), ord("b")] for t in texts]
        assert found["usage"]["prompt_tokens"] == sum(map(len, texts))
        assert len(runner.batches) < 20 and max(runner.batches) == 8
        text = got(running, "/metrics")[1]
        assert (
            f'ferrule:prompt_tokens_total{{engine="0",model_name="vec"}} {len("".join(texts))}.0'
            in text
        )
        assert 'ferrule:generation_tokens_total{engine="0",model_name="vec"} 0.0' in text
        assert 'finished_reason="stop",model_name="vec"} 50.0' in text
        assert got(running, "/check")[0] == 200


def test_texts_end_with_their_client_or_with_one_that_fails(tokenizer):
    runner = RowRunner()
    service = pooled_service(tokenizer, Pooling("last", False, VOCABULARY), runner)
    with Running(service) as running:
        runner.delay = 0.1
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
        body = json.dumps({"input": ["a"] * 800})
        connection.request("POST", "/pooling", body, {"content-type": "application/json"})
        wait_for(lambda: runner.batches)
        connection.close()
        runner.delay = 0.0
        wait_for(lambda: service.unfinished == 0)
        assert sum(runner.batches) < 200
        runner.broken = ord("x")
        status, error = post(running, "/v1/embeddings", {"input": ["a", "x", "b"] * 9})
        assert (status, error["error"]["code"]) == (500, "generation_failed")
        wait_for(lambda: service.unfinished == 0)
        assert post(running, "/v1/embeddings", {"input": ["a", "b"]})[0] == 200
        assert got(running, "/check")[0] == 200


def test_classes_and_scores_of_pairs(tokenizer):
    labels = Pooling("last", False, VOCABULARY, ("short", "last"))
    with Running(pooled_service(tokenizer, labels, RowRunner())) as running:
        found = post(running, "/classify", {"input": ["\x00\x03", "\x02"]})[1]["data"]
        assert [f["label"] for f in found] == ["last", "last"]
        np.testing.assert_allclose(
            found[0]["probs"], probabilities(np.array([2.0, 3.0]), "softmax")
        )
        assert found[0]["num_classes"] == 2
        status, error = post(running, "/v1/embeddings", {"input": "a"})
        assert status == 400 and "gives no embeddings" in error["error"]["message"]
        status, error = post(running, "/score", {"text_1": "a", "text_2": "b"})
        assert status == 400 and "tells 2 labels apart" in error["error"]["message"]
    alone = Pooling("last", False, VOCABULARY, ("fits",), "sigmoid", 2)
    runner = RowRunner(1)
    with Running(pooled_service(tokenizer, alone, runner)) as running:
        body = {"query": "ab", "documents": ["c", "defg", "hi"], "top_n": 2}
        found = post(running, "/rerank", body)[1]
        assert [r["index"] for r in found["results"]] == [1, 2]
        near = [r["relevance_score"] for r in found["results"]]
        np.testing.assert_allclose(
            near, [1 / (1 + np.exp(-6.0)), 1 / (1 + np.exp(-4.0))], rtol=1e-5
        )
        assert found["usage"]["prompt_tokens"] == 13
        scored = post(running, "/score", {"text_1": ["a", "bb"], "text_2": ["c", "d"]})[1]
        assert scored["object"] == "list" and len(scored["data"]) == 2


def test_tokens_of_a_pairs_second_text_have_a_type_of_their_own(tokenizer):
    text = Text(tokenizer)
    text.tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A:0 </s> $B:1", special_tokens=[("<s>", 256), ("</s>", 257)]
    )
    assert text.pair("a", "bc", 1000) == [256, 97, 257, 1098, 1099]
    assert text.pair("a", "bc", 0) == [256, 97, 257, 98, 99]


def test_batches_of_every_endpoint(tokenizer, tmp_path):
    bodies = {
        "/v1/embeddings": {"input": ["ab", "c"]},
        "/v1/score": {"text_1": "a", "text_2": ["a", "\x01"]},
        "/v1/rerank": {"query": "a", "documents": ["\x01", "a"]},
    }
    path = tmp_path / "in.jsonl"
    lines = [{"custom_id": u, "method": "POST", "url": u, "body": b} for u, b in bodies.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    service = pooled_service(tokenizer, Pooling("last", False, VOCABULARY), RowRunner())
    out = tmp_path / "out.jsonl"
    work = run_batch(build_app(service, "test"), service, read_lines(path), out, at_once=4)
    done = asyncio.run(work)
    assert (done.completed, done.failed) == (3, 0)
    found = {r["custom_id"]: r["response"]["body"] for r in map(json.loads, out.open())}
    assert len(found["/v1/embeddings"]["data"]) == 2
    assert found["/v1/score"]["data"][0]["score"] > found["/v1/score"]["data"][1]["score"]
    assert [r["index"] for r in found["/v1/rerank"]["results"]] == [1, 0]

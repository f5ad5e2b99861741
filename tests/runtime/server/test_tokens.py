"""/tokenize, /detokenize, /v1/embeddings."""

import base64
import shutil
import time

import numpy as np
import openai
import pytest
from ferrule.runtime.server.command import artifact_service
from ferrule.runtime.server.metrics import ServerMetrics
from ferrule.runtime.server.models import Models, ServedModel
from ferrule.runtime.server.service import Service
from ferrule.runtime.server.settings import Settings
from ferrule.runtime.text import Text
from scripted import VOCABULARY, Running
from test_errors import post


def test_there_and_back(server):
    status, found = post(server, "/tokenize", {"prompt": "hé", "return_token_strs": True})
    assert status == 200 and found["tokens"] == list("hé".encode())
    assert (found["count"], found["max_model_len"]) == (3, 2048) and len(found["token_strs"]) == 3
    assert post(server, "/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": "hé"})
    assert post(server, "/detokenize", {"tokens": [-1]})[0] == 400


def test_messages_are_written_by_the_template(server):
    messages = [{"role": "user", "content": "a"}]
    _, found = post(server, "/tokenize", {"messages": messages})
    assert bytes(found["tokens"]) == b"<user>a</user><reply>"
    bare = {"messages": messages, "add_generation_prompt": False}
    assert bytes(post(server, "/tokenize", bare)[1]["tokens"]) == b"<user>a</user>"
    assert post(server, "/tokenize", {})[0] == 400


def test_a_model_that_generates_gives_no_embeddings(client):
    with pytest.raises(openai.BadRequestError, match="gives no embeddings") as caught:
        client.embeddings.create(model="fox", input="a")
    assert caught.value.code == "unsupported_model"


class Lengths:
    """Embeds a prompt as its length and its first token."""

    def embed(self, prompts):
        return [[float(len(p)), float(p[0])] for p in prompts]


def test_embeddings(tokenizer):
    model = ServedModel("vec", Text(tokenizer), 64, VOCABULARY, embedder=Lengths())
    with (
        Running(Service(Models([model]), Settings(), ServerMetrics(64))) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client,
    ):
        done = client.embeddings.create(model="vec", input=["a", "bcd"], encoding_format="float")
        assert [d.embedding for d in done.data] == [[1.0, 97.0], [3.0, 98.0]]
        assert done.usage.prompt_tokens == 4
        # The client asks for base64 by itself and decodes it.
        done = client.embeddings.create(model="vec", input=[98, 99])
        assert done.data[0].embedding == [2.0, 98.0]
        raw = post(running, "/v1/embeddings", {"input": "a", "encoding_format": "base64"})[1]
        values = np.frombuffer(base64.b64decode(raw["data"][0]["embedding"]), "<f4")
        assert values.tolist() == [1.0, 97.0]
        with pytest.raises(openai.BadRequestError, match="does not generate"):
            client.completions.create(model="vec", prompt="a")


class Slow:
    """Takes its time, and counts what it was asked for."""

    def __init__(self):
        self.asked = 0

    def embed(self, prompts):
        self.asked += len(prompts)
        time.sleep(0.05)
        return [[1.0] for _ in prompts]


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


class Directions:
    """Embeds a prompt as a unit vector by its first letter: equal ones are equal texts."""

    def embed(self, prompts):
        return np.eye(4, dtype=np.float32)[[p[0] % 4 for p in prompts]].tolist()


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
    path = compiled.artifact.save(tmp_path / "qwen")
    service = artifact_service({"qwen": ferrule.load(path, threads=1)}, Settings())
    with (
        Running(service) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="x") as client,
    ):
        texts = ["a short text", "b"]
        done = client.embeddings.create(model="qwen", input=texts, encoding_format="float")
        for text, found in zip(texts, done.data, strict=True):
            with torch.no_grad():
                ids = torch.tensor([list(text.encode())])
                last = model.model(ids).last_hidden_state[0, -1]
            np.testing.assert_allclose(found.embedding, last / last.norm(), atol=1e-4)


def last_hidden(torch, model):
    """The last hidden states of a model as a module of its own."""

    class LastHidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids):
            return self.model(input_ids=input_ids).last_hidden_state

    return LastHidden()

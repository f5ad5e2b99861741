"""`suffix`: what stands between two texts, by the marks that a vocabulary has."""

import asyncio
import json

import openai
import pytest
from ferrule.runtime.server.errors import ApiError
from ferrule.runtime.server.infill import infill_of, infill_prompt
from ferrule.runtime.server.models import ServedModel
from ferrule.runtime.text import Text
from scripted import VOCABULARY, bytes_to_characters, serving, write_tokenizer
from test_errors import post
from tokenizers import Tokenizer, models, pre_tokenizers, processors

QWEN = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|endoftext|>")


def marked(directory, marks, *, begins=False):
    """A tokenizer whose tokens 1, 2, ... are marks and not bytes; with a token before prompts."""
    path = write_tokenizer(directory) / "tokenizer.json"
    written = json.loads(path.read_text())
    table = bytes_to_characters()
    vocabulary = written["model"]["vocab"]
    for token, mark in enumerate(marks, 1):
        del vocabulary[table[token]]
        vocabulary[mark] = token
    path.write_text(json.dumps(written))
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.add_special_tokens(list(marks))
    if begins:
        both = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 256), ("</s>", 257)])
        tokenizer.post_processor = both
    tokenizer.save(str(path))
    return directory


def prompt_of(text, prefix, suffix, *, add=True):
    model = ServedModel("fox", text, 64, text.tokenizer.get_vocab_size())
    work = infill_prompt(model, infill_of(model), prefix, suffix, add_special_tokens=add)
    return asyncio.run(work)


@pytest.mark.parametrize(
    "marks",
    [
        QWEN,
        ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
        ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
        ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),
        ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),
    ],
)
def test_marks_that_put_the_prefix_first(tmp_path, marks):
    text = Text(marked(tmp_path / "t", marks))
    assert prompt_of(text, "ab", "cd") == [1, *b"ab", 2, *b"cd", 3]
    assert prompt_of(text, [97, 98], "cd") == [1, *b"ab", 2, *b"cd", 3]
    model = ServedModel("fox", text, 64, VOCABULARY)
    assert infill_of(model).ends == {*range(1, len(marks) + 1)}


def test_marks_that_put_the_suffix_first(tmp_path):
    text = Text(marked(tmp_path / "a", ("[SUFFIX]", "[PREFIX]"), begins=True))
    assert prompt_of(text, "ab", "cd") == [256, 1, *b"cd", 2, *b"ab"]
    assert prompt_of(text, "ab", "cd", add=False) == [1, *b"cd", 2, *b"ab"]
    marks = ("<[fim-suffix]>", "<[fim-prefix]>", "<[fim-middle]>")
    text = Text(marked(tmp_path / "b", marks))
    assert prompt_of(text, "ab", "cd" * 3000) == [1, *b"cd" * 3000, 2, *b"ab", 3]


def test_a_suffix_goes_on_in_its_line_where_texts_get_a_blank(tmp_path):
    vocabulary = {"▁": 0, "a": 1, "☺": 2, "<PRE>": 3, "<SUF>": 4, "<MID>": 5, "▁a": 6}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(["<PRE>", "<SUF>", "<MID>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    text = Text(tmp_path)
    assert text.encode("a") == [6]
    assert prompt_of(text, "a", "a a") == [3, 6, 4, 1, 6, 5]


def test_marks_that_the_model_does_not_have_do_not_count(tmp_path):
    model = ServedModel("fox", Text(marked(tmp_path / "t", QWEN)), 64, vocabulary=3)
    with pytest.raises(ApiError, match="'fox' has no marks"):
        infill_of(model)


def test_a_middle_by_the_client(tmp_path):
    with serving(marked(tmp_path / "t", QWEN)) as running:
        script = running.runner.script
        script["\x01th\x02ab\x03"] = "mid\x04more"
        script["\x01th\x02cd\x03"] = "end\x01more"
        with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", max_retries=0) as client:
            ask = {"model": "fox", "prompt": "th", "max_tokens": 9, "temperature": 0}
            done = client.completions.create(**ask, suffix="ab")
            assert (done.choices[0].text, done.choices[0].finish_reason) == ("mid", "stop")
            assert done.usage.prompt_tokens == 7
            both = client.completions.create(**(ask | {"prompt": [[116, 104]] * 2}), suffix="cd")
            assert [c.text for c in both.choices] == ["end", "end"]
            chunks = client.completions.create(**ask, suffix="ab", stream=True)
            assert "".join(c.choices[0].text for c in chunks) == "mid"
            on = client.completions.create(**ask, suffix="ab", extra_body={"ignore_eos": True})
            assert on.choices[0].text == "midmore" and on.usage.completion_tokens == 9
            plain = client.completions.create(**ask, suffix="")
            assert plain.usage.prompt_tokens == 2


@pytest.mark.parametrize(
    ("extra", "param"),
    [
        ({"echo": True}, "echo"),
        ({"truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"suffix": "x" * 9000}, "prompt"),
        ({"suffix": 1}, "suffix"),
    ],
)
def test_what_a_suffix_does_not_go_with(tmp_path, extra, param):
    with serving(marked(tmp_path / "t", QWEN)) as running:
        body = {"prompt": "th", "suffix": "ab", "max_tokens": 2} | extra
        status, answer = post(running, "/v1/completions", body)
        assert (status, answer["error"]["param"]) == (400, param), answer


def test_a_vocabulary_without_marks_is_told(server):
    body = {"prompt": "th", "suffix": "ab"}
    status, answer = post(server, "/v1/completions", body)
    error = answer["error"]
    assert (status, error["param"], error["code"]) == (400, "suffix", "unsupported_parameter")
    assert "<|fim_prefix|>" in error["message"]
    body = {"prompt": "th", "suffix": "", "max_tokens": 2}
    assert post(server, "/v1/completions", body)[0] == 200

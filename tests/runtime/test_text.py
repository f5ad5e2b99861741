import json
import re

import numpy as np
import pytest
from ferrule.runtime.chat import ChatTemplate
from ferrule.runtime.errors import ArtifactError, RequestError
from ferrule.runtime.params import SamplingParams
from ferrule.runtime.text import Text, TextStream, advised_sampling, end_ids
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A byte-level tokenizer with one token a byte: characters of several bytes come in pieces."""
    path = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 256)]
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=99)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}\n"
    "  {% if m.role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}\n"
    "{% generation %}<{{ m.role }}> {{ m.content }}{% endgeneration %}\n"
    "{% if loop.index > 8 %}{% break %}{% endif %}{% endfor %}\n"
    "{% if tools %}{{ tools | tojson(indent=1) }}{% endif %}\n"
    "{% if add_generation_prompt %}<reply>{% endif %}"
)


@pytest.fixture(scope="module")
def text(directory):
    return Text(directory)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=30))
def test_pieces_make_the_whole_and_none_is_half_a_character(text, given_text):
    ids = text.encode(given_text)
    assert ids[0] == 256 and len(ids) == 1 + len(given_text.encode())
    stream = TextStream(text)
    pieces = [stream.push(i) for i in ids]
    if "\ufffd" not in given_text:
        assert not any("\ufffd" in p for p in pieces)
    assert "".join(pieces) + stream.finish() == given_text == text.decode(ids)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 257), max_size=20))
def test_any_tokens_come_out_as_the_tokenizer_decodes_them(text, ids):
    stream = TextStream(text)
    whole = "".join(stream.push(i) for i in ids) + stream.finish()
    assert whole == text.decode(ids)
    whole.encode()


@settings(max_examples=200, deadline=None)
@given(
    st.text("abé", max_size=16),
    st.lists(st.text("abé", min_size=1, max_size=4), min_size=1, max_size=3),
    st.booleans(),
)
def test_the_text_ends_at_the_first_stop_string(text, given_text, stops, keep):
    stream = TextStream(text, stop=stops, keep_stop=keep)
    shown = ""
    for token in text.encode(given_text, add_special_tokens=False):
        shown += stream.push(token)
        assert not any(s in shown for s in stops) or keep
        if stream.stopped:
            break
    shown += stream.finish()
    # What ends first is seen first; of those that end together the one that begins first.
    ends = [
        (m.start() + len(s), m.start())
        for s in stops
        for m in re.finditer(f"(?={re.escape(s)})", given_text)
    ]
    if not ends:
        assert shown == given_text and not stream.stopped
        return
    end, begin = min(ends)
    assert stream.stopped
    assert shown == given_text[: end if keep else begin]


def test_special_tokens_are_shown_only_on_demand(text):
    stream, shown = TextStream(text), TextStream(text, skip_special=False)
    ids = text.encode("ab")
    assert "".join(map(stream.push, ids)) == "ab"
    assert "".join(map(shown.push, ids)) == "<s>ab"


def test_chat_templates_render(text):
    messages = [{"role": "user", "content": "hé"}, {"role": "bot", "content": "<b>"}]
    rendered = text.template.render(messages, tools=[{"name": "f<"}])
    assert rendered == '<s><user> hé<bot> <b>[\n {\n  "name": "f<"\n }\n]<reply>'
    assert text.template.render(messages, add_generation_prompt=False).endswith("<b>")
    assert text.chat(messages)[0] == 256
    with pytest.raises(RequestError, match="refuses the messages: no robots"):
        text.template.render([{"role": "robot", "content": ""}])
    with pytest.raises(RequestError, match="a message is an object"):
        text.template.render(["hello"])


def test_templates_cannot_leave_their_sandbox():
    for source in ("{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"):
        with pytest.raises(RequestError, match="refuses the messages"):
            ChatTemplate(source, {}).render([{"role": "a", "content": "b"}])
    with pytest.raises(RequestError, match="cannot be read"):
        ChatTemplate("{% if %}", {})
    assert ChatTemplate("{{ strftime_now('%Y') | length }}", {}).render([]) == "4"


def test_templates_render_as_in_transformers(directory):
    chat_template_utils = pytest.importorskip("transformers.utils.chat_template_utils")
    conversation = [
        {"role": "user", "content": "hé <&>", "reasoning": "because"},
        {"role": "assistant", "content": "ok", "n": np.int64(3)},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"a": ["é", 1.5, None]}}}]
    source = TEMPLATE + "{{ messages[0].reasoning_content }}{{ tools | tojson }}{{ flag }}"
    (theirs,), _ = chat_template_utils.render_jinja_template(
        [conversation], tools=tools, chat_template=source, bos_token="<s>", flag=True
    )
    ours = ChatTemplate(source, {"bos_token": "<s>"})
    assert ours.render(conversation, tools=tools, flag=True, add_generation_prompt=False) == theirs


def test_end_ids_come_from_the_first_file_that_names_them(directory, text, tmp_path):
    assert end_ids(directory, text) == {257}
    assert end_ids(tmp_path, None) == frozenset()
    (tmp_path / "config.json").write_text('{"text_config": {"eos_token_id": 5}}')
    assert end_ids(tmp_path, text) == {5}
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert end_ids(tmp_path, text) == {7, 8}
    (tmp_path / "generation_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"generation_config\.json: not JSON"):
        end_ids(tmp_path, text)


def test_a_directory_without_a_tokenizer_is_an_error(tmp_path):
    with pytest.raises(ArtifactError, match=r"tokenizer\.json: no tokenizer can be read"):
        Text(tmp_path)


def test_advised_sampling_is_read_by_the_names_of_parameters(tmp_path):
    assert advised_sampling(tmp_path) == {}
    config = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "do_sample": True, "eos_token_id": 1}
    config |= {"max_new_tokens": 99, "min_p": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    wanted = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_tokens": 99}
    assert advised_sampling(tmp_path) == wanted
    SamplingParams.parse(wanted)

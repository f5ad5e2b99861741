"""Constrained output over a model that answers at random: what comes out keeps to the grammar."""

import json
import re
import sys

import numpy as np
import pytest
from ferrule.runtime.engine import Engine
from ferrule.runtime.errors import RequestError
from ferrule.runtime.params import StructuredOutputsParams
from ferrule.runtime.sampling import SamplingParams
from ferrule.runtime.text import Text
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toys import FakeRunner

pytest.importorskip("llguidance")
END = 256
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 5}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


class RandomRunner(FakeRunner):
    """Logits that depend on the tokens seen and are alike for all tokens."""

    def __init__(self, vocabulary=261, **options):
        super().__init__(**options)
        self.vocabulary = vocabulary

    def step(self, batch):
        self.batches.append(batch)
        logits = np.random.default_rng(batch.tokens).standard_normal(
            (len(batch.logit_rows), self.vocabulary), np.float32
        )
        return logits.argmax(-1), logits


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>", "<call>", "</call>"])
    tokenizer.save(str(path / "tokenizer.json"))
    return Text(path)


def make(text, ends=(END,), **options):
    return Engine(RandomRunner(blocks=200, chunk=16, max_context=700), text, ends, **options)


def run(engine):
    """Text, reason and error of each sequence."""
    ended = {}
    while engine.has_work:
        for delta in engine.step():
            shown = ended.get((delta.request_id, delta.index), ("", None, None))[0]
            key = (delta.request_id, delta.index)
            ended[key] = (shown + delta.text, delta.finish_reason, delta.error)
        engine.check()
    return ended


def ask(engine, seed=0, count=400, *, n=1, ignore_eos=False, **kind):
    params = SamplingParams(
        seed=seed,
        n=n,
        max_tokens=count,
        ignore_eos=ignore_eos,
        structured_outputs=StructuredOutputsParams(**kind),
    )
    return engine.submit([1, 2, 3], params)


def answer(engine, seed=0, count=400, **kind):
    name = ask(engine, seed, count, **kind)
    return run(engine)[name, 0]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(END,), ()]), st.booleans())
def test_json_follows_its_schema(text, seed, ends, ignore_eos):
    engine = make(text, ends)
    kinds = [{"json": SCHEMA}, {"json": json.dumps(SCHEMA), "disable_any_whitespace": True}]
    for kind in kinds:
        shown, reason, error = answer(engine, seed, ignore_eos=ignore_eos, **kind)
        # A schema with free whitespace may go on with it for ever: then it ends by length.
        if reason == "length":
            continue
        assert (reason, error) == ("stop", None)
        value = json.loads(shown)
        assert list(value) == ["name", "old"] and len(value["name"]) <= 5
        assert isinstance(value["old"], bool)
    assert "disable_any_whitespace" not in kind or shown == shown.strip()


def test_properties_that_are_not_named_do_not_come(text):
    schema = {name: SCHEMA[name] for name in ("type", "properties", "required")}
    for seed in range(8):
        kind = {"json": schema, "disable_any_whitespace": True}
        shown, reason, error = answer(make(text), seed, **kind)
        assert (reason, error) == ("stop", None)
        assert list(json.loads(shown)) == ["name", "old"]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(END,), ()]))
def test_regex_choice_and_grammars_hold(text, seed, ends):
    engine = make(text, ends)
    shown, reason, _ = answer(engine, seed, regex=r"[a-c]{2,4}/(x|yé)")
    assert re.fullmatch(r"[a-c]{2,4}/(x|yé)", shown) and reason == "stop"
    choices = ["yes", "no", 'say "é"\n']
    shown, reason, _ = answer(engine, seed, choice=choices)
    assert shown in choices and reason == "stop"
    shown, reason, _ = answer(engine, seed, grammar='start: "<" NUMBER ">"\nNUMBER: /[0-9]{1,3}/')
    assert re.fullmatch(r"<\d{1,3}>", shown) and reason == "stop"
    shown, reason, _ = answer(engine, seed, grammar='root ::= "(" ("a" | "b") ")"')
    assert shown in ("(a)", "(b)") and reason == "stop"


def test_a_json_object_begins_as_one(text):
    shown, reason, _ = answer(make(text), count=60, json_object=True)
    if reason == "stop":
        assert isinstance(json.loads(shown), dict)
    assert shown.startswith("{")


def test_tags_begin_a_structure_and_leave_other_text_free(text):
    tag = {
        "triggers": ["<call>"],
        "structures": [{"begin": "<call>", "schema": SCHEMA, "end": "</call>"}],
    }
    engine = make(text)
    constraint = engine.grammars.constraint(StructuredOutputsParams(structural_tag=json.dumps(tag)))
    assert constraint.allowed()[[0, END, 257]].all()
    constraint.accept(257)
    allowed = text.decode(np.flatnonzero(constraint.allowed()).tolist())
    assert "{" in allowed and "a" not in allowed


def test_each_of_several_sequences_has_its_own_place_in_the_grammar(text):
    engine = make(text)
    name = ask(engine, n=3, choice=["alpha", "beta", "gamma"])
    ended = run(engine)
    assert {ended[name, i][0] for i in range(3)} <= {"alpha", "beta", "gamma"}
    assert all(ended[name, i][1] == "stop" for i in range(3))


def test_penalties_and_temperature_zero_go_with_a_grammar(text):
    engine = make(text)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=50,
        frequency_penalty=1.0,
        structured_outputs=StructuredOutputsParams(regex="[ab]{9}"),
    )
    name = engine.submit([1], params)
    shown, reason, _ = run(engine)[name, 0]
    assert re.fullmatch("[ab]{9}", shown) and reason == "stop"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({"json": {"type": "bogus"}}, "structured_outputs.json: Invalid type: bogus"),
        ({"json": "{"}, "structured_outputs.json: not JSON"),
        ({"json": "[]"}, r"structured_outputs.json: wanted a schema, given \[\]"),
        ({"json": {"minItems": 2, "maxItems": 1, "type": "array"}}, "Unsatisfiable schema"),
        ({"regex": "(["}, "(?s)structured_outputs.regex: .*unclosed character class"),
        ({"grammar": "start: nowhere"}, "structured_outputs.grammar: .*nowhere"),
        ({"grammar": "root ::= (("}, "structured_outputs.grammar: Expected"),
        ({"structural_tag": "{}"}, "structural_tag: wanted JSON with triggers"),
    ],
)
def test_a_bad_grammar_is_refused_and_disturbs_nobody(text, kind, message):
    engine = make(text)
    good = ask(engine, choice=["fine"])
    with pytest.raises(RequestError, match=message):
        ask(engine, **kind)
    assert run(engine) == {(good, 0): ("fine", "stop", None)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "given nothing; wanted one of json, regex"),
        ({"regex": "a", "choice": ["b"]}, "given regex, choice; wanted one of"),
        ({"json_object": False}, "given nothing"),
        ({"choice": "ab"}, "structured_outputs.choice: wanted a list of strings"),
        ({"choice": ["a", ""]}, "structured_outputs.choice: wanted strings that are not empty"),
        ({"regex": 5}, "structured_outputs.regex: wanted a string, given 5"),
        ({"backend": "x"}, "no structured_outputs.backend; known: json"),
    ],
)
def test_wrong_kinds_are_named(values, message):
    with pytest.raises(RequestError, match=message):
        SamplingParams.parse({"structured_outputs": values})


def test_what_is_needed_and_not_there_is_named(text, monkeypatch):
    with pytest.raises(RequestError, match="structured_outputs: the artifact has no tokenizer"):
        ask(Engine(RandomRunner()), regex="a")
    with pytest.raises(RequestError, match="structured_outputs: wanted an object, given 'json'"):
        SamplingParams(structured_outputs="json")
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(RequestError, match=r"llguidance is not installed: pip install ferrule"):
        ask(make(text), regex="a")


def test_a_grammar_that_leaves_no_token_ends_its_request_alone(text):
    engine = make(text)
    good = ask(engine, choice=["fine"])
    params = SamplingParams(
        allowed_token_ids=[END + 1], structured_outputs=StructuredOutputsParams(regex="a")
    )
    bad = engine.submit([1], params)
    ended = run(engine)
    assert ended[good, 0] == ("fine", "stop", None)
    assert ended[bad, 0][1] == "error" and "leave no token" in str(ended[bad, 0][2])


def test_bad_words_and_stop_reasons_go_by_text(text):
    engine = make(text)
    asked = {"seed": 5, "max_tokens": 300, "allowed_token_ids": text.encode("abc ")}
    name = engine.submit([1], SamplingParams(bad_words=["ab", "ca"], **asked))
    shown, _, _ = run(engine)[name, 0]
    assert len(shown) == 300 and "ab" not in shown and "ca" not in shown
    engine.submit([1], SamplingParams(stop=["b"], **asked))
    deltas = []
    while engine.has_work:
        deltas += engine.step()
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "b")
    engine.submit([1], SamplingParams(stop_token_ids=text.encode("c"), **asked))
    while engine.has_work:
        deltas += engine.step()
    assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", *text.encode("c"))

"""Constrained output: which tokens a JSON schema, a regular expression or a grammar lets come next.

The grammars are llguidance's, an optional dependency (`pip install ferrule[serve]`).
"""

import importlib
import json
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from .closing import closed
from .errors import RequestError
from .params import StructuredOutputsParams
from .spread import Spread
from .tensors import Array
from .text import Text

_NO_END = "<|no end|>"
_KEPT = 32  # compiled grammars that are kept for requests that ask for the same


class Grammars:
    """Compiles grammars for one tokenizer; `ends` are the tokens that may end a complete text.

    The tokenizer is prepared when the first grammar is asked for, or by `prepare`; `seconds` are
    those that grammars took.
    """

    def __init__(self, text: Text, vocabulary: int, ends: Iterable[int]) -> None:
        self._text, self._vocabulary = text, vocabulary
        self._ends = sorted(ends)
        self._tokenizer: Any = None
        self._forbidden: list[int] = []
        self._compiled: OrderedDict[str, Any] = OrderedDict()
        self.seconds = Spread()

    def prepare(self) -> None:
        """Make ready what all grammars need: it takes about a second for a large vocabulary."""
        if self._tokenizer is not None:
            return
        guidance = _llguidance()
        tokenizer = Tokenizer.from_str(self._text.tokenizer.to_str())
        ends = [end for end in self._ends if end < tokenizer.get_vocab_size()]
        if not ends:
            # llguidance would take the first token for the end: it gets one that nobody may give.
            tokenizer.add_special_tokens([_NO_END])
            ends = [tokenizer.get_vocab_size() - 1]
            self._forbidden = ends
        size = max(self._vocabulary, tokenizer.get_vocab_size())
        try:
            self._tokenizer = guidance.LLTokenizer(tokenizer.to_str(), n_vocab=size, eos_token=ends)
        except Exception as error:
            raise RequestError(
                f"structured_outputs: llguidance does not know this kind of tokenizer: {error}"
            ) from error

    def constraint(self, params: StructuredOutputsParams) -> "GrammarConstraint":
        """A fresh constraint. Raises `RequestError` for a grammar that cannot be compiled."""
        self.prepare()
        grammar = self._grammar(params)
        if grammar not in self._compiled:
            begun = time.perf_counter()
            self._compiled[grammar] = self._compile(grammar, params.kind)
            self.seconds.add(time.perf_counter() - begun)
            if len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        matcher = self._compiled[grammar].deep_copy()
        return GrammarConstraint(matcher, self._vocabulary, self._forbidden)

    def _grammar(self, params: StructuredOutputsParams) -> str:
        matcher = _llguidance().LLMatcher
        if params.json_object:
            return matcher.grammar_from_json_schema({"type": "object"}, **_spacing(params))
        if params.json is not None:
            return matcher.grammar_from_json_schema(_schema(params.json), **_spacing(params))
        if params.regex is not None:
            return matcher.grammar_from_regex(params.regex)
        if params.choice is not None:
            listed = " | ".join(json.dumps(c, ensure_ascii=False) for c in params.choice)
            return matcher.grammar_from_lark(f"start: {listed}")
        if params.grammar is not None:
            return matcher.grammar_from_lark(_lark(params.grammar))
        return self._tagged(params.structural_tag or "")

    def _tagged(self, text: str) -> str:
        """Free text in which a trigger begins a structure, as a model's tool calls have it."""
        tag = _llguidance().StructTag
        try:
            given = json.loads(text)
            tags = [
                tag(
                    trigger=next(t for t in given["triggers"] if each["begin"].startswith(t)),
                    begin=each["begin"],
                    grammar=each["schema"],
                    end=each["end"],
                )
                for each in given["structures"]
            ]
            known = self._text.tokenizer.token_to_id
            special = all(known(each.trigger) is not None for each in tags)
            return tag.to_grammar(tags, assume_special=special)
        except (ValueError, KeyError, TypeError, AssertionError, StopIteration) as error:
            raise RequestError(
                "structured_outputs.structural_tag: wanted JSON with triggers and structures of"
                f" begin (which starts with a trigger), schema and end: {error!r}"
            ) from None

    def _compile(self, grammar: str, kind: str) -> Any:
        matcher = _llguidance().LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise RequestError(f"structured_outputs.{kind}: {_first_lines(matcher.get_error())}")
        return matcher


class GrammarConstraint:
    """One sequence's place in a grammar."""

    def __init__(self, matcher: Any, vocabulary: int, forbidden: Sequence[int] = ()) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._forbidden = [token for token in forbidden if token < vocabulary]

    @property
    def complete(self) -> bool:
        """Whether the grammar lets nothing follow."""
        return self._matcher.is_stopped()

    def allowed(self) -> Array:
        """Which tokens may come next, bool[V]."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        # Masks cover the vocabulary: the tokenizer was made as large.
        allowed = np.unpackbits(bits, bitorder="little")[: self._vocabulary].astype(np.bool_)
        allowed[self._forbidden] = False
        return allowed

    def accept(self, token: int) -> None:
        """Take the token that came; it must have been allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise RequestError(f"structured_outputs: {_first_lines(self._matcher.get_error())}")


def _lark(grammar: str) -> str:
    """The grammar in Lark's form; GBNF, as llama.cpp has it, is told by its ::=."""
    if "::=" not in grammar:
        return grammar
    convert = importlib.import_module("llguidance.gbnf_to_lark").any_to_lark
    try:
        return convert(grammar)
    except Exception as error:
        raise RequestError(f"structured_outputs.grammar: {_first_lines(str(error))}") from error


def _spacing(params: StructuredOutputsParams) -> dict[str, dict[str, object]]:
    options: dict[str, object] = {}
    if params.disable_any_whitespace:
        options["whitespace_flexible"] = False
    if params.whitespace_pattern is not None:
        options["whitespace_pattern"] = params.whitespace_pattern
    return {"overrides": options} if options else {}


def _schema(given: object) -> dict[str, Any]:
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise RequestError(f"structured_outputs.json: not JSON: {error}") from None
    if not isinstance(given, dict):
        raise RequestError(f"structured_outputs.json: wanted a schema, given {given!r}")
    try:
        return dict(closed(given))
    except RecursionError:
        raise RequestError("structured_outputs.json: the schema is nested too deeply") from None


def _first_lines(message: str) -> str:
    return message.partition("\n<state>")[0].strip()


def _llguidance() -> Any:
    try:
        return importlib.import_module("llguidance")
    except ImportError:
        raise RequestError(
            "structured_outputs: llguidance is not installed: pip install ferrule[serve]"
        ) from None

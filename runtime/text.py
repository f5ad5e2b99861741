"""Text to tokens and back, as the model's own tokenizer files say."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from .errors import ArtifactError, RequestError

if TYPE_CHECKING:
    from .chat import ChatTemplate

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
    "config.json",
)
_BROKEN = "\ufffd"  # what a tokenizer gives for bytes that are no character, or not yet


class Text:
    """A tokenizer and a chat template, from files beside each other."""

    def __init__(self, directory: Path) -> None:
        path = Path(directory) / "tokenizer.json"
        try:
            self.tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise ArtifactError(f"{path}: no tokenizer can be read from it: {error}") from error
        # Padding and truncation are a batch's business: transformers drops what the file says, too.
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.special_tokens = special_tokens(directory)
        added = self.tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.added = {token.content: i for i, token in added.items()}
        self._pieces: dict[int, str] = {}
        self._source = _template_source(directory)

    @cached_property
    def template(self) -> ChatTemplate | None:
        """The chat template, if there is one; read when it is first asked for: whoever gives tokens
        or text does not wait for it.
        """
        from .chat import ChatTemplate

        return ChatTemplate(self._source, self.special_tokens) if self._source else None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a text, with the tokens that the tokenizer puts around a prompt."""
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def pair(self, first: str, second: str, offset: int) -> list[int]:
        """The ids of two texts that are read together, with the tokens that the tokenizer puts
        around and between them; `offset` is added to those of the second type.
        """
        found = self.tokenizer.encode(first, second)
        pairs = zip(found.ids, found.type_ids, strict=True)
        return [token + offset * (kind > 0) for token, kind in pairs]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of ids; bytes that make no character come out as U+FFFD."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def piece(self, token: int) -> str:
        """The text of one id, special or not; each is decoded once."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self.decode([token], skip_special_tokens=False)
        return piece

    def chat(self, messages: Iterable[Any], **options: Any) -> list[int]:
        """The ids of a conversation that the template wrote out, a reply expected next.

        Options go to `ChatTemplate.render`. The template writes its special tokens itself.
        """
        if self.template is None:
            raise RequestError("the artifact has no chat template: give a prompt, not messages")
        return self.encode(self.template.render(messages, **options), add_special_tokens=False)


class TextStream:
    """Text of tokens that come one at a time: never half a character, never past a stop string.

    `push` and `finish` return what may be shown; `stopped` says that a stop string ended the text,
    and `stop` which. Special tokens are skipped or not; those of `shown` never are.
    """

    def __init__(
        self,
        text: Text,
        *,
        skip_special: bool = True,
        shown: Collection[int] = (),
        stop: Sequence[str] = (),
        keep_stop: bool = False,
    ) -> None:
        self.stopped = False
        self.stop: str | None = None
        self._text = text
        self._skipped = text.special_ids - frozenset(shown) if skip_special else frozenset[int]()
        self._stop, self._keep_stop = tuple(stop), keep_stop
        self._ids: list[int] = []
        self._before = self._read = 0  # ids[before:read] is the context of what is not yet text
        self._held = ""  # text that might be the beginning of a stop string

    def push(self, token: int, *, may_stop: bool = True) -> str:
        """Add a token; returns the text that is certain now."""
        self._ids.append(token)
        known = self._decode(self._before, self._read)
        longer = self._decode(self._before, len(self._ids))
        if len(longer) <= len(known) or longer.endswith(_BROKEN):
            return ""
        self._before, self._read = self._read, len(self._ids)
        return self._release(longer[len(known) :], may_stop=may_stop)

    def finish(self) -> str:
        """The text that was held back, now that nothing follows."""
        if self.stopped:
            return ""
        known = self._decode(self._before, self._read)
        rest = self._decode(self._before, len(self._ids))[len(known) :]
        self._read = len(self._ids)
        shown = self._release(rest, may_stop=True)
        shown, self._held = shown + self._held, ""
        return shown

    def _decode(self, begin: int, end: int) -> str:
        if begin == end:
            return ""
        if end - begin == 1:
            token = self._ids[begin]
            return "" if token in self._skipped else self._text.piece(token)
        ids = [i for i in self._ids[begin:end] if i not in self._skipped]
        return self._text.decode(ids, skip_special_tokens=False)

    def _release(self, fresh: str, *, may_stop: bool) -> str:
        text = self._held + fresh
        if may_stop and (found := self._find(text)) is not None:
            self.stopped, self._held = True, ""
            end, self.stop = found
            return text[:end]
        keep = self._possible(text) if may_stop and self._stop else 0
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _find(self, text: str) -> tuple[int, str] | None:
        """Where the text ends and by which stop string, if one is in it: the first that begins."""
        ends = [(text.find(s), s) for s in self._stop if s in text]
        if not ends:
            return None
        begin, stop = min(ends)
        return (begin + len(stop) if self._keep_stop else begin), stop

    def _possible(self, text: str) -> int:
        """The length of the longest end of the text that a stop string begins with."""
        longest = max((len(s) - 1 for s in self._stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(s.startswith(text[-length:]) for s in self._stop):
                return length
        return 0


def special_tokens(directory: Path) -> dict[str, str]:
    """The special tokens by role ("bos_token", ...), as the template may name them."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for key, value in read_json(Path(directory) / name).items():
            text = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(text, str):
                found[key] = text
    return found


def end_ids(directory: Path, text: Text | None) -> frozenset[int]:
    """The ids that end a text: generation_config.json's, config.json's or the tokenizer's."""
    for name in ("generation_config.json", "config.json"):
        config = read_json(Path(directory) / name)
        given = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
        if given is not None:
            return frozenset([given] if isinstance(given, int) else given)
    token = text.special_tokens.get("eos_token") if text else None
    found = text.tokenizer.token_to_id(token) if text and token else None
    return frozenset() if found is None else frozenset([found])


_ADVISED = ("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty")


def advised_sampling(directory: Path) -> dict[str, float | int]:
    """What generation_config.json says of sampling, by the names of SamplingParams."""
    config = read_json(Path(directory) / "generation_config.json")
    found = {n: config[n] for n in _ADVISED if isinstance(config.get(n), int | float)}
    if isinstance(config.get("max_new_tokens"), int):
        found["max_tokens"] = config["max_new_tokens"]
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an absent file is an empty one."""
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ArtifactError(f"{path}: not JSON: {error}") from None


def _template_source(directory: Path) -> str | None:
    path = Path(directory) / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    given = read_json(Path(directory) / "tokenizer_config.json").get("chat_template")
    if isinstance(given, list):  # several templates by name
        given = next((t["template"] for t in given if t["name"] == "default"), None)
    return given

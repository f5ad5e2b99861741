"""Mixed traffic for a server, and whether each answer is what was deserved.

Kinds: short chats, long prompts, prompts that begin alike, several sequences at once, output by a
JSON schema, requests with a seed that must repeat themselves, clients that leave in the middle,
and bad requests. A fault is a sentence; an answer without one was right.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ferrule.runtime.bench.http import Answer, HttpError, Target

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
SCHEMA = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["letter", "number", "sign"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["kind", "count"],
    "additionalProperties": False,
}
WORDS = ("import", "return", "class", "value", "number", "print", "index", "range", "while")


@dataclass(frozen=True)
class Ask:
    """A request. `leaves` is how many events its client reads before it goes; `bad` is the status
    that it deserves where that is not 200.
    """

    kind: str
    path: str
    body: Mapping[str, Any]
    leaves: int | None = None
    bad: int | None = None


@dataclass(frozen=True)
class Outcome:
    """How a request went: the tokens that its usage counts, its text where it has one sequence."""

    kind: str
    fault: str = ""
    tokens: int = 0
    text: str | None = None


def text_of(draw: random.Random, words: int) -> str:
    """Random words."""
    return " ".join(draw.choices(WORDS, k=words))


def _chat(draw: random.Random) -> Ask:
    messages = [{"role": "user", "content": text_of(draw, draw.randint(2, 12))}]
    return Ask("chat", CHAT, {"messages": messages, "max_tokens": draw.randint(1, 40)})


def _long(draw: random.Random) -> Ask:
    body = {"prompt": text_of(draw, draw.randint(150, 500)), "max_tokens": draw.randint(1, 16)}
    return Ask("long", TEXT, body)


def _shared(draw: random.Random) -> Ask:
    prefix = text_of(random.Random(draw.randint(0, 3)), 200)
    body = {"prompt": f"{prefix} {text_of(draw, 5)}", "max_tokens": draw.randint(1, 24)}
    return Ask("shared", TEXT, body)


def _several(draw: random.Random) -> Ask:
    body = {"prompt": text_of(draw, 20), "n": 4, "max_tokens": draw.randint(2, 24)}
    return Ask("several", TEXT, body)


def _schema(draw: random.Random) -> Ask:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    messages = [{"role": "user", "content": text_of(draw, 5)}]
    return Ask("schema", CHAT, {"messages": messages, "response_format": wanted, "max_tokens": 96})


def _seeded(draw: random.Random) -> Ask:
    seed = draw.randint(0, 3)
    body = {"prompt": text_of(random.Random(seed), 8), "seed": seed, "max_tokens": 24}
    return Ask(f"seeded {seed}", TEXT, body | {"temperature": 0.9, "ignore_eos": True})


def _leaver(draw: random.Random) -> Ask:
    body = {"prompt": text_of(draw, 30), "max_tokens": 400, "n": draw.randint(1, 2)}
    return Ask("leaver", TEXT, body | {"ignore_eos": True}, leaves=draw.randint(0, 5))


def _bad(draw: random.Random) -> Ask:
    path, body, status = draw.choice(
        [
            (TEXT, {"prompt": "a", "no_such_field": 1}, 400),
            (TEXT, {"prompt": "a", "temperature": -1}, 400),
            (TEXT, {"prompt": [1 << 40]}, 400),
            (TEXT, {"prompt": text_of(draw, 9000)}, 400),
            (CHAT, {"messages": []}, 400),
            (CHAT, {"messages": [{"role": "user", "content": "a"}], "model": "none"}, 404),
            (TEXT, {"prompt": "a", "structured_outputs": {"regex": "("}}, 400),
            ("/v1/nothing", {}, 404),
        ]
    )
    return Ask("bad", path, body, bad=status)


MAKERS: tuple[Callable[[random.Random], Ask], ...] = (
    *(_chat, _chat, _long, _shared, _several, _schema, _seeded, _leaver, _bad),
)


def ask_of(draw: random.Random) -> Ask:
    """The next request of a client."""
    ask = draw.choice(MAKERS)(draw)
    if ask.bad is not None:
        return ask
    streamed = ask.leaves is not None or draw.random() < 0.7
    options = {"stream": True, "stream_options": {"include_usage": True}} if streamed else {}
    return Ask(ask.kind, ask.path, {**ask.body, **options}, ask.leaves)


async def outcome_of(target: Target, ask: Ask) -> Outcome:
    """Send a request and hold its answer against what it deserves."""
    try:
        async with target.post(ask.path, ask.body) as answer:
            return await _judged(ask, answer)
    except (HttpError, OSError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
        return Outcome(ask.kind, f"{type(error).__name__}: {error}")


async def _judged(ask: Ask, answer: Answer) -> Outcome:
    if ask.bad is not None:
        return await _refusal(ask, answer)
    if ask.leaves is not None:
        return await _left(ask, answer)
    if ask.body.get("stream"):
        return _whole(ask, [event async for event in answer.events()])
    return _checked(ask, await answer.json())


async def _refusal(ask: Ask, answer: Answer) -> Outcome:
    body = json.loads(b"".join([piece async for piece in answer.pieces()]))
    named = set(body["error"]) == {"message", "type", "param", "code"} and body["error"]["code"]
    fault = "" if answer.status == ask.bad and named else f"status {answer.status}, {body}"
    return Outcome(ask.kind, fault)


async def _left(ask: Ask, answer: Answer) -> Outcome:
    count = 0
    async for _ in answer.events():
        count += 1
        if count > (ask.leaves or 0):
            break
    return Outcome(ask.kind, "" if answer.status == 200 else f"status {answer.status}")


def _whole(ask: Ask, events: list[dict[str, Any]]) -> Outcome:
    """A stream as the answer that it would have been in one piece."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content")
            at = choice["index"]
            if at in reasons:
                return Outcome(ask.kind, f"choice {at} goes on after its end")
            texts[at] = texts.get(at, "") + (piece or "")
            if choice["finish_reason"]:
                reasons[at] = choice["finish_reason"]
    choices = [{"index": i, "text": texts[i], "finish_reason": reasons.get(i)} for i in texts]
    return _checked(ask, {"choices": choices, "usage": events[-1]["usage"]})


def _checked(ask: Ask, body: Mapping[str, Any]) -> Outcome:
    choices, count = body["choices"], ask.body.get("n", 1)
    reasons = [choice["finish_reason"] for choice in choices]
    tokens = body["usage"]["completion_tokens"]
    texts = [c["text"] if "text" in c else c["message"]["content"] for c in choices]
    fault = ""
    if len(choices) != count or not set(reasons) <= {"stop", "length"}:
        fault = f"{len(choices)} choices that ended by {reasons}, wanted {count}"
    elif not 0 < tokens <= count * ask.body["max_tokens"]:
        fault = f"{tokens} tokens of {count} times {ask.body['max_tokens']}"
    elif ask.kind == "schema" and reasons == ["stop"] and not _fits(texts[0]):
        fault = f"not by its schema: {texts[0]!r}"
    return Outcome(ask.kind, fault, tokens, texts[0] if count == 1 else None)


def _fits(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    kinds = SCHEMA["properties"]["kind"]["enum"]
    return set(found) == {"kind", "count"} and found["kind"] in kinds and 0 <= found["count"] <= 99

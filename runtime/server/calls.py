"""Calls of functions in the forms that model families write, each told by what it looks like.

A body is what stands between a family's tags, or a whole reply. The forms: JSON, an object or
several, `arguments` or `parameters` beside the `name` (Hermes, Qwen, Llama 3, Mistral, Granite,
Phi-4); a name and then the JSON of its arguments (newer Mistral, DeepSeek, Kimi); `<function=f>`
with `<parameter=p>` (Qwen3-Coder) or JSON (Llama 3.1) in it; `<invoke name="f">` with
`<parameter name="p">` (MiniMax); `<arg_key>` and `<arg_value>` (GLM); a list of Python calls
(Llama 4, OLMo 3, LFM2).
"""

import ast
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, cast

# A function's name and its arguments: an object, or text as the model wrote it.
Found = tuple[str, dict[str, Any] | str]
Schemas = Mapping[str, Mapping[str, Any]]

# What families put between the calls of one body, and between a name and its arguments.
_BETWEEN = (
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<|tool_call_begin|>",
    "<|tool_call_end|>",
)
_BEFORE_ARGUMENTS = (
    "<｜tool▁sep｜>",
    "<|tool_call_argument_begin|>",
    "[ARGS]",
    "<|constrain|>json<|message|>",
)
INNER = (*_BETWEEN, *_BEFORE_ARGUMENTS, "[CALL_ID]")
_FENCE = re.compile(r"```(?:json|python|tool_code)?")
_CALL_ID = re.compile(r"\[CALL_ID\][\w-]*")
_NAME = re.compile(r"(?:function\s+)?(?:functions\.)?([\w.-]+?)(?::\d+)?\s*(?=\{)")
_FUNCTION = re.compile(r"<function=([\w.-]+)>(.*?)(?:</function>|\Z)", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?(?:</parameter>|\Z)", re.DOTALL)
_INVOKE = re.compile(r'<invoke name="([\w.-]+)">(.*?)(?:</invoke>|\Z)', re.DOTALL)
_NAMED = re.compile(r'<parameter name="([^"\n]+)"[^>]*>(.*?)(?:</parameter>|\Z)', re.DOTALL)
_PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)(?:</arg_value>|\Z)", re.DOTALL)
_CONSTANTS = {"true": True, "false": False, "null": None}


def read_calls(body: str, schemas: Schemas) -> list[Found]:
    """The calls of known functions in a body; none where it is anything else.

    `schemas` are the parameters of each function: what is written without types is text where its
    schema says string, and JSON where it is some.
    """
    text = body.strip()
    for read in _READERS:
        try:
            found = read(text, schemas)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            continue
        if found:
            return found if all(name in schemas for name, _ in found) else []
    return []


def _json(text: str, _: Schemas) -> list[Found]:
    """Objects one after another, or in lists, with nothing but marks between them."""
    text, found, at = _FENCE.sub(" ", text).strip(), list[Found](), 0
    while at < len(text):
        value, at = json.JSONDecoder().raw_decode(text, at)
        found += [_object(each) for each in (value if isinstance(value, list) else [value])]
        at = _past(text, at, " \t\r\n;,")
    return found


def _object(value: object) -> Found:
    if not isinstance(value, dict):
        raise ValueError("no call")
    given = cast("dict[str, Any]", value)
    inner = given.get("function")
    given = cast("dict[str, Any]", inner) if isinstance(inner, dict) else given
    arguments = given.get("arguments", given.get("parameters", {}))
    if not isinstance(given.get("name"), str) or not isinstance(arguments, dict | str):
        raise ValueError("no call")
    return given["name"], cast("dict[str, Any] | str", arguments)


def _named(text: str, _: Schemas) -> list[Found]:
    """A name before the JSON of its arguments, once or often."""
    text = _FENCE.sub(" ", _CALL_ID.sub(" ", text))
    for mark in INNER:
        text = text.replace(mark, " ")
    found, at = list[Found](), _past(text, 0, " \t\r\n;,")
    while at < len(text):
        name = _NAME.match(text, at)
        if name is None:
            raise ValueError("no name")
        arguments, at = json.JSONDecoder().raw_decode(text, name.end())
        found.append((name.group(1), arguments))
        at = _past(text, at, " \t\r\n;,")
    return found


def _past(text: str, at: int, blanks: str) -> int:
    while at < len(text) and text[at] in blanks:
        at += 1
    return at


def _functions(text: str, schemas: Schemas) -> list[Found]:
    found = list[Found]()
    for name, body in _FUNCTION.findall(text):
        if body.strip().startswith("{"):
            found.append((name, json.loads(body)))
        else:
            found.append((name, _typed(_PARAMETER.findall(body), schemas.get(name, {}))))
    return found


def _invocations(text: str, schemas: Schemas) -> list[Found]:
    return [
        (name, _typed(_NAMED.findall(body), schemas.get(name, {})))
        for name, body in _INVOKE.findall(text)
    ]


def _pairs(text: str, schemas: Schemas) -> list[Found]:
    """A name, then keys and values in tags of their own."""
    name = text.partition("<arg_key>")[0].strip()
    return [(name, _typed(_PAIR.findall(text), schemas[name]))] if name in schemas else []


def _typed(pairs: list[tuple[str, str]], schema: Mapping[str, Any]) -> dict[str, Any]:
    kinds = schema.get("properties", {})
    return {key.strip(): value_of(text, kinds.get(key.strip(), {})) for key, text in pairs}


def value_of(text: str, schema: object) -> Any:
    """What a text without a type is: text where its schema says string, JSON where it is some."""
    kind = cast("dict[str, Any]", schema).get("type") if isinstance(schema, dict) else None
    if kind == "string":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _python(text: str, _: Schemas) -> list[Found]:
    """A list of calls, every argument a keyword with a literal."""
    text = _FENCE.sub(" ", text).strip()
    parsed = ast.parse(text, mode="eval").body
    calls = parsed.elts if isinstance(parsed, ast.List) else [parsed]
    return [_python_call(call) for call in calls]


def _python_call(call: ast.expr) -> Found:
    if not isinstance(call, ast.Call) or call.args:
        raise ValueError("no call")
    named = {k.arg: k.value for k in call.keywords if k.arg is not None}
    if len(named) != len(call.keywords):
        raise ValueError("no call")
    return ast.unparse(call.func), {name: _literal(value) for name, value in named.items()}


def _literal(value: ast.expr) -> Any:
    if isinstance(value, ast.Name) and value.id in _CONSTANTS:
        return _CONSTANTS[value.id]
    return ast.literal_eval(value)


_READERS: tuple[Callable[[str, Schemas], list[Found]], ...] = (
    *(_json, _functions, _invocations, _pairs, _named, _python),
)

"""Objects of JSON schemas with those properties alone that they name.

A schema that does not say `additionalProperties` allows any more of them, and a model that is not
sure of itself writes more of them until it has no token left. What is written to the closed schema
is valid by the open one, so nothing is lost but what nobody described.
"""

from collections.abc import Iterator, Mapping
from typing import Any, cast

Schema = Mapping[str, Any]

_OF_NAMES = ("properties", "$defs", "definitions")
_OF_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_OF_ONE = ("items", "additionalProperties", "contains")
# Where one schema adds to what another one says of the same object, neither can be closed alone.
_ADDING = {"if", "then", "else", "not", "dependentSchemas", "patternProperties"}
_ADDING |= {"unevaluatedProperties", "propertyNames", "$dynamicRef", "$recursiveRef"}
_BESIDE = {"anyOf", "oneOf", "allOf", "$ref"}


def closed(schema: Schema) -> Schema:
    """The schema with its objects closed; itself where parts of it add to each other."""
    return schema if any(map(_adds, _parts(schema))) else _closed(schema)


def _adds(schema: Schema) -> bool:
    several = schema.get("allOf")
    if not _ADDING.isdisjoint(schema) or (isinstance(several, list) and several[1:]):
        return True
    return "properties" in schema and not _BESIDE.isdisjoint(schema)


def _parts(schema: Any) -> Iterator[Schema]:
    """A schema and all that stand in it."""
    if not isinstance(schema, dict):
        return
    known = cast("dict[str, Any]", schema)
    yield known
    for name in _OF_NAMES:
        if isinstance(named := known.get(name), dict):
            for part in cast("dict[str, Any]", named).values():
                yield from _parts(part)
    for name in _OF_LISTS:
        if isinstance(listed := known.get(name), list):
            for part in cast("list[Any]", listed):
                yield from _parts(part)
    for name in _OF_ONE:
        yield from _parts(known.get(name))


def _closed(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    found = dict(cast("dict[str, Any]", schema))
    for name, value in found.items():
        if name in _OF_NAMES and isinstance(value, dict):
            named = cast("dict[str, Any]", value)
            found[name] = {key: _closed(part) for key, part in named.items()}
        elif name in _OF_LISTS and isinstance(value, list):
            found[name] = [_closed(part) for part in cast("list[Any]", value)]
        elif name in _OF_ONE:
            found[name] = _closed(value)
    return found | ({"additionalProperties": False} if _is_open(found) else {})


def _is_open(schema: Schema) -> bool:
    """Whether an object says which properties it has, and needs no other ones."""
    named, needed = schema.get("properties"), schema.get("required", [])
    if not isinstance(named, dict) or not isinstance(needed, list):
        return False
    names = set(cast("dict[str, Any]", named))
    least = schema.get("minProperties", 0)
    suffices = isinstance(least, int) and least <= len(names)
    strings = all(isinstance(name, str) for name in cast("list[Any]", needed))
    return "additionalProperties" not in schema and suffices and strings and names >= set(needed)

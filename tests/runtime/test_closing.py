"""Schemas whose objects have no property that is not named."""

import pytest
from ferrule.runtime.closing import closed

NAME = {"type": "object", "properties": {"name": {"type": "string"}}}
NO_MORE = {"additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "wanted"),
    [
        (NAME, NAME | NO_MORE),
        (NAME | {"required": ["name"]}, NAME | {"required": ["name"]} | NO_MORE),
        ({"type": "object"}, {"type": "object"}),
        (
            {"properties": {"properties": NAME}},
            {"properties": {"properties": NAME | NO_MORE}} | NO_MORE,
        ),
        (
            {"$defs": {"a": NAME}, "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]},
            {"$defs": {"a": NAME | NO_MORE}, "anyOf": [{"$ref": "#/$defs/a"}, {"type": "null"}]},
        ),
        (
            {"items": NAME, "prefixItems": [NAME]},
            {"items": NAME | NO_MORE, "prefixItems": [NAME | NO_MORE]},
        ),
        ({"allOf": [NAME]}, {"allOf": [NAME | NO_MORE]}),
        ({"additionalProperties": NAME}, {"additionalProperties": NAME | NO_MORE}),
    ],
)
def test_objects_are_closed_wherever_they_stand(schema, wanted):
    assert closed(schema) == wanted


@pytest.mark.parametrize(
    "schema",
    [
        NAME | {"additionalProperties": True},
        NAME | {"additionalProperties": {"type": "string"}},
        NAME | {"patternProperties": {"^x": {}}},
        NAME | {"required": ["old"]},
        NAME | {"minProperties": 2},
        NAME | {"anyOf": [{"required": ["name"]}]},
        NAME | {"$ref": "#/$defs/a"},
        {"allOf": [NAME, {"properties": {"old": {}}}]},
        {"items": NAME, "not": NAME},
        {"properties": {"a": {"allOf": [NAME, {}]}, "b": NAME}},
        {"properties": 3, "items": [NAME], "anyOf": "x", "allOf": 3},
        {"enum": [NAME], "default": NAME, "examples": [NAME]},
    ],
)
def test_what_is_open_on_purpose_or_in_parts_stays_as_it_is(schema):
    assert closed(schema) == schema

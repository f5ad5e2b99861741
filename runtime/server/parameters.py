"""Sampling parameters out of a request's body: nothing given is left out in silence."""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import RequestError
from ..sampling import SamplingParams
from .errors import invalid, refused, unsupported
from .fields import Sampling

# Fields whose value here asks for nothing, so that an engine without them still serves it.
NEUTRAL: dict[str, Any] = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "typical_p": 1.0,
    "logit_bias": {},
    "bad_words": [],
}


def known_parameters() -> frozenset[str]:
    """The parameters that the engine honours."""
    return frozenset(f.name for f in fields(SamplingParams))


def sampling_params(
    body: Sampling, model: Mapping[str, Any] | None = None, **extra: Any
) -> SamplingParams:
    """The parameters of a body; `extra` are those that the endpoint names otherwise, `model` those
    that the model has for what the body does not say.

    A field that the engine does not know is an error, unless its value asks for nothing.
    """
    values = {name: getattr(body, name) for name in Sampling.model_fields}
    values |= extra
    for name, value in (model or {}).items():
        if values.get(name) is None:
            values[name] = value
    known = known_parameters()
    given: dict[str, Any] = {}
    for name, value in values.items():
        if value is None and name not in extra:
            continue
        if name in known:
            given[name] = _converted(name, value)
        elif value is not None and not (name in NEUTRAL and value == NEUTRAL[name]):
            raise unsupported(name)
    try:
        return SamplingParams.parse(given)
    except RequestError as error:
        raise refused(error) from error


def _converted(name: str, value: Any) -> Any:
    if name != "logit_bias":
        return value
    try:
        return {int(token): bias for token, bias in value.items()}
    except ValueError:
        raise invalid(name, "wanted token ids as keys") from None


def format_constraint(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """The structured output that a response format asks for; None for plain text."""
    if response_format is None:
        return None
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"json_object": True}
    if kind == "json_schema":
        # Chat nests name and schema, responses write them flat.
        nested = response_format.get("json_schema", response_format)
        schema = nested.get("schema") if isinstance(nested, dict) else None
        if not isinstance(schema, dict):
            raise invalid("response_format.json_schema.schema", "wanted a JSON schema")
        return {"json": schema}
    if kind == "structural_tag":
        given = {n: response_format.get(n) for n in ("triggers", "structures")}
        return {"structural_tag": json.dumps(given)}
    known = "text, json_object, json_schema or structural_tag"
    raise invalid("response_format.type", f"given {kind!r}, wanted {known}")


# Models that are not sure of themselves fill JSON with blanks for ever where a grammar lets them.
BLANKS = r"[ \n\t]{0,16}"


def structured(body: Sampling, constraint: dict[str, Any] | None, param: str) -> dict[str, Any]:
    """The extra parameter for a constraint; `param` names the field that asked for it."""
    if constraint is None:
        return {}
    if body.structured_outputs is not None:
        raise invalid(param, "not together with structured_outputs")
    if "structured_outputs" not in known_parameters():
        raise unsupported(param, "this engine does not constrain output")
    return {"structured_outputs": {**constraint, "whitespace_pattern": BLANKS}}

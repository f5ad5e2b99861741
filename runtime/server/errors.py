"""Errors as clients of the OpenAI API know them: {"error": {message, type, param, code}}."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import LogitsError, QueueFullError, RequestError

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "overloaded_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
_NAMED_THERE = {413: "request_too_large", 429: "rate_limit_error", 500: "api_error"}
# A colon or an equals sign ends the name that a message of ours begins with.
_NAMED = re.compile(r"^([a-z_][a-z_.]*)(?:\[\d+\])?(?:=|: )")
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unsupported_parameter"}


class ApiError(Exception):
    """An error that a client is to see. `param` names the field at fault, `code` the kind."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.retry_after = param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body of the answer."""
        kind = _TYPES.get(self.status, "invalid_request_error")
        fields = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": fields}

    def at(self, param: str, other: str) -> None:
        """Name another field where this one, or a part of it, is said to be at fault."""
        if self.param and param != other and self.param.partition(".")[0] == param:
            self.message = self.message.replace(self.param, other, 1)
            self.param = other

    def body_at(self, path: str) -> dict[str, Any]:
        """The JSON body of the answer at a path: clients of /v1/messages know other names."""
        if not path.startswith("/v1/messages"):
            return self.body
        fields = self.body["error"]
        return {
            "type": "error",
            "error": fields | {"type": _NAMED_THERE.get(self.status, fields["type"])},
        }

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the answer."""
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return headers | ({"www-authenticate": "Bearer"} if self.status == 401 else {})


def unsupported(param: str, why: str = "") -> ApiError:
    """A field that this server or this model does not honour."""
    message = f"{param}: this parameter is not supported" + (f": {why}" if why else "")
    return ApiError(400, message, param=param, code="unsupported_parameter")


def invalid(param: str | None, message: str, code: str = "invalid_value") -> ApiError:
    """A value that cannot be used."""
    return ApiError(400, f"{param}: {message}" if param else message, param=param, code=code)


def no_model(name: str, known: Sequence[str]) -> ApiError:
    """A model that is not served here."""
    message = f"the model {name!r} does not exist; served here: {', '.join(known)}"
    return ApiError(404, message, param="model", code="model_not_found")


def refused(error: RequestError) -> ApiError:
    """What the engine refuses, with the field where its message begins with one."""
    if isinstance(error, QueueFullError):
        return ApiError(429, str(error), code="queue_full", retry_after=1)
    found = _NAMED.match(str(error))
    return ApiError(400, str(error), param=found.group(1) if found else None, code="invalid_value")


def failed(error: Exception) -> ApiError:
    """A generation that failed in the engine; 400 where the request's own rules are why."""
    if isinstance(error, RequestError) and not isinstance(error, LogitsError):
        return ApiError(400, f"the generation failed: {error}", code="generation_failed")
    return ApiError(500, f"the generation failed: {error}", code="generation_failed")


def from_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first fault that validation found; a part of a type that is not known goes before all
    others, then an unknown field.
    """
    first = min(errors, key=_precedence)
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not JSON: {why}", code="invalid_json")
    param = _path(first["loc"]) or None
    if first["type"] == "extra_forbidden" and param:
        return unsupported(param, _REASONS.get(param, ""))
    return invalid(param, str(first["msg"]), _CODES.get(first["type"], "invalid_value"))


def _precedence(error: Mapping[str, Any]) -> int:
    if error["type"] == "literal_error" and error["loc"][-1] == "type":
        return 0
    return 1 if error["type"] == "extra_forbidden" else 2


def _path(location: Sequence[object]) -> str:
    """`messages[0].content` for ("body", "messages", 0, "content"); type names are left out."""
    path = ""
    for part in location[1:]:
        if isinstance(part, int):
            path += f"[{part}]"
        elif re.fullmatch(r"[a-z_][a-z0-9_]*", str(part)) and str(part) not in _UNIONS:
            path += f".{part}" if path else str(part)
    return path


# Why a field is not supported: users of other servers, or of older versions of them, send what has
# another name here.
_REASONS = {
    "guided_json": "give structured_outputs with json",
    "guided_regex": "give structured_outputs with regex",
    "guided_choice": "give structured_outputs with choice",
    "guided_grammar": "give structured_outputs with grammar",
    "json_schema": "give structured_outputs with json",
    "regex": "give structured_outputs with regex",
    "ebnf": "give structured_outputs with grammar",
    "grammar": "give structured_outputs with grammar",
    "functions": "give tools",
    "function_call": "give tool_choice",
    "max_new_tokens": "give max_tokens",
    "n_predict": "give max_tokens",
    "reasoning_budget": "give thinking_token_budget",
    "thinking_budget": "give thinking_token_budget",
    "prediction": "tokens are not drafted here",
}
# How validation names the members of a union in a location.
_UNIONS = {"str", "int", "float", "bool", "list", "dict"}

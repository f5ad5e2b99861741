"""Recipes of quantization as users write them: a format's name, or a JSON or TOML file.

    default = "int4-g64"

    [rules]                       # the first that matches a parameter's name counts
    "*.o_proj.weight" = "int8"
    "model.layers.0.*" = "none"

In JSON likewise; there `rules` may also be a list of pairs.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from ..ir.errors import IRError
from ..passes.quantize import Recipe
from .errors import CompileError

_SUFFIXES = (".json", ".toml")


def recipe_of(given: str | Path) -> Recipe:
    """The recipe that a text names, which is the path of a file where it ends in .json or .toml.

    Raises CompileError with what is wrong and where.
    """
    if Path(given).suffix in _SUFFIXES:
        return _read(Path(given))
    try:
        return Recipe(str(given))
    except IRError as error:
        raise CompileError(f"quantize: {error}; or a recipe's file, .json or .toml") from error


def _read(path: Path) -> Recipe:
    try:
        text = path.read_text(encoding="utf-8")
        fields = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return _recipe(fields)
    except OSError as error:
        raise CompileError(f"recipe {path}: {error.strerror}") from error
    except (ValueError, IRError) as error:
        raise CompileError(f"recipe {path}: {error}") from error


def _recipe(fields: Any) -> Recipe:
    if not isinstance(fields, dict):
        raise IRError(f"an object with default and rules was wanted, not {fields!r}")
    unknown = sorted(fields.keys() - {"default", "rules"})
    if unknown:
        raise IRError(f"unknown fields {', '.join(unknown)}; known: default, rules")
    given = fields.get("rules", {})
    pairs = given.items() if isinstance(given, dict) else given
    rules = tuple(tuple(pair) for pair in pairs)
    texts = [fields.get("default", ""), *(part for rule in rules for part in rule)]
    if any(len(rule) != 2 for rule in rules) or not all(isinstance(x, str) for x in texts):
        raise IRError(f"rules are a pattern and a format each, not {given!r}")
    if "default" not in fields:
        raise IRError('no default format; "none" leaves what no rule names')
    return Recipe(fields["default"], rules)

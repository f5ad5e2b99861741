"""Recipes from files and names, and what is wrong with them, by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ferrule.compiler.errors import CompileError
from ferrule.compiler.recipes import recipe_of
from ferrule.passes.quantize import Recipe

TOML = """default = "int4-g64-asym"

[rules]
"lm_head*" = "int8"
"*.0.*" = "none"
"""
WANTED = Recipe("int4-g64-asym", (("lm_head*", "int8"), ("*.0.*", "none")))


def test_names_and_files_are_recipes(tmp_path: Path) -> None:
    assert recipe_of("int8-g64") == Recipe("int8-g64")
    (tmp_path / "a.toml").write_text(TOML)
    assert recipe_of(tmp_path / "a.toml") == WANTED
    rules = dict(WANTED.rules)
    for name, given in (("b.json", rules), ("c.json", list(rules.items()))):
        (tmp_path / name).write_text(json.dumps({"default": WANTED.default, "rules": given}))
        assert recipe_of(str(tmp_path / name)) == WANTED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting"),
        ("[]", "an object with default and rules"),
        ('{"rules": {}}', "no default format"),
        ('{"default": "int8", "rule": {}}', "unknown fields rule; known: default, rules"),
        ('{"default": "int8", "rules": [["x"]]}', "a pattern and a format each"),
        ('{"default": "int8", "rules": {"x": 4}}', "a pattern and a format each"),
        ('{"default": "int8", "rules": {"x": "int5"}}', "no weight format 'int5'"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(CompileError, match=rf"r\.json: .*{message}"):
        recipe_of(tmp_path / "r.json")


def test_a_name_that_is_no_format_is_refused() -> None:
    with pytest.raises(CompileError, match=r"no weight format 'int5'.*recipe's file, .json or .to"):
        recipe_of("int5")
    with pytest.raises(CompileError, match=r"recipe nowhere\.toml: No such file"):
        recipe_of("nowhere.toml")

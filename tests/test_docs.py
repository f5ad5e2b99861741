"""What the documents show is true: the guide's pass works, links lead somewhere."""

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")))
LINK = re.compile(r"\]\((?!http)([^)#]+)\)")

BEFORE = """graph scaled(%x: f32[T, 6]) {
  %0 = parameter {name = "w", type = f32[5, 6]} : f32[5, 6]
  %1 = linear %x %0 : f32[T, 5]
  %2 = constant {value = 0.5, dtype = "f32"} : f32[]
  %3 = mul %1 %2 : f32[T, 5]
  return %3 as y
}
"""
AFTER = """graph scaled(%x: f32[T, 6]) {
  %0 = parameter {name = "w", type = f32[5, 6]} : f32[5, 6]
  %1 = constant {value = 0.5, dtype = "f32"} : f32[]
  %2 = mul %0 %1 : f32[5, 6]
  %3 = linear %x %2 : f32[T, 5]
  return %3 as y
}
"""


def examples(page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str):
    targets = LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    missing = [t for t in targets if not (ROOT / page).parent.joinpath(t).exists()]
    assert not missing


def test_the_pass_of_the_guide_folds_a_scale(monkeypatch: pytest.MonkeyPatch):
    from ferrule.ir.text import parse_graph, print_graph

    guide: Any = ModuleType("ferrule.passes.guide")
    guide.__package__ = "ferrule.passes"
    monkeypatch.setitem(sys.modules, guide.__name__, guide)
    exec(examples("docs/writing-a-pass.md")[0], vars(guide))
    after = guide.FoldScale().run(parse_graph(BEFORE))
    assert print_graph(after) == print_graph(parse_graph(AFTER))

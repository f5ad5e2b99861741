"""Scans side by side are one over all their heads; scans one after another are not."""

from __future__ import annotations

import pytest
from check import check_pass
from ferrule.ir.text import parse_graph
from ferrule.passes.merge_scans import MergeScans

BEFORE = """
graph m(%q: f32[B, S, 1, 3], %v: f32[B, S, 2, 4], %g: f32[B, S, 2, 1], %p: f32[B, S, 2, 3], \
%w: f32[B, S, 4, 4], %h: f32[B, S, 4, 1]) where B in [1, 3], S in [1, 9] {
  %0 = neg %g : f32[B, S, 2, 1]
  %1 = linear_scan %q %q %v %0 : f32[B, S, 2, 4]
  %2 = linear_scan %p %p %w %h : f32[B, S, 4, 4]
  %3 = tanh %2 : f32[B, S, 4, 4]
  %4 = concat %1 %3 {axis = 2} : f32[B, S, 6, 4]
  return %4 as y
}
"""
AFTER = """
graph m(%q: f32[B, S, 1, 3], %v: f32[B, S, 2, 4], %g: f32[B, S, 2, 1], %p: f32[B, S, 2, 3], \
%w: f32[B, S, 4, 4], %h: f32[B, S, 4, 1]) where B in [1, 3], S in [1, 9] {
  %0 = concat %q %p {axis = 2} : f32[B, S, 3, 3]
  %1 = concat %v %w {axis = 2} : f32[B, S, 6, 4]
  %2 = neg %g : f32[B, S, 2, 1]
  %3 = concat %2 %h {axis = 2} : f32[B, S, 6, 1]
  %4 = linear_scan %0 %0 %1 %3 : f32[B, S, 6, 4]
  %5 = slice %4 {axis = 2, start = 0, stop = 2} : f32[B, S, 2, 4]
  %6 = slice %4 {axis = 2, start = 2, stop = 6} : f32[B, S, 4, 4]
  %7 = tanh %6 : f32[B, S, 4, 4]
  %8 = concat %5 %7 {axis = 2} : f32[B, S, 6, 4]
  return %8 as y
}
"""


def test_scans_side_by_side_are_one():
    check_pass(MergeScans(), BEFORE, AFTER)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("linear_scan %p %p %w %h", "linear_scan %p %p %w2 %h"),
        ("%p: f32[B, S, 2, 3]", "%p: f32[B, S, 1, 3]"),
        ("%p: f32[B, S, 2, 3]", "%p: f32[B, S, 2, 5]"),
    ],
    ids=["one after another", "more heads a group", "longer keys"],
)
def test_others_stay_apart(old: str, new: str):
    text = BEFORE.replace(old, new)
    if "%w2" in text:
        more = "  %5 = concat %1 %1 {axis = 2} : f32[B, S, 4, 4]\n  %2 = linear_scan %p %p %5"
        text = text.replace("  %2 = linear_scan %p %p %w2", more)
    graph = parse_graph(text)
    assert check_pass(MergeScans(), graph) == graph


def test_one_function_of_each_is_that_function_of_all():
    """Also of weights that are the same for every token, and of what is the same for every head."""
    text = BEFORE.replace(
        "  %0 = neg %g : f32[B, S, 2, 1]\n",
        '  %5 = parameter {name = "a"} : f32[2, 1]\n'
        '  %6 = parameter {name = "b"} : f32[4, 1]\n'
        "  %0 = mul %g %5 : f32[B, S, 2, 1]\n"
        "  %7 = mul %h %6 : f32[B, S, 4, 1]\n",
    ).replace("%p %p %w %h", "%p %p %w %7")
    names = [n.op.name for n in check_pass(MergeScans(), text).nodes()]
    assert names.count("linear_scan") == names.count("mul") == 1

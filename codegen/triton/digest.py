"""What may be chosen in a kernel on a GPU, and what its choices are kept under."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from ...ir.graph import Graph
from ...ir.target import Target
from ...ir.text import print_graph
from ..backend import Tunable
from ..bodies import canonical
from ..cost import cost_of
from .lower import lower

TEMPLATES = Path(__file__).parent / "templates"


def tunable(body: Graph, target: Target) -> Tunable | None:
    """The spaces of a kernel, within the bounds of its dims; None where nothing may be chosen. Of
    several anchors that share rows none is tuned: measured together they could not be told apart.
    """
    bounded = replace(canonical(body), bounds=body.bounds)
    spaces = lower("kernel", bounded, target).spaces
    names = [s.bucket.name for s in spaces]
    if not spaces or len(set(names)) < len(names):
        return None
    return Tunable(bounded, text_digest(body, target), cost_of(bounded), spaces)


def text_digest(body: Graph, target: Target) -> str:
    """A digest of a kernel's IR, of the functions and launches that its templates make of it by
    themselves, of the templates, and of the target.

    Bounds of dims are no part of it: a form serves the same rows whatever a step may have at most.
    """
    free = canonical(body)
    made = lower("kernel", free, target)
    templates = [(TEMPLATES / f"{name}.py").read_text(encoding="utf-8") for name in made.templates]
    text = (f"{target} {target.deterministic}", print_graph(free), made.text, f"{made.forms}")
    return hashlib.sha256("\n".join((*text, *templates)).encode()).hexdigest()[:20]

"""Canonicalize: one spelling for each thing, so that later passes look for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..ir.graph import Graph
from ..ir.rewrite import Rules, rewrite
from .rules.activations import ACTIVATIONS
from .rules.arithmetic import ARITHMETIC
from .rules.folding import FOLDING
from .rules.movement import MOVEMENT

# Folding goes first: a number is simpler than any identity about it.
CANONICAL: Rules = FOLDING + MOVEMENT + ARITHMETIC + ACTIVATIONS


@dataclass(frozen=True)
class Canonicalize:
    """Identities go, constants fold, casts and movement join, written-out activations become ops.

    Values change by the order of rounding at most.
    """

    name: ClassVar[str] = "canonicalize"

    def run(self, graph: Graph) -> Graph:
        """The graph after every canonical rule has fired wherever it can."""
        return rewrite(graph, CANONICAL)

"""`ferrule verify --against mlir`: an artifact against another compiler's reading of its model.

The captured graph, before any pass, becomes linalg, and MLIR makes machine code of it without a
pass, a kernel or a code generator of Ferrule: what departs is a fault of one of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ..ir.graph import Graph
from ..runtime.artifact import load
from ..runtime.limits import Absent
from .build import imported_of, step_of, target_of
from .check_parity import built, parity_prompts
from .checkpoint import Weights
from .console import Silent
from .mlir.program import program_of
from .mlir.running import Runner
from .parity import Array, Parity, Tolerance, compare, eager_rows, without
from .reference.context import DTYPES
from .report import Clock
from .verify import options_of, source_of

_BY_LENGTH = frozenset({"linear_scan", "token_loop", "token_context"})
"""Ops whose value is made one token after another: their programs hold for one length alone."""


def verify_against_mlir(folder: Path, model: str | None = None) -> tuple[Parity, str, Tolerance]:
    """How far an artifact's logits lie from those of MLIR, its dtype, and the tolerance."""
    artifact = load(folder)
    opened, options = source_of(artifact, model), options_of(artifact.manifest)
    imported, _ = imported_of(opened, options, Clock(), Silent())
    absent = Absent.of_manifest(artifact.manifest)
    sequences = without(absent, parity_prompts(artifact.path, artifact.plan))
    logits = MlirLogits(imported.graph, imported.weights)
    wanted = eager_rows(logits, sequences)
    tolerance = options.tolerance(step_of(artifact), opened.dtype)
    given = built(artifact.path, artifact.plan, sequences, target_of(options))
    return compare(wanted, given, tolerance.relative), opened.dtype, tolerance


class MlirLogits:
    """A captured graph's logits by MLIR: called with token ids and a position, it gives the logits
    from there on.
    """

    def __init__(self, graph: Graph, weights: Weights) -> None:
        self.graph = graph.with_outputs((graph.output("logits"),), ("logits",))
        self.weights = weights
        self._by_length = any(n.op.name in _BY_LENGTH for n in self.graph.nodes())
        self._runners: dict[int, Runner] = {}

    def __call__(self, ids: Sequence[int], first: int) -> Array:
        """The logits of a sequence from a position on."""
        (tokens,) = self.graph.inputs
        value = torch.tensor([list(ids)]).to(DTYPES[tokens.dtype])
        (made,) = self._runner(len(ids))({tokens["name"]: value}, self.weights)
        return np.asarray(made[0, first:].float().numpy())

    def _runner(self, length: int) -> Runner:
        # A dynamic dim is at least 2 to torch.export: a batch of one, and one token, are fixed.
        fixed = self._by_length or length < 2
        key = length if fixed else 0
        if key not in self._runners:
            dims = {"B": 1, "S": length} if fixed else {"B": 1}
            self._runners[key] = Runner(program_of(self.graph, dims))
        return self._runners[key]

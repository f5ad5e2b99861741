"""Weights as a step graph reads them, made from those of the checkpoint one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ..ir.graph import Graph
from .reference import evaluate


class PreparedWeights(Mapping[str, torch.Tensor]):
    """The weights of a step graph by name: made by the preparation graph when asked for, or as
    they are.
    """

    def __init__(self, preparation: Graph, raw: Mapping[str, torch.Tensor]) -> None:
        self._made = dict(zip(preparation.output_names, preparation.outputs, strict=True))
        self._graph, self._raw = preparation, raw

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._made:
            return self._raw[name]
        return evaluate(self._graph.with_outputs((self._made[name],), ("weight",)), (), self._raw)[
            0
        ]

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._raw), **dict.fromkeys(self._made)})

    def __len__(self) -> int:
        return len(set(self._raw) | set(self._made))

"""Weights as a step graph reads them, made from those of the checkpoint a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from ..ir.graph import Graph
from ..ir.node import Node, walk
from .row_blocks import evaluate_by_rows


class PreparedWeights(Mapping[str, torch.Tensor]):
    """The weights of a step graph by name: made by the preparation graph when asked for, or as
    they are.

    With one of them all are made that are of the same parameters (the codes of a weight and their
    scales), and kept until they are asked for.
    """

    def __init__(self, preparation: Graph, raw: Mapping[str, torch.Tensor]) -> None:
        self._made = dict(zip(preparation.output_names, preparation.outputs, strict=True))
        self._graph, self._raw = preparation, raw
        self._groups = _by_parameters(self._made)
        self._ready: dict[str, torch.Tensor] = {}

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._made:
            return self._raw[name]
        if name not in self._ready:
            names = self._groups[name]
            part = self._graph.with_outputs(tuple(self._made[n] for n in names), names)
            self._ready = dict(zip(names, evaluate_by_rows(part, self._raw), strict=True))
        return self._ready.pop(name)

    def __iter__(self) -> Iterator[str]:
        return iter({**dict.fromkeys(self._raw), **dict.fromkeys(self._made)})

    def __len__(self) -> int:
        return len(set(self._raw) | set(self._made))


def _by_parameters(made: Mapping[str, Node]) -> dict[str, tuple[str, ...]]:
    """The names of the values that are of the same parameters as each."""
    sources: dict[frozenset[Node], list[str]] = {}
    read: dict[str, frozenset[Node]] = {}
    for name, node in made.items():
        read[name] = frozenset(n for n in walk((node,)) if n.op.name == "parameter")
        sources.setdefault(read[name], []).append(name)
    return {name: tuple(sources[read[name]]) for name in made}

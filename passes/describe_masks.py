"""Masks by evaluation: an attention's mask becomes attributes that kernels understand.

A mask depends on positions alone, so it can be run at any length (recognize_masks.py). Its values
are matched against families: causal, sliding window, chunks, and an additive bias that is a
function of the distance (linear per head: ALiBi, Press et al., 2022; or any: a table). Masks of
half-precision models are evaluated in float32. No match is an error that prints the mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..ir.errors import IRError
from ..ir.graph import Graph
from ..ir.node import Node
from ..ir.ops import model, selection, tensor
from ..ir.verify import quote
from .analyze_tokens import LENGTH, Evaluate, analyze, need_evaluate
from .recognize_masks import Mask, NoFamilyError, Recognizer, widened

TABLE_LIMIT = 2048


@dataclass(frozen=True)
class DescribeMasks:
    """Replace each attention's mask input by causal, window and chunk attributes and, for a bias,
    by slopes or a table.

    `max_context` bounds the positions: larger windows and chunks make no difference and are left
    out.
    """

    name: ClassVar[str] = "describe-masks"
    max_context: int = 4096
    evaluate: Evaluate | None = None
    lenient: bool = False

    def run(self, graph: Graph) -> Graph:
        """The graph without masks; raises IRError that prints a mask of no known family, or where
        `lenient` leaves it.
        """
        known: dict[Node, Mask] = {}
        mapping: dict[Node, Node] = {}
        kinds = analyze(graph).kinds
        for node in graph.nodes():
            if node.op is model.attention and "mask" in node["extras"]:
                mask = _mask_input(node)
                if self.lenient and not self._is_known(graph, node, known, kinds[mask]):
                    continue
                if kinds[mask] == "token":
                    raise IRError(
                        f"the mask of this attention depends on the tokens\n{quote(graph, node)}"
                    )
                if mask not in known:
                    known[mask] = self._recognize(graph, node, mask)
                mapping[node] = _described(node, known[mask], widened(mask), self.max_context)
            if node.op is selection.selected_keys and len(node.inputs) > 3:
                mask = node.inputs[3]
                if mask not in known:
                    known[mask] = self._recognize(graph, node, mask)
                if known[mask].bias:
                    raise IRError(f"a bias in an indexer's mask\n{quote(graph, node)}")
                mapping[node] = _seen_alike(node, known[mask])
        return graph.replace(mapping)

    def _is_known(self, graph: Graph, node: Node, known: dict[Node, Mask], kind: str) -> bool:
        """Whether a mask is of a family, which is then in `known`."""
        mask = _mask_input(node)
        try:
            if mask not in known and kind != "token":
                known[mask] = self._recognize(graph, node, mask)
        except IRError:
            return False
        return mask in known

    def _recognize(self, graph: Graph, node: Node, mask: Node) -> Mask:
        try:
            longest = min(graph.bounds.get(LENGTH, (1, self.max_context))[1], self.max_context)
            evaluate = need_evaluate(self.evaluate, self.name)
            return Recognizer(widened(mask), evaluate, longest).mask()
        except NoFamilyError as error:
            raise IRError(
                f"the mask of this attention is of no known family:\n{error}\n{quote(graph, node)}"
            ) from None


def _mask_input(node: Node) -> Node:
    return node.inputs[3 + list(node["extras"]).index("mask")]


def _described(node: Node, mask: Mask, root: Node, max_context: int) -> Node:
    """The attention with the mask's description in place of the mask."""
    at = node["extras"].index("mask")
    extras = [e for e in node["extras"] if e != "mask"]
    inputs = [*node.inputs[:3], *(x for i, x in enumerate(node.inputs[3:]) if i != at)]
    if mask.bias:
        extras.append(mask.bias)
        inputs.append(_MAKERS[mask.bias](root, node.inputs[0].shape[1], max_context))
    known: Mapping[str, Any] = {**node.attributes, "extras": tuple(extras)}
    causal = mask.causal or node["causal"]
    return model.attention.build(
        tuple(inputs), {**known, "causal": causal, "window": mask.window, "chunk": mask.chunk}
    )


def _seen_alike(node: Node, mask: Mask) -> Node:
    """The selection with its mask's description in place of the mask."""
    seen = {"causal": mask.causal or node["causal"], "window": mask.window, "chunk": mask.chunk}
    return selection.selected_keys.build(node.inputs[:3], {**node.attributes, **seen})


def _at_length(root: Node, heads: Any, length: int) -> Node:
    """The mask at one length as f32 [H, L, L]."""
    fixed = Graph("mask", (), (root,)).substitute({"B": 1, "S": length}).outputs[0]
    wide = tensor.cast(fixed, dtype="f32") if fixed.dtype != "f32" else fixed
    return tensor.reshape(
        tensor.broadcast(wide, shape=(1, heads, length, length)), shape=(heads, length, length)
    )


def _slopes(root: Node, heads: Any, max_context: int) -> Node:
    """Slope of each head: what one step back takes away, from the mask at length 2."""
    del max_context
    row = tensor.slice_(_at_length(root, heads, 2), axis=1, start=1, stop=2)
    here = tensor.slice_(row, axis=2, start=1, stop=2)
    back = tensor.slice_(row, axis=2, start=0, stop=1)
    return tensor.reshape(tensor.sub(here, back), shape=(heads,))


def _table(root: Node, heads: Any, max_context: int) -> Node:
    """The bias by distance [H, P], read off the last query of the longest context."""
    _check_table(max_context)
    row = tensor.slice_(
        _at_length(root, heads, max_context), axis=1, start=max_context - 1, stop=max_context
    )
    table = tensor.reshape(tensor.flip(row, axes=(2,)), shape=(heads, max_context))
    return tensor.sub(table, tensor.slice_(table, axis=1, start=0, stop=1))


def _distances(root: Node, heads: Any, max_context: int) -> Node:
    """The bias by distance [H, 2 P - 1], read off the first and the last query of the longest
    context.
    """
    _check_table(max_context)
    whole = _at_length(root, heads, max_context)
    first = tensor.flip(tensor.slice_(whole, axis=1, start=0, stop=1), axes=(2,))
    last = tensor.slice_(whole, axis=1, start=max_context - 1, stop=max_context)
    back = tensor.slice_(tensor.flip(last, axes=(2,)), axis=2, start=1, stop=max_context)
    both = tensor.concat(first, back, axis=2)
    table = tensor.reshape(both, shape=(heads, 2 * max_context - 1))
    here = tensor.slice_(table, axis=1, start=max_context - 1, stop=max_context)
    return tensor.sub(table, here)


def _check_table(max_context: int) -> None:
    if max_context > TABLE_LIMIT:
        raise IRError(
            f"a bias table over {max_context} positions is too large; at most {TABLE_LIMIT}"
        )


_MAKERS = {"slopes": _slopes, "bias": _table, "distances": _distances}

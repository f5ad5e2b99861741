"""`check_pass(pass, before, after)`: what every test of a pass says, text and values at once.

from check import check_pass

def test_folds_the_add():
    check_pass(FuseNorm(), BEFORE, AFTER)
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from ferrule.ir.dims import substitute
from ferrule.ir.graph import Graph
from ferrule.ir.node import Node
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.types import TensorType, Type
from ferrule.ir.verify import verify
from ferrule.passes.base import Pass

if TYPE_CHECKING:
    import torch

# Relative to the largest value of an output: what reordered sums may change.
TOLERANCE = {"f64": 1e-12, "f32": 2e-5, "f16": 1e-2, "bf16": 4e-2}
MOST = 9  # dims stay small


def check_pass(
    each: Pass,
    before: str | Graph,
    after: str | Graph | None = None,
    *,
    ranges: Mapping[str, tuple[int, int]] | None = None,
    trials: int = 2,
) -> Graph:
    """The verified result of a pass, which must have the expected text and the values of before.

    Values are compared on random inputs, weights and dims within the bounds, wherever the pass
    kept the signature; where it did not, `after` is required. Integer inputs and weights are drawn
    from `ranges` by name ([low, high)), else from what the takes of the graph can index.
    """
    given = parse_graph(textwrap.dedent(before)) if isinstance(before, str) else before
    result = verify(each.run(verify(given)))
    if after is not None:
        wanted = parse_graph(textwrap.dedent(after)) if isinstance(after, str) else after
        same_text(wanted, result)
    if signature(given) == signature(result):
        rng = np.random.default_rng()
        for _ in range(trials):
            check_values(given, result, rng, ranges or {})
    else:
        assert after is not None, f"{each.name} changed the signature: give the text after it"
    return result


def same_text(wanted: Graph, given: Graph) -> None:
    """Fail where two graphs print differently, with what differs."""
    one, other = (print_graph(g, origins=False).splitlines() for g in (wanted, given))
    difference = "\n".join(difflib.unified_diff(one, other, "wanted", "given", lineterm=""))
    assert not difference, difference


def signature(graph: Graph) -> tuple[object, ...]:
    """What a caller sees: the inputs and the types and names of the outputs."""
    return graph.inputs, tuple(o.type for o in graph.outputs), graph.output_names


def check_values(
    one: Graph, other: Graph, rng: np.random.Generator, ranges: Mapping[str, tuple[int, int]]
) -> None:
    """Both graphs give the same values, to rounding, for the same random inputs and weights."""
    from ferrule.compiler.reference import evaluate

    dims = random_dims(one, rng)
    one, other = one.substitute(dims), other.substitute(dims)
    inputs = random_values(one, one.inputs, rng, ranges)
    weights = random_values(one, {*one.parameters(), *other.parameters()}, rng, ranges)
    wanted, given = evaluate(one, inputs, weights), evaluate(other, inputs, weights)
    for name, node, x, y in zip(one.output_names, one.outputs, wanted, given, strict=True):
        same_values(f"{name} at {dims}", node.type, x, y)


def random_dims(graph: Graph, rng: np.random.Generator) -> dict[str, int]:
    """A value for each dim within its bounds, small."""
    return {
        name: int(rng.integers(low, max(low, min(high, MOST)) + 1))
        for name, (low, high) in graph.bounds.items()
    }


def random_values(
    graph: Graph,
    leaves: tuple[Node, ...] | set[Node],
    rng: np.random.Generator,
    ranges: Mapping[str, tuple[int, int]],
) -> dict[str, torch.Tensor]:
    """Random tensors by the names of inputs or parameters of a graph without symbolic dims."""
    most = _indexable(graph)
    return {
        n["name"]: _random(n.tensor, rng, ranges.get(n["name"], (0, most)))
        for n in sorted(leaves, key=lambda n: n["name"])
    }


def _random(t: TensorType, rng: np.random.Generator, limits: tuple[int, int]) -> torch.Tensor:
    import torch

    shape = tuple(int(substitute(d, {})) for d in t.shape)
    if t.dtype == "bool":
        return torch.from_numpy(rng.integers(0, 2, shape).astype(bool))
    if t.is_float:
        types = {"f64": torch.float64, "f16": torch.float16, "bf16": torch.bfloat16}
        return torch.from_numpy(rng.standard_normal(shape)).to(types.get(t.dtype, torch.float32))
    kinds = {"i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "u8": torch.uint8}
    return torch.from_numpy(rng.integers(*limits, shape)).to(kinds.get(t.dtype, torch.int8))


def _indexable(graph: Graph) -> int:
    """The least size that an index of the graph points into, so that any smaller index is legal."""
    sizes = [
        n.inputs[0].shape[n["axis"]]
        for n in graph.nodes()
        if n.op.name in ("take", "take_along", "scatter")
    ]
    return min((s for s in sizes if isinstance(s, int)), default=MOST)


def same_values(where: str, kind: Type, wanted: torch.Tensor, given: torch.Tensor) -> None:
    """Fail where two values of a type differ by more than rounding."""
    assert wanted.shape == given.shape, f"{where}: {given.shape}, not {wanted.shape}"
    tolerance = TOLERANCE.get(kind.dtype, 0.0) if isinstance(kind, TensorType) else 0.0
    x, y = wanted.double().numpy(), given.double().numpy()
    finite = np.abs(x[np.isfinite(x)])
    scale = max(1.0, float(finite.max())) if finite.size else 1.0
    np.testing.assert_allclose(y, x, rtol=0, atol=tolerance * scale, err_msg=where)

"""Parts of graphs at given numbers."""

import numpy as np
import pytest
from ferrule.compiler.evaluator import part_runner
from ferrule.ir.text import parse_graph

TEXT = """graph rows(%x: i64[S]) where S in [1, 9] {
  %t = parameter {name = "table", type = f32[3, 2]} : f32[3, 2]
  %r = take %t %x {axis = 0} : f32[S, 2]
  return %r as out
}
"""


def test_a_part_has_values_or_says_that_it_has_none():
    import torch

    graph = parse_graph(TEXT)
    table = torch.arange(6.0).reshape(3, 2)
    run = part_runner({"table": table})
    (found,) = run(graph.outputs, {"S": 2}, {"x": np.array([2, 0])})
    assert found.tolist() == [[4.0, 5.0], [0.0, 1.0]] and found.dtype == np.float64
    with pytest.raises(ValueError, match=r"no value for these inputs: .*out of"):
        run(graph.outputs, {"S": 2}, {"x": np.array([3, 0])})

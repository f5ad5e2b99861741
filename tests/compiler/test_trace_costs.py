"""What is spared beside a trace changes nothing of what is traced."""

from typing import Any

import torch
import torch._dynamo
import torch.fx.proxy
from ferrule.compiler.sources import origin
from ferrule.compiler.trace_costs import (
    ALIKE,
    are_alike,
    seldom_written,
    short_stacks,
    without_known_results,
)
from torch import nn
from torch.utils._traceback import CapturedTraceback


class Inner(nn.Module):
    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.scaled(x)
        return y.softmax(-1)


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.inner(x)) + 1.0


def _origins() -> list[str]:
    program = torch.export.export(Outer(), (torch.ones(2, 4),))
    return [origin(n.meta) for n in program.graph.nodes if n.op == "call_function"]


def test_the_one_line_of_a_short_stack_is_the_origin_that_the_whole_stack_gives():
    whole = _origins()
    with short_stacks():
        short = _origins()
    assert short == whole
    assert len(set(whole)) == 4, whole
    assert all("test_trace_costs.py:" in each for each in whole), whole


def test_the_tracer_has_its_own_stacks_back():
    tracer: Any = torch.fx.proxy
    with short_stacks():
        assert tracer.CapturedTraceback is not CapturedTraceback
    assert tracer.CapturedTraceback is CapturedTraceback


def test_results_are_known_by_their_shapes_where_many_parts_are_alike():
    config: Any = torch._dynamo.config
    before = config.fake_tensor_cache_enabled
    few, many = (nn.Sequential(*(Inner() for _ in range(n))) for n in (ALIKE, 4 * ALIKE))
    assert (are_alike(few), are_alike(many)) == (False, True)
    for module, known in ((few, False), (many, before)):
        with without_known_results(module):
            assert config.fake_tensor_cache_enabled == known
    assert config.fake_tensor_cache_enabled == before


def test_a_program_that_is_written_late_is_the_same_and_runs():
    x = torch.randn(2, 4)
    model = Outer()
    whole = torch.export.export(model, (x,))
    with seldom_written():
        late = torch.export.export(model, (x,))
    assert str(late.graph) == str(whole.graph)
    assert torch.equal(late.module()(x), model(x))

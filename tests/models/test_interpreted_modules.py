"""Plain modules as a GPU would run them: built ahead of time, launches interpreted on the CPU,
results equal to eager's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from ferrule.compiler.interpreted import InterpretedDriver
from ferrule.runtime.cuda.module import CudaModule
from ferrule.runtime.cuda.opening import read_launches
from torch import nn
from torch.nn import functional as F

import ferrule

Tensor = torch.Tensor


class Attends(nn.Module):
    """Attention of some values to others, under a mask, behind a convolution of any length."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Conv1d(12, 24, 3, stride=2, padding=1)
        self.q, self.kv, self.norm = nn.Linear(24, 24), nn.Linear(24, 24), nn.LayerNorm(24)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        h = F.gelu(self.before(x)).transpose(1, 2)
        q = self.q(h).unflatten(-1, (3, 8)).transpose(1, 2)
        k, v = self.kv(other).unflatten(-1, (2, 12)).transpose(1, 2).chunk(2, dim=1)
        k, v = (F.pad(y, (0, 0)).expand(-1, 3, -1, -1)[..., :8] for y in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.norm(h + y.transpose(1, 2).flatten(2))


class Mixer(nn.Module):
    """A gated network, two results and a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(20, 64), nn.Linear(32, 20)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        gate, up = self.up(x).chunk(2, dim=-1)
        y = self.down(F.silu(gate) * up) * scale
        return {"y": y, "top": y.softmax(-1).topk(3).indices}


ROWS = {0: torch.export.Dim("B", min=1, max=8)}
CASES: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]]] = {
    "mixer": lambda: (
        Mixer(), (torch.randn(5, 20),), {"scale": 0.5}, {"x": ROWS, "scale": None},
    ),
    "attends": lambda: (
        Attends(), (torch.randn(2, 12, 9), torch.randn(2, 7, 24), torch.rand(5, 7) > 0.3), {}, None,
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_results_are_those_of_eager(name: str) -> None:
    torch.manual_seed(5)
    module, args, kwargs, shapes = CASES[name]()
    module.eval()
    built = ferrule.compile(
        module, args=args, kwargs=kwargs, dynamic_shapes=shapes, target="cuda:sm_90",
        progress=False,
    )  # fmt: skip
    artifact = built.artifact
    assert "verify on one" in artifact.manifest["report"]["unverified"]
    driver = InterpretedDriver(artifact.path, 16 << 20)
    table = read_launches(artifact.path)
    artifact.__dict__["module"] = CudaModule(artifact.plan, table, artifact.weights, driver)
    try:
        given, wanted = built(*args, **kwargs), module(*args, **kwargs)
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
        if name == "mixer":  # and any number of rows
            more = torch.randn(3, 20)
            torch.testing.assert_close(built(more, **kwargs), module(more, **kwargs))
    finally:
        driver.close()

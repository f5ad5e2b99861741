"""Compile a module that is no language model: the result is called as the module is."""

from __future__ import annotations

import torch
from torch import nn

import ferrule


class Gated(nn.Module):
    """A gated MLP over a dict of inputs, with a mask."""

    def __init__(self, width: int = 40, hidden: int = 96) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, hidden)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(
        self, batch: dict[str, torch.Tensor], scale: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The gated MLP where `keep` says so, and its mean."""
        x = self.norm(batch["x"])
        y = self.down(nn.functional.silu(self.gate(x)) * self.up(x)) * scale
        return {"y": torch.where(batch["keep"], y, x), "mean": y.mean(-1)}


def main() -> None:
    """Compile, call, compare."""
    torch.manual_seed(0)
    module = Gated().eval()
    batch = {"x": torch.randn(7, 40), "keep": torch.rand(7, 1) > 0.5}
    compiled = ferrule.compile(module, args=(batch, torch.tensor(1.5)))
    fresh = {"x": torch.randn(7, 40), "keep": torch.rand(7, 1) > 0.5}
    got, wanted = compiled(fresh, torch.tensor(0.3)), module(fresh, torch.tensor(0.3))
    error = max((got[k] - wanted[k]).abs().max().item() for k in wanted)
    print(f"{len(compiled.artifact.plan.kernels())} kernels, largest error {error:.2g}")
    assert error < 1e-4, error


if __name__ == "__main__":
    main()

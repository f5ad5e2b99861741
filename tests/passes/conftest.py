"""Fixtures for pass tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def evaluator() -> Callable[..., Any]:
    """evaluator(graph, numpy parameters, numpy inputs) -> a pass's evaluate function."""
    import torch
    from ferrule.compiler.evaluator import evaluator as make

    def build(graph: Any, parameters: dict[str, Any], inputs: dict[str, Any] | None = None) -> Any:
        del graph
        return make(
            {k: torch.as_tensor(v) for k, v in parameters.items()},
            {k: torch.as_tensor(v) for k, v in (inputs or {}).items()},
        )

    return build

"""What torch and Python do beside a trace, and what takes longer than it gains."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn
from torch.fx._lazy_graph_module import _use_lazy_graph_module

from .sources import is_model_source

ALIKE = 20  # parts of a module of each class, on the average
SELDOM = 50_000  # objects made before Python looks for unreachable ones: a trace makes millions


@contextmanager
def without_known_results(module: nn.Module) -> Iterator[None]:
    """The tracer computes the shape of every result anew where few parts of a module are alike. It
    keeps those of calls with the same shapes otherwise, and with symbols for sizes that takes
    longer than the shape until some twelve layers have asked for the same: llama is traced in 2.9 s
    with and without at 12 layers, in 6.2 s with and 6.9 s without at 32, and a tiny deepseek_v4,
    whose layers are of several kinds, in 8.5 s with and 6.3 s without.
    """
    import torch._dynamo

    config: Any = torch._dynamo.config  # its methods are made when it is loaded
    known = config.fake_tensor_cache_enabled and are_alike(module)
    with config.patch(fake_tensor_cache_enabled=known):
        yield


def are_alike(module: nn.Module) -> bool:
    """Whether a module has many parts of the same classes."""
    classes = [type(m) for m in module.modules()]
    return len(classes) > ALIKE * len(set(classes))


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Python looks for unreachable objects once in many: all that the libraries hold is looked
    through each time.
    """
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, SELDOM) if first else 0, *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


@dataclass(frozen=True, eq=False)
class _ModelLine:
    """Where a traced call is made, as torch's tracer asks for it: it takes the whole stack, a
    hundred frames and the text of each line, and keeps those of forwards.
    """

    frame: FrameType | None

    @staticmethod
    def extract(**_: object) -> _ModelLine:
        """The caller's place."""
        return _ModelLine(sys._getframe(1))

    def summary(self) -> traceback.StackSummary:
        """The innermost line of a forward in model source alone."""
        frame = self.frame
        while frame is not None:
            code = frame.f_code
            if code.co_name == "forward" and is_model_source(code.co_filename):
                place = (code.co_filename, frame.f_lineno, code.co_name, "")
                return traceback.StackSummary.from_list([place])
            frame = frame.f_back
        return traceback.StackSummary()


@contextmanager
def seldom_written() -> Iterator[None]:
    """The tracer's graph becomes Python code when that is asked for: written and compiled anew
    after each of its passes it takes a twelfth of a trace, and nobody runs it.
    """
    with _use_lazy_graph_module(True):
        yield


@contextmanager
def short_stacks() -> Iterator[None]:
    """Every traced call has the one line of its stack that origins are told by: to take the whole
    stack of each takes a fifth of a trace.
    """
    import torch.fx.proxy

    tracer: Any = torch.fx.proxy
    whole = tracer.CapturedTraceback
    tracer.CapturedTraceback = _ModelLine
    try:
        yield
    finally:
        tracer.CapturedTraceback = whole

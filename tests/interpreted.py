"""Triton functions as Triton's interpreter runs them, in a process of its own: whether a function
is interpreted is settled when Triton is imported, and other tests compile.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context
from typing import NamedTuple

import numpy as np
import torch


@dataclass(frozen=True)
class Hook:
    """A function handed over by its name in the module of the entry."""

    name: str


class _Bytes(NamedTuple):
    """A tensor on its way between processes."""

    data: np.ndarray
    dtype: torch.dtype
    shape: tuple[int, ...]

    @staticmethod
    def of(x: torch.Tensor) -> _Bytes:
        return _Bytes(x.contiguous().reshape(-1).view(torch.uint8).numpy(), x.dtype, (*x.shape,))

    def tensor(self) -> torch.Tensor:
        return torch.from_numpy(self.data.copy()).view(self.dtype).reshape(self.shape)


class Interpreter:
    """The process; `close` ends it."""

    def __init__(self) -> None:
        spawn = get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=_interpret)

    def run(
        self, entry: str, grid: Sequence[int], *values: object, **choices: object
    ) -> list[torch.Tensor]:
        """The tensors among an entry's `values` after it has run; `entry` is module:function.

        Memory beyond the tensors holds what a wrong offset would show: tests poison what is
        written and compare all of it.
        """
        sent = [_Bytes.of(v) if isinstance(v, torch.Tensor) else v for v in values]
        back = self._pool.submit(_run, entry, tuple(grid), sent, choices).result()
        return [b.tensor() for b in back]

    def close(self) -> None:
        """End the process."""
        self._pool.shutdown()


def _interpret() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    from ferrule.codegen.triton.interpret import multiply_bfloat16

    multiply_bfloat16()


def _run(
    entry: str, grid: tuple[int, ...], sent: Sequence[object], choices: Mapping[str, object]
) -> list[_Bytes]:
    module, _, name = entry.partition(":")
    found = import_module(module)
    values = [v.tensor() if isinstance(v, _Bytes) else v for v in sent]
    chosen = {k: getattr(found, v.name) if isinstance(v, Hook) else v for k, v in choices.items()}
    getattr(found, name)[grid](*values, **chosen)
    return [_Bytes.of(v) for v in values if isinstance(v, torch.Tensor)]

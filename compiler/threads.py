"""How many threads torch has for what is soon done: one.

What is small is given to all threads too, of products of matrices above all, and those that are
done wait for the others in a loop: on cores that have other work, for longer than it would take
alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

SMALL = 1 << 16
"""Elements of the largest argument of an op that one thread does."""


class TorchThreads:
    """The threads of torch, as many as there were or one; all of them again at the end."""

    def __enter__(self) -> TorchThreads:
        self.all = self.now = torch.get_num_threads()
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self.all)

    def take(self, arguments: Iterable[Any]) -> None:
        """As many as an op on these is worth."""
        sizes = (a.numel() for a in arguments if isinstance(a, torch.Tensor))
        self._set(1 if max(sizes, default=0) < SMALL else self.all)

    def _set(self, count: int) -> None:
        if count != self.now:
            torch.set_num_threads(count)
            self.now = count


@contextmanager
def threads_for(model: nn.Module) -> Iterator[None]:
    """One thread, for a few tokens of a model that has no large parameter."""
    with TorchThreads() as threads:
        threads.take(model.parameters())
        yield

"""Where blocks of preempted sequences are kept: in host memory, or in files."""

import fcntl
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np

from .tensors import Array

Stored = tuple[Array, ...] | Path
_PREFIX = "swap-"


class Store(Protocol):
    """Keeps arrays. Every method may raise `OSError`, `put` and `get` also `MemoryError`."""

    def put(self, content: tuple[Array, ...]) -> Stored:
        """Keep arrays."""
        ...

    def get(self, stored: Stored) -> tuple[Array, ...]:
        """What was kept; `ValueError` where it is damaged."""
        ...

    def drop(self, stored: Stored) -> None:
        """Keep it no longer; never raises."""
        ...


class Host:
    """Keeps arrays as they are."""

    def put(self, content: tuple[Array, ...]) -> Stored:
        """Keep arrays in memory."""
        return content

    def get(self, stored: Stored) -> tuple[Array, ...]:
        """The arrays."""
        assert isinstance(stored, tuple), stored
        return stored

    def drop(self, stored: Stored) -> None:
        """Memory is freed with the last reference."""


class Disk:
    """Keeps arrays in files of a directory, which nobody else can read.

    Keys and values of a prompt tell what is in it: the directory belongs to this process alone,
    and goes with it; where the process was killed, when the next one begins.
    """

    def __init__(self, directory: Path | str) -> None:
        place = Path(directory)
        place.mkdir(parents=True, exist_ok=True)
        # While the place is locked nobody makes a directory that is not locked yet.
        with _Lock(place, waits=True):
            for left in place.glob(f"{_PREFIX}*"):
                _remove_left(left)
            self._directory = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place)
            self._lock = _Lock(Path(self._directory.name), waits=False)

    def put(self, content: tuple[Array, ...]) -> Stored:
        """Write a file, whole or not at all."""
        handle, name = tempfile.mkstemp(dir=self._directory.name)
        try:
            with os.fdopen(handle, "wb") as file:
                for array in (np.array(len(content)), *content):
                    np.save(file, array, allow_pickle=False)
        except BaseException:
            self.drop(Path(name))
            raise
        return Path(name)

    def get(self, stored: Stored) -> tuple[Array, ...]:
        """Read a file that `put` wrote."""
        assert isinstance(stored, Path), stored
        with stored.open("rb") as file:
            return tuple(_array(file) for _ in range(int(_array(file))))

    def drop(self, stored: Stored) -> None:
        """Remove a file; one that is gone is no fault."""
        assert isinstance(stored, Path), stored
        try:
            stored.unlink()
        except OSError:
            return


class _Lock:
    """A lock on a directory, which the kernel gives back when the process ends, however it does.
    Raises `OSError` where another process has it and this one does not wait.
    """

    def __init__(self, directory: Path, *, waits: bool) -> None:
        self._handle = os.open(directory, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BaseException:
            os.close(self._handle)
            raise
        self._end = weakref.finalize(self, os.close, self._handle)

    def __enter__(self) -> None:
        return

    def __exit__(self, *_: object) -> None:
        self._end()


def _remove_left(directory: Path) -> None:
    """Remove a directory whose process has ended."""
    try:
        with _Lock(directory, waits=False):
            shutil.rmtree(directory)
    except OSError:
        return  # it is in use, or not ours


def _array(file: object) -> Array:
    try:
        return np.load(file, allow_pickle=False)  # pyright: ignore[reportArgumentType]
    except EOFError as error:
        raise ValueError(f"damaged: {error}") from None

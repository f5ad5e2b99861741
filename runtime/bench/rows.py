"""Rows of data sets as the Hugging Face Hub has them, from files on this machine: what was asked,
and what was answered.
"""

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import RequestError

_TURNS = ("messages", "conversations", "conversation", "turns")
_ASKED = ("prompt", "instruction", "question", "query", "text")
_ANSWERED = ("completion", "response", "output", "answer", "chosen")
_KINDS = (".jsonl", ".json", ".parquet")


class Row(NamedTuple):
    """What was asked first, and what was answered, if that is there."""

    prompt: str
    answer: str | None


def read_rows(path: Path, split: str) -> Iterator[Row]:
    """The rows of a file, or of the files of a split in a folder, by their names.

    Raises `RequestError` where there are none, and ValueError for a row that nobody asks in.
    """
    for file in _files(path, split):
        for number, row in enumerate(_objects(file), 1):
            yield _row(row, f"{file}, row {number}")


def _files(path: Path, split: str) -> list[Path]:
    if not path.is_dir():
        return [path]
    every = sorted(p for p in path.rglob("*") if p.suffix in _KINDS)
    found = [p for p in every if split in p.relative_to(path).as_posix()]
    if not found:
        names = ", ".join(p.name for p in every) or "none"
        raise RequestError(f"{path}: no files of the split {split!r}; data files: {names}")
    return found


def _objects(file: Path) -> Iterator[Mapping[str, Any]]:
    if file.suffix == ".parquet":
        try:
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError:
            raise RequestError(f"{file}: parquet needs pyarrow: pip install pyarrow") from None
        yield from parquet.read_table(file).to_pylist()
        return
    text = file.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        yield from json.loads(text)
        return
    yield from (json.loads(line) for line in text.splitlines() if line.strip())


def _row(row: Mapping[str, Any], where: str) -> Row:
    for name in _TURNS:
        if isinstance(row.get(name), list) and row[name]:
            return _of_turns(row[name])
    asked = next((n for n in _ASKED if isinstance(row.get(n), str)), None)
    if asked is None:
        known = ", ".join((*_TURNS, *_ASKED))
        raise ValueError(f"{where}: nobody asks: columns {', '.join(row)}; known: {known}")
    prompt = row[asked]
    if asked == "instruction" and row.get("input"):
        prompt = f"{prompt}\n{row['input']}"
    answer = next((row[n] for n in _ANSWERED if isinstance(row.get(n), str)), None)
    return Row(prompt, answer)


def _of_turns(turns: list[Any]) -> Row:
    """The first turn that is no system's, and the one behind it."""
    texts = [(_role(t), _text(t)) for t in turns]
    texts = [text for role, text in texts if role != "system"]
    return Row(texts[0], texts[1] if len(texts) > 1 else None)


def _role(turn: Any) -> str:
    return str(turn.get("role", turn.get("from", ""))) if isinstance(turn, Mapping) else ""


def _text(turn: Any) -> str:
    if isinstance(turn, str):
        return turn
    found = turn.get("content", turn.get("value"))
    if isinstance(found, list):
        found = "\n".join(part["text"] for part in found if part.get("type") == "text")
    if not isinstance(found, str):
        raise ValueError(f"a turn without text: {turn!r}")
    return found

"""Tuning records: what was measured, one JSON object a line, found by its key.

    {"key": "hardware/AMD EPYC/cpu:znver4/...", "value": {"read_bandwidth": 4.1e10, ...}}

A later line with the same key takes the place of an earlier one, so that appending is updating and
files of several machines merge.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .errors import CompileError

Records = dict[str, Any]


def read_records(path: Path) -> Records:
    """The values by key, the last of each; none where the file is missing.

    A last line cut short by a crash is left out; any other line that is no record is an error.
    """
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").split("\n")
    found: Records = {}
    for number, line in enumerate(lines, 1):
        record = _parsed(line)
        if record is not None:
            found[record["key"]] = record["value"]
        elif line.strip() and number < len(lines):
            raise CompileError(f"{path}, line {number}: no record of key and value: {line[:80]!r}")
    return found


def append_record(path: Path, key: str, value: object) -> None:
    """Add one record; writers take turns, and a line that a crash cut short is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
        file.write(_line(key, value).encode())


def merge_records(path: Path, sources: Iterable[Path]) -> Records:
    """Write one file of all records, later sources first in rank; whole or not at all."""
    merged: Records = {}
    for source in (path, *sources):
        merged |= read_records(source)
    write_records(path, merged)
    return merged


def write_records(path: Path, records: Mapping[str, object]) -> None:
    """Write a file of records in the order of their keys; whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(_line(key, records[key]) for key in sorted(records))
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # as readable as any other file: temporary ones are their owner's
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _line(key: str, value: object) -> str:
    return json.dumps({"key": key, "value": value}, sort_keys=True) + "\n"


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.keys() >= {"key", "value"} else None

"""What the machine at hand really does: bytes and operations a second, measured and recorded."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.target import Host, Target
from .records import append_record, read_records

MOST_PROBED = 512 << 20
_RECORDED = ("read_bandwidth", "cache_bandwidth", "peak")


@dataclass(frozen=True)
class Hardware:
    """Measured rates of a machine, all cores together.

    `read_bandwidth` is bytes a second from memory, `cache_bandwidth` those from the cores' own
    caches; `peak` is operations a second by dtype ("f32", and "bf16" and "i8" where there are dot
    instructions), a multiply-add counted as two.
    """

    fingerprint: str
    read_bandwidth: float
    peak: dict[str, float]
    cache_bandwidth: float = float("inf")

    def peak_of(self, dtype: str) -> float:
        """Operations a second in a dtype; those of f32, to which it can be widened, where it has
        no dot instruction or a slower one.
        """
        return max(self.peak.get(dtype, 0.0), self.peak["f32"])

    def seconds(self, bytes_: float, operations: float, dtype: str = "f32") -> float:
        """The roofline: the time that neither reading nor computing can go below."""
        return max(bytes_ / self.read_bandwidth, operations / self.peak_of(dtype))


def fingerprint(target: Target, machine: Host | None = None) -> str:
    """What tells machines apart for measurements: model, instruction set, cores, caches."""
    model = (machine or Host()).model()
    known = f"{sorted(target.features)} {target.l1_bytes} {target.l2_bytes} {target.l3_bytes}"
    digest = hashlib.sha256(known.encode()).hexdigest()[:12]
    return f"{model}/{target}/{target.cores} cores/{digest}"


def measure(target: Target) -> Hardware:
    """Measure the machine at hand, with code for the target; takes a few seconds."""
    from ..codegen.tvm.probes import peak_operations, read_bandwidth
    from ..runtime.library import use_threads
    from ..runtime.tiles import allow_tiles

    allow_tiles()
    use_threads(max(1, target.cores))
    # A cache that keeps some of what passes would add its own rate: 4 times its size read half as
    # fast again as memory does.
    probed = min(max(16 * target.l3_bytes, 128 << 20), MOST_PROBED)
    rate = read_bandwidth(target, probed)
    cached = read_bandwidth(target, max(1, target.cores) * target.l2_bytes // 2)
    return Hardware(fingerprint(target), rate, peak_operations(target), cached)


def records_path() -> Path:
    """Where measurements of this machine are kept: FERRULE_RECORDS, or a file of the user's
    cache.
    """
    if named := os.environ.get("FERRULE_RECORDS"):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "ferrule" / "records.jsonl"


def hardware(target: Target, records: Path) -> Hardware:
    """The recorded rates of this machine; measured and recorded where there are none yet."""
    return recorded(target, records) or remeasured(target, records)


def recorded(target: Target, records: Path) -> Hardware | None:
    """The recorded rates of this machine; None where there are none."""
    key = f"hardware/{fingerprint(target)}"
    found: dict[str, Any] | None = read_records(records).get(key)
    if found is None or any(name not in found for name in _RECORDED):
        return None
    return Hardware(fingerprint(target), **{name: found[name] for name in _RECORDED})


def remeasured(target: Target, records: Path) -> Hardware:
    """The rates of this machine, measured now; the record of them takes the place of any other."""
    made = measure(target)
    value = {name: getattr(made, name) for name in _RECORDED}
    append_record(records, f"hardware/{fingerprint(target)}", value)
    return made

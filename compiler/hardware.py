"""What the machine at hand really does: bytes and operations a second, measured and recorded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..ir.target import Host, Target
from .records import append_record, read_records

MOST_PROBED = 512 << 20


@dataclass(frozen=True)
class Hardware:
    """Measured rates of a machine, all cores together.

    `read_bandwidth` is bytes a second from memory; `peak` is operations a second by dtype ("f32",
    and "bf16" and "i8" where there are dot instructions), a multiply-add counted as two.
    """

    fingerprint: str
    read_bandwidth: float
    peak: dict[str, float]

    def peak_of(self, dtype: str) -> float:
        """Operations a second in a dtype; those of f32, in which it is computed, where it has no
        dot instruction."""
        return self.peak.get(dtype, self.peak["f32"])

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
    from ..runtime.tiles import allow_tiles

    allow_tiles()
    probed = min(max(4 * target.l3_bytes, 128 << 20), MOST_PROBED)
    rate = read_bandwidth(target, probed)
    return Hardware(fingerprint(target), rate, peak_operations(target))


def hardware(target: Target, records: Path) -> Hardware:
    """The recorded rates of this machine; measured and recorded where there are none yet."""
    key = f"hardware/{fingerprint(target)}"
    found: dict[str, Any] | None = read_records(records).get(key)
    if found is not None:
        return Hardware(fingerprint(target), found["read_bandwidth"], found["peak"])
    made = measure(target)
    append_record(records, key, {"read_bandwidth": made.read_bandwidth, "peak": made.peak})
    return made

"""GPUs by name: what their makers say of them, for rooflines of a machine that is not at hand."""

from __future__ import annotations

from pathlib import Path

from ..ir.errors import IRError
from ..ir.launches import LAUNCHES, LaunchTable
from .hardware import Hardware


def _device(name: str, bandwidth: float, f32: float, bf16: float, i8: float) -> Hardware:
    return Hardware(name, bandwidth, {"f32": f32, "bf16": bf16, "f16": bf16, "i8": i8, "u8": i8})


DEVICES = {
    "a100": _device("a100", 2.039e12, 19.5e12, 312e12, 624e12),
    "l40s": _device("l40s", 0.864e12, 91.6e12, 362e12, 733e12),
    "h100": _device("h100", 3.35e12, 67e12, 989e12, 1979e12),
    "h200": _device("h200", 4.8e12, 67e12, 989e12, 1979e12),
    "b200": _device("b200", 8.0e12, 80e12, 2250e12, 4500e12),
    "mi300x": _device("mi300x", 5.3e12, 163.4e12, 1307e12, 2615e12),
}
"""Bytes a second from memory, operations a second without sparsity (data sheets of NVIDIA A100 80GB
SXM, L40S, H100 SXM, H200 SXM, B200; AMD Instinct MI300X).
"""

USUAL = {
    "sm_80": "a100", "sm_86": "a100", "sm_89": "l40s", "sm_90": "h100", "sm_100": "b200",
    "gfx942": "mi300x",
}  # fmt: skip
"""The device that an architecture is held against where none is named."""


def device_named(name: str | None, arch: str) -> Hardware:
    """The device of a name, or the usual one of an architecture."""
    chosen = name or USUAL.get(arch)
    if chosen is None or chosen not in DEVICES:
        asked = repr(name) if name else f"usual device of {arch}"
        raise IRError(f"no {asked}; known: {', '.join(DEVICES)}")
    return DEVICES[chosen]


def binary_lines(folder: Path) -> list[str]:
    """What each binary of a GPU artifact takes, one a line."""
    table = LaunchTable.from_json((Path(folder) / LAUNCHES).read_bytes())
    head = f"{'binary':<48}{'threads':>8}{'registers':>10}{'spilled':>8}{'shared':>8}"
    rows = [
        f"{n:<48}{b.threads:>8}{b.registers:>10}{b.spilled:>8}{b.shared:>8}"
        for n, b in table.binaries.items()
    ]
    return [head, *rows]

"""GPUs by name: what their makers say of them, for rooflines of a machine that is not at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..ir.errors import IRError
from ..ir.launches import LAUNCHES, Binary, Function, Launch, LaunchTable
from ..ir.target import Target
from .errors import CompileError
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
    chosen = name.lower() if name else USUAL.get(arch)
    if chosen is None or chosen not in DEVICES:
        asked = repr(name) if name else f"usual device of {arch}"
        raise IRError(f"no {asked}; known: {', '.join(DEVICES)}")
    return DEVICES[chosen]


def device_here(target: Target) -> Hardware:
    """The device at hand, named with the target, with the rates that its maker states; raises
    CompileError where there is none that runs code for the target.
    """
    from ..runtime.cuda.opening import open_device
    from ..runtime.errors import ArtifactError

    try:
        device = open_device(target.arch)
    except ArtifactError as error:
        raise CompileError(f"kernels for {target} are measured on a device: {error}") from error
    name = device.name
    device.close()
    known = next((d for d in DEVICES if d in name.lower().replace(" ", "")), None)
    return replace(device_named(known, target.arch), fingerprint=f"{name}/{target}")


def is_stated(machine: Hardware) -> bool:
    """Whether a machine's rates are those that a device's maker states, not measured ones."""
    return machine in DEVICES.values()


LIBRARY = "cuBLAS"
"""What stands for machine code where the vendor's library makes a product."""


@dataclass(frozen=True)
class BinaryLine:
    """Machine code of a kernel: for how many rows of a step it is launched, its tile or split by
    name, and what it takes: registers of a thread, bytes that one spills, shared bytes of all.
    """

    kernel: str
    rows: str
    binary: str
    choices: Mapping[str, int]
    threads: int
    registers: int
    spilled: int
    shared: int


def binaries_of(folder: Path) -> tuple[BinaryLine, ...]:
    """The binaries of a GPU artifact, kernel by kernel; none where it has no launches."""
    if not (folder / LAUNCHES).is_file():
        return ()
    table = LaunchTable.from_json((folder / LAUNCHES).read_bytes())
    return tuple(
        BinaryLine(
            kernel, ", ".join(dict.fromkeys(rows)), launch.binary or LIBRARY,
            dict(launch.constants), b.threads, b.registers, b.spilled, b.shared,
        )
        for kernel, function in table.functions.items()
        for launch, rows in _by_binary(function).values()
        if (b := _binary(table, launch)) is not None
    )  # fmt: skip


def _binary(table: LaunchTable, launch: Launch) -> Binary | None:
    """What a launch runs; of a product by the vendor's library nobody knows what it takes."""
    return Binary(LIBRARY, "", 0) if launch.product else table.binaries.get(launch.binary)


def _by_binary(function: Function) -> dict[str, tuple[Launch, list[str]]]:
    """The launches of a kernel by their binaries, each once, with the rows of its forms."""
    found: dict[str, tuple[Launch, list[str]]] = {}
    low = 1
    for form in function.forms:
        rows = "any" if len(function.forms) == 1 and form.most is None else _range(low, form.most)
        for launch in form.launches:
            found.setdefault(launch.binary, (launch, []))[1].append(rows)
        low = (form.most or low) + 1
    return found


def _range(low: int, most: int | None) -> str:
    if most is None:
        return f"{low} on"
    return f"{low}" if low == most else f"{low} to {most}"

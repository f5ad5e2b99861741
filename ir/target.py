"""Targets: the machine a program is bound to.

A target is written `cpu` (this machine), `cpu:x86-64-v3`, `cpu:znver5`, `cuda:sm_90` or
`rocm:gfx942`.
"""

from __future__ import annotations

import difflib
import os
import platform
from dataclasses import dataclass, field
from pathlib import Path

from .errors import IRError

# The LLVM names of x86-64 levels and of the processors that matter, and what they add. The levels
# are those of the x86-64 psABI; the rest follows LLVM's X86TargetParser.
_V2 = frozenset({"sse4_2", "ssse3", "popcnt"})
_V3 = _V2 | {"avx", "avx2", "fma", "f16c", "bmi2"}
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_VNNI = _V4 | {"avx512_vnni"}
_VBMI = _VNNI | {"avx512vbmi"}
X86: dict[str, frozenset[str]] = {
    "x86-64": frozenset(), "x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4,
    "haswell": _V3, "skylake": _V3, "skylake-avx512": _V4,
    "znver1": _V3, "znver2": _V3, "znver3": _V3,
    "alderlake": _V3 | {"avx_vnni"}, "cascadelake": _VNNI, "icelake-server": _VBMI,
    "cooperlake": _VNNI | {"avx512_bf16"}, "znver4": _VBMI | {"avx512_bf16"},
    "znver5": _VBMI | {"avx512_bf16", "avx_vnni"},
    "sapphirerapids": _VBMI | {"avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8", "amx_tile"},
}  # fmt: skip
CUDA = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")
ROCM = ("gfx90a", "gfx942", "gfx950")
_KNOWN: frozenset[str] = frozenset[str]().union(*X86.values())


@dataclass(frozen=True)
class Target:
    """What code generation needs to know of a machine.

    `arch` is LLVM's name (CPU) or the compute capability (GPU); `features` uses the kernel's
    /proc/cpuinfo words; `cores` are those that this process may use, threads of one core counted
    once; caches are bytes (one core's l1 and l2, the shared l3), 0 where unknown. `deterministic`:
    a row's values must not depend, to the last bit, on the rows beside it.
    """

    kind: str
    arch: str
    features: frozenset[str] = field(default_factory=frozenset[str])
    cores: int = 1
    l1_bytes: int = 32 << 10
    l2_bytes: int = 1 << 20
    l3_bytes: int = 0
    deterministic: bool = False

    @staticmethod
    def parse(text: str) -> Target:
        """The target that a text names; `cpu` alone is the machine at hand."""
        kind, _, arch = text.partition(":")
        if kind == "cpu":
            return host() if not arch else _named_cpu(arch)
        known = {"cuda": CUDA, "rocm": ROCM}.get(kind)
        if known is None:
            raise IRError(f"no target kind {kind!r} in {text!r}; known: cpu, cuda, rocm")
        if arch not in known:
            raise IRError(f"no {kind} architecture {arch!r}; known: {', '.join(known)}")
        return Target(kind, arch)

    def __str__(self) -> str:
        return f"{self.kind}:{self.arch}"

    def has(self, *features: str) -> bool:
        """Whether the machine has every feature."""
        return all(f in self.features for f in features)

    @property
    def vector_bits(self) -> int:
        """The width of the widest vector registers, in bits."""
        if self.has("avx512f"):
            return 512
        return 256 if self.has("avx2") else 128

    def missing_on(self, machine: Target) -> frozenset[str]:
        """The features that code for this target needs and a machine lacks."""
        return self.features - machine.features


@dataclass(frozen=True)
class Host:
    """Where the machine at hand describes itself; other places stand for other machines."""

    cpuinfo: Path = Path("/proc/cpuinfo")
    cpus: Path = Path("/sys/devices/system/cpu")
    machine: str = field(default_factory=platform.machine)

    def features(self) -> frozenset[str]:
        """The features of the machine among those that targets speak of."""
        return frozenset(self._field("flags").split()) & _KNOWN

    def arch(self) -> str:
        """The most capable known processor all of whose features are here.

        An AMD processor is named after AMD's own or after a level of the psABI, any other after
        any of the rest.
        """
        features = self.features()
        is_amd = self._field("vendor_id") == "AuthenticAMD"
        named = [a for a in X86 if a.startswith("znver") == is_amd or a.startswith("x86-64")]
        fitting = [a for a in named if X86[a] <= features]
        return max(fitting, key=lambda a: (len(X86[a]), not a.startswith("x86-64")))

    def cores(self) -> int:
        """The cores that this process may use, threads of one core counted once."""
        if not hasattr(os, "sched_getaffinity"):
            return os.cpu_count() or 1
        return len({self._core(cpu) for cpu in os.sched_getaffinity(0)})

    def caches(self) -> tuple[int, int, int]:
        """Bytes of the first processor's data caches, level 1 to 3."""
        found = {1: 32 << 10, 2: 1 << 20, 3: 0}
        for index in (self.cpus / "cpu0/cache").glob("index*"):
            level, size = _read(index / "level"), _read(index / "size")
            if _read(index / "type") != "Instruction" and level.isdigit() and size:
                found[int(level)] = _bytes(size)
        return found[1], found[2], found[3]

    def model(self) -> str:
        """The processor's name as it gives it."""
        return self._field("model name")

    def _core(self, cpu: int) -> tuple[str, str]:
        """What tells a core apart; the number itself where the kernel does not say."""
        place = self.cpus / f"cpu{cpu}/topology"
        core = _read(place / "core_id") or f"cpu{cpu}"
        return _read(place / "physical_package_id"), core

    def _field(self, name: str) -> str:
        if self.machine not in ("x86_64", "AMD64"):
            raise IRError(f"the CPU backend knows x86-64, not {self.machine}")
        for line in _read(self.cpuinfo).splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
        raise IRError(f"{self.cpuinfo} lists no {name}: the processor is unknown")


def host(machine: Host | None = None) -> Target:
    """This machine, or another that describes itself: its ISA, cores, caches."""
    machine = machine or Host()
    return Target("cpu", machine.arch(), machine.features(), machine.cores(), *machine.caches())


def _named_cpu(arch: str) -> Target:
    if arch not in X86:
        near = difflib.get_close_matches(arch, X86, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise IRError(f"no CPU {arch!r}; {hint}known: {', '.join(X86)}")
    return Target("cpu", arch, X86[arch], Host().cores(), *Host().caches())


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _bytes(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    return int(text[:-1]) << units[text[-1]] if text[-1] in units else int(text)

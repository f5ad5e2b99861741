"""From an artifact's files to an executor on a device."""

from pathlib import Path

from ...ir.launches import LAUNCHES, LaunchTable
from ...ir.plan import Plan, PlanError
from ..errors import ArtifactError, StepError
from ..pools import Pools
from ..weights import Weights
from .device import CudaDevice
from .driver import Driver
from .executor import CudaExecutor, pools_that_fit

SPARE = 1 << 30
"""Bytes of a device, a sixteenth of a small one's, for what the driver takes: machine code, graphs,
stacks."""


def open_device(arch: str) -> CudaDevice:
    """The device at hand, which must run machine code for an architecture; raises ArtifactError
    where there is none that does.
    """
    try:
        device = CudaDevice()
    except StepError as error:
        raise ArtifactError(f"no CUDA device here: {error}") from error
    if not runs(device.arch, arch):
        raise ArtifactError(
            f"built for cuda:{arch}; this device is {device.name}, {device.arch}: compile it again "
            "for that"
        )
    return device


def runs(have: str, wanted: str) -> bool:
    """Whether a device runs machine code for an architecture: of its own major version, for the
    same minor version or an older one (CUDA C++ Programming Guide, binary compatibility). Code for
    9.0 and later uses what is of that version alone.
    """
    ours, theirs = (int(a.removeprefix("sm_")) for a in (have, wanted))
    same = ours // 10 == theirs // 10 and ours >= theirs
    return ours == theirs if theirs >= 90 else same


def has_device(arch: str) -> bool:
    """Whether there is a device that runs machine code for an architecture."""
    try:
        device = open_device(arch)
    except ArtifactError:
        return False
    device.close()
    return True


def read_launches(folder: Path) -> LaunchTable:
    """The launches of an artifact."""
    try:
        return LaunchTable.from_json((folder / LAUNCHES).read_bytes())
    except (OSError, PlanError) as error:
        raise ArtifactError(f"{folder / LAUNCHES}: {error}") from error


def open_executor(
    folder: Path,
    plan: Plan,
    weights: Weights,
    driver: Driver,
    pools: Pools | None = None,
    cache_bytes: int | None = None,
) -> CudaExecutor:
    """An executor with so many blocks of cache and states, or with as many as a budget or the
    device's free memory hold.
    """
    table = read_launches(folder)
    if pools is None:
        free = driver.free_bytes()
        pools = pools_that_fit(plan, table, free - min(free // 16, SPARE), cache_bytes)
    return CudaExecutor(plan, table, weights, pools, driver, folder)

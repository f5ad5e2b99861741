"""Loads a library of kernels and gives the calling thread the workers that parallel kernels use.

Kernels need tvm_ffi for their errors and, where they are parallel, `TVMBackendParallelLaunch` of
libtvm_runtime.so, which registers itself with tvm_ffi when it is loaded. No Python of TVM is
imported.
"""

import ctypes
import os
import shutil
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from .call_list import CallList, Calls
from .crew import Crew, Waits
from .errors import ArtifactError
from .ffi import tvm_ffi
from .workers import Workers

RUNTIME_LIBRARY = "libtvm_runtime.so"
_SHARE_ALL_CORES = -3  # ThreadGroup::kSpecifyThreadShareAllCore of TVM's threading backend


def available_cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    return tuple(sorted(os.sched_getaffinity(0)))


def real_cores(cpus: Path = Path("/sys/devices/system/cpu")) -> int:
    """How many cores those that this process may run on are, threads of one core counted once."""
    return len({_core(cpus / f"cpu{cpu}/topology", cpu) for cpu in available_cores()})


def _core(topology: Path, cpu: int) -> tuple[str, str]:
    """What tells a core apart; the number itself where the kernel does not say."""
    try:
        package, core = ((topology / n).read_text() for n in ("physical_package_id", "core_id"))
    except OSError:
        return "", f"cpu{cpu}"
    return package, core


class KernelLibrary:
    """A loaded kernels.so: `library["k3"]` is the kernel as a callable on tensors.

    `threads` are as many as asked for, all cores where it is None, never more than those: threads
    that share a core wait for each other. TVM keeps a pool of workers for each thread that calls
    kernels: such a thread calls `enter_thread` first.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        most = real_cores()
        if threads is not None and threads < 1:
            raise ValueError(f"threads={threads}: wanted 1 or more; there are {most} cores")
        self.threads = most if threads is None else min(threads, most)
        self.path = Path(path)
        load_parallel_runtime(self.path.parent)
        self._entered = threading.local()
        self._module = self._load()
        self._workers = Workers.of(self._module, self.path)

    def _load(self) -> tvm_ffi.Module:
        try:
            return tvm_ffi.load_module(str(self.path.resolve()))
        except Exception as error:
            reason = str(error).strip().splitlines()[-1]
            raise ArtifactError(f"{self.path}: cannot be loaded: {reason}") from error

    def __getitem__(self, name: str) -> Callable[..., None]:
        try:
            return self._module[name]
        except AttributeError:
            raise ArtifactError(f"{self.path}: holds no kernel {name!r}") from None

    def call_list(self, calls: Calls) -> CallList | None:
        """Its kernels with their tensors, to be called by the library itself; None where it was
        built without the means for it.
        """
        return None if self._workers is None else self._workers.call_list(calls)

    def enter_thread(self) -> None:
        """Give the calling thread its workers, once; its affinity becomes all cores given to us."""
        if hasattr(self._entered, "crew"):
            return
        if self._workers is None:
            waits = Waits.of_workers(lambda: use_threads(self.threads))
            self._entered.crew = Crew(self.threads, use_threads, waits)
            return
        workers = self._workers
        waits = Waits.of_workers(lambda: workers.hire(self.threads))
        self._entered.crew = Crew(self.threads, workers.hire, waits)
        workers.dismiss_with(self._entered.crew, workers.hire(self.threads))

    def leave_thread(self) -> None:
        """End the calling thread's workers; it may enter again."""
        if hasattr(self._entered, "crew"):
            del self._entered.crew

    @property
    def crew(self) -> Crew:
        """The calling thread's workers, to be entered around each step; they are fewer while other
        processes hold cores.
        """
        self.enter_thread()
        return self._entered.crew


def use_threads(count: int) -> None:
    """Give the calling thread `count` workers, itself among them, on all cores given to us.

    TVM's runtime must be loaded; its own guess would be half of the cores, as if they were
    hyper-threads.
    """
    configure = tvm_ffi.get_global_func("runtime.config_threadpool")
    configure(_SHARE_ALL_CORES, count, [str(core) for core in available_cores()])


def load_parallel_runtime(beside: Path) -> None:
    """Load libtvm_runtime.so, once in a process: TVM's own where installed, else the copy `beside`.

    TVM's own comes first because a later `import tvm` loads that file, and two copies in one
    process would register everything twice.
    """
    if tvm_ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is not None:
        return
    candidates = [*installed_runtime(), beside / RUNTIME_LIBRARY]
    for path in candidates:
        if path.is_file():
            ctypes.CDLL(str(path.resolve()))
            return
    looked = ", ".join(map(str, candidates))
    raise ArtifactError(f"no {RUNTIME_LIBRARY}: install apache-tvm, or put it at one of {looked}")


def bundle_runtime(directory: Path) -> None:
    """Copy libtvm_runtime.so (3.4 MB) and its licence into an artifact, which then needs no TVM.

    Raises `ArtifactError` where apache-tvm is not installed.
    """
    found = installed_runtime()
    if not found:
        raise ArtifactError(f"no {RUNTIME_LIBRARY} to copy: apache-tvm is not installed")
    shutil.copyfile(found[0], directory / RUNTIME_LIBRARY)
    shutil.copyfile(found[0].parent.parent / "LICENSE", directory / f"{RUNTIME_LIBRARY}.LICENSE")


def installed_runtime() -> tuple[Path, ...]:
    """Where the installed apache-tvm, if there is one, keeps libtvm_runtime.so."""
    spec = find_spec("tvm")
    if spec is None or spec.origin is None:
        return ()
    return (Path(spec.origin).parent / "lib" / RUNTIME_LIBRARY,)

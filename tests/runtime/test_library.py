"""Parallel kernels, loaded without TVM's compiler, on the threads that were asked for."""

import subprocess
import sys
import threading

import numpy as np
import pytest
from ferrule.runtime.errors import ArtifactError
from ferrule.runtime.library import (
    RUNTIME_LIBRARY,
    KernelLibrary,
    available_cores,
    bundle_runtime,
    real_cores,
    use_threads,
)
from ferrule.runtime.tensors import aligned_bytes, allocate, place, to_tensor


def run_double(library, rows):
    x, y = allocate("f32", (rows, 64)), allocate("f32", (rows, 64))
    x[:] = np.random.default_rng(rows).standard_normal(x.shape)
    y[:] = np.nan
    library.enter_thread()
    library["double"](to_tensor(x), to_tensor(y))
    np.testing.assert_array_equal(y, x * 2)


@pytest.mark.parametrize("threads", [1, None])
def test_a_parallel_kernel_runs(toy_kernels, threads):
    run_double(KernelLibrary(toy_kernels, threads), 333)


def test_each_thread_has_its_workers(toy_kernels):
    import tvm_ffi

    library = KernelLibrary(toy_kernels)
    counts = []

    def work():
        run_double(library, 77)
        counts.append(tvm_ffi.get_global_func("runtime.NumThreads")())

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert counts == [library.threads] * 3


def test_runs_without_the_compiler(toy_kernels):
    code = (
        "import sys; from ferrule.runtime.library import KernelLibrary; from pathlib import Path\n"
        f"library = KernelLibrary(Path({str(toy_kernels)!r}))\n"
        "from ferrule.runtime.tensors import allocate, to_tensor\n"
        "x, y = allocate('f32', (5, 64)), allocate('f32', (5, 64)); x[:] = 3; y[:] = float('nan')\n"
        "library.enter_thread()\n"
        "library['double'](to_tensor(x), to_tensor(y)); assert (y == 6).all()\n"
        "import ferrule.runtime.artifact\n"
        "heavy = {'tvm', 'torch', 'sympy', 'transformers', 'triton'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "maps = open('/proc/self/maps').read(); assert 'libtvm_compiler' not in maps\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_library_beside_the_kernels_serves_where_tvm_is_not_installed(toy_kernels, tmp_path):
    bundle_runtime(tmp_path)
    (tmp_path / "kernels.so").write_bytes(toy_kernels.read_bytes())
    code = (
        "import ferrule.runtime.library as library; from pathlib import Path\n"
        "library.installed_runtime = lambda: ()\n"
        f"library.KernelLibrary(Path({str(tmp_path / 'kernels.so')!r}))['double']\n"
        f"assert {str(tmp_path / RUNTIME_LIBRARY)!r} in open('/proc/self/maps').read()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_no_runtime_library_is_an_error_that_says_where_it_looked(tmp_path):
    code = (
        "import ferrule.runtime.library as library; from pathlib import Path\n"
        "library.installed_runtime = lambda: ()\n"
        f"library.KernelLibrary(Path({str(tmp_path / 'kernels.so')!r}))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 1
    assert f"no libtvm_runtime.so: install apache-tvm, or put it at one of {tmp_path}" in run.stderr


def test_errors_name_the_library(toy_kernels, tmp_path):
    library = KernelLibrary(toy_kernels)
    with pytest.raises(ArtifactError, match=r"kernels\.so: holds no kernel 'nope'"):
        library["nope"]
    (tmp_path / "kernels.so").write_bytes(b"not a library")
    with pytest.raises(
        ArtifactError, match=r"kernels\.so: cannot be loaded: .*invalid ELF|too short"
    ):
        KernelLibrary(tmp_path / "kernels.so")
    with pytest.raises(ValueError, match="threads=0: wanted 1 or more"):
        KernelLibrary(toy_kernels, 0)


def test_more_threads_than_cores_are_as_many_as_cores(toy_kernels):
    library = KernelLibrary(toy_kernels, 999)
    assert library.threads == KernelLibrary(toy_kernels).threads <= len(available_cores())
    run_double(library, 101)


def test_threads_of_one_core_are_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3, 9})
    for cpu, core in ((0, 7), (1, 7), (2, 8), (3, 8)):
        place = tmp_path / f"cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "physical_package_id").write_text("0\n")
        (place / "core_id").write_text(f"{core}\n")
    assert real_cores(tmp_path) == 3


def test_a_crew_that_gives_way_computes_the_same(toy_kernels):
    library = KernelLibrary(toy_kernels)
    with library.crew:
        run_double(library, 333)
        use_threads(1)
        run_double(library, 333)
        use_threads(library.threads)
    run_double(library, 333)


def test_memory_that_is_not_aligned_is_refused():
    memory = aligned_bytes(64 * 4 + 16)
    assert memory.ctypes.data % 64 == 0
    with pytest.raises(Exception, match="not aligned to 64"):
        to_tensor(place(memory, 16, "f32", (64,)))


def test_packed_dtypes_lie_in_bytes():
    assert allocate("i4", (3, 7)).shape == (3, 4)
    assert allocate("i2", (3, 9)).shape == (3, 3)
    assert allocate("bf16", (3, 7)).dtype == np.uint16
    assert allocate("u4", ()).shape == ()

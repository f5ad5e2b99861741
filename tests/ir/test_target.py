"""Targets: what their names mean, and what a machine says of itself."""

import os

import pytest
from ferrule.ir.errors import IRError
from ferrule.ir.target import X86, Host, Target, host

V3 = "sse4_2 ssse3 popcnt avx avx2 fma f16c bmi2"
V4 = V3 + " avx512f avx512bw avx512cd avx512dq avx512vl"


def machine(tmp_path, flags, vendor="GenuineIntel", cores=(0, 1)):
    """A machine with these words in its /proc/cpuinfo and these core ids."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: Some CPU @ 2GHz\n"
        f"flags\t\t: fpu {flags} lm\n\nprocessor\t: 1\nvendor_id\t: {vendor}\n"
    )
    for cpu, core in enumerate(cores):
        place = tmp_path / f"cpu{cpu}/topology"
        place.mkdir(parents=True)
        (place / "core_id").write_text(f"{core}\n")
        (place / "physical_package_id").write_text("0\n")
    sizes = (("Data", 1, "48K"), ("Instruction", 1, "64K"), ("Unified", 2, "2M"))
    for at, (kind, level, size) in enumerate((*sizes, ("Unified", 3, "1G"))):
        place = tmp_path / f"cpu0/cache/index{at}"
        place.mkdir(parents=True)
        for name, text in (("type", kind), ("level", level), ("size", size)):
            (place / name).write_text(f"{text}\n")
    return Host(cpuinfo, tmp_path, "x86_64")


@pytest.mark.parametrize(
    ("flags", "vendor", "arch", "bits"),
    [
        ("", "GenuineIntel", "x86-64", 128),
        ("sse4_2 ssse3 popcnt", "GenuineIntel", "x86-64-v2", 128),
        (V3, "GenuineIntel", "haswell", 256),
        (V3, "AuthenticAMD", "znver1", 256),
        (V3 + " avx_vnni", "GenuineIntel", "alderlake", 256),
        (V4, "GenuineIntel", "skylake-avx512", 512),
        (V4, "AuthenticAMD", "x86-64-v4", 512),
        (V4 + " avx512_vnni avx512vbmi avx512_bf16", "AuthenticAMD", "znver4", 512),
        (V4 + " avx512_vnni avx512vbmi avx512_bf16 avx_vnni", "AuthenticAMD", "znver5", 512),
        (V4 + " avx512_vnni avx512_bf16", "GenuineIntel", "cooperlake", 512),
    ],
)
def test_the_host_is_named_by_what_it_can_do(tmp_path, flags, vendor, arch, bits):
    found = host(machine(tmp_path, flags, vendor))
    assert found.arch == arch and found.vector_bits == bits
    assert X86[arch] <= found.features and found.features <= set(flags.split())
    assert (found.l1_bytes, found.l2_bytes, found.l3_bytes) == (48 << 10, 2 << 20, 1 << 30)


def test_threads_of_one_core_count_once(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert machine(tmp_path, V3, cores=(0, 1, 0, 1)).cores() == 2
    assert Host(tmp_path / "cpuinfo", tmp_path / "nothing", "x86_64").cores() == 4


def test_machines_that_say_nothing(tmp_path):
    bare = Host(tmp_path / "cpuinfo", tmp_path, "x86_64")
    assert bare.caches() == (32 << 10, 1 << 20, 0)
    with pytest.raises(IRError, match="cpuinfo lists no flags"):
        bare.features()
    with pytest.raises(IRError, match="knows x86-64, not riscv64"):
        host(Host(machine="riscv64"))


def test_this_machine():
    here = Target.parse("cpu")
    assert here == host() and here.cores >= 1 and str(here).startswith("cpu:")
    assert Host().model()


def test_targets_by_name():
    named = Target.parse("cpu:x86-64-v3")
    assert named.has("avx2", "fma") and not named.has("avx512f") and str(named) == "cpu:x86-64-v3"
    assert Target.parse("cpu:znver5").missing_on(named) >= {"avx512f", "avx_vnni"}
    assert not named.missing_on(Target.parse("cpu:znver5"))
    assert str(Target.parse("cuda:sm_90")) == "cuda:sm_90" and Target.parse("rocm:gfx942").kind


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpu:znver6", "no CPU 'znver6'; did you mean 'znver"),
        ("tpu:v5", "no target kind 'tpu' in 'tpu:v5'; known: cpu, cuda, rocm"),
        ("cuda:sm_35", "no cuda architecture 'sm_35'; known: sm_70"),
        ("rocm", "no rocm architecture ''"),
    ],
)
def test_refused(text, message):
    with pytest.raises(IRError, match=message):
        Target.parse(text)

"""Measured rates of a machine, measured once."""

import time
from dataclasses import replace

import pytest
from ferrule.codegen.backend import integer_dot
from ferrule.compiler import hardware as measured
from ferrule.compiler.hardware import Hardware, fingerprint, hardware
from ferrule.compiler.records import read_records
from ferrule.ir.target import Target


def test_this_machine_is_measured_once(tmp_path, monkeypatch):
    target, path = Target.parse("cpu"), tmp_path / "records.jsonl"
    begin = time.process_time()
    made = hardware(target, path)
    assert time.process_time() - begin < 30
    assert made.read_bandwidth > 1e8 and made.cache_bandwidth > 1e8 and made.peak["f32"] > 1e8
    assert ("bf16" in made.peak) == target.has("avx512f", "avx512_bf16")
    assert ("i8" in made.peak) == bool(integer_dot(target))
    assert list(read_records(path)) == [f"hardware/{fingerprint(target)}"]

    def again(given):
        raise AssertionError("measured twice")

    monkeypatch.setattr(measured, "measure", again)
    assert hardware(target, path) == made


def test_a_machine_without_wide_vectors_has_its_f32_rate(monkeypatch):
    """Code for an older instruction set runs here too, more slowly."""
    from ferrule.codegen.tvm import probes

    monkeypatch.setattr(probes, "SECONDS", 0.01)
    rates = probes.peak_operations(replace(Target.parse("cpu:x86-64-v2"), cores=1))
    assert rates.keys() == {"f32"} and rates["f32"] > 1e8


def test_fingerprints_tell_machines_apart():
    target = Target.parse("cpu")
    others = [
        replace(target, cores=target.cores + 1),
        replace(target, l3_bytes=1),
        replace(target, features=target.features ^ {"amx_int8"}),
    ]
    assert len({fingerprint(t) for t in (target, *others)}) == 4


def test_the_roofline():
    machine = Hardware("m", 10.0, {"f32": 100.0, "bf16": 200.0})
    assert machine.peak_of("f16") == 100.0
    assert Hardware("m", 10.0, {"f32": 100.0, "bf16": 50.0}).peak_of("bf16") == 100.0
    assert machine.seconds(100, 100) == 10.0
    assert machine.seconds(1, 1000, "bf16") == pytest.approx(5.0)

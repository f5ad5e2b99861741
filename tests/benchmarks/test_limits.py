"""Limits are what the machine was seen to do."""

from ferrule.compiler.hardware import Hardware

from benchmarks.limits import best, line

CALM = Hardware("cpu", 30e9, {"f32": 0.5e12, "i8": 8e12})
BUSY = Hardware("cpu", 31e9, {"f32": 0.2e12, "i8": 4e12})


def test_the_higher_rate_of_each_kind_counts():
    assert best(BUSY, CALM) == best(CALM, BUSY)
    assert best(BUSY, CALM) == Hardware("cpu", 31e9, {"f32": 0.5e12, "i8": 8e12})


def test_a_line_of_the_report():
    assert line(CALM) == "cpu: reads 30.0 GB/s, computes 0.50 Tf32/s, 8.00 Ti8/s"

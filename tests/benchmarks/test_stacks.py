"""Stacks are found where they are installed and skipped by name where they are not."""

import sys

import pytest

from benchmarks.stacks import FORMATS, PEERS, STACKS, find, interpreters


def test_interpreters_come_from_the_environment_and_options_win(monkeypatch):
    monkeypatch.setenv(PEERS, "llama.cpp=/a/python,vllm=/b/python")
    assert interpreters(["vllm=/c/python"]) == {"llama.cpp": "/a/python", "vllm": "/c/python"}


@pytest.mark.parametrize("text", ["llama=/a/python", "vllm", "vllm="])
def test_an_unknown_peer_is_refused(monkeypatch, text):
    monkeypatch.delenv(PEERS, raising=False)
    with pytest.raises(SystemExit, match=r"wanted NAME=PYTHON, NAME one of ferrule, llama\.cpp"):
        interpreters([text])


def test_what_is_not_installed_is_skipped_by_name():
    pythons = {"openvino": "/no/such/python"}
    found, skipped = find(["ferrule", "openvino", "vllm", "llama.cpp-avx2"], pythons)
    assert [(i.stack.name, i.python) for i in found] == [("ferrule", sys.executable)]
    assert skipped == [
        "skipped openvino: /no/such/python has no start: No such file or directory",
        f"skipped vllm: {sys.executable} has no vllm",
        "skipped llama.cpp-avx2: its build has an interpreter of its own, none given",
    ]


def test_every_format_is_known_and_offered_by_ferrule():
    assert all(set(stack.layouts) <= set(FORMATS) for stack in STACKS.values())
    assert set(STACKS["ferrule"].layouts) == set(FORMATS)

"""The stacks that are measured: what runs each, what it stores, where its interpreter is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .cases import Layout

ROOT = Path(__file__).resolve().parent.parent
PEERS = "FERRULE_BENCH_PEERS"  # NAME=PYTHON[,NAME=PYTHON...]
FORMATS = ("bf16", "int8", "int4")
AVX2 = "cpu:x86-64-v3"
_WHOLE = Layout(16)
_GROUPS_OF_32 = Layout(4, 32, 16)
_BLOCKS_OF_128 = Layout(4, 128, 16 + 4 * 4)  # a scale, and multipliers of four groups


@dataclass(frozen=True)
class Stack:
    """One stack: the module of its worker, the modules its environment must have, how it stores
    each format that it offers, bits of a number in its cache, and the target whose limits its
    figures are held against.

    One that `needs_asking` is measured only where its name is given.
    """

    name: str
    worker: str
    needs: tuple[str, ...]
    layouts: Mapping[str, Layout]
    mode: str = ""
    kv_bits: int = 16
    target: str = "cpu"
    needs_asking: bool = False
    environment: Mapping[str, str] = field(default_factory=dict[str, str])


_FERRULE = {"bf16": _WHOLE, "int8": Layout(8), "int4": _BLOCKS_OF_128}
_LLAMA_CPP = {"bf16": _WHOLE, "int8": Layout(8, 32, 16), "int4": _GROUPS_OF_32}
_LLAMA_NEEDS = ("llama_cpp", "gguf")
STACKS: Mapping[str, Stack] = {
    stack.name: stack
    for stack in (
        Stack("ferrule", "ferrule", ("ferrule", "torch", "tvm"), _FERRULE),
        Stack("llama.cpp", "llama_cpp", _LLAMA_NEEDS, _LLAMA_CPP),
        Stack(
            "openvino",
            "openvino",
            ("openvino_genai", "optimum.intel", "nncf"),
            {"bf16": _WHOLE, "int8": Layout(8), "int4": _GROUPS_OF_32},
            kv_bits=8,
        ),
        Stack("vllm", "vllm", ("vllm", "vllm._C"), {"bf16": _WHOLE}),
        Stack("hf-eager", "hugging_face", ("transformers", "torch"), {"bf16": _WHOLE}),
        Stack(
            "hf-compile",
            "hugging_face",
            ("transformers", "torch"),
            {"bf16": _WHOLE},
            mode="compile",
        ),
        Stack(
            "ferrule-avx2",
            "ferrule",
            ("ferrule", "torch", "tvm"),
            _FERRULE,
            target=AVX2,
            needs_asking=True,
        ),
        Stack(
            "llama.cpp-avx2",
            "llama_cpp",
            _LLAMA_NEEDS,
            _LLAMA_CPP,
            target=AVX2,
            needs_asking=True,
        ),
    )
}


def interpreters(given: Sequence[str]) -> dict[str, str]:
    """Pythons by stack, from the environment variable and then from `NAME=PYTHON` options."""
    found: dict[str, str] = {}
    for text in [*filter(None, os.environ.get(PEERS, "").split(",")), *given]:
        name, _, python = text.partition("=")
        if name not in STACKS or not python:
            raise SystemExit(f"{text!r}: wanted NAME=PYTHON, NAME one of {', '.join(STACKS)}")
        found[name] = python
    return found


@dataclass(frozen=True)
class Installed:
    """A stack with the interpreter that runs it."""

    stack: Stack
    python: str


def find(names: Sequence[str], pythons: Mapping[str, str]) -> tuple[list[Installed], list[str]]:
    """The stacks of these names that are installed, and a line for each that is not."""
    found: list[Installed] = []
    skipped: list[str] = []
    for name in names:
        stack, python = STACKS[name], pythons.get(name, sys.executable)
        if stack.needs_asking and stack.worker != "ferrule" and name not in pythons:
            skipped.append(f"skipped {name}: its build has an interpreter of its own, none given")
        elif missing := _missing(python, stack.needs):
            skipped.append(f"skipped {name}: {python} has no {missing}")
        else:
            found.append(Installed(stack, python))
    return found, skipped


def _missing(python: str, modules: Sequence[str]) -> str:
    """The first of the modules that an interpreter does not find, or what keeps it from looking."""
    script = (
        "import sys, importlib.util\n"
        "for name in sys.argv[1:]:\n"
        "    try: found = importlib.util.find_spec(name)\n"
        "    except ImportError: found = None\n"
        "    if not found: print(name); break\n"
    )
    try:
        done = subprocess.run(
            [python, "-c", script, *modules], capture_output=True, text=True, check=False, cwd=ROOT
        )
    except OSError as error:
        return f"start: {error.strerror}"
    return done.stdout.strip() if not done.returncode else f"start: {done.stderr.strip()[-200:]}"

"""Compile the embedded model, show what the compiler did, complete a few prompts.

Run it with `make demo`, or `python examples/demo.py [MODEL]`; it needs no network.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.console import print_build, print_explanation
from ferrule.compiler.explain import explain
from ferrule.compiler.plan_report import read_memory

import ferrule

MODEL = Path(__file__).parent / "models/tiny-llama"
PROMPTS = (
    "def fibonacci(n):\n",
    "import os\n\n\ndef read_file(path):",
    "The function returns",
    "class Stack:",
)


def show_completions(artifact: ferrule.Artifact, tokens: int) -> None:
    """Complete the prompts in one batch, print them, and say how fast it went."""
    sampling = ferrule.SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True)
    artifact.generate(PROMPTS[0], sampling)  # the first run makes the caches
    begin = time.perf_counter()
    completions = artifact.generate(list(PROMPTS), sampling)
    together = time.perf_counter() - begin
    begin = time.perf_counter()
    artifact.generate(PROMPTS[0], sampling)
    alone = time.perf_counter() - begin
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        print(f"\n--- {prompt!r}\n{prompt}{completion.text}")
    made = sum(len(c.token_ids) for c in completions)
    print(f"\n{len(PROMPTS)} prompts together: {made / together:.0f} tokens/s", end="; ")
    print(f"one alone: {tokens / alone:.0f} tokens/s ({artifact.library.threads} threads)")


def main() -> None:
    """Compile, show, complete."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default=str(MODEL))
    parser.add_argument("--tokens", type=int, default=48)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "artifact"
        artifact = compile_to(given.model, place, Options(max_context=1024, max_batch=8))
        print_build(artifact.manifest, str(place))
        print(f"\n{read_memory(place)}\n")
        print_explanation(explain(artifact, entry="decode"))
        show_completions(artifact, given.tokens)


if __name__ == "__main__":
    main()

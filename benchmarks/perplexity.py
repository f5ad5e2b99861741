"""Perplexity of a model on texts, by format of its weights.

    python -m benchmarks.perplexity MODEL TEXT [TEXT ...] [--formats float32,int8,int4-g64-asym]
        [--window 512] [--tokens 20000]

exp of the mean negative log probability of each token given those before it in its window; windows
do not overlap, and the first token of each is not counted. Every figure comes from an artifact, run
through its own kernels; weights of few bits are made from float32, and a float format names both
the weights' and the activations' type. Top-1 and KL beside it are those of the build's own check
against the eager model. Texts are read from where they lie.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ferrule.compiler.build import Options, compile_to
from ferrule.compiler.console import print_table, size_text
from ferrule.runtime.executor import Batch, Executor
from ferrule.runtime.library import KernelLibrary
from ferrule.runtime.text import Text
from ferrule.runtime.weights import Weights

FLOATS = ("float32", "bfloat16", "float16")
DEFAULT = "float32,bfloat16,int8,int4,int4-g32,int4-g32-asym,int4-g64,int4-g128"


class Measured(NamedTuple):
    """One format: bytes of its weights, the perplexity of each text by name, and the build's own
    comparison with the eager model: the share of equal likeliest tokens, and the mean divergence.
    """

    form: str
    nbytes: int
    perplexity: Mapping[str, float]
    top1: float
    kl: float


def windows(ids: Sequence[int], size: int, most: int) -> Iterator[Sequence[int]]:
    """The first `most` tokens in windows of a size; a last one of a single token is left out."""
    for begin in range(0, min(len(ids), most), size):
        if len(part := ids[begin : min(begin + size, most)]) > 1:
            yield part


def whole_step(ids: Sequence[int], block: int) -> Batch:
    """A window in one step of one sequence, with the logits of every token but the last."""
    count = len(ids)
    return Batch(
        tokens=ids,
        positions=range(count),
        query_start=[0, count],
        context_length=[count],
        block_table=[range(-(-count // block))],
        slots=range(count),
        logit_rows=range(count - 1),
        state_from=[-1],
        state_to=[0],
    )


def negative_log_likelihood(logits: np.ndarray, after: Sequence[int]) -> float:
    """The sum of -log softmax(logits[i])[after[i]]."""
    wide = logits.astype(np.float64)
    top = wide.max(1)
    norm = top + np.log(np.exp(wide - top[:, None]).sum(1))
    return float((norm - wide[np.arange(len(after)), list(after)]).sum())


def perplexity(runner: Executor, ids: Sequence[int], window: int, most: int) -> float:
    """The perplexity of a text's first `most` tokens in windows."""
    total, count = 0.0, 0
    for part in windows(ids, window, most):
        _, logits = runner.step(whole_step(part, runner.block))
        total += negative_log_likelihood(logits, part[1:])
        count += len(part) - 1
    if not count:
        raise ValueError("no two tokens of text were given")
    return math.exp(total / count)


def measure(model: str, form: str, texts: Sequence[Path], window: int, most: int) -> Measured:
    """Build a model in one format and measure each text."""
    dtype, quantize = (form, None) if form in FLOATS else ("float32", form)
    options = Options(
        dtype=dtype, quantize=quantize, max_context=window, max_batch=1, chunk=window,
        progress=False,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        artifact = compile_to(model, Path(folder) / "artifact", options)
        weights, library = (
            Weights(artifact.path / "weights.safetensors"),
            KernelLibrary(artifact.path / "kernels.so"),
        )
        blocks = -(-window // artifact.plan.block)
        runner = Executor(artifact.plan, library, weights, blocks)
        encode = Text(artifact.path / "tokenizer").encode
        found = {
            text.name: perplexity(
                runner, encode(text.read_text(encoding="utf-8")[: most * 12]), window, most
            )
            for text in texts
        }
        parity = artifact.manifest["parity"]
        return Measured(form, weights.nbytes, found, parity["top1"], parity["kl"])


def main() -> None:
    """Print a table: a line for each format, a column for each text, the change from the first."""
    parser = argparse.ArgumentParser(description="Perplexity by format of the weights.")
    parser.add_argument("model")
    parser.add_argument("texts", nargs="+", type=Path)
    parser.add_argument("--formats", default=DEFAULT)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=20_000)
    given = parser.parse_args()
    rows = [
        measure(given.model, form, given.texts, given.window, given.tokens)
        for form in given.formats.split(",")
    ]
    names = [text.name for text in given.texts]
    first = rows[0].perplexity
    lines = [
        (
            *(r.form, size_text(r.nbytes)),
            *(_shown(r.perplexity[n], first[n]) for n in names),
            *(f"{r.top1:.0%}", f"{r.kl:.1e}"),
        )
        for r in rows
    ]
    columns = ("format", "#weights", *(f"#{n}" for n in names), "#top-1", "#KL")
    print_table("perplexity", columns, lines)


def _shown(value: float, first: float) -> str:
    return f"{value:.3f} ({value / first - 1:+.2%})"


if __name__ == "__main__":
    main()

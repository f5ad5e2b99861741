"""The zoo: every causal-LM type that transformers offers, as a tiny model, compiled and held
against eager PyTorch.

Each type runs in a process of its own, which a time limit ends. What was found is kept as lines of
JSON, so that a run that was ended goes on where it was.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CompileError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..runtime.artifact import Artifact

COUNT = 32  # greedy tokens of each prompt
WARMING = "llama"
TIE = 1e-4  # of the largest logit: where the two best are nearer, either is the best


@dataclass(frozen=True)
class Found:
    """What became of one type. `tokens` of `wanted` greedy tokens are eager's (after a tie in
    eager's logits a sequence is no longer compared); `error` is the largest difference of a logit
    over its row's largest; `kernels` is those of a decode step, for each of `layers`; `refused` is
    the one-line error of a type that is not served;
    `seconds` of one processor go to compiling.
    """

    kind: str
    family: str = ""
    tokens: int = 0
    wanted: int = 0
    error: float = 0.0
    kernels: int = 0
    layers: int = 1
    seconds: float = 0.0
    refused: str = ""

    @property
    def served(self) -> bool:
        """Whether the type compiles and gives eager's tokens."""
        return not self.refused and self.tokens == self.wanted


def zoo_types() -> list[str]:
    """The types of causal language models that the installed transformers offers."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def chosen_types(only: Sequence[str], sample: int | None, seed: int) -> list[str]:
    """The types to try: those named, or so many drawn by a seed, or all."""
    known = zoo_types()
    if unknown := [k for k in only if k not in known]:
        raise CompileError(f"no causal-LM type {', '.join(unknown)}; known: {', '.join(known)}")
    types = list(only) or known
    if sample is None:
        return types
    if not 1 <= sample <= len(types):
        raise CompileError(f"a sample is 1 to {len(types)} types, not {sample}")
    return sorted(random.Random(seed).sample(types, sample))


# -- one type


def try_type(kind: str) -> Found:
    """Build the tiny model of a type, compile it, compare its tokens and logits with eager's."""
    import transformers

    from .sources import model_line
    from .zoo_configs import layers_of
    from .zoo_models import tiny_model

    transformers.logging.set_verbosity_error()
    try:
        model = tiny_model(kind)
    except Exception as error:
        at = f", at {line}" if (line := model_line(error)) else ""
        said = f"no tiny model{at}: {type(error).__name__}: {error}"
        return Found(kind, refused=_line(said))
    family = type(model).__name__
    begun = _spent()
    try:
        artifact = compiled(model)
        seconds = _spent() - begun
        tokens, wanted, error = _compared(artifact, model)
    except Exception as fault:
        said = str(fault) if isinstance(fault, CompileError) else f"{type(fault).__name__}: {fault}"
        return Found(kind, family, seconds=_spent() - begun, refused=_line(said))
    layers = layers_of(model.config)
    kernels = len(artifact.plan.entries["decode"].calls)
    return Found(kind, family, tokens, wanted, error, kernels, layers, seconds)


def _spent() -> float:
    """Seconds of processors that this process and those it ran have taken: unlike those of a clock,
    the same on a machine that has other work.
    """
    return sum(os.times()[:4])


def compiled(model: nn.Module) -> Artifact:
    """A tiny model's artifact, not yet compared with eager."""
    from .build import Options, build_in_temporary

    options = Options(max_context=64, max_batch=4, chunk=40, progress=False, parity=False)
    return build_in_temporary(model, options)


def _compared(artifact: Artifact, model: nn.Module) -> tuple[int, int, float]:
    """Equal tokens, compared tokens and the largest relative error of a ragged batch."""
    from ..runtime.sampling import SamplingParams
    from .zoo_models import eager_greedy, zoo_prompts

    prompts = zoo_prompts()
    eager = [eager_greedy(model, p, COUNT) for p in prompts]
    sampling = SamplingParams(temperature=0.0, max_tokens=COUNT, ignore_eos=True)
    made = [list(c.token_ids) for c in artifact.generate(prompts, sampling)]
    equal = compared = 0
    for given, (tokens, rows) in zip(made, eager, strict=True):
        sure = decided(rows)
        compared += sure
        equal += equal_tokens(given[:sure], tokens[:sure])
    sequences = [p + tokens[:-1] for p, (tokens, _) in zip(prompts, eager, strict=True)]
    return equal, compared, largest_error(artifact, sequences, [rows for _, rows in eager])


def equal_tokens(given: Sequence[int], wanted: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    return next(
        (at for at, (a, b) in enumerate(zip(given, wanted, strict=True)) if a != b), len(wanted)
    )


def decided(rows: Tensor) -> int:
    """How many rows [N, V] of logits come before the first whose two best are tied."""
    best = rows.topk(2, dim=-1).values
    ties = (best[:, 0] - best[:, 1]) < TIE * rows.nan_to_num(neginf=0.0).abs().amax(-1)
    return int(ties.int().argmax()) if bool(ties.any()) else len(rows)


def largest_error(artifact: Artifact, sequences: list[list[int]], eager: Sequence[Tensor]) -> float:
    """The largest logit error over a row's largest logit, all tokens but the prompt's decoded."""
    from ..runtime.executor import Executor
    from .parity import blocks_needed, built_rows, relative_error

    plan = artifact.plan
    runner = Executor(
        plan, artifact.library, artifact.weights, blocks_needed(sequences, plan.block)
    )
    worst = 0.0
    for n, rows in enumerate(eager):
        # Each alone and in the batch of all: what a row gives may not depend on the others.
        for group, at in (([sequences[n]], 0), (sequences, n)):
            built = built_rows(runner, group, decoded=len(rows) - 1)
            first = len(sequences[n]) - len(rows)
            for i, row in enumerate(rows.numpy()):
                given = np.asarray(built[at, first + i], np.float32)
                worst = max(worst, relative_error(row, given))
    return worst


def _line(text: str) -> str:
    """An error as one line of a table."""
    flat = " ".join(text.split())
    return re.sub(r"\S*/site-packages/", "", flat)[:400]


# -- all of them


def run_zoo(
    types: Sequence[str], records: Path, limit: float, watch: Callable[[Found], None]
) -> list[Found]:
    """Try each type that the records do not have; gives what is known of all of these types."""
    known = {found.kind: found for found in read_found(records)}
    for found in _each([k for k in types if k not in known], limit):
        known[found.kind] = found
        records.parent.mkdir(parents=True, exist_ok=True)
        with records.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(found)) + "\n")
        watch(found)
    return [known[k] for k in types]


def read_found(records: Path) -> list[Found]:
    """What earlier runs found; the last line about a type counts."""
    if not records.exists():
        return []
    lines = records.read_text(encoding="utf-8").splitlines()
    try:
        found = [Found(**json.loads(line)) for line in lines if line]
    except (ValueError, TypeError) as error:
        raise CompileError(f"{records}: no records of a zoo: {error}") from error
    return list({each.kind: each for each in found}.values())


def _each(types: Sequence[str], limit: float) -> Iterator[Found]:
    """Each type in a process of its own, forked from one that has the libraries loaded."""
    if not types:
        return
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe(duplex=False)
    home = spawn.Process(target=_fork_each, args=(list(types), limit, there))
    home.start()
    there.close()
    try:
        for _ in types:
            yield here.recv()
    except EOFError:
        raise CompileError("the process that the zoo's types are forked from has ended") from None
    finally:
        home.kill()
        home.join()
        here.close()


def _fork_each(types: list[str], limit: float, to: Any) -> None:
    """Send what becomes of each type. What a process does for the first time (loading libraries,
    filling their tables) takes longer than the rest: it is done once, before the forks.
    """
    from ..codegen.tvm.build import OBJECTS
    from .zoo_models import tiny_model

    if len(types) > 1:
        compiled(tiny_model(WARMING))  # no kernel is run, so no thread is begun
        OBJECTS.forget()  # each type's own kernels are part of its seconds
    fork = multiprocessing.get_context("fork")
    for kind in types:
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=_answer, args=(kind, there), daemon=True)
        process.start()
        there.close()
        to.send(_reply(kind, here, limit))
        process.kill()
        process.join()
        here.close()


def _answer(kind: str, to: Any) -> None:
    to.send(try_type(kind))


def _reply(kind: str, source: Any, limit: float) -> Found:
    home = multiprocessing.parent_process()
    assert home is not None, "types are tried in processes of their own"
    ready = multiprocessing.connection.wait([source, home.sentinel], limit)
    if home.sentinel in ready:
        sys.exit("the run that asked for this has ended")
    if not ready:
        return Found(kind, seconds=limit, refused=f"no answer in {limit:.0f} s")
    try:
        return source.recv()
    except EOFError:
        return Found(kind, refused="the process ended without an answer")

"""A toy artifact with real kernels (build_toy.py), and an executor without any."""

import json

import numpy as np
from ferrule.ir.plan import TensorSpec
from ferrule.runtime.executor import Batch
from ferrule.runtime.manifest import write_manifest
from ferrule.runtime.weights import WeightsWriter

VOCABULARY = 67
BLOCK = 4

I32 = "i32"
CACHE = ("cache", "kv", I32, ["C", BLOCK, 1])


def argument(kind, name, dtype, shape, offset=0):
    return {"kind": kind, "name": name, "dtype": dtype, "shape": shape, "offset": offset}


def toy_calls():
    sums = argument("workspace", None, I32, ["R"], 64)
    step = [
        ("block_table", ["N", "M"]),
        ("query_start", [["+", "N", 1]]),
        ("context_length", ["N"]),
    ]
    step += [("positions", ["T"]), ("logit_rows", ["R"])]
    return [
        {
            "kernel": "append",
            "arguments": [
                argument("input", "tokens", I32, ["T"]),
                argument("input", "slots", I32, ["T"]),
                argument("weight", "scale", I32, [1]),
                argument(*CACHE),
            ],
            "origin": "toy.append (toy.py:1)",
            "ops": "cache_append",
        },
        {
            "kernel": "attend",
            "arguments": [
                argument(*CACHE),
                *(argument("input", n, I32, s) for n, s in step),
                sums,
            ],
            "origin": "toy.attend (toy.py:2)",
        },
        {
            "kernel": "score",
            "arguments": [
                sums,
                argument("result", "logits", "f32", ["R", VOCABULARY]),
                argument("result", "argmax", I32, ["R"]),
            ],
            "origin": "toy.score (toy.py:3)",
        },
    ]


def toy_plan():
    return {
        "format": 1,
        "dims": {"T": [1, 16], "N": [1, 8], "R": [1, 16], "M": [1, 10]},
        "entries": {"decode": {"calls": toy_calls()}, "mixed": {"calls": toy_calls()}},
        "caches": [{"name": "kv", "dtype": I32, "entry": [1]}],
        "block": BLOCK,
        "workspace_bytes": 128,
        "limits": {"max_context": 40},
    }


def toy_next(tokens):
    return sum(t * (j + 1) for j, t in enumerate(tokens)) % VOCABULARY


def toy_generate(prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(toy_next(tokens))
    return tuple(tokens[len(prompt) :])


def write_toy(directory, kernels, *, features=()):
    directory.mkdir()
    (directory / "kernels.so").write_bytes(kernels.read_bytes())
    (directory / "plan.json").write_text(json.dumps(toy_plan()))
    with WeightsWriter(
        directory / "weights.safetensors", [TensorSpec("scale", I32, (1,))]
    ) as writer:
        writer.write("scale", np.array([1], np.int32))
    target = {"kind": "cpu", "arch": "x86-64", "features": list(features)}
    write_manifest(directory, {"target": target, "model": {"name": "toy"}})
    return directory


class FakeRunner:
    """Runs steps in plain Python over a paged cache, and checks everything it is given.

    With `states` the next token comes from a state alone, which a step updates before it may fail.
    """

    def __init__(
        self,
        *,
        block=4,
        blocks=16,
        chunk=8,
        max_batch=4,
        max_rows=None,
        max_context=None,
        window=0,
        states=0,
    ):
        self.block, self.blocks, self.chunk, self.max_batch = block, blocks, chunk, max_batch
        self.max_rows = max_rows or max_batch
        self.max_context = max_context or blocks * block
        self.vocabulary, self.window = VOCABULARY, window
        self.cache = np.full((blocks, block), -1)
        self.states, self.state_blocks = states, 2 if states else 0
        self.state = np.full((states, 2), -1)  # tokens so far, their sum as toy_next has it
        self.batches: list[Batch] = []
        self.fails_on = None  # a token that no step with it survives
        self.not_finite = None  # a token after which the logits are nan

    def step(self, batch):
        self.batches.append(batch)
        assert 1 <= len(batch.tokens) <= self.chunk
        assert 1 <= len(batch.context_length) <= self.max_batch
        assert 1 <= len(batch.logit_rows) <= self.max_rows
        assert len(batch.query_start) == len(batch.context_length) + 1
        sums = self._advance(batch) if self.states else None
        if self.fails_on in batch.tokens:
            raise RuntimeError(f"no kernel for token {self.fails_on}")
        assert len(set(batch.slots)) == len(batch.slots)
        for token, slot in zip(batch.tokens, batch.slots, strict=True):
            self.cache[slot // self.block, slot % self.block] = token
        logits = np.zeros((len(batch.logit_rows), VOCABULARY), np.float32)
        for index, row in enumerate(batch.logit_rows):
            logits[index] = self._logits(batch, row) if sums is None else _row(sums[row])
        return logits.argmax(-1).astype(np.int32), logits

    def copy_block(self, source, target):
        self.cache[target] = self.cache[source]

    def read_blocks(self, blocks):
        return (self.cache[list(blocks)],)

    def write_blocks(self, blocks, content):
        self.cache[list(blocks)] = content[0]

    def read_state(self, state):
        return (self.state[state].copy(),)

    def write_state(self, state, content):
        self.state[state] = content[0]

    def _advance(self, batch):
        """The sum behind each token, from the states on, which go to their places."""
        sums, before = [], self.state.copy()
        places = list(zip(batch.state_from, batch.state_to, strict=True))
        assert len(places) == len(batch.context_length)
        for n, (source, target) in enumerate(places):
            begin, end = batch.query_start[n : n + 2]
            assert 0 <= target < self.states
            assert all(target not in p for m, p in enumerate(places) if m != n), places
            count, total = before[source].tolist() if source >= 0 else (0, 0)
            assert count == batch.positions[begin], f"state of {count} tokens at {batch.positions}"
            for token in batch.tokens[begin:end]:
                count, total = count + 1, (total + token * (count + 1)) % VOCABULARY
                sums.append(total)
            self.state[target] = count, total
        return sums

    def _logits(self, batch, row):
        n = int(np.searchsorted(batch.query_start, row, side="right")) - 1
        position = batch.positions[row]
        assert position == batch.context_length[n] - (batch.query_start[n + 1] - row)
        blocks = batch.block_table[n]
        known = [
            int(self.cache[blocks[j // self.block], j % self.block])
            for j in range(max(0, position + 1 - (self.window or position + 1)), position + 1)
        ]
        if self.not_finite is not None and known[-1] == self.not_finite:
            return np.full(VOCABULARY, np.nan, np.float32)
        return _row(toy_next(known))


def _row(best):
    """Logits whose largest is that of a token."""
    return -np.abs(np.arange(VOCABULARY) - best).astype(np.float32)

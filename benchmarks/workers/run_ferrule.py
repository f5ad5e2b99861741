"""Ferrule: an artifact through its engine."""

from __future__ import annotations

from collections.abc import Mapping

from .protocol import Asks, Given, Prompts, run

CACHE = 1 << 30  # bytes, as every stack that asks for a number gets


class Ferrule:
    """An artifact, its engine stepped as a server does."""

    def __init__(self, given: Given) -> None:
        import ferrule

        artifact = ferrule.load(given.path, threads=given.threads, cache_bytes=CACHE)
        self._params = ferrule.SamplingParams
        self.engine = artifact.new_engine()
        self.names: list[str] = []
        target = artifact.manifest["target"]
        arch = f"{target['kind']}:{target['arch']}"
        self.details: Mapping[str, str] = {"version": ferrule.__version__, "target": arch}

    def prefill(self, prompts: Prompts, room: int) -> None:
        """Step until every sequence has its first token."""
        left = room - len(prompts[0])
        params = self._params(temperature=0.0, max_tokens=left, ignore_eos=True)
        self.names = [self.engine.submit(p, params) for p in prompts]
        waiting = set(self.names)
        while waiting:
            waiting -= {d.request_id for d in self.engine.step() if d.token_ids}

    def decode(self, steps: int) -> None:
        """Step until the sequences together have so many more tokens each."""
        made = 0
        while made < steps * len(self.names):
            made += sum(len(d.token_ids) for d in self.engine.step())

    def release(self) -> None:
        """Abort the requests."""
        for name in self.names:
            self.engine.abort(name)

    def serve(self, asks: Asks) -> None:
        """Step until nothing is left."""
        for prompt, count in asks:
            self.engine.submit(
                prompt, self._params(temperature=0.0, max_tokens=count, ignore_eos=True)
            )
        while self.engine.has_work:
            self.engine.step()


if __name__ == "__main__":
    run(Ferrule)

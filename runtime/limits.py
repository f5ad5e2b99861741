"""Limits of what an artifact serves, and limits below those that it was built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .errors import RequestError


@dataclass(frozen=True)
class Absent:
    """A token that may stand in no sequence, for the model counts whole sequences without it, and
    the place in the model where it does; None where there is no such token.
    """

    token: int | None = None
    place: str = ""

    @staticmethod
    def of_manifest(manifest: Mapping[str, Any]) -> Absent:
        """The token that an artifact's manifest names, where it names one."""
        given = manifest.get("absent")
        return Absent(int(given["token"]), str(given["place"])) if given else Absent()

    def to_json(self) -> dict[str, Any] | None:
        """As a manifest has it."""
        return None if self.token is None else asdict(self)

    @property
    def ends(self) -> frozenset[int]:
        """The tokens at which a sequence ends, for nothing can stand behind them."""
        return frozenset() if self.token is None else frozenset({self.token})

    def check(self, tokens: Sequence[int]) -> None:
        """Raise RequestError where a prompt has the token."""
        if self.token is not None and self.token in tokens:
            raise RequestError(
                f"token {self.token} stands at place {tokens.index(self.token)} of the prompt: it "
                "is padding, which the model leaves out of its count of the tokens at "
                f"{self.place}, so that earlier tokens depend on it; wanted a prompt without "
                "padding"
            )


ABSENT = Absent()


def check_budget(tokens: int | None, max_batch: int) -> None:
    """Raise ValueError where a step has no room for a token of each sequence of a full batch."""
    if tokens is not None and tokens < max_batch:
        raise ValueError(
            f"token_budget={tokens}: wanted {max_batch} or more, one token for each sequence of a"
            " full batch"
        )


def at_most(name: str, given: int | None, limit: int) -> int:
    """A limit that was given, or the artifact's own; ValueError where it is above that."""
    if given is not None and not 1 <= given <= limit:
        raise ValueError(f"{name}={given}: wanted 1 to {limit}, which the artifact was built for")
    return limit if given is None else given


def ended_by(reason: str, limit: int, most: int) -> str:
    """What in a model bounds its context, as the end of a sentence; nothing where there is no such
    thing, or where a lower limit was asked for.
    """
    return f": in the model, {reason}" if reason and limit == most else ""

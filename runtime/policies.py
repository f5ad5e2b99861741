"""Who is served first: small classes that order sequences.

A sequence's key must not become less while it waits: a queue that is kept in order relies on it.
"""

from collections import Counter
from collections.abc import Mapping

from .sequence import Sequence

Key = tuple[float, ...]
_CLIENTS = 4096  # clients whose lengths are remembered


class Policy:
    """Serves in the order of arrival; others override `key` and what they need to know."""

    name: str = "fcfs"
    charges: bool = False  # whether `charge` wants to be called
    by_priority: bool = False  # whether `key` looks at a sequence's priority

    def key(self, sequence: Sequence) -> Key:
        """The place of a sequence: the least is served first and preempted last."""
        return (sequence.arrival,)

    def admit(self, sequence: Sequence) -> None:
        """A sequence arrives."""

    def charge(self, sequence: Sequence, prompt: int, output: int) -> None:
        """Tokens of a sequence are served."""

    def leave(self, sequence: Sequence) -> None:
        """A sequence ends."""


class FirstCome(Policy):
    """Serves in the order of arrival."""


class ByPriority(Policy):
    """Serves lower numbers first, and in the order of arrival among equals."""

    name = "priority"
    by_priority = True

    def key(self, sequence: Sequence) -> Key:
        """Priority, then arrival."""
        return (sequence.priority, sequence.arrival)


class FairShare(Policy):
    """Serves the client that got the fewest tokens so far, each client in its own order.

    The virtual token counter of Sheng et al., Fairness in Serving Large Language Models (2024),
    algorithm 2: an output token counts twice a prompt token, and a client that comes back begins
    at the least counter of those that are there, so that idling earns nothing. A client with
    weight w gets w shares.
    """

    name = "fair"
    charges = True

    def __init__(
        self,
        *,
        prompt_cost: float = 1.0,
        output_cost: float = 2.0,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.prompt_cost, self.output_cost = prompt_cost, output_cost
        self.weights = dict(weights or {})
        self.served: dict[str, float] = {}
        self._active: Counter[str] = Counter()
        self._floor = 0.0

    def key(self, sequence: Sequence) -> Key:
        """The client's counter, then arrival."""
        return (self.served[sequence.client], sequence.arrival)

    def admit(self, sequence: Sequence) -> None:
        """Lift a client that was not there to the least counter."""
        client = sequence.client
        if not self._active[client]:
            self._raise_floor()
            self.served[client] = max(self.served.get(client, 0.0), self._floor)
        self._active[client] += 1

    def _raise_floor(self) -> None:
        if self._active:
            least = min(self.served[client] for client in self._active)
            self._floor = max(self._floor, least)

    def charge(self, sequence: Sequence, prompt: int, output: int) -> None:
        """Add to the client's counter."""
        cost = self.prompt_cost * prompt + self.output_cost * output
        self.served[sequence.client] += cost / self.weights.get(sequence.client, 1.0)

    def leave(self, sequence: Sequence) -> None:
        """Count the client as gone with its last sequence."""
        client = sequence.client
        self._active[client] -= 1
        if self._active[client]:
            return
        self._raise_floor()
        del self._active[client]
        if not self._active:
            # The last to leave is the measure of who comes next.
            self._floor = max(self._floor, self.served[client])
        self.served = {c: n for c, n in self.served.items() if c in self._active or n > self._floor}


class ShortestRemaining(Policy):
    """Serves the sequence with the fewest tokens to come first.

    The output is predicted as the mean of the client's last ones, and never over the sequence's
    limit. Each sequence that arrives later counts as `aging` tokens longer, so that none waits for
    ever.
    """

    name = "shortest"

    def __init__(self, aging: float = 1.0) -> None:
        self.aging = aging
        self._means: dict[str, float] = {}

    def key(self, sequence: Sequence) -> Key:
        """Predicted tokens to come and age, then arrival."""
        remaining = max(0.0, sequence.predicted - sequence.generated)
        return (remaining + self.aging * sequence.arrival, sequence.arrival)

    def admit(self, sequence: Sequence) -> None:
        """Predict the length of the output."""
        mean = self._means.get(sequence.client, sequence.limit)
        sequence.predicted = min(float(mean), sequence.limit)

    def leave(self, sequence: Sequence) -> None:
        """Learn from the length of the output."""
        mean = self._means.pop(sequence.client, float(sequence.generated))
        self._means[sequence.client] = 0.8 * mean + 0.2 * sequence.generated
        if len(self._means) > _CLIENTS:
            del self._means[next(iter(self._means))]  # the one that was heard of least recently


POLICIES: Mapping[str, type[Policy]] = {
    each.name: each for each in (FirstCome, ByPriority, FairShare, ShortestRemaining)
}

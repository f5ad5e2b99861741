"""Roll loops: what a loop in Python over the tokens left, one step after another, becomes its step.

A value belongs to the last token that it reads. Beginning at the rows of the result, the values of
each token are paired with those of the token before, by op and attributes, down to what they read:
a token's own values, constants, and values of the token before. These last are the states. Where
everything pairs, one step says it all, and a sequence begins with what stands in a state's place at
the first token; a first step that differs is kept beside the others. At both lengths that a region
is known at, the step has to be the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..ir.errors import IRError
from ..ir.node import Node, input_, walk
from ..ir.ops import tensor as t
from ..ir.types import TensorType
from .build_loop import Step, loop_of
from .rules.values import reshaped
from .scan_regions import Region, rebuild
from .token_slices import TokenSlices

FEWEST = 5


def rolled(region: Region) -> Node:
    """The loop [B, S, numbers...] of a region's fresh inputs; raises IRError where it is none."""
    found = [_Unrolled(region.outputs[n], n).rolled() for n in region.lengths(())]
    if any(f != found[0] for f in found):
        raise IRError("the steps of the loop differ from length to length")
    step, begun, constants = found[0]
    named = {i["name"]: i for i in region.inputs}
    (made,) = loop_of(step, [named[x["name"]] for x in step.tokens], begun, constants)
    return made


Rolled = tuple[Step, tuple[Node, ...], tuple[Node, ...]]


@dataclass
class _State:
    """Values of one part, by the token that they belong to, and what a sequence begins with."""

    values: dict[int, Node] = field(default_factory=dict[int, Node])
    first: Node | None = None


@dataclass
class _Unrolled:
    """A value [B, length, ...] that a loop made."""

    output: Node
    length: int
    times: dict[Node, int] = field(default_factory=dict[Node, int])
    states: dict[Node, _State] = field(default_factory=dict[Node, _State])
    seen: set[tuple[Node, Node, int]] = field(default_factory=set[tuple[Node, Node, int]])
    alike: bool = True  # whether the first step is as the others

    def rolled(self) -> Rolled:
        """The step, what its states begin with, and the constants that it reads."""
        if self.length < FEWEST:
            raise IRError(f"{self.length} tokens show no loop")
        slices = TokenSlices()
        rows = [slices.of(slices.at(self.output, 1, n)) for n in range(self.length)]
        for node in walk(tuple(rows)):
            self.times[node] = self._time(node)
        for n, row in enumerate(rows):
            if self.times[row] != n:
                raise IRError(f"the result of token {n} reads tokens up to {self.times[row]}")
        for n in range(1, self.length):
            self._pair(rows[n], rows[n - 1], n)
        return self._step(rows)

    def _time(self, node: Node) -> int:
        """The last token that a value reads; -1 where it reads none."""
        if _is_read(node):
            return int(node["start"])
        if node.op.name == "input":
            return -1
        for i in node.inputs:
            if i.op.name == "input":
                raise IRError(f"{node.op.name} : {node.type} reads the tokens all at once")
        return max((self.times[i] for i in node.inputs), default=-1)

    # pairs

    def _pair(self, row: Node, before: Node, time: int) -> None:
        """Pair a token's value with that of the token before, and all that they are made of."""
        stack = [(row, before, time)]
        while stack:
            a, b, user = stack.pop()
            if (a, b, user) in self.seen:
                continue
            self.seen.add((a, b, user))
            own = self.times[a]
            if own < 0 or own == user:
                stack += [(x, y, user) for x, y in self._inside(a, b, user)]
                continue
            if own != user - 1:
                raise IRError(
                    f"the step of token {user} reads a value of token {own}: {a.op.name} : {a.type}"
                )
            self._note(a, b)
            if own > 0:
                stack.append((a, b, own))

    def _inside(self, a: Node, b: Node, user: int) -> list[tuple[Node, Node]]:
        """The pairs that two values of one part are made of."""
        if self.times[a] < 0 and a is b:
            return []
        if _is_read(a) and _is_read(b) and a.inputs == b.inputs and a["axis"] == b["axis"]:
            return []
        same = a.op is b.op and a.attributes == b.attributes and a.type == b.type
        if same and len(a.inputs) == len(b.inputs) and not _is_read(a) and self.times[a] >= 0:
            return list(zip(a.inputs, b.inputs, strict=True))
        if user > 1:
            raise IRError(
                f"the steps of tokens {user} and {user - 1} differ: {a.op.name} : {a.type} beside "
                f"{b.op.name} : {b.type}"
            )
        self.alike = False
        return []

    def _note(self, value: Node, before: Node) -> None:
        """Note a value that the next step reads, and what that of the step before was."""
        state = self.states.setdefault(value, _State())
        state.values[self.times[value]] = value
        if self.times[value] > 0 and self.times[before] == self.times[value] - 1:
            other = self.states.setdefault(before, _State())
            other.values[self.times[before]] = before
            self._join(state, other)
        elif self.times[value] == 0 and self.times[before] < 0 and state.first in (None, before):
            state.first = before
        else:
            self.alike = False

    def _join(self, state: _State, other: _State) -> None:
        """Two that are one part."""
        if state is other:
            return
        state.first = state.first or other.first
        for time, value in other.values.items():
            if state.values.setdefault(time, value) is not value:
                raise IRError(f"a state is two values: {value.op.name} : {value.type}")
        for value in other.values.values():
            self.states[value] = state

    # the step

    def _step(self, rows: Sequence[Node]) -> Rolled:
        states = list({id(s): s for s in self.states.values()}.values())
        last = self.length - 3  # what the last tokens leave behind, nothing may read
        if any(last - 1 not in s.values or last not in s.values for s in states):
            raise IRError("a state is not kept from each token to the next")
        states = self._bare(states, last - 1)
        if not states:
            raise IRError("no step reads a value of the token before")
        held = tuple(input_(name=f"h{at}", type=s.values[last].type) for at, s in enumerate(states))
        builder = _Builder(self.times)
        before = dict(zip((s.values[last - 1] for s in states), held, strict=True))
        roots = (*(s.values[last] for s in states), rows[last])
        *news, result = builder.build(roots, before, last)
        if self.alike and all(s.first is not None for s in states):
            begun = [s.first for s in states if s.first is not None]
        else:
            begun = [_zeros(h) for h in held]
            roots = (*(s.values[0] for s in states), rows[0])
            *first, one = builder.build(roots, {}, 0)
            flag = input_(name="later", type=TensorType("f32", (1,)))
            news = [_chosen(flag, a, b) for a, b in zip(news, first, strict=True)]
            result = _chosen(flag, result, one)
            held, begun = (*held, flag), [*begun, _number(0.0)]
            news = [*news, _number(1.0)]
        step = Step(
            tokens=tuple(builder.tokens.values()),
            states=held,
            constants=tuple(builder.constants.values()),
            news=tuple(news),
            results=(result,),
        )
        return step, tuple(begun), tuple(builder.constants)

    def _bare(self, states: list[_State], time: int) -> list[_State]:
        """The states that others, and constants, do not make."""
        members = {s.values[time]: s for s in states}
        left = [s for s in states if not self._is_made(s.values[time], members)]
        if not self.alike or any(s.first is None for s in states):
            return left
        done = {s.values[time]: s.first for s in left if s.first is not None}
        for s in states:
            rebuild(s.values[time], done)
        as_begun = all(done[s.values[time]] is s.first for s in states)
        return left if as_begun else states

    def _is_made(self, root: Node, members: Mapping[Node, _State]) -> bool:
        """Whether a value is made of members and constants alone."""
        stack = [i for i in root.inputs if self.times[i] >= 0]
        while stack:
            node = stack.pop()
            if node in members or self.times[node] < 0:
                continue
            if _is_read(node) or self.times[node] != self.times[root]:
                return False
            stack += node.inputs
        return not _is_read(root) and self.times[root] >= 0


def _is_read(node: Node) -> bool:
    """Whether a node is the row of one token out of an input [B, length, ...]."""
    one = node.op is t.slice_ and node.inputs[0].op.name == "input"
    return one and node["axis"] == 1 and node["stop"] == node["start"] + 1


def _zeros(like: Node) -> Node:
    return t.broadcast(t.scalar(0, like.dtype), shape=like.shape)


def _number(value: float) -> Node:
    return t.broadcast(t.scalar(value, "f32"), shape=(1,))


def _chosen(flag: Node, later: Node, first: Node) -> Node:
    """What a step gives, and what the first one does."""
    is_later = t.gt(flag, t.scalar(0.5, "f32"))
    return t.where(reshaped(is_later, (1,) * len(later.shape)), later, first)


@dataclass
class _Builder:
    """Builds steps on inputs: those of a token by name, constants in order."""

    times: dict[Node, int]
    tokens: dict[str, Node] = field(default_factory=dict[str, Node])
    constants: dict[Node, Node] = field(default_factory=dict[Node, Node])

    def build(self, roots: Sequence[Node], before: dict[Node, Node], time: int) -> list[Node]:
        """The roots, which belong to a token, on `before` for values of the one before it."""
        done = dict(before)
        stack = list(roots)
        seen: set[Node] = set()
        while stack:
            node = stack.pop()
            if node in done or node in seen:
                continue
            seen.add(node)
            if _is_read(node) and self.times[node] == time:
                done[node] = self._token(node)
            elif self.times[node] < 0:
                self._constant(node, done)
            elif _is_read(node) or self.times[node] not in (time, time - 1):
                raise IRError(f"{node.op.name} : {node.type} is of another token than its step")
            else:
                stack += node.inputs
        for root in roots:
            rebuild(root, done)
        return [done[r] for r in roots]

    def _token(self, read: Node) -> Node:
        x = read.inputs[0]
        return self.tokens.setdefault(x["name"], input_(name=x["name"], type=read.type))

    def _constant(self, node: Node, done: dict[Node, Node]) -> None:
        """A value of weights is an input of the step; numbers stay in it."""
        if any(n.op.name == "parameter" for n in walk((node,))):
            made = input_(name=f"c{len(self.constants)}", type=node.type)
            done[node] = self.constants.setdefault(node, made)

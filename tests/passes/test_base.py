"""Passes as values: their text, phases, the hook between them; and check_pass itself."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from check import check_pass
from ferrule.ir.errors import IRError
from ferrule.ir.graph import Graph
from ferrule.ir.ops.tensor import exp, neg, relu, tanh
from ferrule.ir.rewrite import Rules, hole, rewrite
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.types import TensorType
from ferrule.passes.base import (
    Inspector,
    Phase,
    parse_pass,
    parse_passes,
    pass_text,
    run_passes,
)

BEFORE = """
graph g(%x: f32[T, 3]) where T in [1, 40] {
  %0 = neg %x : f32[T, 3]   from m (m.py:1)
  %1 = neg %0 : f32[T, 3]
  %2 = exp %1 : f32[T, 3]
  return %2 as y
}
"""
AFTER = """
graph g(%x: f32[T, 3]) where T in [1, 40] {
  %0 = exp %x : f32[T, 3]
  return %0 as y
}
"""


@dataclass(frozen=True)
class FoldSigns:
    """-(-x) = x, or, wrong, something else."""

    name: ClassVar[str] = "fold-signs"
    wrong: bool = False

    def run(self, graph: Graph) -> Graph:
        rules = Rules("signs")
        x = hole("x")
        rules.on(neg(neg(x)))(lambda root, x: relu(x) if self.wrong else x)
        return rewrite(graph, rules)


@dataclass(frozen=True)
class Quantize:
    """Options of every kind."""

    name: ClassVar[str] = "quantize"
    bits: int = 8
    scale: float = 1.0
    only: str = ""
    skip: tuple[str, ...] = ()
    kind: Literal["rows", "blocks"] = "rows"
    group: int | None = None
    deep: bool = False

    def run(self, graph: Graph) -> Graph:
        raise IRError(f"no linear of {self.bits} bits")


@dataclass(frozen=True)
class Shard:
    """An option that must be given."""

    ranks: int
    name: ClassVar[str] = "shard"

    def run(self, graph: Graph) -> Graph:
        return graph.with_outputs(tanh(o) for o in graph.outputs)


@dataclass(frozen=True)
class Spoil:
    """Gives a graph that is not well formed."""

    name: ClassVar[str] = "spoil"

    def run(self, graph: Graph) -> Graph:
        return Graph("g", (), graph.outputs, graph.output_names, graph.bounds)


KNOWN = (FoldSigns, Quantize, Shard)


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("quantize", Quantize()),
        ("quantize{bits=4}", Quantize(bits=4)),
        (' quantize { scale = 2, only = "a, b" } ', Quantize(scale=2.0, only="a, b")),
        ("quantize{skip=('a', 'b'),kind=blocks}", Quantize(skip=("a", "b"), kind="blocks")),
        ("quantize{group=128,deep=true,only=up-1}", Quantize(group=128, deep=True, only="up-1")),
        ("quantize{group=none}", Quantize()),
        ("shard{ranks=2}", Shard(2)),
    ],
)  # fmt: skip
def test_a_pass_reads_from_text_and_back(text, made):
    assert parse_pass(text, KNOWN) == made
    assert parse_pass(pass_text(made), KNOWN) == made


def test_lists_of_passes():
    found = parse_passes("fold-signs, quantize{bits=4,deep=true},shard{ranks=2}", KNOWN)
    assert found == (FoldSigns(), Quantize(bits=4, deep=True), Shard(2))
    assert parse_passes(" ", KNOWN) == ()
    assert pass_text(found[1]) == "quantize{bits=4,deep=true}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantise", "no pass 'quantise'; did you mean 'quantize'? known: fold-signs, quantize"),
        ("quantize{bit=4}", "no option of 'quantize' 'bit'; did you mean 'bits'?"),
        ("quantize{bits=four}", "pass 'quantize': bits is int, not 'four'"),
        ("quantize{bits=true}", "bits is int"),
        ("quantize{kind=columns}", "kind is one of 'rows', 'blocks', not 'columns'"),
        ("quantize{bits}", "option=value was wanted at 'bits'"),
        ("quantize shard", "a comma or the end was wanted at 'shard'"),
        ("quantize,", "was wanted at ''"),
        ("shard", "pass 'shard' needs ranks"),
        ("quantize,quantize", "one pass was wanted, not 2"),
    ],
)
def test_text_that_means_no_pass(text, message):
    with pytest.raises(IRError) as error:
        parse_pass(text, KNOWN)
    assert message in str(error.value)


def test_phases_run_in_order_and_say_what_they_leave():
    graph = parse_graph(BEFORE)
    done = run_passes(
        graph,
        [
            Phase("signs", (FoldSigns(),), leaves=frozenset({"input", "exp"})),
            Phase("shard", (Shard(2),)),
        ],
    )
    assert done.outputs == (tanh(exp(graph.inputs[0])),)
    with pytest.raises(IRError, match="after phase 'signs' these ops remain: exp"):
        run_passes(graph, [Phase("signs", (FoldSigns(),), leaves=frozenset({"input"}))])


def test_errors_name_the_pass():
    graph = parse_graph(BEFORE)
    with pytest.raises(IRError, match="pass 'quantize': no linear of 8 bits"):
        run_passes(graph, [Phase("q", (Quantize(),))])
    with pytest.raises(IRError, match="after pass 'spoil': inputs used but not declared"):
        run_passes(graph, [Phase("s", (Spoil(),))])


def test_the_hook_dumps_times_and_stops(tmp_path):
    graph = parse_graph(BEFORE)
    phases = [Phase("all", (FoldSigns(), Shard(2), Shard(3)))]
    inspector = Inspector(tmp_path / "dump", stop_after="shard")
    done = run_passes(graph, phases, after_each=inspector)
    files = sorted(p.name for p in (tmp_path / "dump").iterdir())
    assert files == ["00-g.ir", "01-fold-signs.ir", "02-shard.ir"]
    assert parse_graph((tmp_path / "dump/00-g.ir").read_text()) == graph
    assert parse_graph((tmp_path / "dump/02-shard.ir").read_text()) == done
    assert [line.rsplit(",", 1)[0] for line in inspector.lines] == [
        "01-fold-signs: 4 -> 2 nodes, 1 new",
        "02-shard: 2 -> 3 nodes, 1 new",
    ]
    seen = []
    run_passes(graph, phases, after_each=lambda ran: seen.append((ran.index, ran.phase)))
    assert seen == [(1, "all"), (2, "all"), (3, "all")]


def test_check_pass_compares_text_and_values():
    result = check_pass(FoldSigns(), BEFORE, AFTER)
    assert result.outputs == (exp(result.inputs[0]),)
    with pytest.raises(AssertionError):
        check_pass(FoldSigns(), BEFORE, BEFORE)
    wrong = print_graph(FoldSigns(wrong=True).run(parse_graph(BEFORE)))
    with pytest.raises(AssertionError, match="y at"):
        check_pass(FoldSigns(wrong=True), BEFORE, wrong)


def test_check_pass_wants_the_text_where_the_signature_changes():
    @dataclass(frozen=True)
    class Cut:
        name: ClassVar[str] = "cut"

        def run(self, graph: Graph) -> Graph:
            return graph.with_outputs(graph.inputs, ("y2",))

    after = "graph g(%x: f32[T, 3]) where T in [1, 40] {\n  return %x as y2\n}"
    assert check_pass(Cut(), BEFORE, after).outputs[0].type == TensorType(
        "f32", parse_graph(BEFORE).inputs[0].shape
    )
    with pytest.raises(AssertionError, match="cut changed the signature"):
        check_pass(Cut(), BEFORE)

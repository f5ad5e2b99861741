"""Convolutions and scans that go on from states: hooks and launches."""

from __future__ import annotations

from ...ir.dims import Dim, as_dim
from ...ir.node import Node, item
from ...ir.types import TupleType
from ..errors import CodegenError, NotRowwise
from .kernel import Call, Hook, Kernel, cache_of, ceiling, emit_call
from .loops import TooDear, power_of_two
from .pull import Place
from .text import Index, Mask, Point, Test, Writer, axes_of

ROWS, COLS = frozenset({"rows"}), frozenset({"cols"})
TOKENS, CHANNELS = 8, 128
"""Tokens and channels that a program of a convolution takes at a time."""

HELD = 4096
"""Elements of a state that a program of a scan holds."""

BLOCK, LEAST = 32, 16
"""Rows that a scan takes at once, and the fewest rows and columns of a state for that."""

FEWER = 16
"""Rows that a scan takes at once by the delta rule, or where its operands are float32."""


def needs(kernel: Kernel, node: Node) -> list[Node]:
    """What a recurrent op wants whole: weights, states, starts, and what loads cannot make."""
    streamed = _streamed(node)
    whole = [n for n in node.inputs if n not in streamed]
    return [*whole, *(n for n in streamed if not _is_loaded(kernel, n))]


def _streamed(node: Node) -> tuple[Node, ...]:
    """The operands that are read row by row."""
    if node.op.name == "state_conv":
        return node.inputs[:1]
    return (*node.inputs[:4], *node.inputs[8:])


def _is_loaded(kernel: Kernel, x: Node) -> bool:
    try:
        if len(x.shape) == 2:
            _load_rows(kernel, x)
        _load(kernel, x, ("row", "head", "lanes")[: len(x.shape)])
    except TooDear:
        return False
    return True


def emit_conv(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launch of a state_conv; states are updated in place."""
    x, w, states = node.inputs[:3]
    taps, channels = (int(d) for d in w.shape)
    place = settled(kernel, node, results)
    lanes = min(CHANNELS, power_of_two(channels))
    given = (kernel.places[w].name, *_places(kernel, states, node.inputs[3:6]))
    hooks = {
        "LOAD_X": _load_rows(kernel, x),
        "STORE": _store(kernel, node, place, ("rows", "cols")),
    }
    sizes = {"C": channels, "TAPS": taps, "BS": power_of_two(max(taps - 1, 1))}
    grid = (_sequences(node.inputs[3]), ceiling(channels, lanes))
    chosen = {"BT": TOKENS, "BC": lanes}
    emit_call(kernel, Call("recurrent", "conv_sequences", given, hooks, sizes, grid, chosen))


def emit_scan(kernel: Kernel, node: Node, results: dict[Node, Place]) -> None:
    """Add the launch of a state_scan; states are updated in place."""
    q, k, v, decay, states = node.inputs[:5]
    beta = node.inputs[8:]
    (groups, deep), (heads, wide) = (tuple(int(d) for d in n.shape[1:]) for n in (q, v))
    place = settled(kernel, node, results)
    given = _places(kernel, states, node.inputs[5:8])
    hooks = {
        "LOAD_Q": _load(kernel, q, ("row", "group", "ks")),
        "LOAD_K": _load(kernel, k, ("row", "group", "ks")),
        "LOAD_V": _load(kernel, v, ("row", "head", "vs")),
        "LOAD_DECAY": _load(kernel, decay, ("row", "head", "ks")),
        "STORE": _store(kernel, node, place, ("row", "head", "vs")),
    }
    if beta:
        hooks["LOAD_BETA"] = _load(kernel, beta[0], ("row", "head"))
    rows = power_of_two(deep)
    lanes = max(1, min(power_of_two(wide), HELD // rows))
    constants = {} if beta else {"LOAD_BETA": None}
    constants |= {"H": heads, "G": groups, "K": deep, "V": wide, "D": int(decay.shape[2])}
    grid = (_sequences(node.inputs[5]), heads, ceiling(wide, lanes))
    chosen = {"BK": rows, "BV": lanes}
    size = _block_of(kernel, node)
    blocks = _block_hooks(kernel, node) if size and min(rows, lanes) >= LEAST else {}
    if blocks:
        chosen["BLOCK"] = size
        constants["TF32"] = int(kernel.target.kind == "cuda")
        hooks |= blocks
    emit_call(kernel, Call("recurrent", "scan_sequences", given, hooks, constants, grid, chosen))


def _block_hooks(kernel: Kernel, node: Node) -> dict[str, Hook]:
    """The hooks that give blocks of rows; none where one cannot be made for several rows."""
    q, k, v, decay = node.inputs[:4]
    rows, head, zero = Index("rows", 0, ROWS), Index("head"), Index("")
    try:
        found = {
            "LOAD_QS": _load_block(kernel, q, "group", "ks"),
            "LOAD_KS": _load_block(kernel, k, "group", "ks"),
            "LOAD_VS": _load_block(kernel, v, "head", "vs"),
            "LOAD_DECAYS": _returned(kernel, decay, (rows, head, zero), ("rows", "head")),
        }
        for beta in node.inputs[8:]:
            found["LOAD_BETAS"] = _returned(kernel, beta, (rows, head), ("rows", "head"))
        return found
    except (NotRowwise, CodegenError):
        return {}


def _block_of(kernel: Kernel, node: Node) -> int:
    """Rows that are taken at once; 0 where there is a decay for each row of the state, or where
    operands have more bits than matrix units take, or a row's sums must not depend on the rows that
    come with it. What is made of 16 bits in float32 (keys of
    length one) has no more than 11 that count.
    """
    q, k, v, decay = node.inputs[:4]
    exact = kernel.target.kind == "cuda" and _is_narrow(v)
    narrow = all(x.dtype in ("bf16", "f16") or (exact and x.dtype == "f32") for x in (q, k, v))
    if decay.shape[2] != 1 or not narrow or kernel.target.deterministic:
        return 0
    if len(node.inputs) < 9:
        return FEWER if any(x.dtype == "f32" for x in (q, k, v)) else BLOCK
    # Registers of older units do not hold what the delta rule needs beside the state.
    new = kernel.target.kind == "cuda" and int(kernel.target.arch.removeprefix("sm_")) >= 90
    return FEWER if new else 0


def _is_narrow(x: Node) -> bool:
    """Whether a value is of 16 bits, or one of these moved or widened."""
    while x.op.name == "cast" or x.op.has("movement"):
        if x.dtype in ("bf16", "f16"):
            return True
        x = x.inputs[0]
    return x.dtype in ("bf16", "f16")


def _load_block(kernel: Kernel, x: Node, head: str, lanes: str) -> Hook:
    """LOAD(env, rows, head, lanes, mask): x at rows and a head, and lanes of it."""
    at = (Index("rows", 0, ROWS), Index(head), Index(lanes, 0, COLS))
    return _returned(kernel, x, at, ("rows", head, lanes))


def _returned(kernel: Kernel, x: Node, at: Point, names: tuple[str, ...]) -> Hook:
    writer = Writer()
    pull = kernel.pull(writer)
    mask: Mask = (Test("mask", COLS),) if axes_of(at) >= COLS else ()
    writer.line(f"return {pull.value(x, at, mask)}")
    return Hook((*names, "mask"), writer, pull)


def _sequences(starts: Node) -> Dim:
    return as_dim(starts.shape[0] - 1)


def settled(kernel: Kernel, node: Node, results: dict[Node, Place]) -> Place:
    """Where the rows of a recurrent op go; its states are where they were."""
    if not isinstance(node.type, TupleType):
        place = results.get(node) or kernel.scratch_for(node.shape, node.dtype)
        kernel.places[node] = place
        return place
    rows, states = item(node, index=0), item(node, index=1)
    place = results.get(rows) or kernel.scratch_for(rows.shape, rows.dtype)
    kernel.places[rows] = place
    kernel.places[states] = kernel.places[cache_of(states)]
    return place


def _places(kernel: Kernel, states: Node, batch: tuple[Node, ...]) -> tuple[str, ...]:
    return tuple(kernel.places[cache_of(n)].name for n in (states, *batch))


def _load_rows(kernel: Kernel, x: Node) -> Hook:
    """LOAD_X(env, rows, cols, mask): x at rows, some of which may lie before the first."""
    writer = Writer()
    pull = kernel.pull(writer)
    rows, cols = Index("rows", 0, ROWS), Index("cols", 0, COLS)
    whole = Test("mask", ROWS | COLS)
    parts = (pull.test(rows, ">=", 0), pull.test(rows, "<", x.shape[0]))
    wide = pull.test(cols, "<", x.shape[1])
    mask = (whole, *(Test(p.name, p.axes, whole.name) for p in (*parts, wide)))
    writer.line(f"return {pull.value(x, (rows, cols), mask)}")
    return Hook(("rows", "cols", "mask"), writer, pull)


def _load(kernel: Kernel, x: Node, names: tuple[str, ...]) -> Hook:
    """LOAD(env, row, head, lanes, mask): x at a row and a head, and lanes of it where there are
    such.
    """
    at = tuple(Index(n) if i < 2 else Index(n, 0, COLS) for i, n in enumerate(names))
    return _returned(kernel, x, at, names)


def _store(kernel: Kernel, node: Node, place: Place, names: tuple[str, ...]) -> Hook:
    """STORE(env, sums, .., mask): the rows, rounded to their dtype."""
    writer = Writer()
    pull = kernel.pull(writer)
    at = tuple(Index(n, 0, COLS if i + 1 == len(names) else ROWS) for i, n in enumerate(names))
    writer.line(f"tl.store({pull.address(place, at)}, sums[0], mask=mask)")
    return Hook(("sums", *names, "mask"), writer, pull)

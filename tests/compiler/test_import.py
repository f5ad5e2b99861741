"""Import: what the graph computes is what the model computes; what has no translation is said
at once.
"""

import pytest
import torch
from ferrule.compiler.aten.movement import place
from ferrule.compiler.capture import capture
from ferrule.compiler.errors import CompileError
from ferrule.compiler.import_aten import import_captured
from ferrule.compiler.reference import evaluate
from ferrule.ir.dims import dim
from ferrule.ir.text import parse_graph, print_graph
from ferrule.ir.verify import verify
from models import zoo
from models.tables import MaskTableLM
from torch import nn

# Other shapes than tests/models tries, which imports every type.
S = dim("S")
TYPES = ("deepseek_v3", *zoo.SCRATCH)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", TYPES)
def test_reference_values_equal_eager(name: str):
    model = zoo.build(name)
    imported = import_captured(capture(model))
    verify(imported.graph)
    for shape in ((1, 5), (4, 23)):
        ids = torch.randint(0, 211, shape)
        (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
        assert relative_error(found, zoo.logits_of(model, ids)) < 1e-5


def test_names_origins_and_text():
    imported = import_captured(capture(zoo.build("llama")))
    graph = imported.graph
    names = {n["name"] for n in graph.parameters()}
    assert "model.layers.1.mlp.down_proj.weight" in names
    computed = [n for n in graph.nodes() if not n.op.has("leaf")]
    assert all(graph.origin(n) for n in computed)
    (logits,) = graph.outputs
    assert graph.origin(logits)[0].startswith("lm_head (modeling_llama.py:")
    assert parse_graph(print_graph(graph)) == graph


def test_tied_weights_are_one_parameter():
    graph = import_captured(capture(zoo.build("scratch_plain"))).graph
    wide = [n for n in graph.parameters() if 211 in n.shape]
    assert len(wide) == 1


def test_bfloat16_follows_torch_through_promotion():
    model = zoo.build("llama").bfloat16()
    imported = import_captured(capture(model))
    ids = torch.randint(0, 211, (2, 9))
    (found,) = evaluate(imported.graph, {"ids": ids}, imported.weights)
    wanted = zoo.logits_of(model, ids)
    assert found.dtype == wanted.dtype == torch.bfloat16
    assert relative_error(found.float(), wanted.float()) < 0.05


class Odd(nn.Module):
    """Ops that the importer composes of others."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> torch.Tensor:
        return self.function(*args)


def compare(function, *args: torch.Tensor, open_first: bool = True) -> None:
    """The imported function against eager, at a first dim that it was not captured at."""
    rows = torch.export.Dim("rows", min=2, max=64)
    shapes = (tuple({0: rows} if a.dim() else None for a in args),) if open_first else None
    captured = capture(Odd(function), args=args, dynamic_shapes=shapes)
    imported = import_captured(captured)
    verify(imported.graph)
    other = [torch.cat([a, a[:2].flip(0)]) if open_first and a.dim() else a for a in args]
    found = evaluate(imported.graph, other, imported.weights)
    wanted = function(*other)
    for f, w in zip(found, wanted if isinstance(wanted, (tuple, list)) else [wanted], strict=True):
        assert f.dtype == w.dtype and f.shape == w.shape
        torch.testing.assert_close(f, w, rtol=1e-5, atol=1e-6, equal_nan=True)


X = torch.randn(5, 6, 7, generator=torch.Generator().manual_seed(0))
PLACES = torch.randint(0, 6, (5, 6, 7), generator=torch.Generator().manual_seed(1))

FUNCTIONS = {
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x * 2),
    "einsum three": lambda x: torch.einsum("bij,kj,bk->bi", x, x[0], x[:, :, 0] @ torch.ones(6, 6)),
    "matmul vector": lambda x: x @ x[0, 0],
    "mean and variance": lambda x: (x.mean(-1), x.var(1), x.std(-1, unbiased=False)),
    "extremes": lambda x: (x.max(-1).values, x.max(1).indices, x.amin(-1), x.argmin(1)),
    "norms": lambda x: (x.norm(dim=-1), torch.linalg.vector_norm(x, 1, dim=1)),
    "logsumexp": lambda x: (x.logsumexp(-1), x.log_softmax(1), torch.nn.functional.logsigmoid(x)),
    "stack and unbind": lambda x: torch.stack(x.unbind(1)[::-1], 2),
    "chunk": lambda x: torch.cat([c * i for i, c in enumerate(x.chunk(3, 1))], 1),
    "pad and cut": lambda x: torch.nn.functional.pad(x, (-1, 2, 1, 0), value=3.0),
    "roll of few": lambda x: (x.roll(7, 0), x.roll(2, 0), x.roll(0, 0), (9 * x).long().roll(13, 0)),
    "roll and flip": lambda x: x.roll(2, 1).roll(-1, -1).flip(1),
    "repeat": lambda x: (x.repeat(1, 2, 1), x.repeat_interleave(3, 1), x.tile(2)),
    "as many from the end as there are": lambda x: (x[-x.shape[0] :], x[:, -2:]),
    "strided slices": lambda x: (x[:, ::2], x[:, 1::3, -4:-1], x[..., 3]),
    "writes": lambda x: _written(x),
    "triangles": lambda x: (x.tril(-1), x.triu(2), torch.eye(6)[None] * x[..., :6]),
    "scalars": lambda x: (x + 2, 3 - x, x / 3, x // 0.3, x % 0.7, 2**x, x**3, -x.abs() ** 0.5),
    "integers": lambda x: _integers(x),
    "comparisons": lambda x: ((x > 0) & (x < 1) | (x == 2)) ^ (x >= 0.5),
    "activations": lambda x: _activations(x),
    "functions": lambda x: _functions(x),
    "distances": lambda x: (torch.cdist(x, x[:, :4] + 1), torch.cdist(x, x, p=1.0)),
    "unfold": lambda x: x.unfold(1, 3, 2),
    "complex": lambda x: _complex(x),
    "functions of complex numbers": lambda x: _of_complex(x),
    "transforms": lambda x: _convolved(x),
    "ellipses": lambda x: (torch.einsum("...ij,kj->...ki", x, x[0]), torch.einsum("b...->...", x)),
    "matrices": lambda x: (x.mT, x[None].mT @ x),
    "cumulative": lambda x: (x.cumsum(1), x.diff(dim=1, prepend=x[:, :1] * 2)),
    "running": lambda x: (x.cummax(1)[0], x.cummin(0)[0], (90 * x).logcumsumexp(-1)),
    "side by side": lambda x: torch.hstack([x, x.sum(2, keepdim=True).expand_as(x)]),
    "sorting": lambda x: (*x.sort(1, descending=True), *x.topk(3, -1), x.argsort(-1)),
    "infinities": lambda x: ((x / (x > 0)).isinf(), (x.sqrt()).isnan(), (x / (x > 0)).isfinite()),
    "masked": lambda x: x.masked_fill(x > 0.3, float("-inf")).softmax(-1).nan_to_num(),
    "movedim": lambda x: x.movedim(0, 2).swapaxes(0, 1),
    "sizes": lambda x: x.reshape(x.shape[0] * 3, -1) + torch.arange(x.shape[0] * 3)[:, None],
    "rms norm": lambda x: torch.nn.functional.rms_norm(x, (7,), x[0, 0], 1e-5),
    "layer norm of two axes": lambda x: torch.nn.functional.layer_norm(x, (6, 7)),
    "constants by example": lambda x: (x.new_full((2, 3), 7.0), torch.full_like(x, 2)),
    "shapes by example": lambda x: (x[:, :3].reshape_as(x[:, 3:]), x[0].expand_as(x)),
    "group norm": lambda x: torch.nn.functional.group_norm(x, 3),
    "batch norm": lambda x: torch.nn.functional.batch_norm(
        x, x[0, :, 0], x[0, :, 1].abs() + 1, x[0, :, 2], x[0, :, 3], eps=1e-3
    ),
    "angles": lambda x: _angles(x),
    "bits and signs": lambda x: _bits(x),
    "places": lambda x: _ranked(x),
    "diagonals": lambda x: (
        x.diagonal(1, 1, 2), x.diagonal(-2, 1, 2), torch.einsum("bii,bij->bj", x[..., :6], x),
    ),
    "norms of any order": lambda x: (
        x.norm(p=3, dim=-1), *(torch.linalg.vector_norm(x, p, dim=1) for p in (0, -torch.inf)),
    ),
    "variance beside mean": lambda x: (*torch.var_mean(x, -1), *torch.std_mean(x, 1)),
    "pools": lambda x: _pooled(x),
    "two axes": lambda x: _two_axes(x),
    "equations": lambda x: _solved(x),
    "pairs": lambda x: (
        torch.nn.functional.bilinear(x[..., :3], x[..., 3:], _W[:, :3, :4]),
        torch.addmv(_W[0, 0, :6], x[0], _W[0, 1, :7], alpha=2),
    ),
    "weights alone": lambda x: (
        x @ torch.matrix_exp(_W[0, :7, :7]), x + torch.linalg.qr(_W[1])[1][0, 0],
    ),
    "ranges": lambda x: torch.arange(3, 9)[:, None] + x + torch.arange(0, 3.5, 0.5),
}  # fmt: skip


_W = torch.randn(8, 8, 8, generator=torch.Generator().manual_seed(2))


def _angles(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    part = x.tanh()
    return (
        x.atan(), (9 * x).atan(), torch.atan2(x, x.roll(1, -1)), torch.atan2(x, 0 * x), part.asin(),
        part.acos(), x.asinh(), (0.01 * x).asinh(), (x.abs() + 1).acosh(), part.atanh(),
    )  # fmt: skip


def _bits(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    i, odd = (x * 10).long(), torch.where(x > 1, torch.nan, x)
    return (
        i << 3, i >> 2, x.signbit(), (0 * x).copysign(x), x.copysign(-2.0), x.round(decimals=2),
        (99 * x).round(decimals=-1), torch.fmax(odd, x.roll(1, 0)), torch.fmin(x, odd),
    )  # fmt: skip


def _ranked(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    bounds = torch.tensor([-1.0, 0.0, 0.5, 2.0])
    i = x.round()
    return (
        torch.bucketize(i, bounds), torch.bucketize(i, bounds, right=True, out_int32=True),
        torch.searchsorted(x.sort(-1).values, x[..., :2].contiguous()),
        torch.searchsorted(bounds, i, side="right"), *x.kthvalue(2, 1, True), *x.median(-1),
    )  # fmt: skip


def _pooled(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    f = torch.nn.functional
    bag = f.embedding_bag(PLACES[0, :, :3], x[0], mode="sum", per_sample_weights=x[0, :, :3])
    return (
        f.avg_pool1d(x, 3, 1, 1), f.avg_pool1d(x, 2), f.max_pool1d(x, 3, 2, 1), bag,
        f.max_pool1d(x, 2, 1, dilation=3), f.embedding_bag(PLACES[0, :, :3], x[0], mode="max"),
    )  # fmt: skip


def _two_axes(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    conv, x = torch.nn.functional.conv2d, x[:, None]
    both = torch.cat([x, x * 2], 1)
    return (
        conv(x, _W[:4, 0, :6].reshape(4, 1, 3, 2), _W[0, 0, :4], padding=(2, 1)),
        conv(both, _W[:2, 1, :6].reshape(2, 1, 2, 3), stride=(2, 1), dilation=(1, 2), groups=2),
    )


def _solved(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    a, solve = x[..., :6].tanh() + 3 * torch.eye(6), torch.linalg.solve_triangular
    return (
        solve(a.tril(), x, upper=False), solve(a.triu(), x.flip(1), upper=True),
        solve(a[0].tril(), x[:, 1:, :6], upper=False, left=False),
        solve(a.tril(), x, upper=False, unitriangular=True),
    )  # fmt: skip


def _written(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[:, 1:3] = x[:, :1] * 2
    x[:, -1] += 1
    x[..., ::2] = 5
    x[:, 4].zero_()
    return x


def _integers(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    i = (x * 10).long()
    return (
        i // 3, i % 3, torch.div(i, 3, rounding_mode="trunc"), i / 4, i & 3, i | 4, ~i,
        i + 0.5, i.float().floor().int(), i.bool().sum(-1), i.clamp(-2, 5), torch.fmod(i, 3),
    )  # fmt: skip


def _activations(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    f = torch.nn.functional
    return (
        f.gelu(x), f.gelu(x, approximate="tanh"), f.silu(x), f.softplus(x), f.relu6(x * 9),
        f.elu(x), f.leaky_relu(x), f.mish(x), f.hardsigmoid(x), x.sigmoid(), x.tanh(), x.erf(),
        x.square(),
    )  # fmt: skip


def _functions(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    f, positive, part = torch.nn.functional, x.abs() + 0.1, x.sigmoid()
    return (
        x.exp2(), positive.log2(), positive.log10(), x.erfc(), x.sinh(), x.cosh(), x.tan(),
        x.frac(), part.logit(), x.logit(eps=0.2), torch.logaddexp(x, 3 * part),
        x.lerp(part, 0.3), x.lerp(part, positive), torch.hypot(x, part), f.celu(x, 0.7),
        f.selu(x), f.prelu(x, x[0, :, 0]), f.threshold(x, 0.1, 7.0), f.hardshrink(x, 0.4),
        f.softshrink(x, 0.4), f.glu(x[..., :6]), f.hardswish(5 * x), f.tanhshrink(x),
    )  # fmt: skip


def _complex(x: torch.Tensor) -> torch.Tensor:
    z = torch.view_as_complex(x[..., :6].contiguous().reshape(*x.shape[:-1], 3, 2))
    w = torch.polar(torch.ones(3), torch.arange(3.0))
    return torch.view_as_real((z * w + z.conj()).transpose(1, 2)[:, 1:] * 2.0)


def _of_complex(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    z = torch.complex(x, x.roll(1, -1) + 2)
    w = torch.exp(z * 0.1) / (z[:, :1] - 1j)
    total = torch.einsum("bij,bkj->bik", w, z.conj()) + (1 / z).sum(-1, keepdim=True)
    places = torch.arange(x.shape[1])[:, None]
    power, root = z[0, :1] ** places, torch.log(z) ** 0.5
    return (
        *(power.real, power.imag, root.imag),
        total.real,
        total.imag,
        (-z).abs(),
        (z @ z.mT).imag,
        (1 - w).real,
        (1j * x + 2j).imag,
    )


def _convolved(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    fft, n = torch.fft, 2 * x.shape[-1]
    taps = 0.1 * x[0, :, :4].exp()
    own = fft.irfft(fft.rfft(x, n=n) * fft.rfft(taps, n=n), n=n)[..., : x.shape[-1]]
    rows, size = x[:, :, 0], fft.rfft(0.1 * x[0], n=16, dim=0) / 16
    first = fft.irfft(fft.rfft(x, n=16, dim=1) * size[None], n=16, dim=1, norm="forward")
    whole = fft.ifft(fft.fft(rows, n=20) * fft.fft(taps[:, 0], n=20).unsqueeze(0), n=20).real
    return own, first, whole


@pytest.mark.parametrize("name", FUNCTIONS)
def test_composed_ops_equal_eager(name: str):
    compare(FUNCTIONS[name], X)


INDEXED = {
    "gather": lambda x, i: x.gather(1, i),
    "advanced": lambda x, i: x[:, i[0, 0, :3] % 6, i[0, 1, :3]],
    "negative": lambda x, i: x[:, i[0, 0] - 6],
    "apart": lambda x, i: x.transpose(0, 1)[i[0, 0, :2], :, i[0, 1, :2]],
    "scatter": lambda x, i: x.scatter(2, i[..., :3], 1.5).scatter_add(1, i[:, :2] % 6, x[:, :2]),
    "index_put": lambda x, i: torch.index_put(x[0], (i[0, 0, :2], i[0, 1, :2]), x[0, 0, :2]),
    "index_add": lambda x, i: x.index_add(1, i[0, 0, :4], x[:, :4]),
    "one_hot": lambda x, i: torch.nn.functional.one_hot(i[:, 0], 6) * 2,
    "embedding": lambda x, i: torch.nn.functional.embedding(i[:, 0], x[0]),
    "masked put": lambda x, i: torch.where(i > 2, x, torch.zeros((), dtype=x.dtype)),
    "histogram": lambda x, i: torch.histc(i.float(), 6, 0, 5),
}


@pytest.mark.parametrize("name", INDEXED)
def test_indexing_equals_eager(name: str):
    compare(INDEXED[name], X, PLACES)


@pytest.mark.parametrize("rank", [3, 4, 5])
@pytest.mark.parametrize("kind", ["causal", "bool", "float", "grouped"])
def test_scaled_dot_product_attention(rank: int, kind: str):
    lead = (3, 2, 4)[5 - rank :]
    q, k, v = torch.randn(*lead, 6, 8), torch.randn(*lead, 6, 8), torch.randn(*lead, 6, 5)
    attend = torch.nn.functional.scaled_dot_product_attention
    mask = torch.ones(6, 6).tril().bool()
    options = {
        "causal": {"is_causal": True, "scale": 0.3},
        "bool": {"attn_mask": mask},
        "float": {"attn_mask": torch.randn(6, 6)},
        "grouped": {"enable_gqa": rank > 3, "is_causal": True},
    }[kind]
    if kind == "grouped" and rank > 3:
        k, v = k[..., :2, :, :], v[..., :2, :, :]
    compare(lambda a, b, c: attend(a, b, c, **options), q, k, v, open_first=False)


def test_experts_sorted_by_expert():
    from transformers.integrations import moe

    if not hasattr(torch.ops, "transformers") or not hasattr(
        torch.ops.transformers, "grouped_mm_fallback"
    ):
        pytest.skip(f"{moe.__name__} registers no grouped_mm_fallback")
    x, w, ends = torch.randn(9, 4), torch.randn(3, 4, 5), torch.tensor([2, 2, 9])
    grouped = torch.ops.transformers.grouped_mm_fallback
    compare(lambda a, b, c: grouped(a, b, c), x, w, ends.int(), open_first=False)


class Unknown(nn.Module):
    """Two ops that nothing translates, on two lines."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.linalg.qr(x).R
        z = torch.linalg.eigvalsh(x @ x.T)
        return y + z


def test_every_unknown_op_is_named_at_once_with_its_line():
    captured = capture(Unknown(), args=(torch.randn(4, 4),))
    with pytest.raises(CompileError) as caught:
        import_captured(captured)
    text = str(caught.value)
    assert "2 ops are unknown" in text
    assert "linalg_qr" in text and "eigh" in text
    assert text.count("test_import.py:") == 2


def test_a_size_that_data_decides_is_refused_with_its_line():
    captured = capture(Odd(lambda x: x[x > 0].sum()[None]), args=(torch.randn(4),))
    with pytest.raises(CompileError, match=r"test_import\.py:\d+.*data"):
        import_captured(captured)


def test_results_keep_their_tree():
    module = Odd(lambda x: {"twice": x * 2, "both": (x + 1, x - 1)})
    imported = import_captured(capture(module, args=(torch.randn(3),)))
    outputs = evaluate(imported.graph, [torch.ones(3)], {})
    rebuilt = torch.utils._pytree.tree_unflatten(list(outputs), imported.tree)
    torch.testing.assert_close(rebuilt["both"][1], torch.zeros(3))


def test_a_number_in_the_forward_is_a_constant():
    graph = import_captured(capture(MaskTableLM())).graph
    assert not [p for p in graph.parameters() if p.shape == ()]
    assert -1e9 in [n["value"] for n in graph.nodes() if n.op.name == "constant"]


@pytest.mark.parametrize(
    ("index", "wanted"), [(-2, S + 7), (3, 3), (-S, 9), (9 - S, 9 - S), (-S - 1, 8), (S - 1, S - 1)]
)
def test_places_count_from_the_end_where_they_are_surely_negative(index: object, wanted: object):
    assert place(index, S + 9) == wanted

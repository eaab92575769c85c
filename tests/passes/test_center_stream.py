"""center-stream: golden, equal, declines, idempotent, no-op, options."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.ir import capture
from normfold.report.reasons import by_code
from tests.nets import Compose, Norms, Residual, perturb
from tests.passes.centred import (
    SETUP,
    TOKENS,
    Attention,
    Branch,
    D,
    Held,
    became,
    center,
    centring,
    centring_ops,
    converts,
    network,
    pre_norm,
    refuses,
)
from tests.passes.declined import REFUSALS
from tests.passes.judge import golden_pass, untouched

ROWS = [code for code, row in REFUSALS.items() if row.step == "center-stream"]


def blocks(m: Any, x: Tensor) -> Any:
    x = x + m.a(x)
    return m.head(m.norm(x + m.b(x)))


def plain(m: Any, x: Tensor) -> Any:
    return blocks(m, m.stem(x))


def activated(m: Any, x: Tensor) -> Any:
    return blocks(m, F.gelu(m.stem(x)))


def tied(m: Any, x: Tensor) -> Any:
    y = m.table(x)
    return F.linear(m.norm(y + m.a(y)), m.table.weight)


def vocabulary(words: int = 11) -> tuple[nn.Module, Tensor]:
    return pre_norm(tied, table=nn.Embedding(words, D)), torch.randint(0, words, (2, 5))


# -- golden -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "wiring", "more"),
    [
        ("block", plain, {}),
        ("activated", activated, {}),
        ("heads", plain, {"a": Attention(qk_norm=True)}),
    ],
)
def test_golden(name: str, wiring: Callable[..., object], more: dict[str, nn.Module]) -> None:
    graph = capture(pre_norm(wiring, **more), (torch.randn(TOKENS),))
    golden_pass(f"center-stream/{name}", graph, SETUP)


# -- equal ------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    width=st.integers(2, 7),
    tokens=st.integers(1, 7),
    depth=st.integers(0, 3),
    bias=st.booleans(),
    eps=st.sampled_from([1e-12, 1e-5, 0.5, 100.0]),
    affine=st.booleans(),
)
def test_equal(width: int, tokens: int, depth: int, bias: bool, eps: float, affine: bool) -> None:
    """Any width, also that of the tokens, and any eps."""
    options: dict[str, Any] = {"eps": eps, "elementwise_affine": affine}
    parts = {f"b{index}": Branch(width, bias, **options) for index in range(depth)}

    def wiring(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        for name in parts:
            x = x + getattr(m, name)(x)
        return m.head(m.norm(x))

    stem, norm = nn.Linear(width, width, bias=bias), nn.LayerNorm(width, **options)
    net = network(wiring, stem=stem, norm=norm, head=nn.Linear(width, 3), **parts)
    converts(center(net, torch.randn(2, tokens, width)), rms=depth + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    """The baked weights are centred in float64 and rounded once; the verdict's bound holds."""
    net = pre_norm(plain).to(dtype)
    outcome = converts(center(net, torch.randn(TOKENS).to(dtype)), rms=3)
    assert outcome.baked(*outcome.before.args).dtype == dtype


def test_norm_of_a_gain_that_does_not_fold() -> None:
    """A gelu behind the norm: gain and bias stay, as an RMSNorm's weight and one addition."""
    net = network(lambda m, x: F.gelu(m.norm(m.fc(x))), fc=nn.Linear(D, D), norm=nn.LayerNorm(D))
    outcome = converts(center(net, torch.randn(TOKENS)), rms=1)
    assert outcome.ops() == ["linear", "rms_norm", "add", "gelu"]


def test_dynamic_axes_stay_dynamic() -> None:
    axes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    net = pre_norm(plain, a=Attention())
    outcome = converts(center(net, torch.randn(TOKENS), dynamic=((axes,),)), rms=3)
    for shape in ((1, 3, D), (4, 6, D), (3, 9, D)):
        x = torch.randn(shape)
        assert torch.allclose(outcome.baked(x), net(x), atol=1e-5)


# -- declines ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ROWS)
def test_declines(code: str) -> None:
    row = REFUSALS[code]
    module, x = row.build()
    outcome = center(module, x, options=row.options)
    decline = centring(outcome).declined[0]
    reason = by_code(code)
    assert reason is not None
    assert {d.code for d in centring(outcome).declined} == {code}
    assert (decline.site.split("#")[0], decline.kind) == ("norm", "layer-norm")
    assert (decline.reason, decline.hint) == (reason.summary, reason.remedy)
    assert decline.node
    assert "declined.py" in decline.line or "nets.py" in decline.line


# -- idempotent, no-op ------------------------------------------------------------------------------


@pytest.mark.parametrize("wiring", [plain, activated])
def test_idempotent(wiring: Callable[..., object]) -> None:
    graph = capture(pre_norm(wiring), (torch.randn(TOKENS),))
    untouched(graph, f"{SETUP},center-stream,center-stream")


@pytest.mark.parametrize(
    ("build", "shape"), [(Residual, (2, 4, 5, 6)), (lambda: nn.Linear(D, D), TOKENS)]
)
def test_no_op(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    untouched(capture(perturb(build()), (torch.randn(shape),)), f"{SETUP},center-stream")


def test_norms_of_every_kind() -> None:
    """Behind a gelu nothing can be centred; the other kinds are no concern of the pass."""
    outcome = center(perturb(Norms()), torch.randn(2, 4, 5, 6))
    assert {d.site for d in centring(outcome).declined} == {"layer", "bare", "biasless", "group"}


@pytest.mark.parametrize("spelling", ["llama", "t5"])
def test_rms_norms_are_left_alone(spelling: str) -> None:
    """A network that uses RMSNorm is not recentred, however it spells it."""

    class Spelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(D))

        def forward(self, x: Tensor) -> Tensor:
            square = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
            x = x * torch.rsqrt(square + 1e-6)
            return self.weight * x if spelling == "llama" else self.weight * x.to(torch.float32)

    def branch() -> nn.Module:
        return nn.Sequential(Spelled(), nn.Linear(D, D))

    graph = capture(pre_norm(plain, a=branch(), b=branch(), norm=Spelled()), (torch.randn(TOKENS),))
    untouched(graph, f"{SETUP},center-stream")


def test_layer_and_rms_norms_on_one_stream() -> None:
    """The RMSNorm would see that the mean is gone."""
    net = pre_norm(plain, b=nn.Sequential(nn.RMSNorm(D), nn.Linear(D, D)))
    outcome = center(net, torch.randn(TOKENS))
    assert became(outcome) == (1, 2, 0), "the RMSNorm alone"
    assert {d.code for d in centring(outcome).declined} == {"NF119"}
    assert all("rms_norm" in d.node for d in centring(outcome).declined)


# -- options ----------------------------------------------------------------------------------------


def test_op_cost() -> None:
    """One op for one norm pays only where it is cheaper."""
    net = network(
        lambda m, x: m.out(m.norm(F.gelu(m.fc(x)))),
        fc=nn.Linear(D, D),
        norm=nn.LayerNorm(D),
        out=nn.Linear(D, D),
    )
    refuses(center(net, torch.randn(TOKENS)), "NF120")
    outcome = converts(center(net, torch.randn(TOKENS), options="op-cost=0.5"), rms=1, ops=1)
    assert centring_ops(outcome)[0].args[0].name.startswith("gelu")  # type: ignore[union-attr]
    three = pre_norm(activated)
    converts(center(three, torch.randn(TOKENS), options="op-cost=2.9"), rms=3, ops=1)
    refuses(center(three, torch.randn(TOKENS), options="op-cost=3.1"), "NF120")


def test_bias_cost() -> None:
    net = network(lambda m, x: F.gelu(m.norm(m.fc(x))), fc=nn.Linear(D, D), norm=nn.LayerNorm(D))
    converts(center(net, torch.randn(TOKENS), options="bias-cost=0.9"), rms=1)
    refuses(center(net, torch.randn(TOKENS), options="bias-cost=1.1"), "NF122")


def test_a_tied_table_is_followed_by_one_op() -> None:
    net, ids = vocabulary()
    outcome = converts(center(net, ids), rms=2, ops=1)
    assert centring_ops(outcome)[0].args[0].name.startswith("embedding")  # type: ignore[union-attr]
    assert outcome.baked.parameter_bytes() <= outcome.before.parameter_bytes()


def test_untie() -> None:
    net, ids = vocabulary()
    outcome = converts(center(net, ids, options="untie=true"), rms=2)
    table = net.get_parameter("table.weight")
    more = outcome.baked.parameter_bytes() - outcome.before.parameter_bytes()
    assert more + 2 * 4 * D * 2 >= 4 * table.numel(), "two tables, less the norms' vectors"


def test_correct_heads() -> None:
    """The table is centred, the head's product with the means of its rows is added."""
    net, ids = vocabulary()
    outcome = converts(center(net, ids, options="correct-heads=true"), rms=2)
    table = net.get_parameter("table.weight")
    more = outcome.baked.parameter_bytes() - outcome.before.parameter_bytes()
    assert more <= 4 * table.shape[0]


def test_a_tied_table_for_one_norm_gains_nothing() -> None:
    net = network(
        lambda m, x: F.linear(m.norm(m.table(x)), m.table.weight),
        table=nn.Embedding(11, D),
        norm=nn.LayerNorm(D),
    )
    refuses(center(net, torch.randint(0, 11, (2, 5))), "NF102")


def test_the_tie_is_one_initializer_in_the_file(tmp_path: Any) -> None:
    import onnx

    import normfold

    words = 2000  # enough that the exporter does not fold a transposed copy of it
    net, ids = vocabulary(words)
    result = normfold.convert(net, to="rmsnorm", export="onnx", output=tmp_path, inputs=(ids,))
    assert result.report.ok
    (path,) = tmp_path.glob("*.onnx")
    tables = [
        tensor.name
        for tensor in onnx.load(path).graph.initializer
        if sorted(tensor.dims) == [D, words]
    ]
    assert len(tables) == 1, tables


def test_constant_rows_and_held_parameters_are_judged() -> None:
    """A class token that is the same for every feature has no variance: 0 / sqrt(eps)."""
    net = pre_norm(lambda m, x: blocks(m, m.stem(x) * 0 + m.token()), token=Held(1, 1, D))
    with torch.no_grad():
        net.get_parameter("token.value").fill_(2.0)
    converts(center(net, torch.randn(TOKENS)), rms=3)


def test_site_by_site() -> None:
    """Streams that do not hang together are rewrites of their own: one may be bad, for bisect."""
    net = Compose(
        lambda m, x: m.n(m.f(x)) + m.o(m.g(x)),
        f=nn.Linear(D, D),
        g=nn.Linear(D, D),
        n=nn.LayerNorm(D, elementwise_affine=False),
        o=nn.LayerNorm(D, elementwise_affine=False),
    )
    outcome = converts(center(perturb(net), torch.randn(TOKENS)), rms=2)
    assert centring(outcome).rewrites == 2

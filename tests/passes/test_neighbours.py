"""What stands beside the norm: producers, reparametrised weights, movement, attention, dtypes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.nets import Compose, Encoder, PostNorm, batch_norms, conv, perturb
from tests.passes.judge import Outcome, declines, fold, folded
from tests.sampling import every_other

IMAGE = (2, 4, 5, 6)
BN = nn.BatchNorm2d


def run(
    wiring: Callable[..., Any], x: Tensor | None = None, options: str = "", **parts: nn.Module
) -> Outcome:
    x = torch.randn(IMAGE) if x is None else x
    return fold(perturb(Compose(wiring, **parts)), x, options=options)


def ways(outcome: Outcome) -> dict[str, str]:
    return {applied.site: applied.detail for applied in outcome.folding.applied}


# -- producers and readers --------------------------------------------------------------------------


class Products(nn.Module):
    """A square matrix, a vector and a norm, for products that are not layers."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.w, self.b = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


FLAT, TOKENS, COLUMNS = (2, 6), (2, 5, 6), (2, 6, 5)


@pytest.mark.parametrize(
    ("shape", "function"),
    [
        (FLAT, lambda m, x: m.norm(torch.addmm(m.b, x, m.w))),
        (FLAT, lambda m, x: m.norm(torch.mm(x, m.w))),
        (FLAT, lambda m, x: m.norm(F.linear(x, m.w))),
        (FLAT, lambda m, x: m.norm(x @ m.w.t())),
        (TOKENS, lambda m, x: m.norm((x @ m.w + m.b).transpose(1, 2))),
        (FLAT, lambda m, x: torch.addmm(m.b, m.norm(x), m.w)),
        (FLAT, lambda m, x: torch.mm(m.norm(x), m.w)),
        (COLUMNS, lambda m, x: m.norm(x).transpose(1, 2) @ m.w),
        (FLAT, lambda m, x: torch.mm(m.norm(torch.mm(F.relu(x), m.w)), m.w)),
    ],
    ids=["addmm", "mm", "linear", "mm-t", "matmul", "to-addmm", "to-mm", "to-matmul", "mm-mm"],
)
def test_products(shape: tuple[int, ...], function: Callable[..., Tensor]) -> None:
    folded(fold(perturb(Products(function)), torch.randn(shape)))


def test_a_matrix_on_the_left_has_no_bias_for_the_shift() -> None:
    declines(fold(perturb(Products(lambda m, x: m.norm(m.w @ x))), torch.randn(COLUMNS)), "NF115")
    outcome = fold(perturb(Products(lambda m, x: m.w @ m.norm(x))), torch.randn(COLUMNS))
    declines(outcome, "NF114")


def test_embedding() -> None:
    tokens = torch.randint(0, 7, (2, 5))
    net = Compose(
        lambda m, x: m.norm(m.table(x).transpose(1, 2)),
        table=nn.Embedding(7, 6),
        norm=nn.BatchNorm1d(6),
    )
    folded(fold(perturb(net), tokens))


def test_layer_scale() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.out = nn.Linear(6, 6), nn.Linear(6, 6)
            self.gamma = nn.Parameter(torch.randn(6))

        def forward(self, x: Tensor) -> Any:
            return x + self.out(F.relu(x + self.gamma * self.fc(x))) * self.gamma

    assert folded(fold(perturb(Scaled()), torch.randn(TOKENS))).ops().count("linear") == 2


# -- reparametrised weights -------------------------------------------------------------------------


class Standardised(nn.Conv2d):
    """Weight standardisation by hand, scaled, as in NFNets."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        w = w * 1.7 / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, padding=1)


class StandardisedByNorm(nn.Conv2d):
    """Weight standardisation as timm writes it: a batch_norm of the weight."""

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        w = F.batch_norm(rows, None, None, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, w, self.bias, padding=1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: weight_norm(conv()),
        lambda: parametrizations.weight_norm(conv()),
        lambda: spectral_norm(conv()),
        lambda: parametrizations.spectral_norm(conv()),
        lambda: parametrizations.orthogonal(conv(4, 4, 1)),
        lambda: Standardised(4, 4, 3),
        lambda: StandardisedByNorm(4, 4, 3),
    ],
    ids=["weight-hook", "weight", "spectral-hook", "spectral", "orthogonal", "ws", "ws-timm"],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_reparametrised_weights(layer: Callable[[], nn.Module]) -> None:
    """They are parameter expressions, so folding and baking leave one plain convolution."""
    outcome = folded(fold(perturb(nn.Sequential(layer(), BN(4))), torch.randn(IMAGE)))
    assert outcome.ops() == ["conv2d"]
    names = {name for name, _ in outcome.baked.module.named_parameters()}
    assert names == {"0.weight", "0.bias"} or {n.rsplit("_", 1)[0] for n in names} == {
        "0.weight",
        "0.bias",
    }
    assert sum(1 for _ in outcome.baked.module.parameters()) == 2


# -- movement ---------------------------------------------------------------------------------------

MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "avg-pool": lambda x: F.avg_pool2d(x, 2),
    "avg-pool-pad": lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False),
    "adaptive-pool": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "nearest": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bicubic": lambda x: F.interpolate(x, size=(7, 9), mode="bicubic", align_corners=True),
    "reflect": lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 3, 0), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 3, 0), mode="circular"),
    "roll": lambda x: x.roll((1, 2), (2, 3)),
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "shuffle-by-hand": lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
    "windows": lambda x: x.unfold(3, 2, 2).permute(0, 3, 1, 2, 4).flatten(0, 1),
    "flip": lambda x: x.flip(1, 3),
    "scalar": lambda x: -x / 3.0 * 2,
    "stack": lambda x: torch.stack([x, x + 0], 2).flatten(2, 3),
    "slice": lambda x: x[:, [3, 1, 0, 2], 1:, ::2],
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
}


@pytest.mark.parametrize("name", every_other(MOVES))
def test_through(name: str) -> None:
    """Against the data flow into the convolution in front, and with it into the one behind."""

    def wiring(m: Any, x: Tensor) -> Any:
        move = MOVES[name]
        return F.sigmoid(m.norm1(move(m.front(x)))), m.back(move(m.norm2(F.gelu(x))))

    outcome = run(wiring, front=conv(), norm1=BN(4), norm2=BN(4), back=conv(4, 3, 1))
    if name == "stack":  # one tensor moved to two places takes no transform against the flow
        declines(outcome, "NF103", "NF108")
    else:
        assert ways(folded(outcome)) == {"norm1": "backward", "norm2": "forward"}


def test_average_with_padding_counted_in() -> None:
    """Its weights do not sum to one at the border: the scale passes, the shift does not."""
    outcome = run(
        lambda m, x: m.conv(F.avg_pool2d(m.norm(F.gelu(x)), 3, 2, 1)),
        norm=BN(4),
        conv=conv(4, 4, 1),
    )
    declines(outcome, "NF114")


def test_pixel_shuffle() -> None:
    folded(run(lambda m, x: m.norm(F.pixel_shuffle(m.conv(x), 2)), conv=conv(4, 8), norm=BN(2)))


def test_pixel_shuffle_spreads_features_over_space() -> None:
    wide = torch.randn(2, 8, 4, 6)
    outcome = run(
        lambda m, x: m.conv(F.pixel_shuffle(m.norm(F.gelu(x)), 2)),
        wide,
        norm=BN(8),
        conv=conv(2, 4, 1),
    )
    declines(outcome, "NF108")


def test_pixel_unshuffle() -> None:
    even = torch.randn(2, 4, 4, 6)
    folded(
        run(
            lambda m, x: m.conv(F.pixel_unshuffle(m.norm(F.gelu(x)), 2)),
            even,
            norm=BN(4),
            conv=conv(16, 4, 1),
        )
    )


@pytest.mark.parametrize("same", [True, False])
def test_chunk(same: bool) -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        left, right = m.conv(x).chunk(2, 1)
        return m.norm1(left) * torch.sigmoid((m.norm1 if same else m.norm2)(right))

    folded(run(wiring, conv=conv(4, 8), norm1=BN(4), norm2=BN(4)))


def test_leaky_relu_and_prelu() -> None:
    net = perturb(
        nn.Sequential(conv(), nn.LeakyReLU(0.1), nn.PReLU(), BN(4, affine=False), nn.Sigmoid())
    )
    for _, norm in batch_norms(net):
        norm.running_mean.zero_()  # type: ignore[operator]
    outcome = fold(net, torch.randn(IMAGE))
    declines(outcome, "NF105")  # the shift is zero in value, but it is there


def test_attention_then_norm() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        weights = torch.softmax(m.q(x) @ m.k(x).transpose(1, 2), -1)
        return m.norm((weights @ m.v(x)).transpose(1, 2))

    parts: dict[str, Any] = {name: nn.Linear(6, 6) for name in "qkv"}
    assert ways(folded(run(wiring, torch.randn(TOKENS), norm=nn.BatchNorm1d(6), **parts))) == {
        "norm": "backward"
    }


def test_fused_attention_then_norm() -> None:
    def wiring(m: Any, x: Tensor) -> Any:
        q, k, v = m.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return m.norm(y.transpose(1, 2))

    folded(run(wiring, torch.randn(TOKENS), qkv=nn.Linear(6, 18), norm=nn.BatchNorm1d(6)))


def test_masked_attention_then_norm() -> None:
    """A row that the mask empties sums to zero, so the shift stays."""

    def wiring(m: Any, x: Tensor) -> Any:
        mask = torch.ones(5, 5, dtype=torch.bool).tril()
        v = m.v(x)
        return m.norm(F.scaled_dot_product_attention(x, x, v, attn_mask=mask).transpose(1, 2))

    declines(run(wiring, torch.randn(TOKENS), v=nn.Linear(6, 6), norm=nn.BatchNorm1d(6)), "NF113")


# -- dtypes -----------------------------------------------------------------------------------------


def test_mixed_dtypes() -> None:
    """A half-precision convolution, a float32 norm, a bfloat16 convolution: each keeps its dtype."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.front, self.norm, self.norm2 = conv().half(), BN(4), BN(4)
            self.back = conv(4, 4, 1).bfloat16()

        def forward(self, x: Tensor) -> Any:
            x = F.gelu(self.norm(self.front(x).float()))
            return self.back(self.norm2(x).bfloat16())

    outcome = folded(fold(perturb(Mixed()), torch.randn(IMAGE).half()))
    assert ways(outcome) == {"norm": "backward", "norm2": "forward"}
    dtypes = {name: p.dtype for name, p in outcome.baked.module.named_parameters()}
    assert dtypes["front.weight"] == torch.float16
    assert dtypes["back.weight"] == dtypes["back.bias"] == torch.bfloat16


# -- norms that stay, without their affine ----------------------------------------------------------


def test_layer_norm_gain_goes_into_linear_readers() -> None:
    outcome = folded(fold(perturb(Encoder()), torch.randn(2, 5, 8)))
    assert {ways(outcome)[name] for name in ("norm1", "norm2")} == {"forward"}
    norms = [node for node in outcome.baked.nodes if "layer_norm" in str(node.target)]
    assert [node.args[2:4] for node in norms] == [(None, None)] * 2
    assert "mul" not in outcome.ops(), "LayerScale is in the linear before it"


def test_post_norm_keeps_its_affine_in_the_norm() -> None:
    outcome = declines(fold(perturb(PostNorm()), torch.randn(2, 5, 8)), "NF104", "NF105")
    norms = [node for node in outcome.baked.nodes if "layer_norm" in str(node.target)]
    assert [[str(arg) for arg in node.args[2:4]] for node in norms] == [
        ["norm1_weight", "norm1_bias"],
        ["norm2_weight", "norm2_bias"],
    ]
    assert outcome.ops() == ["linear", "add", "layer_norm", "linear", "gelu", "add", "layer_norm"]

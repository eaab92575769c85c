"""Checkpoints in the layout of the public repositories of PRepBN (SLAB) and UN load and fold.

The classes have the names, buffers and eval-mode formulas that the repositories document; they are written here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from normfold import convert
from normfold.ir import capture
from normfold.ir.graph import op_name
from tests.nets import perturb
from tests.passes.judge import Outcome, judge, right
from tests.sampling import every_other

D = 8
IMAGE = (2, 3, 8, 8)
PIPELINE = "canonicalize,fold-affine,restore"


class RepBN(nn.Module):
    """BN over the tokens, plus alpha times the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1))
        self.bn = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = self.bn(x) + self.alpha * x
        return x.transpose(1, 2)


class LinearNorm(nn.Module):
    """LayerNorm and RepBN with counters for the way from one to the other."""

    def __init__(self, dim: int, warm: int = 0, step: int = 300000, r0: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("warm", torch.tensor(warm))
        self.register_buffer("iter", torch.tensor(step))
        self.register_buffer("total_step", torch.tensor(step))
        self.r0 = r0
        self.norm1, self.norm2 = nn.LayerNorm(dim), RepBN(dim)

    def forward(self, x: Tensor) -> Any:
        assert not self.training
        return self.norm2(x)


class UN1d(nn.Module):
    """Unified normalisation with its windows of past batches."""

    running_var: Tensor

    def __init__(self, channels: int, window_size: int = 4) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.ones(channels)),
            nn.Parameter(torch.zeros(channels)),
        )
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("ema_gz", torch.zeros(channels))
        self.register_buffer("iters", torch.zeros(1, dtype=torch.long))
        self.register_buffer("buffer_x2", torch.zeros(window_size, channels))
        self.register_buffer("buffer_gz", torch.zeros(window_size, channels))
        self.register_buffer("skip_counter", torch.zeros(1))
        self.eps = 1e-5

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        z = x / (self.running_var + self.eps).sqrt()
        return (self.weight * z + self.bias).reshape(shape)


class Block(nn.Module):
    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(D), norm(D)
        self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.fc1, self.fc2 = nn.Linear(D, 12), nn.Linear(12, D)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))  # type: ignore[no-any-return]


class Net(nn.Module):
    """A patch embedding with a norm, two blocks, mean pooling behind the final norm."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.patch, self.patch_norm = nn.Conv2d(3, D, 2, 2), norm(D)
        self.blocks = nn.Sequential(Block(norm), Block(norm))
        self.norm, self.head = norm(D), nn.Linear(D, 5)

    def forward(self, images: Tensor) -> Any:
        x = self.patch_norm(self.patch(images).flatten(2).transpose(1, 2))
        return self.head(self.norm(self.blocks(x)).mean(1))


def slab() -> nn.Module:
    return Net(RepBN)


def slab_linear_norm() -> nn.Module:
    return Net(LinearNorm)


def unified() -> nn.Module:
    return Net(UN1d)


BUILDERS = [slab, slab_linear_norm, unified]


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """With statistics, gains and alphas of a trained network."""
    net = perturb(build())
    torch.manual_seed(5)
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if name.endswith("alpha"):
                tensor.copy_(torch.randn(1))
    return net


def outcome_of(net: nn.Module) -> Outcome:
    torch.manual_seed(0)
    return right(judge(capture(net, (torch.randn(IMAGE),)), PIPELINE))


@pytest.mark.parametrize("build", BUILDERS)
def test_no_norm_is_left(build: Callable[[], nn.Module]) -> None:
    outcome = outcome_of(trained(build))
    assert outcome.codes == set()
    names = [
        op_name(node) for node in outcome.baked.nodes if isinstance(node.meta.get("val"), Tensor)
    ]
    assert not {"batch_norm", "mul", "div", "sqrt"} & set(names)
    assert names.count("add") == 4  # the residuals


def test_the_patch_embedding_keeps_alpha_times_the_bias() -> None:
    """W' = (g / s + alpha) W, b' = (g / s + alpha) b + beta - g mu / s: the public merge leaves alpha b out."""
    net = trained(slab)
    assert isinstance(net, Net)
    assert isinstance(net.patch_norm, RepBN)
    conv, norm = net.patch, net.patch_norm
    assert norm.bn.running_mean is not None
    assert norm.bn.running_var is not None
    gain = norm.bn.weight / (norm.bn.running_var + norm.bn.eps).sqrt()
    assert conv.bias is not None
    expected = (gain + norm.alpha) * conv.bias + norm.bn.bias - gain * norm.bn.running_mean
    baked = outcome_of(net).baked
    node = next(node for node in baked.nodes if op_name(node) == "conv2d")
    bias = baked.value(node.args[2])  # type: ignore[arg-type]
    torch.testing.assert_close(bias.float(), expected.detach(), rtol=1e-5, atol=1e-6)
    wrong = (expected - norm.alpha * conv.bias).detach()
    assert float((bias.float() - wrong).abs().max()) > 0.05


@pytest.mark.parametrize("build", every_other(BUILDERS))
def test_a_state_dict_converts(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    save_file(trained(build).state_dict(), path)
    result = convert(
        path,
        factory=f"tests.passes.test_public_norms:{build.__name__}",
        inputs=["2x3x8x8"],
        output=tmp_path / "out",
    )
    assert result.ok
    census = result.report.census
    assert not {"BatchNormalization", "Div", "Sqrt", "LayerNormalization"} & census.keys()


def sum_of(wiring: Callable[[Any, Tensor], Tensor]) -> Outcome:
    """A BatchNorm ``m.norm`` over the channels and what stands beside it, between two convolutions."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, D, 1), nn.Conv2d(D, 4, 1)
            self.norm, self.other = nn.BatchNorm2d(D), nn.BatchNorm2d(D)
            self.number = nn.Parameter(torch.tensor(0.7))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z: Tensor = self.b(torch.relu(wiring(self, y)))
            return z

    torch.manual_seed(0)
    return judge(capture(perturb(Sum()), (torch.randn(IMAGE),)), PIPELINE)


@pytest.mark.parametrize(
    "wiring",
    [
        lambda m, y: m.norm(y) + m.number * y,
        lambda m, y: y * m.number - m.norm(y),
        lambda m, y: m.norm(y) - y * 0.3,
        lambda m, y: m.norm(y) + y / 4,
        lambda m, y: m.norm(y) + y,
        lambda m, y: y - m.norm(y),
        lambda m, y: m.norm(y) + m.other(y),
        lambda m, y: m.norm(y) - (m.other(y) - y),
        lambda m, y: m.norm(y) + (y + m.number * y),
    ],
)
def test_parallel_affines_add_up(wiring: Callable[[Any, Tensor], Tensor]) -> None:
    outcome = right(sum_of(wiring))
    assert outcome.codes == set()
    names = [op_name(node) for node in outcome.baked.nodes if node.op == "call_function"]
    assert [name for name in names if name not in ("conv2d", "relu")] == []


def test_a_branch_that_is_read_elsewhere_stays() -> None:
    """m.other(y) is part of the sum and an input of the product: only its part in the sum may change."""
    outcome = right(sum_of(lambda m, y: (lambda z: (m.norm(y) + z) * torch.sigmoid(z))(m.other(y))))
    assert outcome.baked is not None


def test_affines_of_two_tensors_stay_apart() -> None:
    outcome = right(sum_of(lambda m, y: m.norm(y) + m.number * torch.tanh(y)))
    assert any(op_name(node) == "add" for node in outcome.baked.nodes)

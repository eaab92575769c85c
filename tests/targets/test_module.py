"""Back to PyTorch: the lines that are printed make of a fresh original what the graph computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from normfold.errors import ExportError, UsageError
from normfold.targets.surgery import script_text
from tests import torchvision_shim
from tests.targets.back import IMAGE, applied, back, convert, kinds, largest_error, perturbed
from tests.targets.nets import Block, ConvNet, Transformer

torchvision_shim.install()  # timm imports torchvision


def timm_net(name: str, **options: Any) -> nn.Module:
    import timm

    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, **options)
    return net


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet26d", marks=pytest.mark.slow)])
def test_a_folded_resnet_has_no_batch_norms(name: str, tmp_path: Path) -> None:
    net = timm_net(name)
    made = back(net, tmp_path, "folded", IMAGE)
    assert kinds(net)["BatchNorm2d"] > 0
    assert not kinds(made)
    text = (tmp_path / "resnet_apply.py").read_text()
    assert "normfold import" not in text
    assert "import normfold" not in text


def test_a_batch_norm_with_an_activation_leaves_the_activation(tmp_path: Path) -> None:
    made = back(timm_net("mobilenetv3_small_050"), tmp_path, "folded", IMAGE, verify="off")
    assert not kinds(made)
    assert any(isinstance(part, nn.Hardswish) for part in made.modules())


def test_a_branch_that_is_merged_adds_nothing(tmp_path: Path) -> None:
    from timm.models.byobnet import RepVggBlock

    net = nn.Sequential(nn.Conv2d(3, 8, 1), RepVggBlock(8, 8), RepVggBlock(8, 8))
    made = back(net, tmp_path, "folded", IMAGE)
    left = [part for part in made.modules() if isinstance(part, nn.BatchNorm2d)]
    assert len(left) == 2  # of six: those of branches without a convolution
    assert all(not part.weight.any() for part in left)


def test_convnext_has_one_norm_that_is_converted(tmp_path: Path) -> None:
    net = timm_net("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    made = back(net, tmp_path, "rmsnorm", IMAGE)
    assert kinds(made)["RMSNorm"] == 1
    assert kinds(made)["LayerNorm2d"] == kinds(net)["LayerNorm2d"] - 1
    blocks: Any = made.get_submodule("stages.0.blocks.0")
    assert torch.equal(blocks.gamma, torch.ones_like(blocks.gamma))  # LayerScale is folded


class Computed(nn.Module):
    """Convolutions whose weights are computed."""

    def __init__(self, how: Callable[..., Any]) -> None:
        super().__init__()
        self.conv = how(nn.Conv2d(3, 6, 3, padding=1))
        self.bn = nn.BatchNorm2d(6)
        self.out = how(nn.Conv2d(6, 4, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(F.relu(self.bn(self.conv(x))))
        return y


class Standardised(nn.Conv2d):
    """Weight standardisation, written by hand."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised(conv: nn.Conv2d) -> nn.Conv2d:
    made = Standardised(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
    made.weight, made.padding = conv.weight, conv.padding
    return made


@pytest.mark.parametrize(
    "how",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        nn.utils.parametrizations.spectral_norm,
        standardised,
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_computed_weights_become_plain_ones(how: Callable[..., Any], tmp_path: Path) -> None:
    made: Any = back(Computed(how), tmp_path, "folded", IMAGE)
    assert set(made.state_dict()) == {"conv.weight", "conv.bias", "out.weight"}
    assert type(made.conv) is nn.Conv2d
    assert not kinds(made)


def test_a_parametrised_layer_of_another_kind_keeps_its_class(tmp_path: Path) -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            up = nn.ConvTranspose2d(3, 4, 2, stride=2)
            self.up = nn.utils.parametrizations.weight_norm(up)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.bn(self.up(x))
            return y

    net = Up()
    made: Any = back(net, tmp_path, "folded", IMAGE)
    assert set(made.state_dict()) == {"up.weight", "up.bias"}
    assert net(IMAGE).shape == (2, 4, 64, 64)  # the original still has its own weight


class Bare(nn.Module):
    """Norms, a scale and constants in the code of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 1)
        self.next = nn.Conv2d(6, 6, 1, bias=False)
        for name in ("mean", "var"):
            self.register_buffer(f"running_{name}", torch.rand(6) + 0.5)
        self.scale, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.register_buffer("middle", torch.full((3, 1, 1), 0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        middle: Any = self.middle
        y = self.conv(x - middle)
        y = F.batch_norm(y, self.running_mean, self.running_var)  # type: ignore[arg-type]
        return F.relu(self.next(F.relu(y)) * self.scale[:, None, None] + self.shift[:, None, None])


def test_bare_norms_and_scales_are_left_neutral(tmp_path: Path) -> None:
    made: Any = back(Bare(), tmp_path, "folded", IMAGE)
    assert torch.equal(made.scale, torch.ones(6))
    assert torch.equal(made.shift, torch.zeros(6))
    assert torch.equal(made.middle, torch.zeros(3, 1, 1))
    assert torch.equal(made.running_mean, torch.zeros(6))


class Twice(nn.Module):
    """A convolution that is called twice, with a batch norm behind each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.a, self.b = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.conv(F.relu(self.a(self.conv(x)))))
        return y


class Functional(nn.Module):
    """A LayerNorm that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(F.layer_norm(self.a(x), (8,)))
        return y


class Constant(nn.Module):
    """A scale that is neither a parameter nor a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.fc = torch.rand(8) + 1, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x) * self.scale
        return y


@pytest.mark.parametrize(
    ("make", "to", "size", "what"),
    [
        (Twice, "folded", (2, 3, 4, 4), r"`conv\.(weight|bias)` would need two values"),
        (Functional, "rmsnorm", (2, 8), "a LayerNorm in the code of `forward` became an RMSNorm"),
        (Constant, "folded", (2, 8), "a constant in the code of `forward` has another value"),
    ],
)
def test_what_no_module_expresses_is_refused(
    make: Callable[[], nn.Module], to: str, size: tuple[int, ...], what: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=what):
        convert(perturbed(make()), tmp_path, to, inputs=(torch.randn(size),))
    assert not list(tmp_path.iterdir())


def test_a_wrong_attribution_fails_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "normfold.targets.module.script_text",
        lambda surgery, name: script_text(surgery, name).replace(
            "    return module.eval()", "    module.fc.bias.data += 1\n    return module.eval()"
        ),
    )
    net = perturbed(ConvNet())
    result = normfold.convert(
        net, to="folded", export="module", output=tmp_path, inputs=(torch.randn(2, 3, 8, 8),)
    )
    assert not result.ok
    assert [path.name for path in tmp_path.iterdir()] == ["convnet.report.json"]


def test_a_program_has_no_modules(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 8, 8)
    normfold.convert(ConvNet().eval(), to="folded", export="pt2", output=tmp_path, inputs=(x,))
    with pytest.raises(UsageError, match="the original is a program"):
        convert(str(tmp_path / "convnet.pt2"), tmp_path / "out", "folded")


def test_the_file_that_was_read_is_not_overwritten(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    net = ConvNet().eval()
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    before = (tmp_path / "net.safetensors").read_bytes()
    options: dict[str, Any] = {"trust_modules": ("tests",), "inputs": ("2x3x8x8",)}
    options["factory"] = "tests.targets.nets:ConvNet"
    with pytest.raises(UsageError, match="the one that the model was read from"):
        convert(str(tmp_path / "net.safetensors"), tmp_path, "folded", **options)
    assert (tmp_path / "net.safetensors").read_bytes() == before


def test_types_of_numbers_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"`--export module` and `--precision fp16`"):
        convert(ConvNet().eval(), tmp_path, "folded", inputs=(IMAGE,), precision="fp16")


@pytest.mark.parametrize("verify", ["final", "off"])
def test_without_a_verdict_it_is_the_same_file(verify: str, tmp_path: Path) -> None:
    net = perturbed(Transformer())
    x = torch.randn(2, 3, 8, 8)
    made = applied(net, convert(net, tmp_path, "rmsnorm", inputs=(x,), verify=verify))
    assert largest_error(net, made, x) < 1e-6
    assert kinds(made) == {"RMSNorm": 5}
    assert isinstance(made.get_submodule("blocks.0"), Block)

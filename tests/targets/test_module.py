"""Back to PyTorch: the lines that are printed make of a fresh original what the graph computes."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import normfold
from normfold.errors import ExportError, UsageError
from tests import torchvision_shim
from tests.targets.nets import Block, ConvNet, Transformer

torchvision_shim.install()  # timm and transformers import torchvision

IMAGE = torch.randn(2, 3, 32, 32)


def perturbed(net: nn.Module) -> nn.Module:
    """No trivial statistics, and gains of both signs."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("running_var"):
                value.copy_(torch.rand(value.shape, generator=random) + 0.5)
            elif value.dim() == 1 and name.endswith(("weight", "bias", "gamma", "mean")):
                value.add_(0.7 * torch.randn(value.shape, generator=random))
    return net.eval()


def applied(net: nn.Module, result: Any) -> nn.Module:
    """Run the line that was printed on a copy of the original that holds nothing but NaN."""
    (note,) = [text for text in result.report.notes if text.startswith("back in PyTorch")]
    module = copy.deepcopy(net)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.fill_(torch.nan)
    names: dict[str, Any] = {"module": module}
    exec(re.findall(r"`([^`]*)`", note)[-1], names)
    made = names["module"]
    assert isinstance(made, nn.Module)
    return made


def outputs(net: nn.Module, *inputs: Tensor, **named: Tensor) -> list[Tensor]:
    """In float64."""

    def wide(x: Tensor) -> Tensor:
        return x.double() if x.is_floating_point() else x

    with torch.no_grad():
        found = copy.deepcopy(net).double()(
            *map(wide, inputs), **{k: wide(v) for k, v in named.items()}
        )
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def largest_error(net: nn.Module, made: nn.Module, *inputs: Tensor, **named: Tensor) -> float:
    pairs = zip(outputs(net, *inputs, **named), outputs(made, *inputs, **named), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


def kinds(net: nn.Module) -> Counter[str]:
    """Norms of a network by class."""
    return Counter(type(m).__name__ for m in net.modules() if re.search("Norm", type(m).__name__))


def convert(net: Any, folder: Path, to: str, **options: Any) -> Any:
    result = normfold.convert(net, to=to, export="module", output=folder, **options)
    assert result.ok
    return result


def back(net: nn.Module, folder: Path, to: str, *inputs: Tensor, **options: Any) -> nn.Module:
    """The network after the whole way, equal to the original."""
    net = perturbed(net)
    made = applied(net, convert(net, folder, to, inputs=inputs, **options))
    assert largest_error(net, made, *inputs) < 1e-6
    return made


def timm_net(name: str, **options: Any) -> nn.Module:
    import timm

    torch.manual_seed(0)
    net: nn.Module = timm.create_model(name, **options)
    return net


@pytest.mark.parametrize("name", ["resnet18", "resnet26d"])
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
    assert all(float(part.weight.abs().max()) == 0 for part in left)


def test_convnext_has_one_norm_that_is_converted(tmp_path: Path) -> None:
    net = timm_net("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    made = back(net, tmp_path, "rmsnorm", IMAGE)
    assert kinds(made)["RMSNorm"] == 1
    assert kinds(made)["LayerNorm2d"] == kinds(net)["LayerNorm2d"] - 1
    blocks: Any = made.get_submodule("stages.0.blocks.0")
    assert torch.equal(blocks.gamma, torch.ones_like(blocks.gamma))  # LayerScale is folded


def vit(**options: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 16, "intermediate_size": 32, "image_size": 16, "patch_size": 8}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2}
    net: nn.Module = ViTForImageClassification(ViTConfig(**{**sizes, **heads, **options}))
    return net


def llama(**options: Any) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20, "num_hidden_layers": 1}
    net: nn.Module = LlamaForCausalLM(
        LlamaConfig(**{**sizes, "num_attention_heads": 2, "use_cache": False, **options})
    )
    return net


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    net: nn.Module = GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False))
    return net


def resnet() -> nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    sizes: dict[str, Any] = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    net: nn.Module = ResNetForImageClassification(ResNetConfig(**sizes))
    return net


def folder_of(net: Any, folder: Path) -> str:
    perturbed(net).save_pretrained(str(folder))
    return str(folder)


def test_a_vit_of_transformers_with_rms_norms(tmp_path: Path) -> None:
    net = vit()
    source = folder_of(net, tmp_path / "vit")
    result = convert(source, tmp_path / "out", "rmsnorm")
    made, pixels = applied(net, result), torch.randn(2, 3, 16, 16)
    assert largest_error(net, made, pixel_values=pixels) < 1e-6
    assert kinds(made) == {"RMSNorm": 5}
    assert any("became an RMSNorm, which `ViTFor" in text for text in result.report.notes)
    assert not (tmp_path / "out" / "vit-hf").exists()


@pytest.mark.parametrize("make", [llama, gpt2, resnet, vit])
def test_a_folder_for_from_pretrained(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    net: Any = make()
    source = folder_of(net, tmp_path / "net")
    (tmp_path / "net" / "vocab.txt").write_text("a\n")
    result = convert(source, tmp_path / "out", "folded")
    assert [check.kind for check in result.report.checks[-2:]] == ["module", "from_pretrained"]
    assert all(item.written for item in result.report.artefacts)
    folder = tmp_path / "out" / "net-hf"
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        (tmp_path / "net" / "config.json").read_text()
    )
    assert (folder / "vocab.txt").read_text() == "a\n"
    loaded = type(net).from_pretrained(str(folder), local_files_only=True).eval()
    if make in (resnet, vit):
        given = {"pixel_values": torch.randn(2, 3, 16, 16)}
    else:
        given = {"input_ids": torch.randint(0, 20, (2, 8))}
    net.config.use_cache = loaded.config.use_cache = False
    assert largest_error(net, loaded, **given) < 1e-6
    assert largest_error(net, applied(net, result), **given) < 1e-6
    gains = [
        m.weight
        for name, m in loaded.named_modules()
        if "Norm" in type(m).__name__ and not name.endswith(("layernorm", "ln_f"))
    ]
    assert gains
    assert all(torch.equal(gain, torch.ones_like(gain)) for gain in gains)


def test_a_tied_embedding_stays_tied_or_is_untied(tmp_path: Path) -> None:
    ids = torch.randint(0, 20, (2, 8))
    tied = back(llama(tie_word_embeddings=True), tmp_path / "a", "folded", ids)
    untied = back(llama(tie_word_embeddings=True), tmp_path / "b", "folded", ids, untie=True)

    def shares(net: Any) -> bool:
        return bool(net.lm_head.weight is net.model.embed_tokens.weight)

    assert shares(tied)
    assert not shares(untied)


def test_positions_that_are_not_read_are_not_guessed(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "vocab_size": 20, "num_hidden_layers": 1}
    net = perturbed(BertModel(BertConfig(**sizes, num_attention_heads=2)))
    short, full = torch.randint(0, 20, (2, 8)), torch.randint(0, 20, (2, 512))
    with pytest.raises(ExportError, match=r"not read at the sizes.*\n\nhint: capture with inputs"):
        convert(net, tmp_path, "rmsnorm", inputs=(short,))
    for inputs, dynamic in (((full,), ()), ((short,), ("input_ids:1",))):
        made = applied(net, convert(net, tmp_path, "rmsnorm", inputs=inputs, dynamic=dynamic))
        assert largest_error(net, made, full) < 1e-6
        assert kinds(made)["RMSNorm"] > 0


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
    sizes: Any = (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    return Standardised(*sizes, bias=conv.bias is not None)


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
        y = self.conv(x - self.middle)
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


def test_a_centring_op_is_refused_and_untying_helps(tmp_path: Path) -> None:
    ids = torch.randint(0, 20, (2, 8))
    with pytest.raises(ExportError, match=r"takes the mean off(.|\n)*`--untie`"):
        convert(perturbed(gpt2()), tmp_path, "rmsnorm", inputs=(ids,))
    made = back(gpt2(), tmp_path, "rmsnorm", ids, untie=True)
    assert kinds(made) == {"RMSNorm": 3}


def test_a_wrong_attribution_fails_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from normfold.targets import module

    script_text = module.script_text
    monkeypatch.setattr(
        module,
        "script_text",
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

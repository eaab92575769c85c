"""What the zoo holds, how a member is built, and how its numbers are perturbed.

Families are timm's module files. `scan` finds the smallest member with BatchNorm of each, without
the miniatures that timm keeps for its own tests (but the nfnet one: the next has other blocks).
`TIMM` is its result for timm 1.0.31, kept as text: a run need not build a thousand models first.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tests import torchvision_shim

LARGEST = 60e6  # parameters
WIDEST = 224  # pixels, where the network takes any size

# family model
TIMM = """
    byoanet halonet_h1
    byobnet mobileone_s1
    convmixer convmixer_768_32
    cpubone cpubone_nano
    cspnet cs3darknet_focus_s
    cspnext cspnext_tiny
    densenet densenet121
    dla dla46x_c
    dpn dpn48b
    efficientformer efficientformer_l1
    efficientformer_v2 efficientformerv2_s0
    efficientnet mobilenetv2_035
    efficientvim efficientvim_m1
    efficientvit_mit efficientvit_b0
    efficientvit_msra efficientvit_m0
    fasternet fasternet_t0
    fastvit fastvit_t8
    ghostnet ghostnet_050
    hardcorenas hardcorenas_b
    hgnet hgnetv2_b0
    hrnet hrnet_w18_small
    iformer iformer_t
    inception_next inception_next_atto
    inception_resnet_v2 inception_resnet_v2
    inception_v3 inception_v3
    inception_v4 inception_v4
    lcnetv2 lcnetv2_small
    levit levit_128s
    lowformer lowformer_b0
    maxxvit maxvit_pico_rw_256
    mobilenetv3 mobilenetv3_small_050
    mobilevit mobilevit_xxs
    nextvit nextvit_small
    nfnet test_nfnet
    regnet regnetx_002
    repghost repghostnet_050
    repvit repvit_m1
    res2net res2next50
    resnest resnest14d
    resnet resnet10t
    resnetv2 resnetv2_18
    rexnet rexnet_100
    selecsls selecsls42
    senet legacy_seresnet18
    shvit shvit_s1
    sknet skresnet18
    starnet starnet_s050
    swiftformer swiftformer_xs
    tiny_vit tiny_vit_5m_224
    tresnet tresnet_m
    visformer visformer_tiny
    vision_transformer_hybrid vit_tiny_r_s16_p8_224
    volo volo_d1_224
    vovnet ese_vovnet19b_slim_dw
    xception legacy_xception
    xception_aligned xception41p
    xcit xcit_nano_12_p8_224
"""

# What the smallest ones lack: scaled weight standardisation, identity branches, LayerNorm and
# LayerScale without any BatchNorm.
EXTRA = """
    nfnet nf_regnet_b0
    byobnet repvgg_a0
    byobnet mobileone_s0
    maxxvit coatnet_pico_rw_224
    efficientnet tf_efficientnet_b0
    vision_transformer vit_tiny_patch16_224
    convnext convnext_atto
"""

VISION = """
    resnet18 vgg11_bn densenet121 googlenet inception_v3 mobilenet_v2 mobilenet_v3_small
    shufflenet_v2_x0_5 mnasnet0_5 efficientnet_b0 regnet_y_400mf squeezenet1_0 resnext50_32x4d
    convnext_tiny swin_t vit_b_16 maxvit_t
    segmentation.fcn_resnet50 segmentation.deeplabv3_mobilenet_v3_large
    video.r3d_18 video.mc3_18 detection.resnet_fpn_backbone
"""


@dataclass(frozen=True)
class Member:
    """One network of the zoo: ``source`` is ``timm``, ``torchvision`` or ``extra``."""

    source: str
    family: str
    name: str

    @property
    def id(self) -> str:
        return f"{self.source}:{self.name}"


def members() -> list[Member]:
    """Every network of the zoo, timm's families first."""
    found = [Member("timm", *line.split()) for line in TIMM.strip().splitlines()]
    for name in VISION.split():
        scope = name.rpartition(".")[0]
        found.append(Member("torchvision", scope or "classification", name))
    return found + [Member("extra", *line.split()) for line in EXTRA.strip().splitlines()]


def build(
    member: Member,
    positive: bool = False,
    prepare: Callable[[nn.Module], object] | None = None,
    sides: tuple[int, ...] = (WIDEST,),
) -> tuple[nn.Module, Tensor]:
    """The network in eval mode with perturbed numbers, and an input of batch 2.

    ``positive`` gives every norm positive gains only, which opens the ways through ReLU; ``prepare``
    changes more numbers before the running statistics are fitted; ``sides`` are pixels to try before the
    network's own, where it takes any size.
    """
    torchvision_shim.install()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if member.source == "torchvision":
            module, sizes = _vision(member.name)
        else:
            module, sizes = _timm(member.name, sides)
    module = perturb(module.eval(), positive)
    if prepare is not None:
        prepare(module)
    generator = torch.Generator().manual_seed(1)
    last: Exception | None = None
    for size in sizes:
        x = torch.randn(2, *size, generator=generator)
        try:
            calibrate(module, x)
            return module, x
        except Exception as error:  # the smaller size does not suit this network
            last = error
    assert last is not None
    raise last


def _timm(name: str, sides: tuple[int, ...] = (WIDEST,)) -> tuple[nn.Module, list[tuple[int, ...]]]:
    import timm

    module = timm.create_model(name, pretrained=False)
    channels, height, width = module.pretrained_cfg.get("input_size", (3, 224, 224))
    native = (channels, height, width)
    if module.pretrained_cfg.get("fixed_input_size"):
        return module, [native]
    smaller = [side for side in sides if side < max(height, width)]
    return module, [*((channels, min(height, side), min(width, side)) for side in smaller), native]


def _vision(name: str) -> tuple[nn.Module, list[tuple[int, ...]]]:
    models = importlib.import_module("torchvision.models")
    scope, _, leaf = name.rpartition(".")
    if scope == "detection":
        utils = importlib.import_module("torchvision.models.detection.backbone_utils")
        module = utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None)
        return module, [(3, 128, 128)]
    make: Callable[..., nn.Module] = getattr(getattr(models, scope) if scope else models, leaf)
    if scope == "video":
        return make(weights=None), [(3, 8, 64, 64)]
    if scope == "segmentation":
        return make(weights=None, weights_backbone=None), [(3, 128, 128)]
    if leaf == "googlenet":
        return make(weights=None, aux_logits=False, init_weights=False), [(3, 224, 224)]
    if leaf == "inception_v3":
        return make(weights=None, init_weights=False), [(3, 299, 299)]
    return make(weights=None), [(3, 224, 224)]


def perturb(module: nn.Module, positive: bool = False, seed: int = 0) -> nn.Module:
    """Numbers that hide nothing: no zero bias, no unit gain, no vanishing scale, both signs."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> Tensor:
        return torch.rand(tensor.shape, generator=generator) * (high - low) + low

    def normal(tensor: Tensor, deviation: float) -> Tensor:
        return torch.randn(tensor.shape, generator=generator) * deviation

    with torch.no_grad():
        for kind, name, tensor in list(_tensors(module)):
            vector = tensor.numel() == max(tensor.shape, default=1)
            if "Norm" in kind and name == "weight" and tensor.dim() == 1:
                negative = uniform(tensor, 0.0, 1.0) < (0.0 if positive else 0.2)
                tensor.copy_(torch.where(negative, -1.0, 1.0) * uniform(tensor, 0.5, 1.5))
            elif name == "bias" and tensor.dim() == 1:
                tensor.add_(normal(tensor, 0.2))
            elif (
                vector and float(tensor.abs().max()) < 0.05
            ):  # LayerScale, class tokens, zero gains
                tensor.copy_(uniform(tensor, 0.1, 0.5))
            elif not bool(tensor.any()):  # position tables, zero-initialised projections
                tensor.copy_(normal(tensor, 0.05))
    return module


def calibrate(module: nn.Module, x: Tensor, seed: int = 2) -> None:
    """Running statistics that fit the data but for a random part, layer by layer in one run.

    Statistics drawn without looking let the signal die out in many networks, and an output that does not
    depend on the input would hide every wrong fold in front of it.
    """
    generator = torch.Generator().manual_seed(seed)

    def before(norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        value = args[0].double()
        axes = [axis for axis in range(value.dim()) if axis != 1]
        variance, mean = torch.var_mean(value, axes, correction=0)
        variance = variance + 0.05 * variance.mean() + 1e-6
        shift = torch.randn(mean.shape, generator=generator) * 0.3
        factor = torch.rand(mean.shape, generator=generator) * 1.5 + 0.5
        norm.running_mean.copy_(mean + shift * variance.sqrt())  # type: ignore[operator]
        norm.running_var.copy_(variance * factor)  # type: ignore[operator]

    norms = [
        part for part in module.modules() if isinstance(getattr(part, "running_var", None), Tensor)
    ]
    hooks = [norm.register_forward_pre_hook(before) for norm in norms]
    try:
        with torch.no_grad():
            module(x)
    finally:
        for hook in hooks:
            hook.remove()


def _tensors(module: nn.Module) -> Iterator[tuple[str, str, Tensor]]:
    """(class of the owner, name, tensor) of every floating parameter, and of what norms store."""
    seen: set[int] = set()
    for part in module.modules():
        kind = type(part).__name__
        owned = [*part.named_parameters(recurse=False)]
        if "Norm" in kind:
            owned += [*part.named_buffers(recurse=False)]  # type: ignore[list-item]
        for name, tensor in owned:
            if tensor.is_floating_point() and tensor.numel() and id(tensor) not in seen:
                seen.add(id(tensor))
                yield kind, name, tensor


def scan(
    counts: Callable[[nn.Module], bool], largest: float = LARGEST
) -> Iterator[tuple[str, str, int]]:
    """(family, model, norms) of each timm family's smallest member with a module that ``counts``."""
    torchvision_shim.install()
    import timm

    best: dict[str, tuple[int, str, int]] = {}
    for name in timm.list_models():
        if name.startswith("test_") and not name.startswith("test_nfnet"):
            continue
        family = timm.models.model_entrypoint(name).__module__.rsplit(".", 1)[-1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = _skeleton(name)
        parameters = sum(parameter.numel() for parameter in module.parameters())
        norms = sum(map(counts, module.modules()))
        if norms and parameters <= largest and parameters < best.get(family, (largest + 1,))[0]:
            best[family] = (parameters, name, norms)
    for family in sorted(best):
        yield family, best[family][1], best[family][2]


def _skeleton(name: str) -> nn.Module:
    """A timm network without memory for its weights, where its construction allows that."""
    import timm

    try:
        with torch.device("meta"):
            module = timm.create_model(name, pretrained=False)
    except Exception:  # reads a value while it is built
        module = timm.create_model(name, pretrained=False)
    assert isinstance(module, nn.Module)
    return module


def is_batch_norm(module: nn.Module) -> bool:
    """A BatchNorm of any kind, or a convolution that standardises its weight through one."""
    name = type(module).__name__
    return isinstance(module, _BatchNorm) or "FrozenBatchNorm" in name or "StdConv" in name

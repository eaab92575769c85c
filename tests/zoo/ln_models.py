"""The LayerNorm part of the zoo: its members, how they are built, and means that are not zero.

`TIMM` is `scan`'s result for timm 1.0.31: the smallest member with a LayerNorm of each module file, up to
60 million parameters. Where the smallest one lacks what the family is known for, `EXTRA` has another.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests import torchvision_shim
from tests.zoo.models import Member, build, perturb
from tests.zoo.transformers_configs import ARCHITECTURES

# family model  # LayerNorm modules
TIMM = """
    byobnet gcresnext26ts  # 8
    cait cait_xxs24_224  # 53
    coat coat_tiny  # 59
    convit convit_tiny  # 25
    convnext convnext_atto  # 17
    cpubone cpubone_nano  # 1
    crossvit crossvit_tiny_240  # 50
    csatv2 csatv2  # 54
    davit davit_tiny  # 29
    deit deit_tiny_patch16_224  # 25
    edgenext edgenext_xx_small  # 20
    efficientformer efficientformer_l1  # 3
    efficientnet gc_efficientnetv2_rw_t  # 29
    efficientvim efficientvim_m1  # 10
    efficientvit_mit efficientvit_b0  # 1
    eva vit_tiny_patch16_dinov3_qkvb  # 25
    focalnet focalnet_tiny_srf  # 29
    gcvit gcvit_xxtiny  # 33
    hiera hiera_tiny_224  # 25
    hieradet_sam2 sam2_hiera_tiny  # 25
    inception_next inception_next_atto  # 1
    lowformer lowformer_b0  # 1
    mambaout mambaout_femto  # 25
    maxxvit maxvit_pico_rw_256  # 45
    metaformer poolformerv2_s12  # 5
    mlp_mixer gmlp_ti16_224  # 61
    mobilevit mobilevit_xxs  # 21
    mvitv2 mvitv2_tiny  # 51
    nest nest_tiny  # 27
    pit pit_ti_224  # 25
    pvt_v2 pvt_v2_b0  # 30
    rdnet rdnet_tiny  # 29
    sequencer sequencer2d_s  # 37
    swin_transformer swin_tiny_patch4_window7_224  # 29
    swin_transformer_v2 swinv2_tiny_window8_256  # 29
    swin_transformer_v2_cr swinv2_cr_tiny_224  # 29
    tiny_vit tiny_vit_5m_224  # 21
    tnt tnt_s_legacy_patch16_224  # 63
    twins twins_svt_small  # 48
    vision_transformer vit_tiny_patch16_224  # 25
    vision_transformer_hybrid vit_tiny_r_s16_p8_224  # 25
    vision_transformer_relpos vit_srelpos_small_patch16_224  # 25
    vitamin vitamin_small_224  # 51
    volo volo_d1_224  # 41
    xcit xcit_nano_12_p8_224  # 41
"""

# A plain MLP-Mixer (the smallest of its file is a gMLP), and blocks with LayerScale and registers.
EXTRA = """
    mlp_mixer mixer_s32_224
    vision_transformer vit_wee_patch16_reg1_gap_256
"""


def ln_members() -> list[Member]:
    """Every network of this part, timm's families first."""
    found = []
    for source, text in (("timm-ln", TIMM), ("extra-ln", EXTRA)):
        lines = (line.partition("#")[0].split() for line in text.strip().splitlines())
        found += [Member(source, *names) for names in lines]
    return found + [Member("transformers", "transformers", name) for name in ARCHITECTURES]


def ln_build(member: Member) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The network in eval mode with perturbed numbers, and inputs of batch 2."""
    if member.source == "transformers":
        torchvision_shim.install()  # transformers imports torchvision
        from tests.zoo.transformers_models import create

        module, args = create(member.name)
        return shift_means(perturb(module)), args
    module, x = build(member, prepare=shift_means)
    return module, (x,)


def is_layer_norm(module: nn.Module) -> bool:
    """A LayerNorm over the features, whatever its class is called."""
    return isinstance(module, nn.LayerNorm) or "LayerNorm" in type(module).__name__


def shift_means(module: nn.Module, seed: int = 3) -> nn.Module:
    """Give what writes to a residual stream a mean over the features, another one for every row.

    Embeddings, tokens and position tables start with a mean of zero and LayerScale with equal numbers: a
    LayerNorm that became an RMSNorm without centring would hardly show.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        return torch.rand(shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for part in module.modules():
            kind = type(part).__name__
            for name, tensor in part.named_parameters(recurse=False):
                if "Norm" in kind or not tensor.is_floating_point() or name == "bias":
                    continue
                table = isinstance(part, nn.Embedding) or not name.endswith("weight")
                if tensor.dim() > 1 and table:
                    tensor.add_(uniform((*tensor.shape[:-1], 1), 0.1, 0.5))
                elif tensor.dim() == 1 < tensor.numel() and not tensor.std():  # LayerScale
                    tensor.copy_(uniform(tuple(tensor.shape), 0.2, 1.0))
    return module

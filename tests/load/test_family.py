"""Whole pickled models of the libraries load without any trust flag: one of each family of the zoo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from normfold.load import pickled
from normfold.load.trust import Trust
from tests import torchvision_shim
from tests.zoo.ln_models import ln_members
from tests.zoo.models import Member, _timm, _vision, members
from tests.zoo.transformers_models import create

torchvision_shim.install()
# Their weights are parametrized, which torch does not pickle.
NOT_PICKLED = {"wav2vec2", "wav2vec2-stable", "hubert-stable"}
DETECTORS = (
    "fasterrcnn_mobilenet_v3_large_320_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large",
    "fcos_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn",
)  # fmt: skip
ALL = {
    f"{member.source.removesuffix('-ln')}-{member.name}": member
    for member in (*members(), *ln_members())
    if member.name not in NOT_PICKLED
}


def make(member: Member) -> nn.Module:
    if member.source == "transformers":
        return create(member.name)[0]
    return (_vision if member.source == "torchvision" else _timm)(member.name)[0]


@pytest.mark.family
@pytest.mark.parametrize("name", ALL)
def test_a_pickled_model_of_a_library_loads(name: str, tmp_path: Path) -> None:
    model = make(ALL[name]).eval()
    torch.save(model, tmp_path / "m.pt")
    # `create` wraps transformers' models in a class of the tests
    found = pickled.read(tmp_path / "m.pt", Trust(("tests.zoo",)))
    _same(found, model)


@pytest.mark.family
@pytest.mark.parametrize("name", DETECTORS)
def test_a_pickled_detector_loads(name: str, tmp_path: Path) -> None:
    from torchvision.models import detection

    model = getattr(detection, name)(weights=None, weights_backbone=None).eval()
    torch.save(model, tmp_path / "m.pt")
    _same(pickled.read(tmp_path / "m.pt", Trust()), model)


def _same(found: nn.Module, model: nn.Module) -> None:
    assert type(found) is type(model)
    assert [name for name, _ in found.named_modules()] == [
        name for name, _ in model.named_modules()
    ]
    ours, theirs = found.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert {name for name, _ in found.named_buffers()} == {
        name for name, _ in model.named_buffers()
    }


def test_a_dictionary_of_odd_keys(tmp_path: Path) -> None:
    net = nn.ModuleDict({"en-US": nn.Linear(2, 2), "1": nn.ReLU(), "a b": nn.BatchNorm1d(2)}).eval()
    torch.save(net, tmp_path / "m.pt")
    _same(pickled.read(tmp_path / "m.pt", Trust()), net)

"""How names and shapes of a checkpoint are fitted to a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from normfold.errors import LoadError
from normfold.load import load
from tests.load import layout_nets
from tests.load.layouts import (
    NETS,
    State,
    perturbed,
    prefixed,
    same,
)

pytestmark = pytest.mark.usefixtures("project_folder")


@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_prefix_is_added_where_the_network_has_one(raw: State, prefix: str) -> None:
    torch.save({"state_dict": prefixed(prefix, raw)}, "w.pt")
    loaded = load("w.pt", factory=f"{NETS}:Wrapper")
    same(loaded.module.backbone, raw)  # type: ignore[arg-type]
    assert any("added the prefix `backbone.`" in note for note in loaded.notes)
    with pytest.raises(LoadError, match="`mean`") as caught:
        load("w.pt", factory=f"{NETS}:Normalised")
    assert "the network has `mean`" in str(caught.value)


def test_one_layer_does_not_become_another() -> None:
    torch.save({"proj.weight": torch.ones(4, 4), "x.bias": torch.ones(2)}, "w.pt")
    with pytest.raises(LoadError, match="do not fit"):
        load("w.pt", factory=f"{NETS}:Tied")


def test_tied_weights_are_stored_once_or_twice() -> None:
    state = perturbed(layout_nets.Tied(), 3).state_dict()
    torch.save({"model": {"module.emb.weight": state["emb.weight"]}}, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Tied").module, state)
    torch.save(prefixed("model.", state), "w.pt")
    same(load("w.pt", factory=f"{NETS}:Tied").module, state)


def test_tied_weights_that_differ_in_the_file_are_refused() -> None:
    torch.save({"emb.weight": torch.ones(4, 4), "out.weight": torch.zeros(4, 4)}, "w.pt")
    with pytest.raises(LoadError, match="one tensor") as caught:
        load("w.pt", factory=f"{NETS}:Tied")
    assert "`emb.weight`" in str(caught.value)
    assert "`out.weight`" in str(caught.value)


@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"ema": prefixed("model.", s)}])
@pytest.mark.parametrize("bias", [True, False])
def test_old_weight_norm(wrapped: Callable[[State], State], bias: bool) -> None:
    layer = nn.utils.weight_norm(nn.Conv2d(3, 4, 3, bias=bias))
    perturbed(layer, 4)
    state = prefixed("conv.", layer.state_dict())
    assert "conv.weight_g" in state
    torch.save(wrapped(state), "w.pt")
    loaded = load("w.pt", factory=f"{NETS}:{'WeightNormed' if bias else 'NoBias'}")
    own = loaded.module.state_dict()
    assert torch.equal(own["conv.parametrizations.weight.original0"], state["conv.weight_g"])
    assert torch.equal(own["conv.parametrizations.weight.original1"], state["conv.weight_v"])
    x = torch.randn(1, 3, 8, 8)
    assert torch.allclose(loaded.module(x), layer(x), atol=1e-6)


def test_names_of_an_earlier_version_are_translated_by_the_network(raw: State) -> None:
    old = OrderedDict(prefixed("model.", raw))
    old["model.classifier.weight"] = old.pop("model.fc.weight").T.contiguous()
    old["model.classifier.bias"] = old.pop("model.fc.bias")
    torch.save({"state_dict": old}, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Renaming").module, raw)
    hooked = {name.replace("body.", "trunk."): value for name, value in raw.items()}
    torch.save({"module": hooked}, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Hooked").module, raw)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_the_noted_version_of_a_layer_is_kept(prefix: str) -> None:
    net = perturbed(layout_nets.Versioned(), 5)
    state = net.state_dict()
    holder = nn.Module()
    holder.add_module("model", net)
    torch.save({"state_dict": holder.state_dict() if prefix else state}, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Versioned").module, state)
    torch.save({"state_dict": dict(prefixed(prefix, state))}, "w.pt")  # as version 1 wrote it
    loaded = load("w.pt", factory=f"{NETS}:Versioned").module.state_dict()
    assert torch.equal(loaded["fc.bias"], -state["fc.bias"])


def _fails(content: Any, factory: str = f"{NETS}:Net") -> str:
    torch.save(content, "w.pt")
    with pytest.raises(LoadError, match="do not fit") as caught:
        load("w.pt", factory=factory)
    return str(caught.value)


def test_what_does_not_fit_is_said_as_it_is(raw: State) -> None:
    other = {**raw, "fc.weight": torch.ones(7, 4), "fc.bias": torch.ones(7)}
    text = _fails({"state_dict": prefixed("model.", other)})
    assert (
        "under `state_dict.model`: 2 of another shape: `fc.weight` is 7x4 in the file and 5x4"
        in text
    )
    assert "arguments that the training used" in text
    assert "num_classes" not in text
    text = _fails({k: v for k, v in raw.items() if not k.startswith("body.")})
    assert "the network has `body` and the file has not" in text
    text = _fails({k: v for k, v in raw.items() if not k.startswith("body.0.")})
    assert "the network has `body.0` and the file has not" in text
    text = _fails({**raw, "aux.0.weight": torch.ones(3), "aux.0.bias": torch.ones(3)})
    assert "2 unknown to the network" in text
    assert "the file has `aux` and the network has not" in text
    renamed = {k.replace("fc.", "head."): v for k, v in raw.items()}
    assert "the network has `fc`, the file has `head` instead" in _fails(renamed)
    text = _fails({"encoder.layers.weight": torch.ones(3)})
    assert "no key of the file is one of the network's: `encoder.layers.weight` in the file" in text


def test_shapes_of_translated_names_are_reported_by_the_network() -> None:
    layer = nn.utils.weight_norm(nn.Conv2d(3, 6, 3, bias=False))
    text = _fails({"model": prefixed("conv.", layer.state_dict())}, f"{NETS}:NoBias")
    assert "size mismatch for conv.parametrizations.weight.original0" in text
    assert "num_classes" not in text


def test_a_part_that_repeats_the_network_is_not_taken_for_it(raw: State, mean: State) -> None:
    text = _fails({**raw, **prefixed("second.", mean)})
    assert "unknown to the network" in text
    assert "`second`" in text

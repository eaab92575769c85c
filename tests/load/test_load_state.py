from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from normfold.errors import LoadError, UsageError
from normfold.load import load

State = dict[str, torch.Tensor]
SPEC = "mynets_for_load:make(num_classes=7)"


@pytest.fixture
def state(project: Path) -> State:
    sys.path.insert(0, str(project))
    made: State = importlib.import_module("mynets_for_load").Net(7).state_dict()
    return made


def _save(state: State, path: str) -> None:
    save_file(state, path) if path.endswith(".safetensors") else torch.save(state, path)


@pytest.mark.parametrize("path", ["w.pt", "w.pth", "w.safetensors"])
def test_state_dicts_load_into_a_factory(state: State, path: str) -> None:
    _save(state, path)
    loaded = load(path, factory=SPEC)
    assert torch.equal(loaded.module.state_dict()["fc.weight"], state["fc.weight"])
    assert "first layer's shape (conv: 3 channels" in loaded.inputs_from
    assert path in loaded.source
    assert SPEC in loaded.source


def test_wrappers_and_prefixes_are_undone_with_a_note(state: State) -> None:
    wrapped = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
    torch.save(wrapped, "w.pt")
    notes = load("w.pt", factory=SPEC).notes
    assert any("`state_dict`" in note for note in notes)
    assert any("`module.`" in note for note in notes)
    torch.save({"model": state}, "w.pt")
    assert any("`model`" in note for note in load("w.pt", factory=SPEC).notes)
    torch.save({"model": nn.Linear(2, 2)}, "w.pt")
    assert isinstance(load("w.pt").module, nn.Linear)


def test_without_a_factory(state: State) -> None:
    torch.save(state, "w.pt")
    with pytest.raises(LoadError, match=r"--model pkg\.mod:factory"):
        load("w.pt")


def test_keys_that_do_not_fit_are_named(state: State) -> None:
    torch.save(state, "w.pt")
    with pytest.raises(LoadError) as caught:
        load("w.pt", factory="mynets_for_load:make")
    assert "`fc.weight` is 7x4 in the file and 5x4" in str(caught.value)
    del state["conv.bias"]
    state["extra"] = torch.zeros(1)
    torch.save(state, "w.pt")
    with pytest.raises(LoadError) as caught:
        load("w.pt", factory=SPEC)
    assert "`conv.bias`" in str(caught.value)
    assert "`extra`" in str(caught.value)


def test_sparse_weights_of_a_dense_network_are_made_dense(state: State) -> None:
    sparse = {
        **state,
        "fc.weight": state["fc.weight"].to_sparse(),
        "conv.bias": state["conv.bias"].to_sparse(),
    }
    torch.save({"model": sparse}, "w.pt")
    loaded = load("w.pt", factory=SPEC)
    assert all(torch.equal(loaded.module.state_dict()[name], state[name]) for name in state)
    assert "sparse in the file, and made dense: `conv.bias`, `fc.weight`" in loaded.notes
    huge = torch.sparse_coo_tensor(
        torch.zeros(2, 1, dtype=torch.int64), torch.ones(1), (10**9, 10**9), check_invariants=True
    )
    torch.save({**state, "fc.weight": huge}, "w.pt")
    with pytest.raises(LoadError, match=r"`fc\.weight` is 1000000000x1000000000 in the file"):
        load("w.pt", factory=SPEC)


def test_dtype_of_the_file_is_kept_and_counters_may_be_absent(state: State) -> None:
    half = {k: v.bfloat16() for k, v in state.items() if not k.endswith("tracked")}
    save_file(half, "w.safetensors")
    loaded = load("w.safetensors", factory=SPEC)
    assert {p.dtype for p in loaded.module.parameters()} == {torch.bfloat16}
    assert loaded.args[0].dtype == torch.bfloat16
    assert any("bfloat16" in note for note in loaded.notes)


def test_timm_factory(tmp_path: Path) -> None:
    import timm

    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "w.pt")
    loaded = load(tmp_path / "w.pt", factory="timm:resnet10t(num_classes=3)")
    assert loaded.inputs_from == "timm pretrained_cfg"
    assert loaded.notes == []


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("mynets_for_load:mak", "did you mean `make`"),
        ("mynets_for_load:raises", "RuntimeError: no data here"),
        ("mynets_for_load:number", "type `int`"),
        ("mynets_for_lod:make", "no module `mynets_for_lod`"),
        ("mynets_for_load:make(classes=3)", "TypeError"),
        ("timm:resnet10x", "did you mean `resnet10t`"),
        ("timm:hf-hub", "has no model"),
        ("timm:resnet10t(nonsense=3)", "could not create"),
    ],
)
def test_factories_that_fail(project: Path, model: str, text: str) -> None:
    with pytest.raises(LoadError) as caught:
        load(model)
    assert text in str(caught.value)
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    "model", ["mynets_for_load:make(os)", "mynets_for_load:make(", "timm:hf-hub:a/b", "timm:",
              "a b:c", "timm:resnet10t(3)", "mynets_for_load:make(**{'a': 1})"]
)  # fmt: skip
def test_malformed_specs_are_usage_errors(project: Path, model: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(model)
    assert caught.value.exit_code == 2


def test_factory_and_timm_forms(project: Path) -> None:
    loaded = load("mynets_for_load:Net(num_classes=2)")
    module: Any = loaded.module
    assert module.fc.out_features == 2
    assert not loaded.module.training
    a = load("timm:resnet10t(img_size=64,num_classes=10)")
    assert a.args[0].shape == (2, 3, 64, 64)
    assert any("random" in note for note in a.notes)
    b = load("timm:resnet10t(img_size=64,num_classes=10)", seed=0)
    assert torch.equal(a.module.get_parameter("fc.weight"), b.module.get_parameter("fc.weight"))
    assert load("timm:vit_tiny_patch16_224(img_size=64,depth=1)").args[0].shape[-1] == 64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_named(state: State, value: float) -> None:
    state["fc.bias"][3:] = value
    torch.save(state, "w.pt")
    notes = load("w.pt", factory=SPEC).notes
    assert any(" in 1 of " in note and "first in `fc.bias` (4 of its 7" in note for note in notes)
    module = nn.Linear(7, 7)
    module.register_buffer("mask", torch.full((2,), -float("inf")))
    assert load(module.eval()).notes == []

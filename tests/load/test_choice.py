"""Which entry is taken where several fit, and `--key`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from normfold.errors import LoadError, UsageError
from normfold.load import load
from tests.load import layout_nets
from tests.load.layouts import (
    LAYOUTS,
    NETS,
    State,
    optimizer_state,
    perturbed,
    prefixed,
    same,
)

pytestmark = pytest.mark.usefixtures("project_folder")


def _module(seed: int) -> nn.Module:
    return perturbed(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), seed)


@pytest.mark.parametrize("order", [1, -1])
def test_whole_modules_in_entries(order: int) -> None:
    """YOLO's layout, and its stripped one."""
    parts = {"epoch": 1, "model": _module(1), "ema": _module(2), "optimizer": None}
    torch.save(dict([*parts.items()][::order]), "w.pt")
    loaded = load("w.pt")
    same(loaded.module, _module(2).state_dict())
    assert any("took `ema`" in note for note in loaded.notes)
    assert any("`--key model` takes it" in note for note in loaded.notes)
    same(load("w.pt", key="model").module, _module(1).state_dict())
    torch.save({"model": _module(1), "ema": None}, "w.pt")
    same(load("w.pt").module, _module(1).state_dict())


def test_a_module_beside_the_average_of_its_weights() -> None:
    torch.save(
        {"net": _module(1), "loss": nn.CrossEntropyLoss(), "ema": _module(2).state_dict()}, "w.pt"
    )
    loaded = load("w.pt")
    assert isinstance(loaded.module, nn.Sequential)
    same(loaded.module, _module(2).state_dict())
    same(load("w.pt", key="net").module, _module(1).state_dict())
    averaged = AveragedModel(_module(3))
    averaged.update_parameters(_module(4))
    torch.save({"net": _module(1), "swa": averaged.state_dict()}, "w.pt")
    same(load("w.pt").module, averaged.module.state_dict())


def test_a_module_is_not_written_into_by_what_does_not_fit() -> None:
    average = {key: value for key, value in _module(2).state_dict().items() if "running" not in key}
    torch.save({"net": _module(1), "ema": average}, "w.pt")
    loaded = load("w.pt")
    same(loaded.module, _module(1).state_dict())
    assert any("`ema` looks like an average and does not fit" in note for note in loaded.notes)


def test_a_factory_is_used_where_there_are_weights_without_a_network(raw: State) -> None:
    torch.save({"loss": nn.Linear(2, 2), "state_dict": raw}, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Net").module, raw)
    torch.save({"model": _module(1), "epoch": 2}, "w.pt")
    loaded = load("w.pt", factory=f"{NETS}:Net")
    same(loaded.module, _module(1).state_dict())
    assert f"the file holds a whole module: `{NETS}:Net` was not needed" in loaded.notes


def test_several_networks_without_a_factory_must_be_chosen(raw: State) -> None:
    torch.save({"generator": _module(1), "discriminator": nn.Linear(2, 2)}, "w.pt")
    with pytest.raises(LoadError, match="--key generator"):
        load("w.pt")
    assert isinstance(load("w.pt", key="discriminator", inputs=["1x2"]).module, nn.Linear)
    torch.save({"a": _module(1), "b": _module(2)}, "w.pt")
    with pytest.raises(LoadError, match="fit the network equally"):
        load("w.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda a, b: {"netG_A": a, "netG_B": b},
        lambda a, b: {"state_dict": {**prefixed("encoder_q.", a), **prefixed("encoder_k.", b)}},
        lambda a, b: {"best": a, "last": b},
        lambda a, b: {"ema_0.999": a, "ema_0.9999": b, "log": [1.0]},
        lambda a, b: [a, b],
    ],
)
def test_what_nothing_tells_apart_is_asked_for(
    make: Callable[[State, State], Any], raw: State, mean: State
) -> None:
    torch.save(make(raw, mean), "w.pt")
    with pytest.raises(
        LoadError, match="2 entries of the checkpoint fit the network equally"
    ) as caught:
        load("w.pt", factory=f"{NETS}:Net")
    keys = [part.partition("`")[0] for part in str(caught.value).split("`--key ")[1:]]
    assert len(keys) == 2
    for key, state in zip(keys, (raw, mean), strict=True):
        same(load("w.pt", factory=f"{NETS}:Net", key=key).module, state)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("state_dict_em", "did you mean `--key state_dict_ema`?"),
        ("nothing", "it has `state_dict`, `state_dict_ema`"),
        ("state_dict.", "it has `state_dict`"),
        ("optimizer", "the state of an optimizer"),
        ("optimizer.state.0", "the state of an optimizer"),
        ("epoch", "no weights under `--key epoch`"),
    ],
)
def test_a_wrong_key_lists_those_that_exist(key: str, text: str, raw: State, mean: State) -> None:
    torch.save(LAYOUTS["timm"][0](raw, mean), "w.pt")
    with pytest.raises(UsageError) as caught:
        load("w.pt", factory=f"{NETS}:Net", key=key)
    assert text in str(caught.value)
    assert caught.value.option == "key"


def test_the_end_of_a_name_is_a_key(raw: State, mean: State) -> None:
    prefixed = {f"generator.net.{k}": v for k, v in raw.items()}
    torch.save({"a": {"state_dict": prefixed}, "b": {"ema": mean}, "c": {"ema": raw}}, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Net", key="generator").module, raw)
    with pytest.raises(UsageError, match=r"`--key b\.ema` or `--key c\.ema`"):
        load("w.pt", factory=f"{NETS}:Net", key="ema")
    with pytest.raises(UsageError, match=r"did you mean `--key a\.state_dict\.generator`"):
        load("w.pt", factory=f"{NETS}:Net", key="generater")


def test_an_average_by_its_name_is_called_so(raw: State, mean: State) -> None:
    torch.save({"student": raw, "teacher": mean}, "w.pt")
    notes = load("w.pt", factory=f"{NETS}:Net").notes
    assert "2 entries fit: took `teacher`, which has the name of an average" in notes
    assert "`student` fits too: `--key student` takes it" in notes


def test_a_key_is_refused_where_there_are_no_entries(raw: State) -> None:
    torch.save(_module(1), "whole.pt")
    for model in ("whole.pt", f"{NETS}:Net", "timm:resnet18", layout_nets.Net(), "."):
        with pytest.raises(UsageError, match="this model has none"):
            load(model, key="ema")
    with pytest.raises(LoadError, match="no such file"):
        load("absent.pt", key="ema")
    torch.save(raw, "w.pt")
    with pytest.raises(UsageError, match="no weights under"):
        load("w.pt", factory=f"{NETS}:Net", key="ema")


def test_two_tensors_of_one_name(raw: State) -> None:
    torch.save({"net": {"fc": {"bias": torch.ones(5)}, **raw}}, "w.pt")
    with pytest.raises(LoadError, match="have one name"):
        load("w.pt", factory=f"{NETS}:Net")


def test_checkpoints_without_weights(raw: State) -> None:
    contents: tuple[Any, ...] = (
        {"epoch": 3},
        {},
        {"a": {"b": None}},
        {"sgd": optimizer_state(raw)},
    )
    for content in contents:
        torch.save(content, "w.pt")
        with pytest.raises(LoadError, match="holds no weights"):
            load("w.pt", factory=f"{NETS}:Net")
    for content in (torch.ones(3), [3], [], "text"):
        torch.save(content, "w.pt")
        with pytest.raises(LoadError, match="neither a module nor a state dict"):
            load("w.pt")


def test_weights_without_a_factory_are_named(raw: State, mean: State) -> None:
    torch.save({"state_dict": raw, "state_dict_ema": mean}, "w.pt")
    with pytest.raises(LoadError, match="weights without a network") as caught:
        load("w.pt")
    assert "`state_dict`, `state_dict_ema`" in str(caught.value)

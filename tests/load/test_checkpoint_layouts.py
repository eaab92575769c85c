"""Checkpoints as trainers write them: the right weights are taken, bit for bit, and the notes say which."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from normfold.load import load
from tests.load.layouts import (
    AVERAGE,
    FIRST,
    LAYOUTS,
    NETS,
    State,
    prefixed,
    same,
)

pytestmark = pytest.mark.usefixtures("project_folder")


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_right_weights_are_taken(name: str, raw: State, mean: State) -> None:
    make, right, said = LAYOUTS[name]
    torch.save(make(raw, mean), "net.pth.tar")
    loaded = load("net.pth.tar", factory=f"{NETS}:Net")
    same(loaded.module, raw if right == FIRST else mean)
    for text in said:
        assert any(text in note for note in loaded.notes), loaded.notes
    assert bool(loaded.notes) == bool(said)
    averaged = any("entries fit: took" in note for note in loaded.notes)
    assert averaged == (right == AVERAGE and any("fits too" in note for note in loaded.notes))


@pytest.mark.parametrize("name", ["timm", "BasicSR", "ema_pytorch", "deep", "DINO"])
def test_the_key_that_a_note_names_takes_the_other(name: str, raw: State, mean: State) -> None:
    torch.save(LAYOUTS[name][0](raw, mean), "net.ckpt")
    notes = load("net.ckpt", factory=f"{NETS}:Net").notes
    (note,) = [note for note in notes if "--key" in note and "online" not in note]
    key = note.partition("`--key ")[2].partition("`")[0]
    left = [note for note in notes if "left of" in note]
    assert not any(f"`{key}`" in note or f"`{key.split('.')[0]}`" in note for note in left)
    loaded = load("net.ckpt", factory=f"{NETS}:Net", key=key)
    same(loaded.module, raw)
    assert not any("average" in note for note in loaded.notes)


def test_suffixes(raw: State) -> None:
    for suffix in (".pt", ".pth", ".ckpt", ".tar", ".bin", ".pkl"):
        torch.save({"params": raw}, f"w{suffix}")
        same(load(f"w{suffix}", factory=f"{NETS}:Net").module, raw)
    Path("plain.pkl").write_bytes(pickle.dumps({"model": {k: v.numpy() for k, v in raw.items()}}))
    same(load("plain.pkl", factory=f"{NETS}:Net").module, raw)
    torch.save(prefixed("model.", raw), "old.pt", _use_new_zipfile_serialization=False)
    same(load("old.pt", factory=f"{NETS}:Net").module, raw)


def test_safetensors_have_prefixes_and_averages_too(raw: State, mean: State) -> None:
    save_file({**prefixed("model.", raw), **prefixed("model_ema.", mean)}, "w.safetensors")
    loaded = load("w.safetensors", factory=f"{NETS}:Net")
    same(loaded.module, mean)
    loaded = load("w.safetensors", factory=f"{NETS}:Net", key="model")
    same(loaded.module, raw)


def test_trusted_pickles_are_searched_alike(raw: State, mean: State) -> None:
    torch.save({"a": {"model": raw, "ema": mean}}, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Net", trust_pickle=True).module, mean)


def test_mixed_types_are_kept_and_uniform_ones_are_the_networks(raw: State, mean: State) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in mean.items()}
    torch.save({"model": raw, "ema": half}, "w.pt")
    loaded = load("w.pt", factory=f"{NETS}:Net")
    same(loaded.module, half)
    assert any("float16" in note for note in loaded.notes)
    same(load("w.pt", factory=f"{NETS}:Net", key="model").module, raw)


def test_containers_that_hold_each_other_come_to_an_end(raw: State) -> None:
    wide: Any = {"weights": raw}
    for _ in range(40):
        wide = [wide, wide]
    torch.save(wide, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Net").module, raw)
    itself: Any = {"state_dict": raw}
    itself["again"] = itself
    torch.save(itself, "w.pt")
    same(load("w.pt", factory=f"{NETS}:Net", trust_pickle=True).module, raw)

"""Damaged, foreign and missing files: one clear error each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normfold.errors import LoadError
from normfold.load import load


def _error(path: Path, **options: Any) -> str:
    with pytest.raises(LoadError) as caught:
        load(path, **options)
    assert caught.value.exit_code == 4
    text = str(caught.value)
    assert "Traceback" not in text
    assert str(path) in text
    return text


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".safetensors"])
def test_empty_missing_and_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    assert "no such file" in _error(path)
    path.write_bytes(b"")
    assert "empty" in _error(path)
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64))
    if suffix == ".pt2":
        torch.export.save(torch.export.export(net.eval(), (torch.randn(2, 3, 8, 8),)), path)
    elif suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(net.state_dict(), path)
    else:
        torch.save(net, path)
    data = path.read_bytes()
    for size in (10, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:size])
        _error(path)


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"hello, this is text\n", b"\0" * 300, bytes(range(256))])
def test_other_content(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    _error(path)


def test_text_named_pt_is_quoted(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_text("hello, this is text\n")
    assert "text that starts with 'hello, this is text'" in _error(path)


def test_a_damaged_pickle_inside_a_whole_zip(tmp_path: Path) -> None:
    import zipfile

    path = tmp_path / "m.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("m/data.pkl", b"\x80\x02}q\x00(X\x01")
        archive.writestr("m/version", "3\n")
    assert "truncated or not a pickle" in _error(path)
    writer = torch._C.PyTorchFileWriter(str(path))
    writer.write_record("readme", b"x", 1)
    writer.write_end_of_file()
    assert "no `data.pkl`" in _error(path)


def test_unknown_suffix_directory_and_odd_content(tmp_path: Path) -> None:
    path = tmp_path / "m.h5"
    path.write_bytes(b"x")
    assert "suffix `.h5`" in _error(path)
    assert "config.json" in _error(tmp_path)
    path = tmp_path / "list.pt"
    torch.save([1, 2], path)
    assert "neither a module nor a state dict" in _error(path)
    torch.save({"epoch": 3}, path)
    assert "no weights" in _error(path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_and_onnx_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    assert "TorchScript" in _error(path)
    assert "torch.export.save" in _error(path)
    path = tmp_path / "m.onnx"
    assert "starts from PyTorch" in _error(path)
    path.write_bytes(b"x")
    assert "starts from PyTorch" in _error(path)


def test_arrays_are_weights_or_are_called_what_they_are(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    path = tmp_path / "w.npz"
    np.savez(path, **{k: v.numpy() for k, v in net.state_dict().items()})
    loaded = load(path, factory="torch.nn:Linear(3, 2)").module.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in net.state_dict().items())
    assert "holds arrays, not a network" in _error(path)
    np.savez(tmp_path / "objects.npz", weight=np.array([{}], dtype=object))
    assert "store each weight" in _error(tmp_path / "objects.npz")
    assert "`--model pkg.mod:factory`" in _error(path)
    np.save(tmp_path / "x.npy", np.ones(3))
    assert "example inputs to `--inputs`" in _error(tmp_path / "x.npy")

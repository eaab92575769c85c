"""MODELs that are not on this machine: URLs, names on a hub, wrong paths, Git LFS pointers."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from normfold.data.samples import load_data
from normfold.errors import LoadError
from normfold.load import load

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 440449768\n"
)
pytestmark = pytest.mark.usefixtures("project_folder")


def _error(model: str | Path) -> str:
    with pytest.raises(LoadError) as caught:
        load(model, factory="tests.load.layout_nets:Net")
    assert caught.value.exit_code == 4
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["w.pt", "w.bin", "w.ckpt", "w.pth.tar", "w.safetensors", "w.SAFETENSORS", "w.pt2"]
)
def test_git_lfs_pointers(name: str) -> None:
    Path(name).write_text(POINTER)
    text = _error(name)
    assert f"`{name}` is a Git LFS pointer of {len(POINTER)} bytes, not the file itself" in text
    assert "440,449,768 bytes" in text
    assert "`git lfs pull`" in text
    assert "weights_only" not in text


def test_pointers_of_trusted_files_and_of_samples() -> None:
    Path("w.pt").write_text(POINTER)
    with pytest.raises(LoadError, match="Git LFS pointer"):
        load("w.pt", trust_pickle=True)
    for name in ("d.pt", "d.safetensors"):
        Path(name).write_text(POINTER)
        with pytest.raises(LoadError, match="Git LFS pointer"):
            load_data(name, ["x"])


def test_text_that_is_no_pointer() -> None:
    Path("w.pt").write_text("version https://example.com\n")
    assert "not a PyTorch checkpoint" in _error("w.pt")


@pytest.mark.parametrize(
    ("model", "hint"),
    [
        (
            "google/vit-base-patch16-224",
            "`hf download google/vit-base-patch16-224 --local-dir DIR`",
        ),
        ("facebook/opt-125m", "`hf download facebook/opt-125m --local-dir DIR`"),
        ("Qwen/Qwen2.5-7B", "`hf download Qwen/Qwen2.5-7B --local-dir DIR`"),
        ("bert-base-uncased", "`hf download bert-base-uncased --local-dir DIR`"),
        ("https://huggingface.co/org/name", "`hf download org/name --local-dir DIR`"),
        ("https://huggingface.co/org/name/tree/main", "`hf download org/name --local-dir DIR`"),
        (
            "https://huggingface.co/org/name/resolve/main/sub/model.safetensors?download=true",
            "`hf download org/name sub/model.safetensors --local-dir DIR`, "
            "then give `DIR/sub/model.safetensors`",
        ),
        ("hf://org/name", "`hf download org/name --local-dir DIR`"),
        ("https://download.pytorch.org/models/resnet18.pth", "download it, then give the file"),
        ("s3://bucket/model.pt", "download it, then give the file"),
    ],
)
def test_what_must_be_downloaded_first(
    model: str, hint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = _error(model)
    assert "normfold downloads nothing" in text
    assert hint in text


@pytest.mark.parametrize(
    "model", ["w.pt", "models/w", "models/w.pt", "./org/name", "a/b/c", "/a/b"]
)
def test_wrong_paths_are_not_taken_for_names(model: str) -> None:
    Path("models").mkdir()
    text = _error(model)
    assert "there is no such file or folder" in text
    assert "hf download" not in text


def test_a_model_of_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "give `timm:resnet18`" in _error("resnet18")
    broken = types.ModuleType("timm")
    monkeypatch.setitem(sys.modules, "timm", broken)
    broken.__spec__ = torch.__spec__
    assert "hf download resnet18" in _error("resnet18")

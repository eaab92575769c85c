"""Folders of images, written and read."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normfold.data.images import read
from normfold.data.samples import load_data
from normfold.errors import EnvironmentMissing, LoadError
from tests.train.refusals import refused


def image_folder(folder: Path, names: list[str]) -> Path:
    """Images whose colour is their number."""
    image = pytest.importorskip("PIL.Image")
    for at, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.new("RGB", (12, 8), (at, 2 * at, 255)).save(path)
    return folder


CLASSES = ["b/1.png", "a/2.jpg", "b/0.png", "c/x.bmp", "c/y.png"]


def test_image_folder_of_classes(tmp_path: Path) -> None:
    folder = image_folder(tmp_path, CLASSES)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("not an image")
    said = {"mean": [0.5, 0.25, 0.0], "std": [0.5, 1.0, 2.0]}
    data = load_data(folder, ["x"], shapes=[(None, 3, 4, 6)], normalisation=said)
    (pixels,) = data.inputs(slice(None))
    assert pixels.shape == (5, 3, 4, 6)
    assert data.columns[0].dtype == torch.uint8
    labels = data.labels(slice(None))
    assert labels is not None
    assert labels.tolist() == [0, 1, 1, 2, 2]
    reds = torch.tensor([2, 0, 3, 4]) / 255  # of b and c: without the lossy one
    torch.testing.assert_close(pixels[1:, 0, 0, 0], (reds - 0.5) / 0.5)
    torch.testing.assert_close(pixels[1:, 1, 3, 5], (2 * reds - 0.25) / 1.0)
    torch.testing.assert_close(pixels[1:, 2, 1, 1], torch.full((4,), 0.5))
    assert "`a` 0, `b` 1, `c` 2" in data.notes[0]
    assert "mean (0.5, 0.25, 0.0)" in data.notes[1]
    half = load_data(folder, ["x"], image_size=4, dtypes=[torch.float16])
    assert half.inputs(slice(0, 2))[0].dtype == torch.float16


def test_flat_image_folder_is_resized_and_cropped_at_the_centre(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    stripes = np.zeros((8, 24), dtype=np.uint8)
    stripes[:, 8:16] = 200
    for name in ("a.png", "b.png", "c.png"):
        image.fromarray(stripes).save(tmp_path / name)
    data = load_data(tmp_path, ["x"], image_size=8, shapes=[(None, 1, None, None)])
    assert data.targets is None
    assert data.inputs(slice(None))[0].eq(200 / 255).all()  # the middle stripe alone
    assert "not normalised" in data.notes[0]
    wide = load_data(tmp_path, ["x"], image_size=(4, 12), shapes=[(None, 3, None, None)])
    assert (
        wide.inputs(slice(0, 1))[0][0, 2, 0].gt(0.5).tolist()
        == [False] * 4 + [True] * 4 + [False] * 4
    )
    assert "2 of 3" in load_data(tmp_path, ["x"], image_size=8, limit=2).notes[1]


def test_a_limit_takes_images_of_all_classes(tmp_path: Path) -> None:
    names = [f"{kind}/{at}.png" for kind in "ab" for at in range(20)]
    data = load_data(image_folder(tmp_path, names), ["x"], image_size=2, limit=10)
    labels = data.labels(slice(None))
    assert labels is not None
    assert len(data) == 10
    assert labels.unique().tolist() == [0, 1]


def test_image_folders_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no images" in refused(tmp_path, ["x"], kind=LoadError, image_size=4)
    image_folder(tmp_path, ["train/a/0.png", "train/b/0.png"])
    assert "no images" in refused(tmp_path, ["x"], kind=LoadError, image_size=4)
    train = tmp_path / "train"
    assert "size that images" in refused(train, ["x"])
    assert "more than images" in refused(train, ["x", "ids"])
    assert "does not take images" in refused(train, ["x"], shapes=[(None, 16)])
    assert "does not take images" in refused(train, ["x"], shapes=[(None, 4, 8, 8)])
    assert "normalisation" in refused(
        train, ["x"], shapes=[(None, 1, 8, 8)], normalisation={"mean": [0, 0], "std": [1, 1]}
    )
    (train / "c").mkdir()
    assert "no image in `c`" in refused(train, ["x"], kind=LoadError, image_size=4)
    (train / "c").rmdir()
    (train / "a" / "1.png").write_text("not a picture")
    assert "1.png" in refused(train, ["x"], kind=LoadError, image_size=4)
    (train / "a" / "1.png").unlink()
    sys.modules["PIL.Image"].fromarray(np.zeros((4, 4), dtype=np.uint16)).save(train / "a/2.png")
    assert "8 bits" in refused(train, ["x"], kind=LoadError, image_size=4)
    (train / "a" / "2.png").rename(train / "2.png")
    assert "`2.png` beside" in refused(train, ["x"], kind=LoadError, image_size=4)
    (train / "2.png").unlink()
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    said = refused(train, ["x"], kind=EnvironmentMissing, image_size=4)
    assert "pip install pillow" in said


def test_a_file_is_opened_as_what_images_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow goes by the content: PostScript called a.png started Ghostscript."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    )
    ran: list[object] = []
    monkeypatch.setattr("subprocess.check_call", lambda *given, **more: ran.append(given))
    with pytest.raises(LoadError, match="an image cannot be read"):
        read([tmp_path / "a.png"], 3, 8, 8)
    assert ran == []

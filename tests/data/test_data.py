"""Every kind of source is really written and read; every complaint is provoked once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from normfold.data.samples import Data, load_data
from normfold.errors import LoadError, UsageError
from tests.train.refusals import refused

X = torch.arange(60.0).reshape(10, 2, 3)
Y = torch.arange(10) % 4
IDS = torch.arange(50).reshape(10, 5)
ALL = torch.arange(10)
SHAPE = (None, 2, 3)


def same(data: Data, *inputs: Tensor, labels: Tensor | None = None) -> bool:
    """Does ``data`` hold exactly these rows, with their dtypes?"""
    rows = torch.arange(len(data))
    found, targets = data.inputs(rows), data.labels(rows)
    if (targets is None) != (labels is None) or len(found) != len(inputs):
        return False
    pairs = list(zip(found, inputs, strict=True))
    if targets is not None and labels is not None:
        pairs.append((targets, labels))
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


def written(folder: Path, kind: str, content: dict[str, Tensor]) -> Path:
    path = folder / f"data.{kind}"
    if kind == "npz":
        np.savez(path, **{key: value.numpy() for key, value in content.items()})  # type: ignore[arg-type]
    elif kind == "safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", ["npz", "pt", "pth", "safetensors"])
def test_names(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, kind, {"mask": IDS % 2, "labels": Y, "input_ids": IDS})
    data = load_data(str(path), ["input_ids", "mask"])
    assert same(data, IDS, IDS % 2, labels=Y)
    assert str(path) in data.source
    for key in ("x", "images", "inputs", "input", "pixels", "whatever"):
        path = written(tmp_path, kind, {key: X, "targets": Y})
        assert same(load_data(path, ["pixels"]), X, labels=Y)


def test_label_names_can_be_inputs() -> None:
    data = load_data({"x": X, "y": X + 1, "label": Y}, ["x", "y"])
    assert same(data, X, X + 1, labels=Y)


def test_parts_of_nested_inputs_and_optional_ones_by_name() -> None:
    given = {"batch.image": X[:4], "mask": X[:4, :1], "y": Y[:4]}
    data = load_data(given, ["batch", "mask", "scale"], optional=["mask", "scale"])
    assert data.names == ("batch.image", "mask")
    with pytest.raises(UsageError, match="no `batch`"):
        load_data({"mask": X, "image": X}, ["batch", "mask"], optional=["mask"])


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", X.numpy())
    assert same(load_data(tmp_path / "a.npy", ["x"]), X)
    np.save(tmp_path / "a.npy", X.numpy().astype(">f4"))
    assert same(load_data(tmp_path / "a.npy", ["x"]), X)
    assert "`x`, `z`, in this order" in refused(tmp_path / "a.npy", ["x", "z"])


@pytest.mark.parametrize("wrap", [tuple, list])
def test_pt_in_order(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "a.pt"
    torch.save(wrap([X, X + 1, Y]), path)
    assert same(load_data(path, ["a", "b"]), X, X + 1, labels=Y)
    torch.save(wrap([X, X + 1]), path)
    assert same(load_data(path, ["a", "b"]), X, X + 1)
    assert "found: 2" in refused(path, ["a", "b", "c"])
    torch.save(X, path)
    assert same(load_data(path, ["a"]), X)
    torch.save([(X[:4], Y[:4]), (X[4:], Y[4:])], path)
    assert same(load_data(path, ["a"]), X, labels=Y)


class Evil:
    """Its unpickling would call a function."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"x": Evil()}, tmp_path / "a.pt")
    assert "nothing in it was executed" in refused(tmp_path / "a.pt", ["x"], kind=LoadError)
    torch.save({"x": np.array([Evil()])}, tmp_path / "a.pt")
    assert "`torch.from_numpy`" in refused(tmp_path / "a.pt", ["x"], kind=LoadError)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    assert "found: Linear" in refused(tmp_path / "a.pt", ["x"])
    array = np.empty(2, dtype=object)
    array[:] = [Evil(), Evil()]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", x=array)
    for name in ("a.npy", "a.npz"):
        said = refused(tmp_path / name, ["x"], kind=LoadError)
        assert "Python objects" in said
        assert "padded" in said
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("suffix", ["npz", "npy", "pt", "safetensors"])
def test_damaged_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    for content in (b"", b"no data at all", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        assert str(path) in refused(path, ["x"], kind=LoadError)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    np.save(tmp_path / "calib.npy", X.numpy())
    assert "did you mean" in refused(str(tmp_path / "calb.npy"), ["x"], kind=LoadError)
    assert ".npz" in refused(tmp_path / "else.npz", ["x"], kind=LoadError)
    assert "no file" in refused("", ["x"], kind=LoadError)
    (tmp_path / "a.csv").write_text("1,2")
    said = refused(tmp_path / "a.csv", ["x"])
    assert "`.csv`" in said
    assert "pkg.mod:loader" in said


def test_keys_that_do_not_fit() -> None:
    said = refused({"inputs_ids": IDS, "mask": IDS}, ["input_ids", "mask"])
    assert "no `input_ids`" in said
    assert "it holds `inputs_ids`, `mask`" in said
    assert "is `inputs_ids` meant?" in said
    said = refused({"x": X, "lables": Y}, ["x"])
    assert "`lables`, which the network does not take" in said
    assert "did you mean `labels`" in said
    assert "more than once" in refused({"x": X, "y": Y, "labels": Y}, ["x"])
    assert "no `pixels`" in refused({"x": X, "images": X}, ["pixels"])
    assert "`label`" in refused({"label": Y}, ["x"])


def test_shapes() -> None:
    load_data(X, ["x"], shapes=[(2, 2, None)])
    said = refused(X, ["x"], shapes=[(2, 2, 4)])
    assert "(batch, 2, 3)" in said
    assert "(batch, 2, 4)" in said
    assert "rank" not in refused(X, ["x"], shapes=[(2, None)])
    pixels = torch.zeros(4, 8, 8, 3)
    assert "channels come before" in refused(pixels, ["x"], shapes=[(None, 3, 8, 8)])
    assert "channels" not in refused(pixels, ["x"], shapes=[(None, 5, 8, 8)])


def test_dtypes() -> None:
    kinds = [torch.float16, torch.int64]
    data = load_data((X.double(), IDS.int()), ["x", "ids"], dtypes=kinds)
    assert same(data, X.half(), IDS)
    said = refused(torch.zeros(4, 3, dtype=torch.uint8), ["x"], dtypes=[torch.float32])
    assert "uint8" in said
    assert "normalised" in said
    assert "takes int64" in refused(X, ["x"], dtypes=[torch.int64])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(value: float) -> None:
    spoilt = torch.zeros(9, 600_000)  # checked in two pieces
    spoilt[8, 77] = value
    said = refused({"x": spoilt}, ["x"], kind=LoadError)
    assert "`x`[8, 77]" in said
    assert str(value) in said


def test_lengths() -> None:
    assert "`x` 10, `labels` 9" in refused((X, Y[:9]), ["x"])
    assert "at least two" in refused(X[:1], ["x"])
    assert "at least two" in refused(X, ["x"], limit=1)
    assert "shape ()" in refused(torch.tensor(1.0), ["x"])
    assert "shape (3, 0)" in refused(torch.zeros(3, 0), ["x"])
    assert "sparse" in refused((torch.eye(3).to_sparse(),), ["x"])
    assert "neither" in refused((X, "labels"), ["x"])
    assert "<U1" in refused({"x": np.array(["a", "b"])}, ["x"])


@pytest.mark.parametrize("labels", [Y.float(), torch.eye(10), Y > 1])
def test_labels_that_are_no_classes(labels: Tensor) -> None:
    assert "must be integers" in refused((X, labels), ["x"])


def test_labels() -> None:
    assert same(load_data((X, Y.to(torch.uint8)), ["x"]), X, labels=Y)
    some = torch.where(Y == 1, -100, Y)
    assert same(load_data((X, some), ["x"]), X, labels=some)
    assert "found: -1" in refused((X, Y - 1), ["x"])


def test_labels_that_repeat_the_tokens_are_moved() -> None:
    labels = IDS.clone()
    labels[3, 2:] = -100  # padding
    data = load_data({"ids": IDS, "labels": labels}, ["ids"])
    found = data.labels(ALL)
    assert found is not None
    assert torch.equal(found[:3, :-1], IDS[:3, 1:])
    assert found[:, -1].eq(-100).all()
    assert found[3].tolist() == [int(IDS[3, 1]), -100, -100, -100, -100]
    assert "moved by one" in data.notes[0]
    moved = torch.cat([IDS[:, 1:], IDS[:, :1]], 1)
    assert same(load_data((IDS, moved), ["ids"]), IDS, labels=moved)
    mask = torch.ones(10, 5, dtype=torch.int64)  # equal, and no tokens
    assert same(load_data((mask, mask), ["mask"]), mask, labels=mask)


LOADERS = """
import torch
from torch.utils.data import DataLoader, TensorDataset

X, Y = torch.arange(60.0).reshape(10, 2, 3), torch.arange(10) % 4

def batches(size=4):
    for start in range(0, 10, size):
        yield X[start:start + size], Y[start:start + size]

def endless():
    while True:
        yield {"images": X}

def broken():
    yield X
    raise RuntimeError("the disk is gone")

def raises():
    raise KeyError("no such split")

shuffled = DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True)
together = (X, Y)
number = 5
"""


@pytest.fixture
def loaders(tmp_cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_cwd / "own_data.py").write_text(LOADERS)
    monkeypatch.syspath_prepend(str(tmp_cwd))
    monkeypatch.delitem(sys.modules, "own_data", raising=False)


@pytest.mark.usefixtures("loaders")
def test_loaders() -> None:
    for text in ("own_data:batches", "own_data:batches(size=1)", "own_data:together"):
        data = load_data(text, ["x"])
        assert same(data, X, labels=Y)
        assert data.source == f"`{text}`"
    assert same(load_data("own_data:batches", ["x"], limit=6), X[:6], labels=Y[:6])
    assert len(load_data("own_data:endless", ["x"], limit=25)) == 25
    batches = iter(X.split(2))
    assert len(load_data(batches, ["x"], limit=3)) == 3
    assert len(list(batches)) == 3  # no more than needed was drawn
    one, two = (load_data("own_data:shuffled", ["x"]) for _ in range(2))
    assert one.fingerprint() == two.fingerprint()
    assert not same(one, X, labels=Y)
    labels = one.labels(ALL)
    assert labels is not None
    assert torch.equal(one.inputs(ALL)[0][:, 0, 0] // 6 % 4, labels.float())


@pytest.mark.usefixtures("loaders")
def test_loaders_that_fail() -> None:
    said = refused("own_data:broken", ["x"], kind=LoadError)
    assert "the disk is gone" in said
    assert "own_data.py:17" in said
    said = refused("own_data:raises", ["x"], kind=LoadError)
    assert "no such split" in said
    assert "own_data.py:20" in said
    assert "did you mean `batches`" in refused("own_data:batch", ["x"], kind=LoadError)
    assert "no module" in refused("own_dat:batches", ["x"], kind=LoadError)
    assert "neither tensors" in refused("own_data:number", ["x"])


class Stream(IterableDataset[Tensor]):
    """Samples without a length."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


def test_objects_in_memory() -> None:
    whole = TensorDataset(X, Y)
    labelled: tuple[Any, ...] = (
        (X, Y),
        {"x": X, "y": Y},
        whole,
        DataLoader(whole, batch_size=3),
        [(X[:5], Y[:5]), (X[5:].numpy(), Y[5:])],
        iter([{"x": X, "labels": Y}]),
    )
    for source in labelled:
        assert same(load_data(source, ["x"], batch=4), X, labels=Y)
    bare: tuple[Any, ...] = (X, X.numpy(), [X[:3], X[3:]], Stream(), (x for x in X.split(4)))
    for source in bare:
        data = load_data(source, ["x"])
        assert same(data, X)
        assert data.source == "the given data"
    nested = [((IDS, IDS % 2), Y)]
    assert same(load_data(nested, ["ids", "mask"]), IDS, IDS % 2, labels=Y)


@pytest.mark.parametrize("source", [(X, Y), TensorDataset(X, Y)])
def test_a_limit_draws_from_all_rows(source: Any) -> None:
    one, two = (load_data(source, ["x"], limit=4) for _ in range(2))
    first = one.inputs(slice(None))[0][:, 0, 0]
    assert len(one) == 4
    assert first.tolist() != X[:4, 0, 0].tolist()
    assert first.tolist() == sorted(first.tolist())
    labels = one.labels(slice(None))
    assert labels is not None
    assert torch.equal(first // 6 % 4, labels.float())
    assert one.fingerprint() == two.fingerprint()
    assert same(load_data(source, ["x"], limit=10), X, labels=Y)


def test_batches_that_differ() -> None:
    said = refused([(X, Y), X], ["x"])
    assert "batch 1" in said
    assert "labels in all or none" in said
    assert "pad or crop" in refused([IDS, IDS[:, :3]], ["ids"])
    assert "batch 0" in refused([{"x": X, "extra": X}], ["x"])
    assert "no batch" in refused([], ["x"], kind=LoadError)
    assert "a row per sample" in refused([torch.tensor(1)], ["x"])
    assert "different numbers" in refused([(X, Y[:3])], ["x"])


def test_split() -> None:
    data = load_data((X, Y), ["x"])
    rest, held = data.split(0.3, seed=1)
    assert (len(rest), len(held)) == (7, 3)
    both = torch.cat([part.inputs(slice(None))[0] for part in (rest, held)])
    assert not torch.equal(both, X)
    assert torch.equal(both[:, 0, 0].sort().values, X[:, 0, 0])
    for part in (rest, held):
        labels = part.labels(slice(None))
        assert labels is not None
        assert torch.equal(part.inputs(slice(None))[0][:, 0, 0] // 6 % 4, labels.float())
    assert data.split(0.3, seed=1)[1].fingerprint() == held.fingerprint()
    assert data.split(0.3, seed=2)[1].fingerprint() != held.fingerprint()
    assert torch.equal(X[rest.rows], rest.inputs(slice(None))[0])
    assert torch.equal(data.rows, ALL)
    again = rest.split(0.5)[1]
    assert set(again.inputs(slice(None))[0][:, 0, 0].tolist()) < set(
        rest.inputs(slice(None))[0][:, 0, 0].tolist()
    )
    assert [len(part) for part in data.split(0.001)] == [9, 1]
    assert [len(part) for part in data.split(0.999)] == [1, 9]
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(UsageError):
            data.split(share)


def test_batches_are_all_rows_in_order() -> None:
    data = load_data((X, Y), ["x"], batch=4)
    batches = list(data.batches())
    assert [len(inputs[0]) for inputs, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([inputs[0] for inputs, _ in batches]), X)
    assert torch.equal(torch.cat([y for _, y in batches if y is not None]), Y)


def test_fingerprint_knows_content_shape_labels_and_type() -> None:
    data = load_data((X, Y), ["x"])
    other = X.clone()
    other[0, 0, 0] += 1
    prints = {
        load_data(source, ["x"]).fingerprint()
        for source in ((X, Y), (other, Y), (X, Y.flip(0)), X, X.reshape(10, 3, 2), X.double())
    }
    assert len(prints) == 6
    assert replace(data, notes=["another"]).fingerprint() == data.fingerprint()
    assert load_data(X.bfloat16(), ["x"]).fingerprint()

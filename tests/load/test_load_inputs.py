from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from normfold.errors import LoadError, UsageError
from normfold.load import load
from normfold.load.specs import Spec, parse
from normfold.load.values import given_inputs


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.fc = nn.Linear(4, 2)

    def forward(
        self, ids: Tensor, image: Tensor, scale: Tensor | None = None, *, mask: Tensor | None = None
    ) -> Tensor:
        out: Tensor = self.fc(self.embed(ids).mean(1)) + image.mean()
        return out if mask is None else out * mask


class Block(nn.Module):
    def __init__(self, layer: nn.Module, head: nn.Module | None = None) -> None:
        super().__init__()
        self.layer, self.head = layer, head

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        return x if self.head is None else self.head(x.flatten(1))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3), (2, 3, 128)),
        (nn.Conv2d(5, 4, 3), (2, 5, 224, 224)),
        (nn.Conv3d(1, 2, 3), (2, 1, 16, 64, 64)),
        (nn.ConvTranspose2d(3, 4, 2), (2, 3, 224, 224)),
        (nn.Linear(7, 2), (2, 7)),
        (nn.Embedding(9, 2), (2, 16)),
        (nn.BatchNorm1d(6), (2, 6, 128)),
        (nn.BatchNorm2d(6), (2, 6, 224, 224)),
        (nn.BatchNorm3d(6), (2, 6, 16, 64, 64)),
        (nn.LayerNorm(6), (2, 6)),
        (nn.GRU(5, 3, batch_first=True), (2, 16, 5)),
    ],
)
def test_the_first_layer_tells_the_shape(layer: nn.Module, shape: tuple[int, ...]) -> None:
    loaded = load(Block(layer))
    assert loaded.args[0].shape == shape
    assert loaded.inputs_from.startswith("first layer's shape (layer: ")


def test_alternatives_are_tried_when_the_first_guess_does_not_run() -> None:
    loaded = load(Block(nn.Conv2d(1, 2, 3, padding=1), nn.Linear(2 * 28 * 28, 3)))
    assert loaded.args[0].shape == (2, 1, 28, 28)
    assert "assumed 28x28" in loaded.inputs_from
    net: Any = Block(nn.Conv2d(3, 2, 3, padding=1), nn.Linear(2 * 40 * 40, 3))
    net.img_size = 40
    assert "declared 40x40" in load(net).inputs_from


def test_linear_on_sequences() -> None:
    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            out: Tensor = self.q(x).view(b, n, 2, c // 2)
            return out

    assert load(Attends()).args[0].shape == (2, 16, 8)


def test_no_guess_gives_a_line_to_copy() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, points: Tensor, colours: Tensor) -> Tensor:
            out: Tensor = self.fc(points) + colours.view(3, 17)
            return out

    with pytest.raises(LoadError) as caught:
        load(Odd())
    text = str(caught.value)
    assert "--input points:2x3 --input colours:2x" in text
    assert "forward(points, colours)" in text
    assert "colours" in text

    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(LoadError, match="--input x:2x3x224x224"):
        load(Bare())


def test_explicit_inputs_by_name_and_position() -> None:
    for texts in (["ids:1x6:i64", "image:1x3"], ["1x6:i64", "1x3"], ["image:1x3", "1x6:i64"]):
        loaded = load(Two(), inputs=texts)
        assert [a.shape[0] for a in loaded.args] == [2, 2]
        assert loaded.args[0].dtype == torch.int64
        assert loaded.args[0].max() < 10
        assert any("batch 1 became 2" in note for note in loaded.notes)
        assert loaded.inputs_from.startswith("--input ")
    loaded = load(Two(), inputs=["ids:4x6:i64", "image:4x3", "mask:4x2:f32"])
    assert len(loaded.args) == 2
    assert loaded.kwargs["mask"].shape == (4, 2)
    assert not any("batch" in note for note in loaded.notes)


def test_tokens_are_recognised_and_a_fixed_first_dimension_is_kept() -> None:
    loaded = load(Block(nn.Embedding(9, 2)), inputs=["1x5"])
    assert loaded.args[0].dtype == torch.int64
    assert any("tokens" in n for n in loaded.notes)

    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, 77)

    loaded = load(Positions(), inputs=["1x77"])
    assert loaded.args[0].shape == (1, 77)
    assert any("kept as given" in n for n in loaded.notes)


def test_wrong_shape_names_the_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(5, 2)))
    with pytest.raises(UsageError) as caught:
        load(net, inputs=["1x3x8x8"])
    assert caught.value.exit_code == 2
    assert caught.value.where == "1.1"
    assert "mat1 and mat2" in str(caught.value)
    with pytest.raises(UsageError) as caught:
        load(net, inputs=[torch.randn(2, 4, 8, 8)])
    assert caught.value.where == "0"
    assert "2x4x8x8" in str(caught.value)


@pytest.mark.parametrize("dtype", ["u8", "i64", "f64", "f16"])
def test_where_the_type_is_wrong_the_type_is_named(dtype: str) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    value = torch.ones(2, 3, 8, 8)
    given: list[Any] = [value.byte()] if dtype == "u8" else [f"2x3x8x8:{dtype}"]
    with pytest.raises(UsageError) as caught:
        load(net, inputs=given)
    assert "runs on the same values in torch.float32" in str(caught.value)
    assert "first layer's shape" not in str(caught.value)
    with pytest.raises(UsageError, match="first layer's shape"):
        load(net, inputs=[value[:, :2].byte()])


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["id:1x6:i64", "image:1x3"], "did you mean `ids`"),
        (["mass:1x6"], "its parameters are `ids`, `image`, `scale`, `mask`"),
        (["1x3"] * 5, "5 inputs are given"),
        (["1,3"], "not of the form"),
        (["x:"], "not of the form"),
        (["1x0x3"], "size of zero"),
        (["1x3:f23"], "unknown dtype"),
        (["image:1x3", "image:1x3"], "given twice"),
    ],
)
def test_malformed_inputs(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(Two(), inputs=texts)
    assert words in str(caught.value)


def test_spec_text() -> None:
    assert parse(["x:1x3:f16", "2x4"]) == [
        Spec("x", (1, 3), torch.float16, "x:1x3:f16"),
        Spec(None, (2, 4), None, "2x4"),
    ]


def test_values_are_seeded_and_in_the_models_dtype() -> None:
    net = nn.Linear(4, 2).to(torch.float64)
    a, b, c = load(net), load(net), load(net, seed=1)
    assert torch.equal(a.args[0], b.args[0])
    assert not torch.equal(a.args[0], c.args[0])
    assert a.args[0].dtype == torch.float64
    state = torch.get_rng_state()
    load(net)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_given_module_is_copied_and_put_in_eval() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    loaded = load(net)
    assert net.training
    assert not loaded.module.training
    assert loaded.module is not net
    assert "model was in train mode: put in eval on a copy" in loaded.notes
    assert load(net.eval()).notes == []


def test_a_module_that_cannot_be_copied_gets_its_flags_back() -> None:
    net: Any = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    net.lock = threading.Lock()
    loaded = load(net)
    assert loaded.module is net
    assert not net.training
    assert "cannot be copied" in loaded.notes[0]
    loaded.restore()
    assert net.training
    assert not net[1].training


def test_in_place_forward_leaves_the_inputs_alone() -> None:
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))
    loaded = load(net)
    assert (loaded.args[0] < 0).any()


class Nested(nn.Module):
    def forward(self, batch: dict[str, Any], states: tuple[Tensor, ...], scale: Any = None) -> Any:
        return batch["image"]["x"] + states[0] - states[1]


class Mapped(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["a"] + batch["b"]


FILES: dict[str, tuple[nn.Module, list[str], Any]] = {
    "by-name": (Two(), ["image", "ids"], ["ids", "image"]),
    "nested": (
        Nested(),
        ["states.1", "batch.image.x", "states.0"],
        [{"image": {"x": "batch.image.x"}}, ("states.0", "states.1")],
    ),
    "one-for-one": (nn.Linear(3, 2), ["image"], ["image"]),
    "a-dictionary": (Mapped(), ["a", "b"], [{"a": "a", "b": "b"}]),
}


@pytest.mark.parametrize("name", FILES)
def test_arrays_of_a_file_by_name(name: str, tmp_path: Path) -> None:
    module, keys, wanted = FILES[name]
    arrays = {key: np.full((2, 3), place, np.float32) for place, key in enumerate(keys)}
    np.savez(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    args, kwargs = given_inputs(str(tmp_path / "x.npz"), module)
    numbers = torch.utils._pytree.tree_map(lambda leaf: int(leaf[0, 0]), list(args))
    assert numbers == torch.utils._pytree.tree_map(keys.index, wanted)
    assert kwargs == {}


def test_arrays_without_names_are_in_order(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.zeros((2, 3)), np.ones((2, 3)))
    args, _ = given_inputs(str(tmp_path / "x.npz"), Two())
    assert [float(arg.mean()) for arg in args] == [0, 1]


@pytest.mark.parametrize(
    ("module", "keys", "said"),
    [
        (Two(), ["id", "image"], ["holds `id`, `image`", "takes `ids`, `image`", "is `ids` meant"]),
        (nn.Linear(3, 2), ["a", "b"], ["takes `input`", "as `input` it is not taken, either"]),
        (Nested(), ["batch", "batch.image"], ["`batch` is given as a whole"]),
    ],
)
def test_names_that_are_no_inputs(
    module: nn.Module, keys: list[str], said: list[str], tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", **dict.fromkeys(keys, np.ones((2, 3))))  # type: ignore[arg-type]
    with pytest.raises(UsageError) as caught:
        given_inputs(str(tmp_path / "x.npz"), module)
    assert all(part in str(caught.value) for part in said), str(caught.value)


def _ddp(net: nn.Module) -> nn.Module:
    made = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(made)
    made.module = net
    return made


class _OwnForward(AveragedModel):
    def forward(self, x: Tensor) -> Any:
        return self.module(x) * 2


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, _ddp, AveragedModel, torch.compile, lambda net: nn.DataParallel(_ddp(net))],
)
def test_wrappers_that_pass_a_call_on_are_taken_off(wrap: Any) -> None:
    net = nn.Sequential(nn.Linear(3, 2))
    loaded = load(wrap(net))
    assert [name for name, _ in loaded.module.named_parameters()] == ["0.weight", "0.bias"]
    assert any("took the network out of the `" in note for note in loaded.notes)


def test_a_wrapper_with_a_forward_of_its_own_stays() -> None:
    assert type(load(_OwnForward(nn.Linear(3, 2))).module) is _OwnForward

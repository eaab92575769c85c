"""What people bring: nested inputs and outputs, sizes, state, parts; each on the file that is written."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import normfold
from normfold.errors import CaptureError, ExportError, LoadError, UsageError
from normfold.ir.outputs import plain
from tests import way_in_nets as nets
from tests.nets import perturb


def converted(module: Any, folder: Path, **options: Any) -> Any:
    """A session of the file, and the report, of a conversion that passed."""
    result = normfold.convert(module, output=folder, **options)
    assert result.ok, result.report.checks
    path = next(path for path in result.artifacts if path.suffix == ".onnx")
    return onnxruntime.InferenceSession(path), result.report


def names(session: Any) -> tuple[list[str], list[str]]:
    return [i.name for i in session.get_inputs()], [o.name for o in session.get_outputs()]


def error(session: Any, module: Any, *args: Any) -> float:
    """Largest error of the file's outputs relative to their size, against the network in float64."""
    wide = pytree.tree_map_only(
        Tensor, lambda x: x.double() if x.is_floating_point() else x.clone(), args
    )
    with torch.no_grad():
        found = pytree.tree_leaves(plain(copy.deepcopy(module).double()(*wide)))
    expected = [x.numpy() for x in found if isinstance(x, Tensor)]
    feeds = [x.numpy() for x in pytree.tree_leaves(args)]
    outputs = session.run(None, dict(zip(names(session)[0], feeds, strict=True)))
    assert [y.shape for y in outputs] == [r.shape for r in expected]
    return max(
        float(np.abs(y - r).max() / np.abs(r).max()) for y, r in zip(outputs, expected, strict=True)
    )


# inputs


def test_a_dictionary_by_its_path(tmp_path: Path) -> None:
    net = nets.batch()
    texts = ["batch.image:1x3x8x8", "batch.meta:1x7"]
    session, report = converted(net, tmp_path, inputs=texts)
    assert names(session) == (["batch.image", "batch.meta"], ["y", "maps.0", "maps.1.0"])
    assert any("`loss` (`None`), `stride` (`3`)" in note for note in report.notes)
    assert error(session, net, {"image": torch.randn(5, 3, 8, 8), "meta": torch.randn(5, 7)}) < 1e-5


@pytest.mark.parametrize("form", ["value", "function", "npz", "pt"])
def test_a_dictionary_that_is_given(tmp_path: Path, form: str) -> None:
    net, given = nets.batch(), nets.inputs()
    options: dict[str, Any] = {"inputs_from": "tests.way_in_nets:inputs"}
    if form == "value":
        options = {"inputs": (given,)}
    elif form == "npz":
        arrays = {name: value.double().numpy() for name, value in given.items()}
        np.savez(tmp_path / "in.npz", **arrays)
        options = {"inputs_from": str(tmp_path / "in.npz")}
    elif form == "pt":
        torch.save((given,), tmp_path / "in.pt")
        options = {"inputs_from": str(tmp_path / "in.pt")}
    session, _ = converted(net, tmp_path, **options)
    assert error(session, net, given) < 1e-5


def test_samples_are_example_inputs_where_none_are_given(tmp_path: Path) -> None:
    net = perturb(nn.Sequential(nn.Linear(11, 5), nn.BatchNorm1d(5)), 0)
    np.savez(tmp_path / "rows.npz", x=np.random.default_rng(0).normal(size=(9, 11)))
    session, _ = converted(net, tmp_path, data=str(tmp_path / "rows.npz"))
    assert session.get_inputs()[0].shape[1:] == [11]
    assert session.get_inputs()[0].type == "tensor(float)"
    with pytest.raises(UsageError, match="`--data`: the inputs are given"):
        normfold.convert(net, data=str(tmp_path / "rows.npz"), inputs=["2x11"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image:2x3x8x8", "if `batch` is a dictionary: `--input batch.image:2x3x8x8`"),
        ("batch:2x3x8x8", "does not run"),
        ("x:1x9:i64[1..0]", "the range of"),
        ("x:1x9:i64[0..0.5]", "the range of"),
    ],
)
def test_inputs_that_do_not_fit(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        normfold.convert(nets.batch(), inputs=[text])
    assert words in str(caught.value)


def test_a_range_of_values(tmp_path: Path) -> None:
    net = perturb(nn.Sequential(nn.Embedding(3, 8), nn.LayerNorm(8)), 0)
    _, report = converted(net, tmp_path, inputs=["1x9:i64[0..2]"])
    assert "[0..2]" in report.inputs


@pytest.mark.parametrize("keeps", [True, False])
def test_masks_have_padding_in_the_sense_that_the_network_has(tmp_path: Path, keeps: bool) -> None:
    net = perturb(nets.Masked(keeps), 0)
    texts = ["input_ids:1x9:i64", "attention_mask:1x9:i64"]
    session, _ = converted(net, tmp_path, inputs=texts, dynamic=["input_ids:1", "attention_mask:1"])
    mask = torch.ones(2, 7, dtype=torch.int64)
    mask[1, 4:] = 0
    ids = torch.randint(0, 61, (2, 7))
    assert error(session, net, ids, mask if keeps else 1 - mask) < 1e-5


# outputs and names


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("tuple", ["logits", "maps.0"]),
        ("dataclass", ["boxes", "scores"]),
        ("nested", ["output_0.boxes", "output_0.scores", "output_1.y"]),
    ],
)
def test_outputs_by_their_place(tmp_path: Path, kind: str, expected: list[str]) -> None:
    net = perturb(nets.Returning(kind), 0)
    session, _ = converted(net, tmp_path, inputs=["2x3x8x8"])
    assert names(session) == (["x"], expected)
    assert error(session, net, torch.randn(3, 3, 8, 8)) < 1e-5


def test_names_that_are_given(tmp_path: Path) -> None:
    net = nets.words()
    given = ["images:1x3x8x8", "texts:1x5x12"]
    options = {"input_names": ["image,words"], "output_names": "scores", "name": "model v1.2 (b)"}
    session, report = converted(net, tmp_path, inputs=given, **options)
    assert names(session) == (["image", "words"], ["scores"])
    assert report.artefacts[0].path.endswith("model v1.2 (b).onnx")
    with pytest.raises(UsageError, match="gives 1 names for 2"):
        normfold.convert(net, inputs=given, input_names="image", output=tmp_path)
    with pytest.raises(UsageError, match="cannot have one name"):
        normfold.convert(net, inputs=given, output_names="texts", output=tmp_path)
    for name in ("a/b", "..", "", "a\nb"):
        with pytest.raises(UsageError, match="not the name of a file"):
            normfold.convert(net, inputs=given, name=name, output=tmp_path)


# sizes


@pytest.mark.parametrize("given", [["1x3x8x8"], ["3x3x8x8"], []])
def test_a_static_batch_is_the_one_that_was_asked_for(tmp_path: Path, given: list[str]) -> None:
    net = perturb(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 0)
    session, _ = converted(net, tmp_path, inputs=given, batch="static")
    assert session.get_inputs()[0].shape[0] == (3 if given == ["3x3x8x8"] else 1)


def test_what_all_share_keeps_its_batch_of_one(tmp_path: Path) -> None:
    net = nets.words()
    session, _ = converted(net, tmp_path, inputs=["images:2x3x8x8", "texts:1x5x12"])
    assert error(session, net, torch.randn(3, 3, 8, 8), torch.randn(1, 5, 12)) < 1e-5


@pytest.mark.parametrize(("kind", "streams"), [(nn.GRU, 1), (nn.GRU, 2), (nn.LSTM, 3)])
def test_the_batch_on_another_axis_and_a_free_length(
    tmp_path: Path, kind: type[nn.RNNBase], streams: int
) -> None:
    net = perturb(nets.Recurrent(kind), 0)
    given = [f"x:{streams}x9x6", f"h:2x{streams}x8"]
    session, _ = converted(net, tmp_path, inputs=given, dynamic=["h:1", "x:1"])
    for batch, length in ((1, 4), (5, 11)):
        x, h = torch.randn(batch, length, 6), torch.randn(2, batch, 8)
        assert error(session, net, x, h) < 1e-5


def test_a_layer_that_fixes_its_length_is_named() -> None:
    with pytest.raises(CaptureError) as caught:
        normfold.convert(
            perturb(nets.Recurrent(nn.RNN), 0), inputs=["x:2x9x6", "h:2x2x8"], dynamic=["x:1"]
        )
    assert "`rnn` (RNN) runs step by step" in str(caught.value)
    assert "--batch static --input x:2x9x6 --input h:2x2x8" in str(caught.value)


FREE: dict[str, Any] = {"inputs": ["1x3x16x32"], "dynamic": ["x:2", "x:3"]}


@pytest.mark.parametrize("checks", [True, False])
def test_other_sizes_are_those_that_the_network_takes(tmp_path: Path, checks: bool) -> None:
    net = perturb(nets.Skip(checks), 0)
    session, report = converted(net, tmp_path, **FREE)
    assert any("`x:2`, `x:3`: multiples of 2" in note for note in report.notes)
    assert any(item.inputs == "x:2x3x14x30" for check in report.checks for item in check.outputs)
    assert error(session, net, torch.randn(1, 3, 24, 8)) < 1e-5


def test_a_branch_that_the_example_took_is_said_with_its_line(tmp_path: Path) -> None:
    net = nets.padding()
    _, report = converted(net, tmp_path, **FREE)
    (note,) = [note for note in report.notes if "multiples of 16" in note]
    assert "way_in_nets.py:" in note
    assert "`if ph > 0 or pw > 0:`" in note
    session, report = converted(net, tmp_path, inputs=["1x3x18x35"], dynamic=["x:2", "x:3"])
    assert not any("multiples" in note for note in report.notes)
    assert error(session, net, torch.randn(1, 3, 25, 21)) < 1e-5


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("one", "`x:0` of 1: the network does something else there"),
        ("single", "`x:1` of 1: the network does something else there"),
        ("many", "`x:0`: at most 3 (way_in_nets.py"),
        ("long", "`x:1`: at most 60 (way_in_nets.py"),
    ],
)
def test_branches_that_no_example_takes_are_said(tmp_path: Path, kind: str, words: str) -> None:
    net = perturb(nets.Branching(kind), 0)
    _, report = converted(net, tmp_path, inputs=["1x7x6"], dynamic=["x:1"])
    assert any(note.startswith(words) for note in report.notes), report.notes


@pytest.mark.parametrize("axes", [(), (0,), (0, 1), (1,)], ids=str)
def test_a_squeeze_keeps_the_batch(tmp_path: Path, axes: tuple[int, ...]) -> None:
    net = perturb(nets.Squeezing(axes), 0)
    session, report = converted(net, tmp_path, inputs=["1x3x8x8"])
    differs = any(
        note.startswith("`x:0` of 1: the network does something") for note in report.notes
    )
    assert differs == (0 in axes or not axes)
    judged = any(item.inputs == "x:1x3x8x8" for check in report.checks for item in check.outputs)
    assert judged != differs
    hint = [note for note in report.notes if "use `--batch static` for a file of one size" in note]
    assert bool(hint) == differs
    own = net(torch.randn(1, 3, 8, 8))
    assert (
        session.run(None, {"x": np.zeros((1, 3, 8, 8), np.float32)})[0].ndim == own.ndim + differs
    )


def test_a_fixed_batch_is_not_free() -> None:
    with pytest.raises(UsageError, match="`--batch static` and `--dynamic x:0` contradict"):
        normfold.convert(nets.skip(), batch="static", dynamic=["x:0"], inputs=["1x3x16x32"])


def test_what_has_no_form_in_onnx_is_named_with_its_line(tmp_path: Path) -> None:
    net = perturb(nets.Rolling(), 0)
    with pytest.raises(ExportError) as caught:
        converted(net, tmp_path, inputs=["2x6x4"], dynamic=["x:1"])
    for words in ("no form in ONNX for `roll`", "way_in_nets.py:", "without `--dynamic`"):
        assert words in str(caught.value)
    session, _ = converted(net, tmp_path, inputs=["2x6x4"])
    assert error(session, net, torch.randn(3, 6, 4)) < 1e-5


def test_sizes_that_are_asked_for(tmp_path: Path) -> None:
    _, report = converted(nets.skip(), tmp_path, tries=["x:1x3x48x64"], **FREE)
    assert any(item.inputs == "x:1x3x48x64" for check in report.checks for item in check.outputs)
    for text, words in (
        ("x:1x3x47x64", "the captured network does not take this size"),
        ("x:1x4x48x64", "the captured network does not take this size"),
        ("y:1x3x48x64", "there is no input `y`"),
    ):
        with pytest.raises(UsageError, match=words):
            normfold.convert(nets.skip(), tries=[text], output=tmp_path, **FREE)


# state


def test_a_cache_on_the_module_is_not_pinned_by_our_own_calls(tmp_path: Path) -> None:
    net: Any = perturb(nets.Cached(), 0)
    session, _ = converted(net, tmp_path, **FREE)
    assert net.shape is None
    assert error(session, net, torch.randn(3, 3, 24, 18)) < 1e-5


def test_buffers_that_a_call_changes(tmp_path: Path) -> None:
    net: Any = perturb(nets.Counting(), 0)
    stored = net.count.clone()
    session, report = converted(net, tmp_path, inputs=["1x4"])
    assert any("changes the buffer `count`" in note for note in report.notes)
    assert torch.equal(net.count, stored)
    assert error(session, net, torch.randn(3, 4)) < 1e-5
    assert normfold.verify(net, next(tmp_path.glob("*.onnx")), ["1x4"]).ok
    assert normfold.verify(net, net, ["1x4"]).ok


# parts and forms


def test_a_part_alone(tmp_path: Path) -> None:
    net: Any = nets.unexportable()
    with pytest.raises(CaptureError, match="`--module body`"):
        normfold.convert(net, inputs=["2x3x8x8"])
    for given in ("1x3x8x8", "2x3x8x8"):
        session, _ = converted(net, tmp_path, inputs=[given], part="body")
        assert error(session, net.body, torch.randn(5, 3, 8, 8)) < 1e-5
    session, report = converted(net, tmp_path, inputs=["1x3x8x8"], part="head")
    assert report.inputs == "what `head` gets (--input 1x3x8x8)"
    assert error(session, net.head, torch.randn(5, 8)) < 1e-5
    with pytest.raises(UsageError, match=r"(?s)no part `hed`.*did you mean `head`"):
        normfold.convert(net, inputs=["2x3x8x8"], part="hed")
    with pytest.raises(UsageError, match="`y` has no axis 2") as caught:
        normfold.convert(net, inputs=["2x3x8x8"], part="body", dynamic=["y:2"])
    assert "names inputs of the part, `body`; `--input` those of the whole" in str(caught.value)


def test_a_part_that_is_called_with_flags(tmp_path: Path) -> None:
    net: Any = perturb(nets.Flagged(), 0)
    session, _ = converted(net, tmp_path, inputs=["1x6"], part="body")
    assert names(session) == (["x"], ["output"])
    (found,) = session.run(None, {"x": (x := torch.randn(4, 6)).numpy()})
    with torch.no_grad():
        expected = net.body(x, None, scale=3.0, twice=True)
    assert np.abs(found - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("file", ["net.weights", "net", "net.model"])
def test_a_checkpoint_by_its_content(tmp_path: Path, file: str) -> None:
    net = nets.skip()
    torch.save(net.state_dict(), tmp_path / file)
    session, _ = converted(tmp_path / file, tmp_path / "out", factory="tests.way_in_nets:skip")
    assert error(session, net, torch.randn(2, 3, 224, 224)) < 1e-5


def test_torchscript_is_said(tmp_path: Path) -> None:
    script = torch.jit.trace(nn.Linear(3, 2), torch.randn(2, 3))
    with pytest.raises(LoadError, match="TorchScript cannot be rewritten"):
        normfold.convert(script, inputs=["2x3"])
    for file in ("net.pt", "net.torchscript", "net"):
        script.save(tmp_path / file)
        with pytest.raises(LoadError, match="TorchScript archives"):
            normfold.convert(tmp_path / file, inputs=["2x3"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("given", ["guessed", "text", "tensor"])
def test_a_file_for_a_cpu_is_float32(tmp_path: Path, dtype: torch.dtype, given: str) -> None:
    net: Any = perturb(nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8), nn.Linear(8, 3)), 0).to(
        dtype
    )
    short = {torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}[dtype]
    inputs: Any = {
        "guessed": (),
        "text": [f"2x12:{short}"],
        "tensor": (torch.randn(2, 12, dtype=dtype),),
    }
    session, report = converted(net, tmp_path, inputs=inputs[given], to="rmsnorm")
    assert {item.type for item in (*session.get_inputs(), *session.get_outputs())} == {
        "tensor(float)"
    }
    assert any("weights are stored in" in note for note in report.notes)
    assert net[0].weight.dtype == dtype
    assert error(session, net, torch.randn(4, 12)) < 1e-5  # folded in float64 and cast once


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inside_a_network_is_float32_in_a_file_for_a_cpu(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    net: Any = perturb(nets.Mixed(dtype), 0)
    given = (torch.randn(2, 4), torch.randn(2, 3).to(dtype))
    session, report = converted(net, tmp_path, inputs=given)
    ports = (*session.get_inputs(), *session.get_outputs())
    assert {item.type for item in ports} == {"tensor(float)"}
    short = str(dtype).removeprefix("torch.")
    [note] = [note for note in report.notes if "has no kernels" in note]
    assert f"way_in_nets.py:{nets.Mixed.forward.__code__.co_firstlineno + 1} is in {short}" in note
    with torch.no_grad():
        expected = net.eval()(*given)
    found = session.run(None, {"x": given[0].numpy(), "more": given[1].float().numpy()})
    for want, got in zip(expected, found, strict=True):
        torch.testing.assert_close(torch.from_numpy(got), want.float(), rtol=0.02, atol=0.02)
    assert {p.dtype for p in net.parameters()} == {torch.float32, torch.float16}
    kept = normfold.convert(net, inputs=given, target="trt", output=tmp_path / "trt", verify="off")
    assert not any("has no kernels" in note for note in kept.report.notes)


def test_a_network_that_runs_in_one_type_only_is_captured_in_it(tmp_path: Path) -> None:
    x = torch.randn(2, 4).half()
    session, report = converted(nets.HalfOnly(), tmp_path, inputs=(x,))
    assert session.get_inputs()[0].type == "tensor(float)"
    assert "the network runs in float16 only: it is captured in that" in report.notes


def test_a_file_stays_in_the_type_of_the_weights_where_its_runtime_has_that(tmp_path: Path) -> None:
    net: Any = nn.Sequential(nn.Linear(4, 3)).double()
    kept = normfold.convert(net, inputs=["2x4"], export="pt2", output=tmp_path)
    assert kept.graph.parameter_bytes() == 15 * 8
    program = normfold.convert(tmp_path / "sequential.pt2", export="onnx", output=tmp_path)
    assert any("`--precision fp32` computes in float32" in note for note in program.report.notes)

"""Capture: dynamic sizes that are really dynamic, names, modes, and errors that name the user's line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from normfold.errors import CaptureError
from normfold.ir import capture
from normfold.ir.graph import is_symbolic, shape_of
from normfold.ir.provenance import module_path, source_line
from normfold.ir.text import graph_text
from tests.nets import Compose, Residual, conv, perturb

IMAGE = (2, 4, 5, 6)


def test_batch_is_dynamic() -> None:
    graph = capture(
        perturb(nn.Sequential(conv(), nn.Flatten(), nn.Linear(120, 3))), (torch.randn(IMAGE),)
    )
    placeholder = next(node for node in graph.nodes if node.op == "placeholder")
    assert is_symbolic(placeholder.meta["val"].shape[0])
    assert shape_of(placeholder) == IMAGE
    for batch in (1, 2, 7):
        assert graph(torch.randn(batch, *IMAGE[1:])).shape == (batch, 3)
    assert "f32[N,4,5,6]" in graph_text(graph)


def test_an_example_input_may_be_a_view() -> None:
    net = perturb(conv())
    x = torch.randn(2, 4, 5, 7)[..., :-1]
    torch.testing.assert_close(capture(net, (x,))(x), net(x))


@pytest.mark.parametrize("axes", [(0, 2, 3), (2, 3), (0, 3)])
def test_dynamic_spatial_sizes(axes: tuple[int, ...]) -> None:
    net = perturb(nn.Sequential(Residual(), nn.AdaptiveAvgPool2d(1)))
    x = torch.randn(IMAGE)
    graph = capture(net, (x,), dynamic=(dict.fromkeys(axes, Dim.DYNAMIC),))
    other = torch.randn([size + 3 if axis in axes else size for axis, size in enumerate(IMAGE)])
    torch.testing.assert_close(graph(other), net(other))


def test_static_batch() -> None:
    graph = capture(perturb(Residual()), (torch.randn(1, 4, 5, 6),), dynamic=None)
    assert graph.dynamic_shapes is None
    assert not any(
        is_symbolic(size)
        for n in graph.nodes
        if n.op == "placeholder"
        for size in n.meta["val"].shape
    )


def test_batch_of_one_cannot_be_dynamic() -> None:
    with pytest.raises(CaptureError, match="batch of 2") as caught:
        capture(perturb(Residual()), (torch.randn(1, 4, 5, 6),))
    assert caught.value.exit_code == 4
    assert "(1, 4, 5, 6)" in str(caught.value)


class FixesBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 120) @ torch.ones(120, 3)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


class Mismatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc(x)


@pytest.mark.parametrize(
    ("net", "code", "hint"),
    [
        (FixesBatch(), "return x.reshape(2, 120)", "--batch static"),
        (Branches(), "if x.sum() > 0:", "depends on the numbers in a tensor"),
        (Mismatch(), "return self.fc(x)", "draft_export"),
    ],
    ids=["fixed-batch", "control-flow", "shapes"],
)
def test_errors_name_the_user_s_line(net: nn.Module, code: str, hint: str, capfd: Any) -> None:
    with pytest.raises(CaptureError) as caught:
        capture(net.eval(), (torch.randn(IMAGE),))
    error = caught.value
    assert error.exit_code == 4
    assert hint in str(error.hint)
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(lines, 1) if text.strip().startswith(code))
    assert error.where is not None
    assert f"test_capture.py:{line}" in error.where
    assert capfd.readouterr().out == ""


def test_a_size_asked_dynamic_that_became_fixed_is_an_error() -> None:
    """torch.export itself refuses most of these; the check behind it must hold where it does not."""
    from normfold.ir.capture import _check_dynamic

    graph = capture(perturb(Residual()), (torch.randn(IMAGE),), dynamic=None)
    with pytest.raises(CaptureError, match="axis 0 of input `x`"):
        _check_dynamic(graph, {"x": {0: Dim.DYNAMIC}})


class Keywords(nn.Module):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, scale: Tensor, more: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        assert mask is not None
        y = x * mask + more["shift"]
        return {"small": y, "large": y * scale}


def test_keyword_inputs_and_dictionary_outputs() -> None:
    x = torch.randn(2, 3)
    kwargs = {
        "scale": torch.randn(3),
        "more": {"shift": torch.randn(2, 3)},
        "mask": torch.randn(2, 3),
    }
    graph = capture(Keywords().eval(), (x,), kwargs)
    assert graph.output_names == ("small", "large")
    assert set(graph.input_names) == {"x", "mask", "scale", "more.shift"}
    bigger = {
        "scale": kwargs["scale"],
        "more": {"shift": torch.randn(5, 3)},
        "mask": torch.randn(5, 3),
    }
    wanted = Keywords()(torch.ones(5, 3), **bigger)
    found = graph(torch.ones(5, 3), **bigger)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_variable_positional_inputs() -> None:
    graph = capture(Compose(lambda m, x, y: x + y).eval(), (torch.randn(2, 3), torch.randn(2, 3)))
    assert graph(torch.ones(4, 3), torch.ones(4, 3)).shape == (4, 3)


def test_only_inputs_with_the_common_batch_are_dynamic() -> None:
    net = Compose(lambda m, x, table: x @ table)
    graph = capture(net.eval(), (torch.randn(2, 3), torch.randn(3, 5)))
    x, table = [node.meta["val"].shape for node in graph.nodes if node.op == "placeholder"]
    assert is_symbolic(x[0])
    assert not is_symbolic(table[0])


@pytest.mark.parametrize("train", [lambda net: net.train(), lambda net: net[1].train()])
def test_train_mode(train: Callable[[Any], Any]) -> None:
    net = perturb(nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(0.9)))
    wanted = net(torch.ones(IMAGE))
    train(net)
    modes = [part.training for part in net.modules()]
    graph = capture(net, (torch.randn(IMAGE),))
    assert [part.training for part in net.modules()] == modes
    assert any("eval mode" in note for note in graph.notes)
    torch.testing.assert_close(graph(torch.ones(IMAGE)), wanted)
    assert graph.original is not net
    shared = {p.data_ptr() for p in net.parameters()}
    assert graph.original is not None
    assert {p.data_ptr() for p in graph.original.parameters()} == shared, (
        "the copy shares its parameters"
    )


def test_eval_mode_says_nothing() -> None:
    assert capture(perturb(Residual()), (torch.randn(IMAGE),)).notes == []


def test_every_node_says_where_it_is_from() -> None:
    graph = capture(perturb(nn.Sequential(Residual(), Residual())), (torch.randn(IMAGE),))
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert {"0.conv1", "1.norm2"} <= {module_path(node) for node in calls}
    assert all("nets.py" in source_line(node) for node in calls if "getitem" not in node.name)


def test_nothing_is_printed(capfd: Any) -> None:
    capture(perturb(Residual()), (torch.randn(IMAGE),))
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ""


def test_an_exported_program_is_taken_as_it_is() -> None:
    net, x = perturb(Residual()), torch.randn(IMAGE)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: Dim.DYNAMIC},))
    graph = capture(program)
    assert graph.dynamic_shapes is not None
    torch.testing.assert_close(graph(torch.ones(3, 4, 5, 6)), net(torch.ones(3, 4, 5, 6)))


class SharedNames(nn.Module):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Any:
        return {"x": x + 1, "state": {"h": state["h"] * 2, "c": x}, "y": x * 3}


def test_an_output_has_a_name_that_no_input_has() -> None:
    graph = capture(SharedNames(), (torch.randn(2, 3), {"h": torch.randn(2, 3)}))
    assert graph.output_names == ("x_out", "state.h_out", "state.c", "y")
    assert "`x_out` for `x`, `state.h_out` for `state.h`" in graph.notes[-1]
    # the names of what the module returns stay
    assert set(graph.module(torch.ones(2, 3), {"h": torch.ones(2, 3)})) == {"x", "state", "y"}


def test_a_limit_of_torch_s_own_is_told_from_one_of_the_network() -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :8] * 2

    class Limited(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.shape[1] < 8 else x

    x = torch.randn(2, 5)
    free = ({0: Dim.DYNAMIC, 1: Dim.DYNAMIC},)
    (cut,) = capture(Cut().eval(), (x,), dynamic=free).notes
    assert "`x:1`: at most 7: torch.export took this for granted" in cut
    (limited,) = capture(Limited().eval(), (x,), dynamic=free).notes
    assert "at most 7 (test_capture.py:" in limited
    assert "captured on the branch of its example" in limited

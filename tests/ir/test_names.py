"""Names that torch.fx would paste into source text: made identifiers, and reported under their own."""

from __future__ import annotations

import builtins
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import normfold
from normfold.errors import CaptureError
from normfold.ir import capture

X = (torch.randn(2, 3),)


class Keyed(nn.Module):
    """A submodule, a buffer and a parameter of this name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.parts = nn.ModuleDict()
        self.parts._modules[name] = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self._buffers[f"{name}."] = None
        self._buffers[f"b{name}"] = torch.randn(3)
        self._parameters["code"] = nn.Parameter(torch.randn(3))
        self._modules["meta"] = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        meta: nn.Module = self._modules["meta"]  # type: ignore[assignment]
        y: Tensor = meta(self.parts[self.name](x)) * self._buffers[f"b{self.name}"]
        code = self._parameters["code"]
        assert code is not None
        return y + code


@pytest.mark.parametrize(
    "name",
    ['a" + ran() + "b', "a'); ran(); ('", "en-US", "class", "lambda", "x y", "é", "a\\", "{ran()}", "T", "forward",
     "items", "meta", "graph", "0", "training_", "a-b"],
)  # fmt: skip
def test_any_printable_name_works(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []

    def note() -> str:
        ran.append(name)
        return ""

    monkeypatch.setattr(builtins, "ran", note, raising=False)
    net = Keyed(name).eval()
    net(*X)
    result = normfold.convert(net, inputs=X, output=tmp_path)
    assert result.ok, result.report.failures()
    assert ran == []
    names = {item.name for item in onnx.load(tmp_path / "keyed.onnx").graph.initializer}
    assert f"parts.{name}.0.weight" in names
    assert any(site.site.startswith(f"parts.{name}.1") for site in result.report.sites)


def test_names_that_meet_stay_apart() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict()
            for name in ("a-b", "a+b", "a_b_"):
                self.parts._modules[name] = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.parts["a-b"](x) + 2 * self.parts["a+b"](x) + 3 * self.parts["a_b_"](x)  # type: ignore[no-any-return]

    net = Two().eval()
    graph = capture(net, X)
    assert torch.equal(graph(*X), net(*X))
    assert len(set(graph.own_names.values())) == len(graph.own_names) == 4


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "a\x00", "\u202eabc"])
def test_control_characters_are_refused(name: str) -> None:
    net = nn.ModuleDict()
    net._modules[name] = nn.Linear(3, 3)
    with pytest.raises(CaptureError, match="control characters") as caught:
        capture(nn.Sequential(net), X)
    assert str(caught.value).replace("\n", "").isprintable()


def test_keywords_are_identifiers() -> None:
    class Takes(nn.Module):
        def forward(self, **given: Tensor) -> Tensor:
            return next(iter(given.values())) + 1

    with pytest.raises(CaptureError, match="not an identifier"):
        capture(Takes(), (), {"x=(print(1)), y": X[0]}, None)

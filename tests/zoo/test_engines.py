"""The engine part of the zoo on one tiny network, and what its totals make of failures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from normfold.errors import ExportError
from tests.zoo import trt_trial
from tests.zoo.models import Member
from tests.zoo.trt_table import line, summary
from tests.zoo.trt_trial import EngineRow, engine_members, engine_trial

CLIP = Member("transformers-trt-fp16", "transformers", "clip-text")


@pytest.mark.slow
def test_a_row_tells_what_was_built() -> None:
    pytest.importorskip("tensorrt_rtx")
    row = engine_trial(CLIP, "fp16")
    assert row.ok, row.error
    assert row.preset == "rmsnorm"
    assert row.layers > row.nodes > 50
    assert row.engine_bytes > 1000
    assert 0 < row.half < 0.02
    assert row.note == ""  # the length is dynamic


def test_a_refusal_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ExportError("the engine could not be built", found="no\nkernel", where="node `x`")

    monkeypatch.setattr(trt_trial, "_captured", refuse)
    row = engine_trial(CLIP)
    assert (row.ok, row.built, row.exported) == (False, False, False)
    assert row.error == "the engine could not be built | no kernel | node `x`"


def test_every_family_is_there_once() -> None:
    families = [member.family for member in engine_members() if member.source == "timm-trt"]
    assert len(families) == len(set(families)) > 80
    assert {"resnet", "swin_transformer", "vision_transformer"} <= set(families)


def test_totals(capsys: pytest.CaptureFixture[str]) -> None:
    good = EngineRow("timm-trt", "resnet", "resnet10t", ok=True, exported=True, built=True)
    rows = [replace(good) for _ in range(19)]
    rows.append(replace(good, ok=False, built=False, error="refused | why | where"))
    assert not summary(rows, True)
    assert "19 built, 20 exported to ONNX, 20 in all" in capsys.readouterr().out
    assert summary(rows[1:], True)
    printed = capsys.readouterr().out
    assert "TOO FEW" in printed
    assert "1 x refused" in printed
    assert not summary([replace(rows[-1], exported=False)], True)
    over = replace(good, ok=False, half=0.5, error="fp16 error 0.5, 0.02 is allowed")
    assert summary([over], False)
    assert "5.0e-01" in line(over)

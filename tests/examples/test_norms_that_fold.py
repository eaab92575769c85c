"""The examples of norms that fold away, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import dial, prepbn, scratch
from normfold.distillation import Recipe

QUICK = Recipe(steps=20, batch=32, evaluations=2, hold_out=0.2)


def test_the_vit_without_layer_norms(tmp_path: Path) -> None:
    row = prepbn.student("un", tmp_path, samples=400, recipe=QUICK, images=100)
    assert row.norms == 0
    assert (row.samples, row.steps) == (320, 20)
    assert row.after > 50


@pytest.mark.zoo
def test_untrained_and_a_few(tmp_path: Path) -> None:
    right, ranking, gone = dial.student(["blocks.4.norm2", "blocks.3.norm2"], tmp_path, 160, None)
    assert gone == 2
    assert right > 70
    assert ranking is not None
    assert len(ranking.harms) == 11


@pytest.mark.zoo
@pytest.mark.parametrize("name", ["LN", "PRepBN 0.5", "UN"])
def test_from_scratch(name: str) -> None:
    row = scratch.run(name, 0, 1, 200)
    assert row["finite"]
    assert row["accuracy"] > 5
    assert len(row["history"]) == 1
    assert f"| {name} | 1 |" in scratch.table([row])

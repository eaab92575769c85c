"""The examples of norms that fold away, in small."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import comparison, dial, gpt_norms, prepbn, scratch, train_gpt
from normfold.job import Train

QUICK = Train(steps=20, batch_size=32, evaluations=2, hold_out=0.2)


@pytest.mark.slow
def test_the_vit_without_layer_norms(tmp_path: Path) -> None:
    row = prepbn.student("un", tmp_path, samples=400, training=QUICK, images=100)
    assert row.norms == 0
    assert (row.samples, row.steps) == (320, 20)
    assert row.after > 50


@pytest.mark.slow
def test_untrained_and_a_few(tmp_path: Path) -> None:
    row, ranking = dial.student(tmp_path, 160, 0, ["blocks.4.norm2", "blocks.3.norm2"])
    assert row["gone"] == 2
    assert row["accuracy"] > 70
    assert len(ranking.harms) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LN", "PRepBN 0.5", "UN"])
def test_from_scratch(name: str) -> None:
    row = scratch.run({"norm": name, "seed": 0, "epochs": 1, "images": 200})
    assert row["finite"]
    assert row["accuracy"] > 5
    assert len(row["history"]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("start", ["scratch", "pretrained"])
def test_gpt(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_gpt, "REPORT", 10)
    row = gpt_norms.run({"norm": "PRepBN 0.5", "seed": 0, "start": start, "steps": 20})
    assert len(row["history"]) == 2
    assert row["refreshed"] < (10 if start == "pretrained" else 60)


def test_a_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    log = tmp_path / "new" / "runs.jsonl"
    made = []

    def run(key: comparison.Row) -> comparison.Row:
        made.append(key)
        return {
            "accuracy": 70.0 + key["seed"] - 2 * (key["norm"] == "BN"),
            "history": [[1.0], [0.5]],
        }

    keys = [{"norm": name, "seed": seed} for seed in (0, 1) for name in ("LN", "BN")]
    comparison.logged(log, keys[:3], run)
    comparison.logged(log, keys, run)
    assert made == keys
    rows = comparison.read(log)
    shown = comparison.table(rows, {"accuracy": "top-1"}, "accuracy").splitlines()
    assert shown[2] == "| LN | 2 | 70.5 ± 0.5 | +0 |"
    assert shown[3] == "| BN | 2 | 68.5 ± 0.5 | -2 |"
    comparison.plot(rows, {"loss": "log"}, "epoch", 1, tmp_path / "curves.png")

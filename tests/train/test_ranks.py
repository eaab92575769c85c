"""Two processes of torchrun (gloo) train as one with the joint batch does, and only the first one writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
_SCRIPT = """
import sys
import torch
from normfold import Train, convert
from tests.train.nets import classifier, samples
torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)  # steps of Adam make much of what differs by rounding
kind, out = sys.argv[1:]
recipe = Train(steps=12, batch_size=32, rate=1e-3, evaluations=3, hold_out=0.2)
result = convert(classifier(), kind, inputs=[samples()[0][:2]], output=out, export="pt2",
                 data=samples(), training=recipe)
torch.save({name: value for name, value in result.graph.module.state_dict().items()},
           f"{out}.{__import__('os').environ.get('RANK', 'one')}")
assert result.ok
"""


def run(command: list[str], script: Path, kind: str, out: Path) -> None:
    command = [sys.executable, *command, str(script), kind, str(out)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["prepbn"])
def test_two_processes_are_one(kind: str, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{_SCRIPT}")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    run(launcher, script, kind, tmp_path / "two")
    run([], script, kind, tmp_path / "one")
    one, two = torch.load(tmp_path / "one.one"), torch.load(tmp_path / "two.0")
    assert one.keys() == two.keys()
    for name, value in one.items():
        error = float((two[name] - value).abs().max() / value.abs().max())
        assert error < 1e-10, f"{name}: {error:.1e}"
    reports = [
        json.loads(next((tmp_path / name).glob("*.report.json")).read_text())["training"]
        for name in ("one", "two")
    ]
    assert reports[0]["distance"] == pytest.approx(reports[1]["distance"], rel=1e-3)
    assert len(list((tmp_path / "two").glob("*.pt2"))) == 1

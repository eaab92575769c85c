"""Two processes against one with the joint batch: statistics, outputs and gradients, with unequal counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.nn import ranks
from tests.nn.norms import STATISTICAL

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[ranks.Result, ranks.Result]:
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.nn.ranks"]
    running = [
        subprocess.Popen([*command, str(rank), "2", str(folder)], cwd=ROOT, stderr=subprocess.PIPE)
        for rank in (0, 1)
    ]
    try:
        for process in running:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors.decode()[-3000:]
    finally:
        for process in running:
            process.kill()
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return first, second


@pytest.fixture(scope="module")
def joint() -> ranks.Result:
    return ranks.joint()


@pytest.mark.parametrize("masked", ["", " masked"])
@pytest.mark.parametrize("kind", STATISTICAL)
def test_training_is_that_of_the_joint_batch(
    kind: str, masked: str, results: tuple[ranks.Result, ranks.Result], joint: ranks.Result
) -> None:
    """Parameter gradients are sums over ranks; everything that is kept is the same on both."""
    first, second = (result[kind + masked] for result in results)
    wanted = joint[kind + masked]
    assert first.keys() == second.keys() == wanted.keys()
    assert any(name.endswith(".grad") for name in wanted)
    for name, value in wanted.items():
        if name[-1].isdigit() and name[:-1] in ("y", "dx"):
            found = torch.cat([first[name], second[name]], 1)
        elif name.endswith(".grad"):
            found = first[name] + second[name]
        else:
            assert torch.equal(first[name], second[name]), name
            found = first[name]
        torch.testing.assert_close(
            found, value, rtol=TOLERANCE, atol=TOLERANCE, msg=f"{name} differs"
        )


def test_start_and_refresh_pool_over_ranks(
    results: tuple[ranks.Result, ranks.Result], joint: ranks.Result
) -> None:
    """Ranks with unequal numbers of batches stop together."""
    for result in results:
        assert result["refresh"].keys() == joint["refresh"].keys()
        for name, value in joint["refresh"].items():
            torch.testing.assert_close(
                result["refresh"][name],
                value,
                rtol=TOLERANCE,
                atol=TOLERANCE,
                msg=f"{name} differs",
            )

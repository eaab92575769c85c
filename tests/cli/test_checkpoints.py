"""Checkpoints on the command line: `--key` goes through every command that loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from tests.cli.conftest import Cli
from tests.load.layout_nets import Net
from tests.load.layouts import NETS, perturbed, prefixed

MODEL = ("--model", f"{NETS}:Net", "--input", "x:2x3x8x8")


@pytest.fixture
def nets(cli: Cli) -> dict[str, Net]:
    """Two networks, and `net.ckpt` with the weights of both, in the folder of the test."""
    made = {name: perturbed(Net(), seed).eval() for seed, name in enumerate(("raw", "ema"))}
    torch.save(
        {"raw": prefixed("model.", made["raw"].state_dict()), "ema": made["ema"].state_dict()},
        "net.ckpt",
    )
    return made  # type: ignore[return-value]


@pytest.mark.parametrize("key", ["raw", "ema", ""])
def test_the_written_file_computes_the_chosen_weights(
    cli: Cli, nets: dict[str, Net], key: str
) -> None:
    ran = cli("convert", "net.ckpt", *MODEL, "-o", "out", *(("--key", key) if key else ()))
    assert ran.status == 0, ran.err
    text = " ".join(ran.out.split())
    assert f"took `{key or 'ema'}` out of the checkpoint" in text
    assert ("`--key raw.model` takes it" in text) == (not key)
    x = torch.randn(3, 3, 8, 8)
    (found,) = onnxruntime.InferenceSession("out/net.onnx").run(None, {"x": x.numpy()})
    right = nets[key or "ema"].double()(x.double()).detach().numpy()
    np.testing.assert_allclose(found, right, rtol=1e-4)


def test_every_command_takes_the_key(cli: Cli, nets: dict[str, Net]) -> None:
    cli("convert", "net.ckpt", *MODEL, "-o", "out", "--key", "raw")
    for key, status in (("raw", 0), ("ema", 1)):
        assert cli("verify", "net.ckpt", "out/net.onnx", *MODEL, "--key", key).status == status
    assert cli("verify", "net.ckpt", "net.ckpt", *MODEL, "--key", "raw").status == 0
    assert cli("inspect", "net.ckpt", *MODEL, "--key", "ema").status == 0
    for command in ("convert", "inspect", "plan", "bisect", "doctor"):
        ran = cli(command, "net.ckpt", *MODEL, "--key", "rav")
        assert ran.status == 2
        ran.one_error("no weights under `--key rav`", "did you mean `--key raw`?")
    bench = ["bench", "net.ckpt", "out/net.onnx", *MODEL[:2], "--input", "x:1x3x8x8"]
    bench += ["--rounds", "6", "--seconds", "0.01"]
    assert cli(*bench, "--key", "raw").status == 0
    assert cli(*bench, "--key", "rav").status == 2
    ran = cli("verify", f"{NETS}:Net", "out/net.onnx", *MODEL[2:], "--key", "raw")
    ran.one_error("this model has none")


def test_a_pointer_is_said_in_one_sentence(cli: Cli) -> None:
    Path("net.pt").write_text("version https://git-lfs.github.com/spec/v1\nsize 12\n")
    ran = cli("convert", "net.pt", *MODEL)
    assert ran.status == 4
    ran.one_error("`net.pt` is a Git LFS pointer of 51 bytes", "`git lfs pull`")

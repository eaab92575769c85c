"""What must work in every environment that pyproject.toml admits; runs outside of the clone, without pytest."""

from __future__ import annotations

import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHECKS: list[Callable[[], None]] = []


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Add to the suite."""
    CHECKS.append(function)
    return function


def command(*arguments: str) -> str:
    """Standard output of a normfold command that has to succeed."""
    ran = subprocess.run(
        [sys.executable, "-m", "normfold", *arguments], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, f"{arguments}: exit {ran.returncode}\n{ran.stdout}\n{ran.stderr}"
    return ran.stdout


def converted(folder: str, *arguments: str) -> Any:
    """The report of a conversion that passed, and the outputs of its file on its own inputs."""
    report = json.loads(command("convert", *arguments, "-o", folder, "--json"))
    assert report["ok"], report["checks"]
    assert all(item["verdict"]["state"] == "pass" for item in report["artefacts"]), report[
        "artefacts"
    ]
    return report


class Skip(Exception):
    """The environment lacks what a check needs, for a reason that is not normfold's."""


@check
def a_timm_network_loses_its_batch_norms() -> None:
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # its wheel belongs to another build of torch
        raise Skip(f"timm needs torchvision, which does not import: {error}") from error
    report = converted("resnet", "timm:resnet18", "--input", "1x3x64x64")
    assert "BatchNormalization" not in report["census"], report["census"]


@check
def a_transformers_folder_becomes_rms_norms() -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32,
        patch_size=8, num_labels=3,
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    report = converted("vit-out", "vit", "--to", "rmsnorm")
    assert "LayerNormalization" not in report["census"], report["census"]


@check
def an_encoder_takes_a_mask_and_any_length() -> None:
    import transformers

    config = transformers.BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=50,
    )
    transformers.BertModel(config).save_pretrained("bert")
    converted("bert-out", "bert")


@check
def a_checkpoint_loads_and_a_program_is_read_again() -> None:
    import torch
    from torch import nn

    Path("mine.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)\n"
        "    return nn.Sequential(*layers)\n"
    )
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    )
    torch.save({"state_dict": {f"model.{k}": v for k, v in net.state_dict().items()}}, "mine.ckpt")
    arguments = ("mine.ckpt", "--model", "mine:net", "--input", "1x3x8x8")
    converted("mine-out", *arguments, "--export", "pt2", "--export", "onnx")
    command("verify", "mine-out/mine.pt2", "mine-out/mine.onnx")
    command("quantize", *arguments, "-o", "int8")


@check
def the_command_line_answers() -> None:
    for arguments in (
        ["--help"],
        ["passes"],
        ["explain", "NF105"],
        ["doctor"],
        ["bench", "--help"],
    ):
        assert command(*arguments)


@check
def python_has_a_pass_api() -> None:
    import torch
    from torch import nn

    import normfold

    net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    graph = normfold.capture(net, (torch.randn(2, 4),))
    result, report = normfold.run(graph, "canonicalize,fold-affine,restore,bake")
    assert report.ok
    assert normfold.verify(graph, result).ok


def main() -> int:
    """Run every check; the number that failed."""
    failed = 0
    for function in CHECKS:
        try:
            function()
            print(f"ok      {function.__name__}", flush=True)
        except Skip as skipped:
            print(f"skipped {function.__name__}: {skipped}", flush=True)
        except Exception:  # anything that an environment can do
            failed += 1
            print(f"FAILED  {function.__name__}\n{traceback.format_exc()}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())

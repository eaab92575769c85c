"""A GPT with outlier channels in integers, with and without a rotation of its residual stream.

python -m examples.rotation [--heal 200] [--windows 200] [--out out/rotation]     (from the root of the clone)

Large language models have a few channels of their stream that are far larger than the others, nearly
the same for every token, and taken back by the last block ("massive activations", Sun et al. 2024); small ones
have not. Here one channel of the shipped GPT gets a constant, and gains and biases of the norms are set so that
what is behind them stays as it was on average; a short training mends the rest. Ranges come from random tokens: no
text is used to quantise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import normfold
from examples import text
from examples.gpt import GPT, load, onnx_predictor, torch_predictor
from examples.train_gpt import RATE, train
from normfold.job import Quantize
from normfold.ranges.calibration import calibrate
from normfold.steps.quantize import make_integers
from normfold.targets.onnx import export_onnx

CHANNEL, CONSTANT = 40, 6.0
# the head gets a table of its own: it reads the stream behind a gain, which the embedding does not
_CENTRED = ("canonicalize", "fold-affine{split-norms=true untie=true}", "center-stream{untie=true}")
SETTINGS = {
    "W8A8": Quantize("int8", correct_bias=True),
    "W4 in blocks of 32": Quantize(
        "int4-weights", weights="quantize-weights{bits=4 block=32 clip=true}", correct_bias=True
    ),
    "W4A8": Quantize(
        "int8", weights="quantize-weights{bits=4 rounding=squant clip=true}", correct_bias=True
    ),
}


@torch.no_grad()
def with_outlier(gpt: GPT) -> GPT:
    """The network with a constant in one channel of its stream, in place."""
    x = torch.from_numpy(text.windows(text.train_set(), 64)[0])
    norms = [norm for norm in gpt.modules() if isinstance(norm, nn.LayerNorm)]
    before = [_around(gpt, norm, x) for norm in norms]
    gpt.position.weight[:, CHANNEL] += CONSTANT
    last = gpt.get_submodule("blocks.3.mlp.2")
    assert isinstance(last, nn.Linear)
    last.bias[CHANNEL] -= CONSTANT
    for norm, (read, gave) in zip(norms, before, strict=True):
        norm.weight.mul_(_around(gpt, norm, x)[0].std(-1).mean() / read.std(-1).mean())
        norm.bias.sub_((_around(gpt, norm, x)[1] - gave).mean((0, 1)))
    return gpt


def _around(gpt: GPT, norm: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm reads and gives."""
    found: list[Tensor] = []
    hook = norm.register_forward_hook(lambda _, inputs, output: found.extend((inputs[0], output)))
    gpt(x)
    hook.remove()
    return found[0], found[1]


def perplexities(gpt: GPT, setting: str, rotate: bool, windows: int, folder: Path) -> float:
    """Perplexity of the integer network in onnxruntime."""
    ids = torch.from_numpy(text.windows(text.train_set(), 2)[0])
    passes = [*_CENTRED, *(["rotate-stream"] if rotate else []), "restore", "bake"]
    graph, _ = normfold.run(normfold.capture(gpt, (ids,)), ",".join(passes), verify="off")
    options = SETTINGS[setting]
    made, *_ = make_integers(calibrate(graph, options), options, "ort-x86")
    path = folder / "gpt.onnx"
    export_onnx(made, path)
    return text.perplexity(onnx_predictor(path), windows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="An outlier channel, int8 and int4, rotated or not."
    )
    parser.add_argument(
        "--heal", type=int, default=200, help="training steps; default: %(default)s"
    )
    parser.add_argument("--windows", type=int, default=200, help="judged on; default: %(default)s")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/rotation"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    gpt = with_outlier(load())
    print(
        f"before healing: perplexity {text.perplexity(torch_predictor(gpt), options.windows):.3f}"
    )
    train(gpt, torch.from_numpy(text.train_set()), options.heal, 0, 0.1 * RATE)
    whole = text.perplexity(torch_predictor(gpt), options.windows)
    print(f"in floats, with an outlier channel: perplexity {whole:.3f}")
    print("| setting | as it is | rotated |\n|---|---|---|")
    for setting in SETTINGS:
        found = [
            perplexities(gpt, setting, rotate, options.windows, options.out)
            for rotate in (False, True)
        ]
        figures = " | ".join(f"{value:.3f} ({100 * (value / whole - 1):+.1f} %)" for value in found)
        print(f"| {setting} | {figures} |", flush=True)


if __name__ == "__main__":
    main()

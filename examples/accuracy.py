"""Top-1 accuracy on the rendered test set: `python -m examples.accuracy MODEL ...`.

A `.safetensors` file is read as a state dict of the ViT or the Swin of the examples, a `.pt` file as
a pickled module. A pickle runs the code it names, so pass only `.pt` files that you trust.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from examples import nets, shapes, swin

Predictor = Callable[[shapes.Floats], shapes.Floats]

_BATCH = 250


def top1(predict: Predictor, n: int = shapes.TEST_IMAGES) -> float:
    """Share of the first `n` test images whose largest logit is the label, between 0 and 1.

    `predict` maps images (N,3,32,32) float32 to logits (N,classes).
    """
    return float(hits(predict, *shapes.test_set(n)).mean())


def hits(predict: Predictor, images: shapes.Floats, labels: shapes.Labels) -> NDArray[np.bool_]:
    """Whether the largest logit is the label, of each of the images (N,3,32,32): (N,) booleans."""
    batches = range(0, len(images), _BATCH)
    logits = np.concatenate([predict(images[start : start + _BATCH]) for start in batches])
    return np.asarray(logits.argmax(1) == labels)


def torch_predictor(module: nn.Module) -> Predictor:
    """Predict with `module` as it is; the caller has put it in eval mode."""

    def predict(images: shapes.Floats) -> shapes.Floats:
        with torch.inference_mode():
            logits: shapes.Floats = module(torch.from_numpy(images)).numpy()
        return logits

    return predict


def onnx_predictor(path: Path | str) -> Predictor:
    """Predict with an ONNX file (first input, first output) in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(images: shapes.Floats) -> shapes.Floats:
        return np.asarray(session.run(None, {name: images})[0], np.float32)

    return predict


def load(path: Path | str) -> nn.Module:
    """A shipped checkpoint as a module in eval mode."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
        for network in (nets.vit_tiny_shapes(), swin.swin_shapes()):
            if network.state_dict().keys() == state.keys():
                network.load_state_dict(state)
                return network.eval()
        raise ValueError(f"{path} holds the weights of none of the example networks")
    module = torch.load(path, map_location="cpu", weights_only=False)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{path} holds a {type(module).__name__}, not a module")
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description="Top-1 accuracy on the rendered test set.")
    parser.add_argument("models", nargs="+", type=Path, metavar="MODEL")
    parser.add_argument(
        "--images", type=int, default=shapes.TEST_IMAGES, help="default: %(default)s"
    )
    arguments = parser.parse_args()
    for path in arguments.models:
        onnx = path.suffix == ".onnx"
        predict = onnx_predictor(path) if onnx else torch_predictor(load(path))
        print(f"{100 * top1(predict, arguments.images):6.2f} %  {path}")


if __name__ == "__main__":
    main()

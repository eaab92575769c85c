"""A character-level GPT: pre-LN blocks, learned positions, the head tied to the token embedding.

`python -m examples.gpt MODEL ...` prints the perplexity on the validation files (`examples/text.py`) of
the weights in a `.safetensors` file or of an ONNX file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples import text

MODEL = Path(__file__).parent / "models" / "gpt_stdlib.safetensors"


def gpt_stdlib() -> GPT:
    """4 blocks of width 112, context 128, 96 characters; 0.63 M parameters, untrained."""
    return GPT(len(text.VOCABULARY), text.CONTEXT, width=112, depth=4, heads=4)


def load(path: Path | str = MODEL) -> GPT:
    """The shipped weights in `gpt_stdlib`, in eval mode."""
    from safetensors.torch import load_file

    gpt = gpt_stdlib()
    gpt.load_state_dict(load_file(path))
    return gpt.eval()


def torch_predictor(module: nn.Module) -> text.Predictor:
    """Predict with `module` as it is; the caller has put it in eval mode."""

    def predict(ids: text.Ids) -> text.Logits:
        with torch.inference_mode():
            logits: text.Logits = module(torch.from_numpy(ids)).numpy()
        return logits

    return predict


def onnx_predictor(path: Path | str) -> text.Predictor:
    """Predict with an ONNX file (first input, first output) in onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(ids: text.Ids) -> text.Logits:
        return np.asarray(session.run(None, {name: ids})[0], np.float32)

    return predict


class CausalAttention(nn.Module):
    """Multi-head attention to the tokens so far, one fused projection to queries, keys, values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N,tokens,width) to the same shape."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=2)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-LN block (Radford et al. 2019): attention and a GELU MLP, a LayerNorm before each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N,tokens,width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """Decoder-only transformer in the manner of GPT-2; no dropout."""

    def __init__(self, vocabulary: int, context: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith(("out.weight", "mlp.2.weight")):  # as in GPT-2: writers of the stream
                nn.init.normal_(parameter, std=0.02 / (2 * depth) ** 0.5)
            elif parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids (N,tokens), tokens <= context, to logits of the next one (N,tokens,vocabulary)."""
        x = self.token(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        return F.linear(self.norm(self.blocks(x)), self.token.weight)


def main() -> None:
    """Print the perplexity of every file that is named."""
    parser = argparse.ArgumentParser(description="Perplexity per character on validation files.")
    parser.add_argument("models", nargs="*", default=[MODEL], type=Path, metavar="MODEL")
    parser.add_argument("--windows", type=int, default=text.WINDOWS, help="default: %(default)s")
    arguments = parser.parse_args()
    for path in arguments.models:
        predict = onnx_predictor(path) if path.suffix == ".onnx" else torch_predictor(load(path))
        print(f"{text.perplexity(predict, arguments.windows):7.4f}  {path}")


if __name__ == "__main__":
    main()

"""Text token by token with an ONNX file that has the cache of keys and values as inputs and outputs.

`python -m examples.generate` writes the shipped GPT as a Hugging Face folder of a GPT-2, converts it with
`task="text-generation-with-past"`, and continues a prompt with the file in onnxruntime: each step computes one
token. The same loop runs every file that is converted so.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import normfold
from examples import gpt, text

PROMPT = "def read(self, path):\n    "
_PARTS = {
    "attention.qkv": "attn.c_attn",
    "attention.out": "attn.c_proj",
    "mlp.0": "mlp.c_fc",
    "mlp.2": "mlp.c_proj",
    "norm1": "ln_1",
    "norm2": "ln_2",
}


def as_gpt2(network: gpt.GPT) -> Any:
    """The same network as transformers' `GPT2LMHeadModel`, whose linear layers hold their matrices transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=network.token.num_embeddings,
        n_positions=network.position.num_embeddings,
        n_embd=network.token.embedding_dim,
        n_layer=len(network.blocks),
        n_head=4,
        activation_function="gelu",
        bos_token_id=0,
        eos_token_id=None,
    )
    weights = {
        "transformer.wte.weight": network.token.weight,
        "transformer.wpe.weight": network.position.weight,
        "transformer.ln_f.weight": network.norm.weight,
        "transformer.ln_f.bias": network.norm.bias,
    }
    for place, block in enumerate(network.blocks):
        for name, parameter in block.named_parameters():
            layer, kind = name.rsplit(".", 1)
            turned = parameter.T if parameter.ndim == 2 else parameter
            weights[f"transformer.h.{place}.{_PARTS[layer]}.{kind}"] = turned.contiguous()
    made = GPT2LMHeadModel(config).eval()
    made.load_state_dict({**weights, "lm_head.weight": network.token.weight})
    return made


def tokens(path: Path | str, prompt: list[int], count: int) -> Iterator[int]:
    """The next ``count`` tokens, each the likeliest one, by a file with a cache."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    past = {  # (batch, heads, 0, features): the first step has the prompt as new tokens, and no past
        item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
        for item in session.get_inputs()
        if item.name.startswith("past_key_values.")
    }
    new, length = prompt, len(prompt)
    for _ in range(count):
        fed = {
            "input_ids": np.array([new], np.int64),
            "attention_mask": np.ones((1, length), np.int64),  # of past and new tokens
            **past,
        }
        found = dict(zip(names, session.run(None, fed), strict=True))
        past = {name: found[name.replace("past_key_values", "present")] for name in past}
        new, length = [int(found["logits"][0, -1].argmax())], length + 1
        yield new[0]


def main() -> None:
    """Convert, and print the prompt with its continuation as it comes."""
    parser = argparse.ArgumentParser(description="Continue a text with a file that has a cache.")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--count", type=int, default=90, help="characters; default: %(default)s")
    arguments = parser.parse_args()
    ids = [text.VOCABULARY.index(letter) for letter in arguments.prompt]
    if not 0 < len(ids) + arguments.count <= text.CONTEXT:
        parser.error(f"prompt and count together are at most {text.CONTEXT} characters")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "gpt"
        as_gpt2(gpt.load()).save_pretrained(source)
        result = normfold.convert(
            source,
            "rmsnorm",
            task="text-generation-with-past",
            export="onnx",
            output=Path(folder) / "out",
        )
        print(
            f"verdict: {'equivalent' if result.ok else 'NOT equivalent'}\n{arguments.prompt}",
            end="",
        )
        for token in tokens(Path(folder) / "out" / "gpt.onnx", ids, arguments.count):
            print(text.VOCABULARY[token], end="", flush=True)
    print()


if __name__ == "__main__":
    main()

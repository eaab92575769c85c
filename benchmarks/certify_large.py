"""``python -m benchmarks.certify_large [--layers 28] [--width 2048] [--vocabulary 50304] [--tied] [--whole]``.

A GPT-NeoX of random bfloat16 weights in a file, which is mapped into memory and deleted in the end; LayerNorms
become RMSNorms, and the result is certified. Prints for each stage its seconds and the peak of anonymous memory
(RssAnon, sampled), which does not count pages of the file. Needs transformers and safetensors.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.models import mend_torchvision
from normfold.ir import Graph, capture
from normfold.judge.identity import Trial
from normfold.judge.local import certify_parts
from normfold.rewrite import parse, run_pipeline

PIPELINE = "canonicalize,fold-affine{split-norms=true},center-stream,restore"  # of `--to rmsnorm`
MB = 2**20


def anonymous() -> float:
    """Anonymous memory of this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Print what a stage takes."""
    gc.collect()
    before, peak, over = anonymous(), 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, anonymous())

    sampler = threading.Thread(target=sample)
    sampler.start()
    start, used = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        seconds, used = time.perf_counter() - start, time.process_time() - used
        over.set()
        sampler.join()
        more = max(peak - before, 0.0)
        print(
            f"{name:8} {seconds:6.1f} s   {before:5.0f} MB, at the peak {more:5.0f} MB more",
            flush=True,
        )


def empty(layers: int, width: int, vocabulary: int) -> Any:
    """A network without weights."""
    mend_torchvision()
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 128),
        intermediate_size=4 * width,
        use_cache=False,
    )
    with torch.device("meta"):
        model: Any = transformers.GPTNeoXForCausalLM(config).to(torch.bfloat16)
    rotary = model.gpt_neox.rotary_emb
    model.gpt_neox.rotary_emb = type(rotary)(config)  # its table is no parameter
    return model.eval()


def write(model: nn.Module, path: Path) -> None:
    """A safetensors file of random weights, one tensor after another."""
    header, end = {}, 0
    for name, value in model.state_dict().items():
        begin, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    random = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, value in model.state_dict().items():
            made = torch.randn(value.shape, generator=random).mul_(0.02).add_("norm" in name)
            file.write(made.bfloat16().view(torch.int16).numpy().tobytes())


def mapped(model: nn.Module, path: Path) -> nn.Module:
    """The network with the weights of a file, which are read where they are used."""
    from safetensors.torch import load_file

    model.load_state_dict(load_file(path), assign=True)
    return model.requires_grad_(False)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.certify_large")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50304)
    parser.add_argument("--primes", type=int, default=3)
    parser.add_argument("--tied", action="store_true", help="one table for the ids and the head")
    parser.add_argument("--whole", action="store_true", help="both networks as a whole, to compare")
    parser.add_argument("--folder", type=Path, help="where the weights are written")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        path = Path(folder) / "model.safetensors"
        model = empty(asked.layers, asked.width, asked.vocabulary)
        count = sum(value.numel() for value in model.parameters())
        block = sum(value.numel() for value in model.gpt_neox.layers[0].parameters())
        print(
            f"{count / 1e9:.2f}e9 parameters, {2 * count / MB:.0f} MB of weights; a block's are "
            f"{2 * block / MB:.0f} MB, its elements {8 * block / MB:.0f} MB"
        )
        with stage("write"):
            write(model, path)
        with stage("open"):
            mapped(model, path)
            if asked.tied:
                model.get_output_embeddings().weight = model.get_input_embeddings().weight
        ids = torch.randint(0, asked.vocabulary, (2, 8))
        with stage("capture"):
            graph = capture(model, (), {"input_ids": ids, "use_cache": False})
        with stage("passes"):
            result, reports = run_pipeline(graph, parse(PIPELINE))
        print({item.name: item.rewrites for item in reports})
        with stage("certify"):
            found = certified(graph, result, asked.primes, asked.whole)
        print(f"{found.words}; {len(found.covered)} of {len(result.sites)} sites")
        print([output.why for output in found.outputs if output.why][:3])


def certified(graph: Graph, result: Graph, primes: int, whole: bool) -> Any:
    """In parts, or both networks as a whole."""
    if whole:
        return Trial(graph, result, 0).certificate(primes, True)
    return certify_parts(graph, result, 0, primes)


if __name__ == "__main__":
    main()

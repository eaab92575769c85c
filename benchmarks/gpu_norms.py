"""LayerNorm against RMSNorm in torch, eager and compiled, and how much of the time the norms take at all.

python -m benchmarks.gpu_norms [--device cuda] [--model vit_base swin_tiny gpt2] [--batch 1 16 128] [--dtype fp16]
    [--mode eager compile] [--seconds 5] [--json FILE]

Each network is captured as it is and converted with the preset `rmsnorm`; both graphs run in turn on the same
inputs. The share of the norms is 1 - t(without norms) / t(as it is), with every norm replaced by what it reads:
an upper bound of what any cheaper norm can bring. Needs timm and transformers; weights are random.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import normfold
from benchmarks import models
from normfold.graph.graph import Graph, op_name
from normfold.judge.bench import measure
from normfold.judge.pairs import Pair
from normfold.rewrite.presets import preset

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NORMS = {"layer_norm", "rms_norm"}
_LENGTH = 256  # tokens of the language model


class Logits(nn.Module):
    """A causal language model that takes ids and returns logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input_ids: Tensor) -> Tensor:
        """(N,T) to (N,T,vocabulary)."""
        logits: Tensor = self.net(input_ids, use_cache=False).logits
        return logits


def network(name: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    """A network in ``dtype``, and one input for it (batch 1)."""
    torch.manual_seed(0)
    if name == "gpt2":
        from transformers import GPT2Config, GPT2LMHeadModel

        return Logits(GPT2LMHeadModel(GPT2Config())).eval().to(dtype), torch.randint(
            0, 50257, (1, _LENGTH)
        )
    timm_names = {"vit_base": "vit_base_patch16_224", "swin_tiny": "swin_tiny_patch4_window7_224"}
    return models.make(timm_names.get(name, name)).to(dtype), torch.randn(1, 3, 224, 224).to(dtype)


def without_norms(graph: Graph) -> fx.GraphModule:
    """The same network with every norm replaced by what it reads: wrong on purpose, for its time only."""
    bare = graph.copy()
    for node in list(bare.nodes):
        if op_name(node) in _NORMS:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    bare.recompile()
    return bare.module


def compare(
    first: nn.Module,
    second: nn.Module,
    x: Tensor,
    compiled: bool,
    names: tuple[str, str],
    seconds: float,
) -> Any:
    """Timing of two modules on ``x``."""

    def ready(module: nn.Module) -> Any:
        module = module.to(x.device)
        run = torch.compile(module) if compiled else module

        def call() -> object:
            with torch.no_grad():
                return run(x)

        call()
        return call

    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    runtime = f"torch {'compiled' if compiled else 'eager'} {x.device.type}"
    threads = torch.get_num_threads()
    pair = Pair(ready(first), ready(second), names, runtime, str(tuple(x.shape)), threads, wait)
    return measure(pair, seconds=seconds)


def main() -> None:
    """Print a table; one row for each network, type, batch and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=["vit_base", "swin_tiny", "gpt2"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 128])
    parser.add_argument("--dtype", nargs="+", choices=list(_DTYPES), default=["fp16"])
    parser.add_argument(
        "--mode", nargs="+", choices=["eager", "compile"], default=["eager", "compile"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each comparison")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    title = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{title}, torch {torch.__version__}")
    columns = (
        "network",
        "type",
        "batch",
        "mode",
        "LN ms",
        "RMS ms",
        "ratio",
        "95 % interval",
        "norms",
    )
    print("{:12}{:6}{:>6} {:8}{:>9}{:>9}{:>8}  {:16}{:>7}".format(*columns))
    rows = []
    for name in options.model:
        for dtype in options.dtype:
            module, example = network(name, _DTYPES[dtype])
            graph = normfold.capture(module, (torch.cat([example, example]),))
            plain, _ = normfold.run(graph, preset("baked"), verify="off")
            converted, _ = normfold.run(graph, preset("rmsnorm"), verify="off")
            bare = without_norms(plain)
            for batch in options.batch:
                x = torch.cat([example] * batch).to(device)
                for mode in options.mode:
                    compiled = mode == "compile"
                    if compiled:
                        torch._dynamo.reset()
                    found = compare(
                        plain.module, converted.module, x, compiled, ("LN", "RMS"), options.seconds
                    )
                    norms = compare(
                        plain.module, bare, x, compiled, ("LN", "none"), options.seconds
                    )
                    low, high = found.interval
                    share = 1 - norms.ratio
                    print(
                        f"{name:12}{dtype:6}{batch:6} {mode:8}{1e3 * found.a_seconds:9.3f}"
                        f"{1e3 * found.b_seconds:9.3f}{found.ratio:8.3f}  {low:.3f} to {high:.3f}  {share:7.1%}",
                        flush=True,
                    )
                    rows.append(
                        {
                            "network": name,
                            "dtype": dtype,
                            "batch": batch,
                            "mode": mode,
                            "norm_share": share,
                            **dataclasses.asdict(found),
                        }
                    )
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

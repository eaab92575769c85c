"""LayerNorm against RMSNorm in torch, eager and compiled, and how much of the time the norms take at all.

python -m benchmarks.gpu_norms [--device cuda] [--model vit_base swin_tiny gpt2] [--batch 1 16 128] [--dtype fp16]
    [--mode eager compile] [--seconds 5] [--rounds 20] [--json FILE]

Each network is captured as it is and converted with the preset `rmsnorm`; both graphs run in turn on the same
inputs. The share of the norms is 1 - t(without norms) / t(as it is), with every norm replaced by what it reads:
an upper bound of what any cheaper norm can bring. Needs timm and transformers, but for `tiny`; weights are random.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

import normfold
from benchmarks import models
from normfold.ir.graph import Graph, op_name
from normfold.job.presets import preset
from normfold.judge.bench import measure
from normfold.judge.pairs import Pair
from normfold.report import Timing

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_NORMS = {"layer_norm", "rms_norm"}
_LENGTH = 256  # tokens of the language model
_TITLES = ("network", "type", "batch", "mode", "LN ms", "RMS ms", "ratio", "95 % interval", "norms")


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
    model = models.make(timm_names.get(name, name))
    return model.to(dtype), models.example_input(model)[:1].to(dtype)


def without_norms(graph: Graph) -> fx.GraphModule:
    """The same network with every norm replaced by what it reads: wrong on purpose, for its time only."""
    bare = graph.copy()
    for node in list(bare.nodes):
        if op_name(node) in _NORMS:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
    bare.recompile()
    return bare.module


def compare(
    pair: tuple[nn.Module, nn.Module], x: Tensor, compiler: str | None, seconds: float, rounds: int
) -> Timing:
    """Timing of two modules on ``x``, eager or compiled."""

    def ready(module: nn.Module) -> Callable[[], object]:
        module = module.to(x.device)
        run = torch.compile(module, backend=compiler) if compiler else module

        def call() -> object:
            with torch.no_grad():
                return run(x)

        call()
        return call

    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    runtime = f"torch {compiler or 'eager'} {x.device.type}"
    a, b = map(ready, pair)
    timed = Pair(a, b, ("A", "B"), runtime, str(tuple(x.shape)), torch.get_num_threads(), wait)
    return measure(timed, rounds, seconds)


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each network, type, batch and mode, as soon as it is measured."""
    for name, dtype in itertools.product(options.model, options.dtype):
        module, example = network(name, _DTYPES[dtype])
        graph = normfold.capture(module, (torch.cat([example, example]),))
        plain, _ = normfold.run(graph, preset("baked"), verify="off")
        converted, _ = normfold.run(graph, preset("rmsnorm"), verify="off")
        bare = without_norms(plain)
        for batch, mode in itertools.product(options.batch, options.mode):
            x = torch.cat([example] * batch).to(options.device)
            compiler = options.compiler if mode == "compile" else None
            if compiler:
                torch._dynamo.reset()
            limits = (compiler, options.seconds, options.rounds)
            found = compare((plain.module, converted.module), x, *limits)
            norms = compare((plain.module, bare), x, *limits)
            yield {
                "network": name,
                "dtype": dtype,
                "batch": batch,
                "mode": mode,
                "norm_share": 1 - norms.ratio,
                **found.to_dict(),
            }


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    low, high = row["interval"]
    return (
        f"{row['network']:12}{row['dtype']:6}{row['batch']:6} {row['mode']:8}{1e3 * row['a_seconds']:9.3f}"
        f"{1e3 * row['b_seconds']:9.3f}{row['ratio']:8.3f}  {low:.3f} to {high:.3f}  {row['norm_share']:7.1%}"
    )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=["vit_base", "swin_tiny", "gpt2"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 16, 128])
    parser.add_argument("--dtype", nargs="+", choices=list(_DTYPES), default=["fp16"])
    modes = ["eager", "compile"]
    parser.add_argument("--mode", nargs="+", choices=modes, default=modes)
    parser.add_argument("--compiler", default="inductor", help="backend of torch.compile")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each comparison")
    parser.add_argument("--rounds", type=int, default=20, help="for each comparison, at least")
    parser.add_argument("--json", type=Path)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write what is there to the file after every row."""
    options = parsed(arguments)
    title = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{title}, torch {torch.__version__}")
    print("{:12}{:6}{:>6} {:8}{:>9}{:>9}{:>8}  {:16}{:>7}".format(*_TITLES))
    found = []
    for row in rows(options):
        print(line(row), flush=True)
        found.append(row)
        if options.json is not None:
            options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What LayerNorms cost at inference: each network against itself with RMSNorms, folded away, and without any norm.

python -m benchmarks.offline_norms [--model vit_small swin_tiny gpt2] [--batch 1 8] [--runtime ort torch]

``folded`` is what `--to prepbn`, `un`, `bn` and `affine` come to: the same graph for all. ``none`` leaves the
norms out, which is wrong and for its time only: no way of writing norms can be faster. Published, for
comparison: UN, 31 % more throughput of Swin-T on a GPU that is not named (arXiv 2208.01313); SLAB, 6 to 16 % less
latency in detection with Swin and PVT, and 14.5 % more tokens of a LLaMA-350M at batch 1 (arXiv 2405.11582),
hardware not given either. Both compare with an eager, unfused LayerNorm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import normfold
from benchmarks import models
from benchmarks.gpu_norms import Logits, without_norms
from normfold.ir import Graph
from normfold.job.presets import preset
from normfold.judge.bench import bench

_FOLDED = "canonicalize,replace-layernorm,fold-affine{untie=true},restore,bake"
_TIMM = {"vit_small": "vit_small_patch16_224", "swin_tiny": "swin_tiny_patch4_window7_224"}
_TOKENS = 128


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    """The network with random weights, and an input of two samples."""
    torch.manual_seed(0)
    if name == "gpt2":
        models.import_timm()  # transformers imports torchvision too
        from transformers import GPT2Config, GPT2LMHeadModel

        return Logits(GPT2LMHeadModel(GPT2Config())).eval(), torch.randint(0, 50257, (2, _TOKENS))
    model = models.make(_TIMM.get(name, name))
    return model, models.example_input(model)


def variants(name: str) -> dict[str, Graph | nn.Module]:
    """The network as it is, and what it is compared with."""
    module, x = network(name)
    original = normfold.capture(module, (x,))
    original.samples = [((x,), {})]
    rms, _ = normfold.run(original, preset("rmsnorm"), verify="off")
    folded, report = normfold.run(original, _FOLDED, verify="off")
    left = [site for site in report.sites if site.kind == "layer-norm" and site.state != "gone"]
    assert not left, left
    bare = original.copy()
    bare.module = without_norms(original)
    return {"layer norm": original, "rms norm": rms, "folded": folded, "none": bare}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of times relative to the network with its LayerNorms."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=["vit_small", "swin_tiny", "gpt2"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--runtime", nargs="+", choices=["ort", "torch"], default=["ort", "torch"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each comparison")
    parser.add_argument("--rounds", type=int, default=20, help="for each comparison, at least")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    print(
        f"{'network':12}{'runtime':8}{'batch':>6}{'LN ms':>9}  {'against':10}{'ratio':>7}  95 % interval"
    )
    rows: list[dict[str, Any]] = []
    for name in options.model:
        found = variants(name)
        for runtime in options.runtime:
            for batch in options.batch:
                for other in ("rms norm", "folded", "none"):
                    timing = bench(
                        found["layer norm"],
                        found[other],
                        runtime,
                        batch=batch,
                        threads=options.threads,
                        rounds=options.rounds,
                        seconds=options.seconds,
                    )
                    low, high = timing.interval
                    print(
                        f"{name:12}{runtime:8}{batch:>6}{1e3 * timing.a_seconds:>9.2f}  {other:10}"
                        f"{timing.ratio:>7.3f}  {low:.3f}-{high:.3f}",
                        flush=True,
                    )
                    row = {"network": name, "runtime": runtime, "batch": batch, "against": other}
                    rows.append({**row, **timing.to_dict()})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

"""Train the character-level GPT on the standard library: `python -m examples.train_gpt`, from the root."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples import text
from examples.gpt import gpt_stdlib, torch_predictor
from examples.training import save

RATE = 3e-3
DECAY = 0.1
BATCH = 16
REPORT = 250  # steps between two lines of progress


def main() -> None:
    """Parse the command line, train, report the perplexity on the validation files, save."""
    parser = argparse.ArgumentParser(description="Train the GPT on the standard library's source.")
    parser.add_argument("--steps", type=int, default=4500, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("examples/models/gpt_stdlib.safetensors"))
    parser.add_argument("--threads", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    start = time.perf_counter()
    torch.manual_seed(arguments.seed)
    gpt = gpt_stdlib()
    train(gpt, torch.from_numpy(text.train_set()), arguments.steps, arguments.seed)
    seconds = time.perf_counter() - start
    save(gpt, arguments.out)

    parameters = sum(p.numel() for p in gpt.parameters())
    perplexity = text.perplexity(torch_predictor(gpt))
    size = arguments.out.stat().st_size
    print(f"{parameters} parameters, {size} bytes, perplexity {perplexity:.3f}, {seconds:.0f} s")


def train(
    gpt: nn.Module,
    ids: Tensor,
    steps: int,
    seed: int,
    rate: float = RATE,
    after_step: Callable[[], None] = lambda: None,
) -> list[tuple[float, float]]:
    """Train `gpt` in place on `ids` (n,), `steps` batches of random windows; leave it in eval mode.

    Returns the mean loss and the largest norm of the gradient of every `REPORT` steps; shorter if the loss stops
    being finite, where training stops.
    """
    matrices = [p for p in gpt.parameters() if p.ndim == 2]
    others = [p for p in gpt.parameters() if p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps + 1, pct_start=0.05, cycle_momentum=False
    )
    random = torch.Generator().manual_seed(seed)
    offsets = torch.arange(text.CONTEXT + 1)
    gpt.train()
    start, total, largest = time.perf_counter(), 0.0, 0.0
    history: list[tuple[float, float]] = []
    for step in range(1, steps + 1):
        starts = torch.randint(len(ids) - text.CONTEXT, (BATCH, 1), generator=random)
        rows = ids[starts + offsets]
        logits = gpt(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(gpt.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        after_step()
        total, largest = total + loss.item(), max(largest, norm.item())
        if not math.isfinite(total):
            print(f"step {step:5d}  the loss is not finite", flush=True)
            break
        if step % REPORT == 0:
            seconds = time.perf_counter() - start
            print(f"step {step:5d}  loss {total / REPORT:.3f}  {seconds:.0f} s", flush=True)
            history.append((total / REPORT, largest))
            total, largest = 0.0, 0.0
    gpt.eval()
    return history


if __name__ == "__main__":
    main()

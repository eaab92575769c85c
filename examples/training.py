"""What the training scripts share: the loop, the augmentation and the command line."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from examples import shapes
from examples.accuracy import top1, torch_predictor


@dataclass(frozen=True)
class Recipe:
    """AdamW, a linear warm-up over one epoch, a cosine down to zero; `half` multiplies in bf16."""

    epochs: int
    rate: float
    decay: float
    batch: int = 100
    smoothing: float = 0.05
    seed: int = 0
    half: bool = True


def main(name: str, factory: Callable[[], nn.Module], recipe: Recipe, out: Path) -> None:
    """Parse the command line of one training script, train, report the test accuracy, save."""
    parser = argparse.ArgumentParser(description=f"Train {name} on the rendered shapes.")
    parser.add_argument("--epochs", type=int, default=recipe.epochs, help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=out, help="default: %(default)s")
    parser.add_argument(
        "--images", type=int, default=shapes.TRAIN_IMAGES, help="default: %(default)s"
    )
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=recipe.seed, help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    start = time.perf_counter()
    torch.manual_seed(arguments.seed)
    module = factory()
    recipe = replace(recipe, epochs=arguments.epochs, seed=arguments.seed)
    train(module, recipe, arguments.images)
    seconds = time.perf_counter() - start
    save(module, arguments.out)

    parameters = sum(p.numel() for p in module.parameters())
    accuracy = 100 * top1(torch_predictor(module))
    size = arguments.out.stat().st_size
    print(f"{name}: {parameters} parameters, {size} bytes, {accuracy:.2f} %, {seconds:.0f} s")


def train(
    module: nn.Module, recipe: Recipe, count: int, after_step: Callable[[], None] = lambda: None
) -> list[tuple[float, float]]:
    """Train `module` in place on `count` rendered images and leave it in eval mode.

    Returns the training loss and the top-1 on 500 test images, in percent, of every epoch.
    """
    pixels, classes = shapes.train_set(count)
    images, labels = torch.from_numpy(pixels), torch.from_numpy(classes)
    # Channels-last halves the time of the convolutions on a CPU.
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    batches = len(images) // recipe.batch
    optimizer = torch.optim.AdamW(_groups(module, recipe.decay), lr=recipe.rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _rate(step, batches, recipe.epochs)
    )
    random = torch.Generator().manual_seed(recipe.seed)
    history: list[tuple[float, float]] = []
    for epoch in range(recipe.epochs):
        start, total = time.perf_counter(), 0.0
        module.train()
        order = torch.randperm(len(images), generator=random)[: batches * recipe.batch]
        for rows in order.split(recipe.batch):
            x = augment(images[rows], random).contiguous(memory_format=torch.channels_last)
            with _attention(recipe), torch.autocast("cpu", torch.bfloat16, recipe.half):
                logits = module(x)
            loss = F.cross_entropy(logits.float(), labels[rows], label_smoothing=recipe.smoothing)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            after_step()
            total += loss.item()
        module.eval()
        seconds, accuracy = time.perf_counter() - start, 100 * top1(torch_predictor(module), 500)
        progress = f"epoch {epoch + 1:2d}  loss {total / batches:.3f}  test {accuracy:.1f} %"
        print(f"{progress}  {seconds:.0f} s", flush=True)
        history.append((total / batches, accuracy))
    module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return history


def augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Flip, turn, shift and swap colours, all (N,3,32,32) alike; no class changes."""
    turns, flip, down, right = torch.randint(0, 12, (4,), generator=random).tolist()
    images = torch.rot90(images, turns % 4, (2, 3))
    if flip % 2:
        images = images.flip(3)
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    images = images[:, :, down % 5 :, right % 5 :][:, :, : shapes.SIZE, : shapes.SIZE]
    return images[:, torch.randperm(3, generator=random)]


def save(module: nn.Module, path: Path) -> None:
    """Write a `.safetensors` file as a state dict and anything else as a pickled module."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(module.state_dict(), path)
    else:
        torch.save(module, path)


def _attention(recipe: Recipe) -> AbstractContextManager[Any]:
    """In bf16 the flash kernel's backward pass takes four times plain attention's time on a CPU."""
    return sdpa_kernel(SDPBackend.MATH) if recipe.half else nullcontext()


def _groups(module: nn.Module, decay: float) -> list[dict[str, object]]:
    """Weight decay for matrices and kernels only."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.ndim in (2, 4)], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim not in (2, 4)], "weight_decay": 0.0},
    ]


def _rate(step: int, batches: int, epochs: int) -> float:
    """Share of the peak learning rate at `step`."""
    if step < batches:
        return (step + 1) / batches
    return 0.5 * (1.0 + math.cos(math.pi * (step - batches) / max(1, (epochs - 1) * batches)))

"""Training equivalence: the rewritten, un-baked graph trains the original parameters as the original does.

    python -m examples.train_rewritten

A pass writes its algebra into the graph as expressions of the original parameters. Until they are baked, the
parameters of `graph.module` *are* those of the network that was captured, so gradients reach them, one
optimizer serves both, and what was trained is saved as a state dict of the original. This holds for what
is the same in training and in eval mode: no dropout, and BatchNorm with frozen statistics.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normfold
from examples import gpt, text

PIPELINE = "canonicalize,fold-affine,center-stream"  # no bake: it would make constants of it all
Forward = Callable[[Tensor], Tensor]
Optimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=1e-3),
}


def rewrite(network: nn.Module, ids: Tensor) -> nn.Module:
    """What `network` computes, from its own parameters, after the rewrite; ids (N,tokens) are an example."""
    graph = normfold.capture(network.eval(), (ids,))
    graph, report = normfold.run(graph, PIPELINE)
    if not report.ok:
        raise SystemExit("the verdict failed")
    return graph.module


def loss_of(forward: Forward, ids: Tensor) -> Tensor:
    """Mean cross-entropy of the next character, for ids (N,tokens+1)."""
    return F.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def compare(network: nn.Module, ids: Tensor) -> dict[str, float]:
    """Relative differences of the loss and of every parameter's gradient, each to its largest magnitude."""
    rewritten = rewrite(network, ids[:, :-1])
    names, parameters = zip(*network.named_parameters(), strict=True)
    old, new = loss_of(network, ids), loss_of(rewritten, ids)
    pairs = zip(
        torch.autograd.grad(new, parameters), torch.autograd.grad(old, parameters), strict=True
    )
    gradients = zip(names, (_difference(*pair) for pair in pairs), strict=True)
    return {"loss": _difference(new, old), **dict(gradients)}


def train(network: nn.Module, forward: Forward, make: Optimizer, batches: Tensor) -> Tensor:
    """Train the parameters of `network` through `forward`, ids (steps,N,tokens+1); the losses (steps,)."""
    optimizer = make(list(network.parameters()))
    losses = []
    for ids in batches:
        optimizer.zero_grad()
        loss = loss_of(forward, ids)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def train_both(network: nn.Module, make: Optimizer, batches: Tensor) -> tuple[float, float]:
    """Train two copies, one of them through its rewritten graph.

    Returns the largest relative difference between their losses, and between their parameters at the end.
    """
    one, other = copy.deepcopy(network), copy.deepcopy(network)
    losses = train(one, one, make, batches)
    new_losses = train(other, rewrite(other, batches[0, :, :-1]), make, batches)
    pairs = zip(other.parameters(), one.parameters(), strict=True)
    return (
        _difference(new_losses, losses),
        max(_difference(new, old) for new, old in pairs),
    )


def main() -> None:
    """Compare the gradients, then a few steps of each optimizer, in float64 on the shipped GPT."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=10, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=4, help="default: %(default)s")
    arguments = parser.parse_args()
    network = gpt.load().double()
    rows = text.windows(text.train_set(), arguments.steps * arguments.batch)
    inputs, targets = map(torch.from_numpy, rows)
    ids = torch.cat((inputs, targets[:, -1:]), 1).unflatten(0, (arguments.steps, -1))

    differences = compare(network, ids[0])
    worst = max(differences, key=differences.__getitem__)
    print(f"loss and {len(differences) - 1} gradients: largest relative difference")
    print(f"  {differences[worst]:.1e}  ({worst})")
    print(f"{arguments.steps} steps: largest relative difference of the losses, of the parameters")
    for name, make in OPTIMIZERS.items():
        losses, parameters = train_both(network, make, ids)
        print(f"  {name:5}  {losses:.1e}  {parameters:.1e}")


def _difference(new: Tensor, old: Tensor) -> float:
    return ((new - old).abs().max() / old.abs().max()).item()


if __name__ == "__main__":
    main()

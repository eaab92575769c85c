"""One rank of a training and a refresh over several: ``python -m tests.nn.ranks RANK WORLD FOLDER``.

`joint` is the same on one process with the tokens of all ranks put together; `test_ranks.py` compares.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from normfold.nn import valid_tokens
from normfold.train import refresh_statistics, replace_norms
from tests.nn.norms import STATISTICAL, norm_of, state, tokens

STEPS = 4
LENGTHS = ((5, 2), (0, 6), (3, 3), (4, 1))  # tokens of each rank in each step; none at all once
BATCHES = (3, 2)  # of each rank in a refresh: both stop after two

Result = dict[str, dict[str, Tensor]]


def rows_of(step: int, rank: int) -> Tensor:
    """(1, tokens, 4)."""
    before, after = sum(LENGTHS[step][:rank]), sum(LENGTHS[step][: rank + 1])
    return tokens(1, sum(LENGTHS[step]), 4, seed=step)[:, before:after]


def weights_of(step: int, rank: int) -> Tensor:
    """The gradient of the loss at `rows_of`."""
    before, after = sum(LENGTHS[step][:rank]), sum(LENGTHS[step][: rank + 1])
    return tokens(1, sum(LENGTHS[step]), 4, seed=50 + step)[:, before:after] / 10


def pad(x: Tensor, length: int) -> Tensor:
    return torch.cat([x, torch.full((1, length - x.shape[1], 4), float("nan"))], 1)


def train(kind: str, ranks: list[int], masked: bool) -> dict[str, Tensor]:
    """Steps over the tokens of these ranks; outputs, input gradients, buffers and parameter gradients."""
    norm = norm_of(kind)
    found: dict[str, Tensor] = {}
    for step in range(STEPS):
        x = torch.cat([rows_of(step, rank) for rank in ranks], 1).requires_grad_()
        weights = torch.cat([weights_of(step, rank) for rank in ranks], 1)
        if masked:
            mask = torch.arange(7).unsqueeze(0) < x.shape[1]
            with valid_tokens(norm, mask):
                y = norm(pad(x, 7))[:, : x.shape[1]]
        else:
            y = norm(x)
        (y * weights).sum().backward()
        assert x.grad is not None
        found |= {f"y{step}": y.detach(), f"dx{step}": x.grad}
    return found | state(norm)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.LayerNorm(4), nn.LayerNorm(4)
        self.linear = nn.Linear(4, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.linear(self.first(x)).tanh())
        return result


def refresh(batches: list[Tensor]) -> dict[str, Tensor]:
    """A least-squares start and a refresh over these batches."""
    net = Net()
    replace_norms(net, "repbn", start=batches)
    started = {f"started {n}": p.detach().clone() for n, p in net.named_parameters()}
    refresh_statistics(net, [batch + 1 for batch in batches])
    return started | state(net)


def batches_of(rank: int) -> list[Tensor]:
    return [tokens(2 + rank, 3, 4, seed=10 * rank + n) for n in range(BATCHES[rank])]


def run(ranks: list[int], batches: list[Tensor]) -> Result:
    result = {kind: train(kind, ranks, False) for kind in STATISTICAL}
    result |= {f"{kind} masked": train(kind, ranks, True) for kind in STATISTICAL}
    return result | {"refresh": refresh(batches)}


def joint() -> Result:
    """All on one process; what both ranks run together is one batch."""
    together = zip(batches_of(0)[:2], batches_of(1)[:2], strict=True)
    return run([0, 1], [torch.cat(pair) for pair in together])


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(run([rank], batches_of(rank)), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))

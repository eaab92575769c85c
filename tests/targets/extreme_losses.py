"""Norms and losses: a part of the table of the sweep."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.targets.extremes import FINITE_ROWS, ROWS, Case, _scaled


def norms() -> Iterator[Case]:
    for name, x in (("rows", FINITE_ROWS), ("large means", torch.randn(4, 6) + 1e4)):
        yield Case(f"layer_norm of {name}", lambda x: F.layer_norm(x, (6,)), (x,), True)
        yield Case(f"rms_norm of {name}", lambda x: F.rms_norm(x, (6,), eps=1e-6), (x,), True)
        yield Case(f"group_norm of {name}", lambda x: F.group_norm(x, 2), (x,), True)
        yield Case(f"instance_norm of {name}", lambda x: F.instance_norm(x[None]), (x,), True)
        yield Case(f"batch_norm of {name}", _batch_norm, (x,), True)
    yield from [
        Case("rms_norm default eps", lambda x: F.rms_norm(x, (6,)), (FINITE_ROWS,), True),
        Case("layer_norm of rows with nan", lambda x: F.layer_norm(x, (6,)), (ROWS,), True),
        Case("rms_norm of rows with nan", lambda x: F.rms_norm(x, (6,), eps=1e-6), (ROWS,), True),
        Case("layer_norm of one", lambda x: F.layer_norm(x, (1,)), (torch.randn(3, 1),), True),
        Case("local_response_norm", lambda x: F.local_response_norm(x, 3), (_scaled(4, 5, 5)[:5],)),
    ]


def _batch_norm(x: Tensor) -> Tensor:
    mean, variance = x.new_tensor([0, 1, 2, 3, 4, 5]), x.new_tensor([0, 1e-30, 1, 2, 1e10, 1e30])
    return F.batch_norm(x, mean, variance)


def losses() -> Iterator[Case]:
    target, labels = (
        torch.tensor([0.0, 0.3, 0.5, 0.7, 0.9, 1.0]),
        torch.arange(len(FINITE_ROWS)) % 6,
    )
    for how in ("none", "mean", "sum"):
        for name in (
            "mse_loss",
            "l1_loss",
            "smooth_l1_loss",
            "huber_loss",
            "binary_cross_entropy_with_logits",
            "soft_margin_loss",
            "poisson_nll_loss",
            "kl_div",
        ):
            function = getattr(F, name)
            yield Case(
                f"{name} {how}",
                lambda x, y, f=function, h=how: f(x, y.expand_as(x), reduction=h),
                (FINITE_ROWS if how == "none" else FINITE_ROWS[8:18], target),
                how != "none",
            )
        yield Case(
            f"cross_entropy {how}",
            lambda x, y, h=how: F.cross_entropy(x, y, reduction=h),
            (FINITE_ROWS, labels) if how == "none" else (FINITE_ROWS[8:18], labels[8:18]),
        )
        yield Case(
            f"nll_loss {how}",
            lambda x, y, h=how: F.nll_loss(x.log_softmax(-1), y, reduction=h),
            (FINITE_ROWS, labels) if how == "none" else (FINITE_ROWS[8:18], labels[8:18]),
        )
    probability = torch.tensor([0.0, 1e-30, 1e-7, 0.5, 1 - 1e-7, 1.0])
    yield from [
        Case(
            "binary_cross_entropy",
            lambda x, y: F.binary_cross_entropy(x, y, reduction="none"),
            (probability, target),
        ),
        Case("binary_cross_entropy mean", F.binary_cross_entropy, (probability, target)),
        Case(
            "cross_entropy smoothed",
            lambda x, y: F.cross_entropy(x, y, label_smoothing=0.1, reduction="none"),
            (FINITE_ROWS, labels),
        ),
        Case(
            "cross_entropy ignored",
            lambda x, y: F.cross_entropy(x, y, ignore_index=2),
            (FINITE_ROWS[8:18], labels[8:18]),
        ),
        Case(
            "margin_ranking_loss",
            lambda x, y: F.margin_ranking_loss(x, x.flip(0), x.sign(), 0.1, reduction="none"),
            (FINITE_ROWS, target),
            True,
        ),
        Case(
            "hinge_embedding_loss",
            lambda x, y: F.hinge_embedding_loss(x, y.round() * 2 - 1, reduction="none"),
            (FINITE_ROWS, target),
            True,
        ),
        Case(
            "cosine_embedding_loss",
            lambda x, y: F.cosine_embedding_loss(x, x.flip(1), y.new_ones(len(x))),
            (FINITE_ROWS[8:18], target),
            True,
        ),
        Case(
            "triplet_margin_loss",
            lambda x, y: F.triplet_margin_loss(x, x.flip(1), x * 2, reduction="none"),
            (FINITE_ROWS[:20], target),
            True,
        ),
        Case(
            "gaussian_nll_loss",
            lambda x, y: F.gaussian_nll_loss(x, x * 0 + y, x.abs(), reduction="none"),
            (FINITE_ROWS[:20], target),
            True,
        ),
        Case(
            "multi_margin_loss",
            lambda x, y: F.multi_margin_loss(x, y, reduction="none"),
            (FINITE_ROWS, labels),
            True,
        ),
    ]

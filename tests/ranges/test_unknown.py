"""An op with an unknown operand has an unknown result: networks that take tokens, masks and positions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normfold.domains.observed import measure
from normfold.ir import capture
from normfold.ir.graph import op_name
from normfold.ir.intervals import Interval, range_of
from normfold.job import Quantize
from normfold.ranges.analytic import derive, moments
from normfold.ranges.calibration import calibrate
from tests.nets import Compose, perturb

LENGTH, WIDTH, HEADS = 6, 16, 2
Inputs = tuple[Tensor, ...]


def heads(x: Tensor, count: int = HEADS) -> Tensor:
    return x.unflatten(-1, (count, -1)).transpose(1, 2)  # type: ignore[no-any-return]


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(11, (2, LENGTH), generator=torch.Generator().manual_seed(seed))


def lengths(seed: int = 0) -> Tensor:
    """A padding mask, (N,T) of 0 and 1."""
    size = torch.randint(1, LENGTH + 1, (2, 1), generator=torch.Generator().manual_seed(seed))
    return (torch.arange(LENGTH) < size).long()


def net(forward: Callable[..., Tensor], **parts: nn.Module) -> nn.Module:
    """With a table of tokens, projections and a head."""
    own = {
        "table": nn.Embedding(11, WIDTH),
        "qkv": nn.Linear(WIDTH, 3 * WIDTH),
        "head": nn.Linear(WIDTH, 5),
    }
    return perturb(Compose(forward, **own, **parts))


def masked() -> nn.Module:
    """An encoder whose attention takes a boolean mask."""

    def forward(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
        q, k, v = m.qkv(m.table(ids)).chunk(3, -1)
        seen = mask.bool()[:, None, None, :] & mask.new_ones(1, 1, LENGTH, 1).bool()
        x = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), seen)
        return m.head(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return net(forward)


def added() -> nn.Module:
    """An encoder whose mask is a number added to the scores, as BERT has it."""

    def forward(m: Any, ids: Tensor, mask: Tensor) -> Tensor:
        q, k, v = m.qkv(m.table(ids)).chunk(3, -1)
        bias = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        x = (heads(q) @ heads(k).transpose(-1, -2) + bias).softmax(-1) @ heads(v)
        return m.head(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return net(forward)


def rotary() -> nn.Module:
    """A decoder with rotary positions, a causal mask, and heads that share keys and values, as Llama has them."""

    def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        return x * cos + torch.cat((-right, left), -1) * sin

    def forward(m: Any, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])[None] + ids.new_zeros(ids.shape[0], 1)
        angles = places[..., None].float() * 10000.0 ** -(torch.arange(4) / 4.0)
        angles = torch.cat((angles, angles), -1)[:, None]
        q, k, v = m.qkv(m.table(ids)).split((WIDTH, WIDTH // 2 + WIDTH // 2, WIDTH), -1)
        q, k = (turned(heads(x), angles.cos(), angles.sin()) for x in (q, k))
        rows = torch.arange(ids.shape[1])
        causal = (rows[:, None] >= rows).expand(ids.shape[0], 1, -1, -1)
        causal = causal & (torch.cumsum(torch.ones_like(ids), 1) > 0)[:, None, None, :]
        x = F.scaled_dot_product_attention(q, k, heads(v, 2), causal)
        return m.head(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return net(forward)


def relative() -> nn.Module:
    """Biases by logarithmic distance, and attention to another sequence, as T5 has them."""

    def forward(m: Any, ids: Tensor, others: Tensor) -> Tensor:
        far = torch.arange(ids.shape[1])[:, None] - torch.arange(others.shape[1])
        near = far.abs()
        large = 4 + (torch.log(near.float().clamp(min=1) / 4) / math.log(4) * 4).long()
        bias = m.bias(torch.where(near < 4, near, large.clamp(max=7))).permute(2, 0, 1)[None]
        q, _, _ = m.qkv(m.table(ids)).chunk(3, -1)
        _, k, v = m.qkv(m.table(others)).chunk(3, -1)
        scores = heads(q) @ heads(k).transpose(-1, -2) + bias.expand(ids.shape[0], -1, -1, -1)
        x = scores.softmax(-1) @ heads(v)
        return m.head(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return net(forward, bias=nn.Embedding(8, HEADS))


def chosen() -> nn.Module:
    """Integer inputs choose between two constants, and gather from a third."""

    def forward(m: Any, ids: Tensor, kinds: Tensor) -> Tensor:
        x = torch.where((ids == 0)[..., None], m.table.weight[0], m.table(ids) * 2)
        table = m.table.weight[:, 0].expand(ids.shape[0], -1)
        x = x + torch.gather(table, 1, kinds)[..., None]
        return m.head(x + table.gather(1, ids.new_ones(ids.shape[0], 1))[..., None])  # type: ignore[no-any-return]

    return net(forward)


def counted() -> nn.Module:
    """Learned positions by a running count of ones, as OPT has them, and gathered types, as BERT has."""

    def forward(m: Any, ids: Tensor) -> Tensor:
        ones = torch.ones(ids.shape[0], LENGTH)
        places = ((ones.cumsum(1) * ones).long() - 1) * ones.long()
        kinds = torch.gather(places.expand(ids.shape[0], -1), 1, places)
        return m.head(m.table(ids) + m.place(places) + m.place(kinds))  # type: ignore[no-any-return]

    return net(forward, place=nn.Embedding(LENGTH, WIDTH))


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Inputs], int]] = {
    # the network, inputs by seed, and how many tensors at least do not depend on them
    "masked": (masked, lambda seed: (tokens(seed), lengths(seed)), 0),
    "added": (added, lambda seed: (tokens(seed), lengths(seed)), 0),
    "rotary": (rotary, lambda seed: (tokens(seed),), 4),
    "relative": (relative, lambda seed: (tokens(seed), tokens(seed + 9)[:, :4]), 1),
    "chosen": (chosen, lambda seed: (tokens(seed), tokens(seed + 9)), 2),
    "counted": (counted, lambda seed: (tokens(seed),), 2),
}


@pytest.mark.parametrize("dynamic", ["batch", None])
@pytest.mark.parametrize("name", CASES)
def test_what_is_derived_depends_on_no_input(name: str, dynamic: Any) -> None:
    """Of tokens nothing is known: only tensors that are the same for all of them have an interval, exactly."""
    torch.manual_seed(0)
    build, inputs, least = CASES[name]
    graph = capture(build(), inputs(0), dynamic=dynamic)
    derived = derive(graph)
    assert len(derived) >= (least if dynamic == "batch" else 0)  # constants where sizes are fixed
    for seed in range(3):
        seen = measure(graph, [inputs(seed)])
        for node, interval in derived.items():
            assert seen[node].interval == interval, node.name


def test_what_does_not_read_the_mask_is_derived() -> None:
    """Attention averages, whatever its mask; a product with the mask is unknown, and so is all behind it."""

    def forward(m: Any, x: Tensor, mask: Tensor) -> Tensor:
        x = m.patch(x).flatten(2).transpose(1, 2)
        q, k, v = m.qkv(x).chunk(3, -1)
        x = F.scaled_dot_product_attention(heads(q), heads(k), heads(v), mask[:, None, None] > 0)
        x = x.transpose(1, 2).flatten(2)
        return m.head((x * mask[..., None]).sum(1)) + m.side(x.mean(1))  # type: ignore[no-any-return]

    parts = {"patch": nn.Conv2d(3, WIDTH, 2, 2), "side": nn.Linear(WIDTH, 5)}
    graph = capture(net(forward, **parts), (torch.rand(2, 3, 4, 6), lengths()))
    found = derive(graph, Interval(0.0, 1.0))
    known = {op_name(node) for node in found}
    assert known >= {"conv2d", "linear", "scaled_dot_product_attention", "mean"}
    unknown = {op_name(node) for node in graph.nodes if node not in found}
    assert unknown >= {"gt", "mul", "sum", "linear", "add"}
    assert not {"gt", "mul", "sum"} & known
    assert list(graph.nodes)[-2] not in found  # a sum of a known and an unknown side


def test_attention_to_another_sequence() -> None:
    """The result has the queries' length and heads, the values' interval."""

    def forward(m: Any, ids: Tensor, x: Tensor) -> Tensor:
        k, v = m.pair(x.transpose(1, 2)).chunk(2, -1)
        q, k, v = heads(m.table(ids), 4), heads(k, 2), heads(v, 2)
        x = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return m.head(x.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    module = net(forward, pair=nn.Linear(3, WIDTH))
    x = torch.rand(2, 3, 9)
    graph = capture(module, (tokens(), x))
    found = moments(graph, Interval(0.0, 1.0))
    node = next(n for n in graph.nodes if op_name(n) == "scaled_dot_product_attention")
    assert found[node].mean.shape == (2, 4, LENGTH, 4)
    seen = measure(graph, [(tokens(), x)])[node].interval
    assert found[node].interval.low <= seen.low
    assert found[node].interval.high >= seen.high
    assert list(graph.nodes)[-2] in found


def test_random_numbers_are_unknown() -> None:
    def forward(m: Any, ids: Tensor) -> Tensor:
        return m.head(torch.rand(ids.shape[0], WIDTH) + m.table(ids).sum(1))  # type: ignore[no-any-return]

    graph = capture(net(forward), (tokens(),))
    assert derive(graph) == {}


def test_a_size_that_data_decide_is_unknown() -> None:
    def forward(m: Any, x: Tensor, ids: Tensor) -> Tensor:
        kept = x[ids.flatten() > 0]
        return F.relu(kept) + kept.new_ones(kept.shape)

    graph = capture(net(forward), (torch.rand(12, 3), tokens()), dynamic=None)
    found = {node.op for node in derive(graph, Interval(0.0, 1.0))}
    assert found == {"placeholder"}


def test_infinities_have_no_range() -> None:
    """The logarithm of 0 in the branch that is not taken, as MPNet counts distances, and a mask of infinities."""

    def forward(m: Any, ids: Tensor) -> Tensor:
        x = m.table(ids)
        near = (ids > 3)[..., None]
        x = torch.where(near, torch.log((ids - 3).clamp(min=0)[..., None].float()), x)
        return m.head(x)  # type: ignore[no-any-return]

    graph = capture(net(forward), (tokens(),))
    calibrated = calibrate(graph, Quantize(scheme="int8", images=8))
    known = {op_name(node): range_of(node) for node in calibrated.graph.nodes}
    assert known["log"] is None
    assert known["linear"] is not None
    assert all(found.finite for found in known.values() if found is not None)

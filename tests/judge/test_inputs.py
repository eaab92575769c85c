"""The inputs that a verdict rests on: kinds, ranges, batches, seeds, the user's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import normfold
from normfold.ir import Graph, capture
from normfold.ir.capture import dynamic_axes
from normfold.judge import Verifier
from normfold.judge.inputs import KINDS, cases, single_sizes
from normfold.rewrite import parse, run_pipeline
from tests.judge.nets import FOLDED, Wrapped, images, small


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(small(), (images(),))


def test_a_result_for_one_batch_size_fails(graph: Graph) -> None:
    verifier = Verifier(graph)
    sizes = {case.leaves[0].shape[0] for case in verifier.cases}
    assert sizes.isdisjoint({images().shape[0]})
    captured = capture(small(), (torch.cat([images(), images()]),), dynamic=None)
    assert Verifier(captured).rounding(small())
    assert not verifier.rounding(Wrapped(small(), lambda y, _: y.new_ones(2, 5)))


def test_token_ids_stay_in_range_and_differ() -> None:
    seen: list[Tensor] = []
    vocabulary = 7
    module = nn.Sequential(nn.Embedding(vocabulary, 4), nn.Linear(4, 3)).eval()
    ids = torch.tensor([[3, 1, 6, 2], [5, 4, 1, 1]])
    judging = Verifier(capture(module, (ids,)))

    def run(inputs: object) -> list[Tensor]:
        seen.append(inputs[0])  # type: ignore[index]
        return [module(seen[-1])]

    assert judging.outputs("seen", run)
    batch, single = seen
    assert single.shape == (1, 4)
    assert batch.dtype == torch.int64
    assert batch.shape == (len(KINDS), 4)
    assert int(batch.min()) >= int(ids.min())
    assert int(batch.max()) <= int(ids.max())
    assert len({tuple(row) for row in batch.tolist()}) == 3  # no id 0 was shown to be right
    zero = Verifier(capture(module, (torch.tensor([[0, 2], [1, 3]]),)))
    assert [0, 0] in zero.cases[0].leaves[0].tolist()


def test_ids_are_spread_over_the_table() -> None:
    """A fault in rows of a table that the example does not read."""
    torch.manual_seed(0)
    table, other, last = nn.Embedding(40, 4), nn.Embedding(40, 4), nn.Linear(4, 3)
    module = nn.Sequential(table, last).eval()
    judging = Verifier(capture(module, (torch.tensor([[3, 5, 4, 5], [3, 4, 4, 3]]),)))
    read = judging.cases[0].leaves[0]
    assert int(read.min()) >= 3
    assert int(read.max()) < 40
    assert len(set(read[KINDS.index("x100")].tolist())) == 4
    with torch.no_grad():
        other.weight.copy_(table.weight)
        other.weight[20:] = 0
    assert judging.rounding(module)
    assert not judging.rounding(nn.Sequential(other, last).eval())


def test_ids_that_are_not_only_looked_up_stay_those_of_the_example() -> None:
    class Last(nn.Module):
        """Reads the token with the highest id, as CLIP does."""

        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(40, 4)

        def forward(self, ids: Tensor) -> Tensor:
            rows = torch.arange(ids.shape[0])
            return self.table(ids)[rows, ids.argmax(-1)]  # type: ignore[no-any-return]

    judging = Verifier(capture(Last().eval(), (torch.tensor([[3, 5, 4, 5], [3, 4, 4, 3]]),)))
    assert set(judging.cases[0].leaves[0].flatten().tolist()) == {3, 4, 5}


def test_a_fixed_batch_is_judged_whole() -> None:
    judging = Verifier(capture(small(), (images(),), dynamic=None))
    assert [case.name for case in judging.cases] == list(KINDS)
    assert {case.leaves[0].shape for case in judging.cases} == {images().shape}
    result, report = normfold.run(judging.graph, FOLDED, verifier=judging)
    assert report.ok
    assert [item.inputs for item in judging.rounding(result).outputs] == list(KINDS)
    assert not judging.rounding(Wrapped(small(), lambda y, x: y + 0.01 * (x == 0).all()))


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_complex_inputs_are_drawn_too() -> None:
    module = Wrapped(nn.Linear(3, 3), lambda y, _: y.real + y.imag).eval().to(torch.complex64)
    judging = Verifier(capture(module, (torch.randn(2, 3, dtype=torch.complex64),)))
    random, large, constant, zeros = judging.cases[0].leaves[0]
    assert random.imag.abs().max() > 0
    assert large.abs().max() > 30
    assert torch.equal(constant, torch.full((3,), 0.75 + 0j))
    assert not zeros.any()
    assert judging.rounding(module)


def test_the_users_own_samples_are_judged(graph: Graph) -> None:
    sample = torch.full((3, 3, 6, 7), 5.0)
    judging = Verifier(graph, samples=[(sample,)])
    assert judging.rounding(small())

    def spoil(y: Tensor, x: Tensor) -> Tensor:
        return y * (1.01 if torch.equal(x, sample) else 1.0)

    check = judging.rounding(Wrapped(small(), spoil))
    assert {item.inputs for item in check.outputs if not item.ok} == {"sample 0"}


def test_the_seed_chooses_the_inputs(graph: Graph) -> None:
    one, same, other = (Verifier(graph, seed).cases[0].leaves[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one[:2], other[:2])
    assert torch.equal(one[2:], other[2:])
    assert Verifier(graph, 7).rounding(small()).seed == 7


def captured(module: nn.Module, ids: Tensor) -> Graph:
    """With a free batch and a free length."""
    return capture(module, (ids,), dynamic=dynamic_axes(module, (ids,), {}, axes={"input": {1}}))


def test_another_dynamic_axis_is_tried_at_another_size() -> None:
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).eval()
    ids = torch.tensor([[3, 1, 6, 2], [5, 4, 1, 1]])
    judging = Verifier(captured(module, ids))
    shapes = [case.leaves[0].shape for case in judging.cases]
    assert shapes == [(len(KINDS), 4), (2, 3), (1, 4), (2, 1)]
    assert judging.rounding(module)
    fixed = nn.Sequential(module, nn.Flatten(1), nn.Unflatten(1, (4, 3)))
    assert judging.rounding(module).ok
    with pytest.raises(RuntimeError):
        judging.rounding(fixed)


def test_a_fixed_length_is_not_tried_at_another() -> None:
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).eval()
    ids = torch.ones(2, 1, dtype=torch.int64)
    cases = Verifier(capture(module, (ids,), dynamic={"input": {0: Dim.DYNAMIC}})).cases
    assert [case.leaves[0].shape for case in cases] == [(len(KINDS), 1), (1, 1)]


def test_a_short_length_is_tried_at_a_longer_one() -> None:
    module = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)).eval()
    ids = torch.ones(2, 2, dtype=torch.int64)
    shapes = [case.leaves[0].shape for case in Verifier(captured(module, ids)).cases]
    assert shapes == [(len(KINDS), 2), (2, 3), (1, 2), (2, 1)]


def test_cases_of_one_name_have_outputs_of_their_own() -> None:
    graph = capture(nn.Linear(4, 2), (torch.randn(2, 4),))
    graph.trials = [(torch.full((1, 4), 3.0),)]
    judging = Verifier(graph)
    names = [case.name for case in judging.cases]
    assert names.count("input:1x4") == 2
    assert judging.capture()


def test_a_size_that_must_be_larger_is_not_tried_at_one() -> None:
    """As in a speech encoder: two steps of its convolutions are the least that its table is added to."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(4, 4, 3, stride=4, padding=1)
            self.table = nn.Buffer(torch.randn(4, 50))
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x.transpose(1, 2))
            scores: Tensor = self.head((y + self.table[:, : y.shape[-1]]).transpose(1, 2))
            return scores

    free = {"x": {0: Dim.AUTO, 1: Dim.AUTO}}
    graph = capture(Net().eval(), (torch.randn(2, 24, 4),), dynamic=free)
    assert [case.leaves[0].shape[1] for _, case in single_sizes(graph)] == [24]
    result, _ = run_pipeline(graph, parse("canonicalize,restore,bake"))
    verifier = Verifier(graph)
    assert verifier.capture()
    assert verifier.rounding(result)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64])
def test_masks_vary_by_themselves(dtype: torch.dtype) -> None:
    """Two masks that are the same in the example: a network that takes one for the other is seen."""

    class Net(nn.Module):
        def forward(self, x: Tensor, a_mask: Tensor, b_mask: Tensor) -> Tensor:
            return x.masked_fill(a_mask == 0, 0.0) * 2 + x.masked_fill(b_mask == 0, 0.0)

    whole = torch.ones(2, 9, dtype=dtype)
    graph = capture(Net(), (torch.randn(2, 9), whole, whole))
    first, second = ([case.leaves[place] for case in cases(graph)] for place in (1, 2))
    assert not all(map(torch.equal, first, second))
    assert all(bool(mask[..., 0].all()) for mask in (*first, *second))


def test_a_size_that_leaves_no_output_is_not_tried() -> None:
    """A transposed convolution that makes nothing of one row: float32 gives no elements, float64 refuses."""
    net = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2, 1), nn.BatchNorm2d(4)).eval()
    dynamic = {"input": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    graph = capture(net, (torch.randn(2, 3, 12, 12),), dynamic=dynamic)
    verifier = Verifier(graph)
    assert all(1 not in case.leaves[0].shape[2:] for case in verifier.cases)
    assert verifier.capture()

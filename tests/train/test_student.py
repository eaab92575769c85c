"""A graph as a module to train: the same function, tensors of its own, streams to compare."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from normfold.ir import capture
from normfold.nn import Blended
from normfold.rewrite.offline import KINDS
from normfold.train.student import as_module, outputs_of, own_tensors, streams, take_back
from tests.passes.centred import TOKENS
from tests.train.nets import classifier, pair, samples


@pytest.mark.parametrize("kind", KINDS)
def test_module_and_graph_agree(kind: str) -> None:
    _, student = pair(kind)
    taps = streams(student)
    module = as_module(student, taps).eval()
    x, _ = samples()
    with torch.no_grad():
        outputs = module(x)
        assert len(outputs) == 1 + len(taps) == 4
        torch.testing.assert_close(outputs[0], student.module(x), rtol=1e-5, atol=1e-6)
    assert [tuple(tensor.shape) for tensor in outputs[1:]] == [tuple(x.shape)] * 3


def test_streams_are_those_of_the_teacher() -> None:
    teacher, student = pair("affine")
    taps, (x, _) = streams(student), samples()
    with torch.no_grad():
        mine, theirs = (as_module(graph, taps).eval()(x) for graph in (student, teacher))
    torch.testing.assert_close(mine[1], theirs[1])  # in front of the first norm nothing differs
    assert not torch.allclose(mine[2], theirs[2])


def test_training_leaves_the_teacher_alone() -> None:
    teacher, student = pair("bn")
    x, _ = samples()
    before = teacher.module(x)
    module = as_module(student).train()
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    module(x)[0].square().mean().backward()
    assert all(p.grad is not None for p in module.parameters())
    optimizer.step()
    assert torch.equal(teacher.module(x), before)
    assert not torch.allclose(student.module(x), before, atol=1e-3)


def test_ties_stay_ties() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(7, 6), nn.LayerNorm(6)
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, ids: Tensor) -> Tensor:
            logits: Tensor = self.head(self.norm(self.table(ids)))
            return logits

    graph = own_tensors(capture(Tied().eval(), (torch.zeros(2, 5, dtype=torch.int64),)))
    parameters = list(graph.module.parameters())
    assert sum(p.shape == (7, 6) for p in parameters) == 1
    assert all(p.requires_grad for p in parameters)


def test_moved_tensors_come_back() -> None:
    _, student = pair("bn")
    module = as_module(student).double()
    take_back(student, module)
    x, _ = samples()
    assert student.module(x.double()).dtype == torch.float64
    torch.testing.assert_close(student.module(x.double()), module.eval()(x.double())[0])


def test_a_blend_begins_as_the_teacher() -> None:
    teacher, student = pair("un")
    module = as_module(student, blended=True).train()
    for part in module.modules():
        if isinstance(part, Blended):
            part.mix.fill_(1.0)
    x, _ = samples()
    torch.testing.assert_close(module(x)[0], teacher.module(x), rtol=1e-5, atol=1e-5)


def test_moved_blends_come_back() -> None:
    _, student = pair("un")
    module = as_module(student, blended=True).double()
    take_back(student, module)
    x, _ = samples()
    torch.testing.assert_close(student.module(x.double()), module.eval()(x.double())[0])


def test_outputs_are_counted() -> None:
    graph = capture(classifier(), (torch.zeros(TOKENS),))
    assert outputs_of(graph) == 1

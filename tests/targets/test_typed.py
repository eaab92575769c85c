"""Half precision: every value in the type that it should have, and the network still the same."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from normfold.errors import UsageError
from normfold.ir import Graph, capture
from normfold.targets import RuntimeSession, export_onnx
from normfold.targets.typed import lower
from tests.nets import perturb
from tests.sampling import every_other
from tests.targets.halves import NEAR, lowered, values, x
from tests.targets.nets import Transformer, TwoInputs, error, reference

HALF, FULL = torch.float16, torch.float32
DTYPES = tuple(NEAR)


class Lambda(nn.Module):
    """A function of the input, between two linear layers that are in half precision by themselves."""

    def __init__(self, function: Any, width: int = 8) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 4)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.last(self.function(self.first(x)))


def between(function: Any) -> nn.Module:
    return perturb(Lambda(function))


# -- a sound network does not pay -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_sound_transformer_is_in_half_precision_altogether(norm: Any, dtype: torch.dtype) -> None:
    net = perturb(Transformer(norm))
    found = lowered(net, x(2, 3, 8, 8), dtype=dtype)
    assert found.islands == []
    assert set(found.stored().values()) == {dtype}  # class token and position embedding too
    assert found.casts() == [("x", dtype), (found.casts()[1][0], FULL)]
    assert found.error(x(5, 3, 8, 8)) < NEAR[dtype]


@pytest.mark.parametrize("target", ["trt", "ort-x86"])
def test_the_file_casts_inputs_and_outputs_only(target: str, tmp_path: Path) -> None:
    graph = lowered(transformer()).typed.graph
    exported = export_onnx(graph, tmp_path / "net.onnx", target=target)
    assert exported.census.ops["Cast"] == 2
    assert exported.census.norms == {"LayerNormalization": 5}
    session = RuntimeSession(exported.path, threads=1)
    assert [item[2] for item in session.signature()] == ["tensor(float)"]
    given = [x(3, 3, 8, 8)]
    result = session.run(given)
    assert [item.dtype for item in result] == [FULL]
    assert error(result, reference(network(), *given)) < 1e-2


def test_the_given_graph_is_untouched() -> None:
    graph = transformer()
    assert {p.dtype for p in graph.module.parameters()} == {FULL}
    before = str(graph.module.graph)
    lower(graph, HALF, [(x(2, 3, 8, 8),)])
    assert str(graph.module.graph) == before


@functools.cache
def network() -> nn.Module:
    return perturb(Transformer())


@functools.cache
def transformer() -> Graph:
    """Captured once: what is made of it leaves it as it is, as the test above shows."""
    return lowered(network(), x(2, 3, 8, 8)).graph


# -- types ------------------------------------------------------------------------------------------

SHAPED = {
    "split": lambda x: torch.cat(x.split(3, -1)[::-1], -1),
    "chunk": lambda x: torch.stack(x.chunk(2, -1), -1).flatten(-2),
    "unbind": lambda x: torch.stack(x.unbind(-1), -1),
    "var_mean": lambda x: (
        (x - torch.var_mean(x, -1, keepdim=True)[1]) / torch.var_mean(x, -1, keepdim=True)[0].sqrt()
    ),
    "max": lambda x: x.max(-1, keepdim=True)[0] + x,
    "topk": lambda x: x.topk(8)[0],
    "argmax": lambda x: x + F.one_hot(x.argmax(-1), 8),
    "to-int": lambda x: x + x.to(torch.int64),
    "to-bool": lambda x: x * x.bool(),
    "comparison": lambda x: torch.where(x > 0.1, x, -x) * (x != 0) * (x < 1e9),
    "softmax-float32": lambda x: x.softmax(-1, dtype=torch.float32).type_as(x) + x,
    "to-float32": lambda x: (x.float() * 2).to(x.dtype) + x.to(torch.float32),
    "float64": lambda x: (x.double().sin() * 2).float() + x,
    "float64-sum": lambda x: x + x.sum(-1, keepdim=True, dtype=torch.float64).float(),
    "arange": lambda x: x * torch.arange(8, dtype=torch.float32),
    "arange-batch": lambda x: x + torch.arange(x.shape[0], dtype=torch.float32)[:, None, None],
    "zeros": lambda x: torch.cat([torch.zeros(x.shape[0], 1, 8), x], 1),
    "zeros-like": lambda x: torch.zeros_like(x) + x.new_ones(x.shape[0], 1, 8) - x,
    "full-like": lambda x: torch.full_like(x, 0.5) * x,
    "maximum": lambda x: torch.maximum(x, torch.tensor(0.1)),
    "complex": lambda x: torch.fft.irfft(torch.fft.rfft(x), n=8),
    "cumsum": lambda x: x.cumsum(-1),
    "interpolate": lambda x: F.interpolate(x, size=8, mode="linear"),
    "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x) @ x,
    "gelu-by-hand": lambda x: 0.5 * x * (1 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
}


@pytest.mark.parametrize("name", every_other(SHAPED))
def test_ops_of_every_kind_keep_their_meaning(name: str) -> None:
    graph = lowered(between(SHAPED[name]), x()).graph
    for dtype in DTYPES:
        found = lowered(graph, dtype=dtype)
        assert found.islands == []
        assert found.dtype("linear") == {dtype}
        assert set(found.stored().values()) == {dtype}
        # where a float becomes an integer, one that rounding moves across the border is another integer
        near = {"argmax": 0.1, "to-int": 0.3, "comparison": 0.1}.get(name, NEAR[dtype])
        assert found.error(x(3, 6, 8)) < near * (2 if "var" in name else 1)


def test_a_cast_to_integers_stays() -> None:
    found = lowered(between(lambda x: x + (10 * x).to(torch.int64)), x())
    assert torch.int64 in {v.dtype for node in found.typed.graph.nodes for v in values(node)}
    assert found.error(x()) < 0.1  # rounding moves some across the border of an integer


class Positions(nn.Module):
    """Rotary embeddings of a length that is known at run time, from token ids."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)
        self.query, self.head = nn.Linear(8, 8), nn.Linear(8, 50)
        self.register_buffer("frequencies", 10000.0 ** -(torch.arange(0, 8, 2) / 8))

    def forward(self, ids: Tensor) -> Tensor:
        at = torch.arange(ids.shape[1]) + 3000  # where float16 knows even numbers only
        angles = at[:, None].float() * self.frequencies
        cos, sin = (f(torch.cat([angles, angles], -1)) for f in (torch.cos, torch.sin))
        q = self.query(self.tokens(ids))
        turned = torch.cat([-q[..., 4:], q[..., :4]], -1)
        y: Tensor = self.head(q * cos + turned * sin)
        return y


@pytest.mark.parametrize("dtype", DTYPES)
def test_position_tables_stay_in_float32_and_are_cast_once(dtype: torch.dtype) -> None:
    ids = torch.randint(0, 50, (2, 7))
    shapes = ({0: Dim("batch"), 1: Dim("length", min=2, max=4096)},)
    found = lowered(perturb(Positions()), ids, dtype=dtype, dynamic=shapes)
    assert found.islands == []
    assert found.dtype("cos") == found.dtype("sin") == {FULL}
    assert found.dtype("embedding") == found.dtype("linear") == {dtype}
    assert sorted(str(cast) for cast in found.casts()) == sorted(
        str(cast)
        for cast in [("aten.cos.default", dtype), ("aten.sin.default", dtype), found.casts()[-1]]
    )
    stored = found.stored()
    assert stored.pop("frequencies") == FULL
    assert set(stored.values()) == {dtype}
    assert found.error(torch.randint(0, 50, (3, 20))) < NEAR[dtype]


def test_static_tables_that_baking_leaves_stay_in_float32() -> None:
    class Table(nn.Module):
        frequencies: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(64, 64)
            self.register_buffer("frequencies", torch.rand(64))

        def forward(self, x: Tensor) -> Tensor:
            angles = (torch.arange(4096.0) + 4000)[:, None] * self.frequencies
            y: Tensor = self.fc(x) * angles.cos()
            return y

    found = lowered(Table(), x(2, 4096, 64))
    assert found.dtype("cos") == {FULL}  # 1 MiB out of 256 bytes: not baked
    assert found.islands == []
    assert ("aten.cos.default", HALF) in found.casts()
    assert found.error(x(2, 4096, 64)) < NEAR[HALF]


def test_lengths_are_compared_with_positions_in_float32() -> None:
    class Padded(nn.Module):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return x * (torch.arange(x.shape[1]).float() < lengths[:, None])

    lengths = torch.tensor([2049, 3001])
    found = lowered(Padded(), x(2, 3003), lengths, inputs=[(x(2, 3003), lengths)])
    assert found.islands == []
    assert found.error(x(2, 3003), lengths) < 1e-3  # one more or less is 1e-2


# -- what goes in and comes out ---------------------------------------------------------------------


def test_outputs_keep_their_types_whatever_they_are() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.table = nn.Parameter(torch.randn(4))

        def forward(self, x: Tensor, ids: Tensor) -> Any:
            y = self.fc(x)
            table = (torch.arange(x.shape[0]) * 3).float()
            most = y.max(-1)
            return {
                "input": x,
                "ids": ids,
                "y": y,
                "float": y.float(),
                "again": y,
                "double": y.double(),
                "half": y.half(),
                "table": table,
                "indices": most[1],
                "positive": y > 0,
                "parameter": self.table,
                "parts": y.split(2, -1),
            }

    given = (x(3, 4), torch.arange(3))
    found = lowered(perturb(Many()), *given)
    assert found.islands == []
    assert found.error(*given) < NEAR[HALF]
    assert torch.equal(found.run(*given)[0], given[0])  # no detour over float16
    assert torch.equal(found.run(*given)[7], torch.tensor([0.0, 3.0, 6.0]))


@pytest.mark.parametrize(
    ("norm", "captured"),
    [
        (nn.LayerNorm, torch.float16),
        pytest.param(nn.RMSNorm, torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_networks_captured_in_half_precision(norm: Any, captured: torch.dtype) -> None:
    net = perturb(Transformer(norm)).to(captured)
    graph = lowered(net, x(2, 3, 8, 8).to(captured), pipeline="bake").graph
    for asked in (FULL, *DTYPES):
        found = lowered(graph, dtype=asked)
        assert found.islands == []
        assert found.dtype("linear") == set(found.stored().values()) == {asked}
        assert len(found.casts()) == 2 * (captured is not asked)
        coarser = max(NEAR.get(asked, 0.0), NEAR[captured] / 4)  # the output is rounded to that
        assert found.error(x(3, 3, 8, 8).to(captured)) < coarser


def test_an_rms_norm_keeps_the_eps_of_its_own_type() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8))  # eps is that of float32
    with torch.no_grad():
        net[0].weight.mul_(0.1)  # type: ignore[operator]
        net[0].bias.mul_(0.1)  # type: ignore[operator]
    found = lowered(net, x(), pipeline="bake", islands=False)
    assert found.error(x()) < NEAR[HALF]


def test_inputs_of_integers_and_images_in_bytes() -> None:
    class Bytes(nn.Module):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mean", torch.rand(3, 1, 1))

        def forward(self, image: Tensor) -> Tensor:
            y: Tensor = self.conv((image.float() / 255 - self.mean) / 0.2)
            return y

    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    found = lowered(Bytes(), image)
    assert found.dtype("conv2d") == {HALF}
    assert found.dtype("div") == {FULL}
    assert len(found.casts()) == 2
    assert found.error(image) < NEAR[HALF]


# -- parameters -------------------------------------------------------------------------------------


class Tied(nn.Module):
    """Embedding and head are one tensor under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(64, 8), nn.Linear(8, 64, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.tokens(ids)))
        return y


def test_a_parameter_that_two_types_want_is_stored_once_in_the_wider() -> None:
    ids = torch.randint(0, 64, (2, 5))
    found = lowered(Tied(), ids, keep=["linear"])
    assert found.dtype("linear") == {FULL}
    assert found.dtype("embedding") == {HALF}
    assert set(found.stored().values()) == {FULL}
    assert found.typed.graph.parameter_bytes() == 64 * 8 * 4
    assert found.error(ids) < NEAR[HALF]


def test_a_tied_parameter_stays_tied() -> None:
    ids = torch.randint(0, 64, (2, 5))
    found = lowered(Tied(), ids)
    assert set(found.stored().values()) == {HALF}
    assert found.typed.graph.parameter_bytes() == 64 * 8 * 2
    assert found.error(ids) < NEAR[HALF]


# -- what is kept -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "kept"),
    [
        ("blocks.1.*", {"layer_norm": 2, "linear": 4}),
        ("blocks.?.norm1", {"layer_norm": 2}),
        ("softmax", {"softmax": 2}),
        ("gelu_1", {"gelu": 1}),
        ("scaled_dot_product_attention", {"mul": 2, "transpose": 2, "matmul": 4, "softmax": 2}),
        ("scaled_dot_product_attention_1", {"mul": 1, "transpose": 1, "matmul": 2, "softmax": 1}),
        ("unbind", {"unbind": 2}),
    ],
)
def test_patterns_keep_modules_ops_and_nodes(pattern: str, kept: dict[str, int]) -> None:
    graph = transformer()
    found = lowered(graph, keep=[pattern])
    assert {op: found.islands.count(op) for op in kept} == kept
    assert set(found.why.values()) == {f"kept by `{pattern}`"}
    if "*" not in pattern:
        assert len(found.islands) == sum(kept.values())
    assert found.error(x(3, 3, 8, 8)) < NEAR[HALF]
    if pattern == "softmax":
        assert lowered(graph, keep=[pattern], islands=False).why == found.why


def test_a_pattern_that_matches_nothing_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="could stay in float32") as caught:
        lowered(TwoInputs(), x(2, 4), x(2, 3), keep=["linear", "blocks.*", "Linear"])
    assert "`Linear`, `blocks.*`" in str(caught.value)


@pytest.mark.parametrize("op", ["var_mean", "split", "max"])
def test_a_tuple_that_is_kept_is_kept_as_a_whole(op: str) -> None:
    function = {
        "var_mean": lambda x: sum(torch.var_mean(x, -1, keepdim=True)) + x,
        "split": lambda x: torch.cat(x.split(3, -1)[::-1], -1),
        "max": lambda x: x.max(-1, keepdim=True)[0] + x,
    }[op]
    found = lowered(between(function), x(), keep=[op])
    assert set(found.islands) == {op}
    assert found.error(x()) < NEAR[HALF]


def test_dead_branches_and_graphs_without_floats() -> None:
    class Integers(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids * 2 + 1

    found = lowered(Integers(), torch.arange(6).reshape(2, 3))
    assert found.typed.islands == ()
    assert found.error(torch.arange(6).reshape(2, 3)) == 0
    graph = capture(Integers(), (torch.arange(4),), dynamic=None)
    with pytest.raises(UsageError):
        lower(graph, HALF, [(torch.arange(4),)], keep=["mul"])

"""What one layer costs in onnxruntime in each format: it is written as a network of its own, and timed.

A convolution is timed between integers, as it stands in an integer network; a matrix product between floats, since
what surrounds it in a transformer (norms, GELU, softmax) has no integer kernels. Layers of the same op and shapes
are timed once.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from normfold.ir import Graph, capture
from normfold.ir.expressions import evaluate
from normfold.ir.graph import shape_of
from normfold.ir.intervals import Interval, set_range
from normfold.ops.integer_ops import dequantize, quantize
from normfold.ops.integers import weighted
from normfold.ops.linear import Linear, linear_of
from normfold.progress import Listener, Progress, silent
from normfold.ranges.mixed import FLOAT, pipeline
from normfold.ranges.sensitivity import Layer
from normfold.rewrite import Rewriter, parse, run_pipeline
from normfold.target import target as find_target
from normfold.targets.floats import widened
from normfold.targets.onnx import export_onnx
from normfold.targets.runtime import RuntimeSession

_SECONDS, _FEWEST = 0.05, 7
_RANGE = Interval(-4.0, 4.0)  # of the made-up input; the time does not depend on it


class _Alone(nn.Module):
    """One linear op, with its own weight and bias."""

    def __init__(self, call: Callable[..., Tensor], weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.call = call
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x, self.weight, self.bias)


def _alone(module: fx.GraphModule, linear: Linear) -> nn.Module:
    node = linear.node

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        values = {linear.data: x, linear.weight: weight, linear.bias: bias}
        args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator,no-any-return]

    weight = evaluate(module, linear.weight).float()
    bias = evaluate(module, linear.bias).float() if linear.bias is not None else None
    return _Alone(call, weight, bias)


def layer_times(
    module: fx.GraphModule,
    layers: Sequence[Layer],
    formats: Callable[[Layer], Sequence[int]],
    say: Listener = silent,
) -> dict[tuple[str, int], float]:
    """Milliseconds of every layer in every format, for inputs of the shapes that the network was captured with.

    Raises:
        EnvironmentMissing: onnxruntime is not installed.
    """
    seen: dict[Any, dict[int, float]] = {}
    found: dict[tuple[str, int], float] = {}
    for at, layer in enumerate(layers):
        linear = linear_of(layer.node)
        assert linear is not None
        rest = [arg for arg in layer.node.args if not isinstance(arg, fx.Node)]
        key = (layer.node.target, shape_of(linear.data), shape_of(linear.weight), str(rest))
        if key not in seen:
            seen[key] = {bits: _time(module, linear, bits) for bits in formats(layer)}
        found |= {(layer.path, bits): value for bits, value in seen[key].items()}
        say(Progress("timing layers", at + 1, len(layers)))
    return found


def _time(module: fx.GraphModule, linear: Linear, bits: int) -> float:
    x = torch.randn(shape_of(linear.data), dtype=torch.float32).clamp(_RANGE.low, _RANGE.high)
    graph = capture(_alone(module, linear), (x,))
    inner = next(node for node in graph.nodes if linear_of(node) is not None)
    for node in graph.nodes:
        if node.op == "placeholder" or node is inner:
            set_range(node, _RANGE)
    if bits != FLOAT:
        text = f"{pipeline({'*': bits})},quantize-activations,bake"
        graph, _ = run_pipeline(graph, parse(text))
    between = bits != FLOAT and linear.kernel > 0
    if between:
        _grid_behind(graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        export_onnx(graph, path)
        if between:
            between_integers(path)
            x = torch.randint(256, x.shape, dtype=torch.uint8)
        return time_file(path, [x])


def _grid_behind(graph: Graph) -> None:
    """Put what the layer gives on a grid too."""
    layer = next(node for node in graph.nodes if weighted(node) is not None)
    rewriter = Rewriter(graph)
    scale = rewriter.constant(torch.tensor(2 * _RANGE.high / 255, dtype=torch.float32), "scale")
    zero = rewriter.constant(torch.tensor(128, dtype=torch.uint8), "zero_point")
    steps = rewriter.insert_after(layer, quantize, layer, scale, zero, None)
    values = rewriter.insert_after(steps, dequantize, steps, scale, zero, None, 0, 8)
    for user in list(layer.users):
        if user is not steps:
            rewriter.replace_input(user, layer, values)
    graph.recompile()


def between_integers(path: Path) -> None:
    """Make a file with one input and one output take and give the integers inside its first and last grid."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    first = next(node for node in graph.node if graph.input[0].name in node.input)
    last = next(node for node in graph.node if graph.output[0].name in node.output)
    for value, name in ((graph.input[0], first.output[0]), (graph.output[0], last.input[0])):
        value.name = name
        value.type.tensor_type.elem_type = onnx.TensorProto.UINT8
    graph.node.remove(first)
    graph.node.remove(last)
    onnx.save(model, path)


def time_graph(graph: Graph) -> float:
    """Milliseconds of a run of the example inputs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(widened(graph, find_target("ort-x86"))[0], path)
        return time_file(path, pytree.tree_leaves((graph.args, graph.kwargs)))


def time_file(path: Path, inputs: Sequence[Tensor]) -> float:
    """Milliseconds of a run in onnxruntime: the median of at least seven, over a twentieth of a second or more.

    Raises:
        EnvironmentMissing: onnxruntime is not installed.
    """
    run = RuntimeSession(path).prepare(inputs)
    for _ in range(3):
        run()
    times: list[float] = []
    while len(times) < _FEWEST or sum(times) < _SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[len(times) // 2]

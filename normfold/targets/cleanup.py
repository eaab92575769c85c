"""What the raw ONNX export leaves behind, removed: constants, copies of weights, shape arithmetic, names.

Nothing here knows a norm or combines two layers. torch.onnx's own ``optimize=True`` would fold BatchNormalization
into Conv among other things; whatever is gone from our files is gone because a pass of normfold removed it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from normfold.ir.provenance import module_path, source_line
from normfold.targets.pads import take_pads

if TYPE_CHECKING:
    import onnx_ir as ir

_SMALL = 8192  # elements: what constant folding may read, and what equal constants may be merged
_LINE = "normfold.line"
_TORCH_NODE = "pkg.torch.onnx.fx_node"  # "%relu : ..."


def clean(model: ir.Model) -> None:
    """Tidy a raw exported model in place, with these steps and no others.

    1. functions are inlined (control flow stays);
    2. ``Transpose(weight)`` becomes the transposed weight, as a view: its bytes are made when written;
    3. small constant expressions are evaluated (`onnxscript.optimizer.fold_constants`, which has no rewrite
       rules for layers);
    4. a target shape of which one size is unknown is written with -1 instead of computed at run time;
    5. zero pads go into the pads of the convolutions and pools that read them;
    6. unused nodes, identities, repeated constants and attributes that say the default go, two transpositions in a
       row become one, constants become initialisers.
    """
    from onnx_ir.passes import common
    from onnxscript import optimizer
    from onnxscript.rewriter.rules.common import transpose_transpose_rule

    parameters = set(model.graph.initializers)
    if model.functions:
        common.InlinePass()(model)
    _turn_weights(model)
    optimizer.fold_constants(
        model, onnx_shape_inference=False, input_size_limit=_SMALL, output_size_limit=_SMALL
    )
    _static_reshapes(model)
    transpose_transpose_rule.apply_to_model(model)
    take_pads(model)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.IdentityEliminationPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        partial(_merge_constants, parameters=parameters),
        common.CommonSubexpressionEliminationPass(),  # of equal operands: constants first
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
    ):
        step(model)
    _drop_defaults(model)


def _drop_defaults(model: ir.Model) -> None:
    """Leave out attributes that say what the op's definition says without them."""
    import onnx_ir as ir
    from onnx import AttributeProto, defs

    defaults: dict[str, dict[str, Any]] = {}
    for node in model.graph.all_nodes():
        version = model.opset_imports.get("")
        if node.domain or version is None:
            continue
        kind = node.op_type
        if kind not in defaults:
            found = defs.get_schema(kind, version).attributes.values()
            stated = [
                a.default_value for a in found if a.default_value.type != AttributeProto.UNDEFINED
            ]
            defaults[kind] = {a.name: ir.serde.deserialize_attribute(a).value for a in stated}
        for name, default in defaults[kind].items():
            attribute = node.attributes.get(name)
            if attribute is not None and not attribute.is_ref() and attribute.value == default:
                del node.attributes[name]


def _merge_constants(model: ir.Model, parameters: set[str]) -> None:
    """Let equal small constants be one; parameters stay as they are, equal or not, under their own names."""
    first: dict[tuple[str, str, bytes], ir.Value] = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if name in parameters or tensor is None or tensor.size > _SMALL or value.is_graph_output():
            continue
        known = first.setdefault((str(tensor.dtype), str(tensor.shape), tensor.tobytes()), value)
        if known is not value:
            value.replace_all_uses_with(known)
            model.graph.initializers.pop(name)


def _turn_weights(model: ir.Model) -> None:
    """Replace a transposed weight by a turned view of it, where nothing else reads the weight."""
    import onnx_ir as ir

    for node in list(model.graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or len(weight.uses()) != 1:
            continue
        tensor: Any = weight.const_value
        output, raw = node.outputs[0], getattr(tensor, "raw", None)
        if not isinstance(raw, Tensor) or output.is_graph_output() or weight.is_graph_output():
            continue
        assert weight.name is not None
        turned = type(tensor)(raw.permute(*node.attributes["perm"].as_ints()), weight.name)
        model.graph.initializers.pop(weight.name)
        value = ir.Value(name=weight.name, type=weight.type, shape=turned.shape, const_value=turned)
        output.replace_all_uses_with(value)
        model.graph.remove(node, safe=True)
        model.graph.register_initializer(value)


def _static_reshapes(model: ir.Model) -> None:
    import numpy as np
    import onnx_ir as ir

    for node in model.graph:
        if node.op_type != "Reshape" or node.outputs[0].shape is None:
            continue
        target = node.inputs[1]
        made = target.producer() if target is not None else None
        if made is None or made.op_type != "Concat":
            continue
        sizes = _concat_sizes(made)
        if len(sizes) != len(node.outputs[0].shape) or sizes.count(-1) != 1:
            continue
        value = ir.Value(
            name=f"{node.name}_shape",
            type=ir.TensorType(ir.DataType.INT64),
            shape=ir.Shape([len(sizes)]),
            const_value=ir.tensor(np.array(sizes, np.int64), name=f"{node.name}_shape"),
        )
        model.graph.register_initializer(value)
        node.replace_input_with(1, value)


def _concat_sizes(concat: ir.Node) -> list[int]:
    """The sizes that a Concat of shapes gives, -1 for each input that is not constant; empty if one is not > 0."""
    sizes: list[int] = []
    for value in concat.inputs:
        constant = None if value is None else value.const_value
        sizes += [-1] if constant is None else constant.numpy().reshape(-1).tolist()
        if constant is not None and min(sizes[-constant.size :], default=1) < 1:
            return []
    return sizes


@dataclass(frozen=True)
class Origin:
    """What a node of the file comes from: node of the graph, module path, the user's source line."""

    node: str
    path: str
    line: str


def label(model: ir.Model, source_lines: bool = False) -> dict[str, Origin]:
    """Name nodes after the modules that they come from, and drop what torch recorded about this machine.

    A node is called ``layer1.0.conv1/Conv``, or ``/Add`` outside of all modules (`path_of` reads it). The stack
    traces, file names and the export signature that torch writes do not belong into a shipped file; with
    ``source_lines`` each node keeps the one line of the user's code that it comes from.

    Returns:
        The origin of every node that has one, by its new name.
    """
    taken: dict[str, int] = {}
    origins: dict[str, Origin] = {}
    model.graph.metadata_props.clear()
    known = _graph_nodes(model)
    for node in model.graph:
        # what torch inlined has the text of its node only
        text = node.metadata_props.get(_TORCH_NODE, "")
        origin = node.meta.get("node") or known.get(text.partition(" ")[0].lstrip("%"))
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
        path = module_path(origin) if isinstance(origin, fx.Node) else ""
        name = f"{path}/{node.op_type}"
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        if isinstance(origin, fx.Node):
            line = source_line(origin)
            if source_lines and line:
                node.metadata_props[_LINE] = line
            origins[node.name] = Origin(origin.name, path, line)
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    return origins


def _graph_nodes(model: ir.Model) -> dict[str, fx.Node]:
    """Every node of the graph that was translated, by its name."""
    found = (node.meta.get("node") for node in model.graph)
    one = next((node for node in found if isinstance(node, fx.Node)), None)
    return {} if one is None else {node.name: node for node in one.graph.nodes}


def give_shapes(model: ir.Model, outputs: Sequence[Any]) -> None:
    """Give outputs without a shape that of the network: the exporter loses it where two ops become one."""
    import onnx_ir as ir
    from onnx_ir.tensor_adapters import from_torch_dtype

    for value, tensor in zip(model.graph.outputs, outputs, strict=True):
        if value.shape is None:
            sizes = [size if isinstance(size, int) else str(size) for size in tensor.shape]
            value.shape = ir.Shape(sizes)
            value.type = ir.TensorType(from_torch_dtype(tensor.dtype))


def name_axes(model: ir.Model, names: dict[str, str]) -> None:
    """Rename symbolic sizes (``s77``) in every shape, expressions of them included."""
    import onnx_ir as ir

    pattern = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names) or "(?!)")
    inputs, initializers = list(model.graph.inputs), list(model.graph.initializers.values())
    for value in (*inputs, *initializers, *(v for n in model.graph for v in n.outputs)):
        if value.shape is None or all(isinstance(size, int) for size in value.shape):
            continue
        value.shape = ir.Shape(
            [
                size if isinstance(size, int) else _size(str(size.value or ""), pattern, names)
                for size in value.shape
            ]
        )


def _size(text: str, pattern: re.Pattern[str], names: dict[str, str]) -> int | str | None:
    """A symbolic size with the symbols renamed; one that turned out to be a number as that."""
    if text.isdigit():
        return int(text)
    return pattern.sub(lambda match: names[match[0]], text) or None

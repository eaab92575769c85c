"""Files of fixed sizes: the network that they are compared with is captured, and judged, at those."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.utils import _pytree as pytree

from normfold.errors import UsageError
from normfold.ir import Graph
from normfold.ir.sizes import Sizes
from normfold.job import Source
from normfold.load.specs import suffix

_Shape = tuple[int | None, ...]
_PARAMETER = re.compile(r'<layer [^>]*type="Parameter"[^>]*>\s*<data shape="([^"]*)"')


def sizes_in(file: Path) -> list[_Shape]:
    """The shapes of a file's inputs, None for a size that is free; nothing where they are not known.

    Of an ONNX file, and of OpenVINO's format, in which a free size is ``?`` or has bounds.
    """
    if file.suffix == ".xml":
        shapes = _PARAMETER.findall(file.read_text(errors="replace"))
        return [
            tuple(int(size) if size.isdigit() else None for size in shape.split(",") if size)
            for shape in shapes
        ]
    import onnx

    model = onnx.load(file, load_external_data=False).graph
    held = {tensor.name for tensor in model.initializer}
    return [
        tuple(
            size.dim_value if size.WhichOneof("value") == "dim_value" else None
            for size in item.type.tensor_type.shape.dim
        )
        for item in model.input
        if item.name not in held
    ]


def at_its_batch(source: Source, file: Path) -> Source:
    """The source with a fixed batch, where that of a file is fixed."""
    first = [shape[0] for shape in sizes_in(file) if shape]
    asked = any(re.search(r":(\d+,)*0(\b|=)", text) for text in source.dynamic)
    fixed = bool(first) and None not in first
    static = fixed and not asked and not isinstance(source.model, Graph)
    return replace(source, batch="static") if static else source


def require_its_sizes(graph: Graph, file: Path) -> None:
    """Refuse a file with a size that is fixed at another one than the graph's, or free in the graph.

    Raises:
        UsageError: such a file, with the options that capture the network at its sizes.
    """
    sizes = Sizes(graph)
    leaves = pytree.tree_leaves((graph.args, graph.kwargs))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    shapes = sizes_in(file)
    if len(shapes) != len(places):
        return  # the runtime says what it takes
    wrong, texts, words = False, [], []
    for place, shape in zip(places, shapes, strict=True):
        own, example = sizes.shapes[place] or (), tuple(leaves[place].shape)
        if len(own) != len(shape):
            return
        wrong = wrong or any(b is not None and a != b for a, b in zip(own, shape, strict=True))
        wanted = [str(b or a) for a, b in zip(example, shape, strict=True)]
        texts.append(
            f"--input {sizes.names[place]}:{'x'.join(wanted)}{suffix(leaves[place].dtype)}"
        )
        said = "x".join("free" if b is None else str(b) for b in shape)
        words.append(f"`{sizes.names[place]}` {said} instead of {'x'.join(sizes.words(place))}")
    if wrong:
        raise UsageError(
            "the file has other sizes than the network was captured at",
            where=str(file),
            found=", ".join(words),
            hint=f"`--batch static {' '.join(texts)}`, with `--dynamic` for nothing that is fixed in the file "
            "(a captured graph: capture it at these sizes)",
        )

"""A copy of an ONNX file that also gives what leaves each module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from normfold.errors import UsageError
from normfold.ir.provenance import enclosing


def path_of(node: Any) -> str:
    """The module that a node of a file is from, which its name begins with ("" where it does not).

    ``layer1.0.conv1/Conv`` of files that normfold writes, ``/layer1/layer1.0/conv1/Conv`` of torch's old exporter.
    """
    parts = str(node.name).split("/")[:-1]
    path = ""
    for part in filter(None, parts):
        path = part if not path or part.startswith(f"{path}.") else f"{path}.{part}"
    return path


def with_layers(path: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Write the copy into a folder: its path, and the value that leaves each module, by the module's path.

    Raises:
        UsageError: the file does not say which modules its nodes are from.
    """
    import onnx

    model = onnx.load(path)
    found: dict[str, str] = {}
    for node in model.graph.node:
        for module in enclosing(path_of(node)):
            found[module] = node.output[0]  # that of the last node
    if not found:
        raise UsageError(
            "the file does not say which modules its nodes are from",
            where=str(path),
            hint="files that normfold writes do, and those of torch.onnx.export(dynamo=False)",
        )
    given = {output.name for output in model.graph.output}
    for name in dict.fromkeys(found.values()):
        if name not in given:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    copy = folder / "layers.onnx"
    onnx.save(model, copy, save_as_external_data=model.ByteSize() > 1 << 30)
    return copy, found

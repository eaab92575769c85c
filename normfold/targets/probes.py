"""A copy of an ONNX file that also gives what leaves each module."""

from __future__ import annotations

from pathlib import Path

from normfold.errors import UsageError
from normfold.ir.provenance import enclosing

PATH = "normfold.path"  # the entry of a node that names its module


def with_layers(path: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Write the copy into a folder: its path, and the value that leaves each module, by the module's path.

    Raises:
        UsageError: the file does not say which modules its nodes are from.
    """
    import onnx

    model = onnx.load(path)
    found: dict[str, str] = {}
    for node in model.graph.node:
        made = next((item.value for item in node.metadata_props if item.key == PATH), "")
        for module in enclosing(made):
            found[module] = node.output[0]  # that of the last node
    if not found:
        raise UsageError(
            "the file does not say which modules its nodes are from",
            where=str(path),
            hint="files that normfold writes do",
        )
    given = {output.name for output in model.graph.output}
    for name in dict.fromkeys(found.values()):
        if name not in given:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    copy = folder / "layers.onnx"
    onnx.save(model, copy, save_as_external_data=model.ByteSize() > 1 << 30)
    return copy, found

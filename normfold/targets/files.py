"""Writers of files that are one file, or one file and its weights: ONNX, OpenVINO IR, `.pt2`."""

from __future__ import annotations

from collections.abc import Iterator

from normfold.report.events import Exported, Noted
from normfold.targets.onnx import Exported as Written
from normfold.targets.onnx import export_onnx
from normfold.targets.order import Draft, Order, runs_of


def write_onnx(order: Order) -> Iterator[Draft]:
    """An ONNX file, with its weights beside it where they are large."""
    exported, target = export(order, ".onnx"), order.target
    path = exported.path
    yield Draft(
        path,
        "onnxruntime" if target.stands_in else target.runtime,
        lambda: runs_of(target, path),
        exported.files[1:],
        stands_for=target.runtime if target.stands_in else "",
    )


def write_openvino(order: Order) -> Iterator[Draft]:
    """OpenVINO's IR: an ``.xml`` file and its weights, converted from an ONNX file that goes again."""
    from normfold.targets.openvino import write_ir

    exported = export(order, ".ir.onnx")
    try:
        path, *weights = write_ir(exported.path, order.path(".xml"))
    finally:
        for file in exported.files:
            file.unlink()
    yield Draft(path, order.target.runtime, lambda: runs_of(order.target, path), tuple(weights))


def write_pt2(order: Order) -> Iterator[Draft]:
    """A program that ``torch.export.load`` reads."""
    from normfold.targets.pt2 import export_pt2

    path = export_pt2(order.graph, order.path(".pt2"))
    yield Draft(path, order.target.runtime, lambda: runs_of(order.target, path))


def export(order: Order, suffix: str) -> Written:
    """The ONNX file of an order, recorded."""
    exported = export_onnx(
        order.graph,
        order.path(suffix),
        opset=order.opset,
        target=order.target,
        metadata=order.metadata,
    )
    for note in exported.notes:
        order.emit(Noted(note))
    order.emit(Exported(dict(exported.census.ops), exported.opset))
    return exported

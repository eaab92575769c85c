"""ONNX files that others made: what they refer to must lie beside them."""

from __future__ import annotations

from pathlib import Path

from normfold.errors import LoadError, last_line


def require_own_data(path: Path) -> None:
    """Refuse an ONNX file whose external weights lie outside its folder: a runtime would read them.

    Raises:
        LoadError: such a file, or one that is no ONNX file.
    """
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:
        raise LoadError(
            "the file is not an ONNX file", where=str(path), found=last_line(error)
        ) from error
    folder = path.resolve().parent
    for tensor in _get_all_tensors(model):
        if not uses_external_data(tensor):
            continue
        place = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        if not (folder / place).resolve().is_relative_to(folder) or Path(place).is_absolute():
            raise LoadError(
                "the ONNX file refers to weights outside its folder",
                where=str(path),
                found=f"`{place}`",
                hint="keep the file and its `.data` in one folder",
            )

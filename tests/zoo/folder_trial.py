"""One transformers folder through the bare command: written by `save_pretrained`, converted without any input.

The files are compared in onnxruntime with the original in float64, on tokens of another length with padding.
"""

from __future__ import annotations

import copy
import importlib
import json
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import normfold
from normfold.errors import NormfoldError
from tests import torchvision_shim
from tests.zoo.folder_configs import Folder, all_folders
from tests.zoo.ln_models import shift_means
from tests.zoo.models import Member, perturb
from tests.zoo.transformers_models import enliven

PRESETS = ("folded", "rmsnorm")
ROWS, LENGTH, DECODER_LENGTH = 3, 9, 7
FLOOR, FACTOR = (
    1e-4,
    30.0,
)  # a file is wrong beyond both: absolute, and of the original's own error in float32


@dataclass
class FolderRow:
    """What became of one folder.

    ``outcomes`` by preset: equivalent, refused, not judged (onnxruntime has no kernel), false alarm, WRONG,
    TRACEBACK.
    """

    source: str
    family: str
    model: str
    ok: bool = False
    error: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)
    inputs: str = ""
    notes: list[str] = field(default_factory=list)
    sites: dict[str, str] = field(default_factory=dict)
    worst: float = 0.0
    total_seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def folder_members() -> list[Member]:
    """Every architecture, once."""
    return [Member("folder", folder.model, name) for name, folder in all_folders().items()]


def write(folder: Folder, path: Path) -> nn.Module:
    """The network with perturbed parameters, saved in a folder with what its preprocessor says."""
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    settings = copy.deepcopy(folder.settings)
    if isinstance(backbone := settings.get("backbone_config"), dict):
        settings["backbone_config"] = transformers.AutoConfig.for_model(**backbone)
    config = getattr(transformers, folder.config)(**settings)
    module: nn.Module = getattr(transformers, folder.model)(config).eval()
    enliven(module)
    shift_means(perturb(module))
    module.save_pretrained(path)  # type: ignore[operator]
    if folder.size is not None:
        size = {"do_resize": True, "size": folder.size}
        (path / "preprocessor_config.json").write_text(json.dumps(size))
    # what transformers itself reads: some tables are not saved, and made again
    return type(module).from_pretrained(path, dtype="auto").eval()  # type: ignore[attr-defined, no-any-return]


def folder_trial(member: Member) -> FolderRow:
    """Run one member; failures are written into the row."""
    torchvision_shim.install()
    row = FolderRow(member.source, member.family, member.name)
    start = time.perf_counter()
    folder = all_folders()[member.name]
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(scratch) / "model"
        try:
            module = write(folder, path)
        except Exception as error:
            row.error = f"not built: {type(error).__name__}: {error}"
            return row
        for preset in PRESETS:
            row.outcomes[preset] = _outcome(row, module, path, preset, Path(scratch) / preset)
    refused = folder.refused != ""
    right = {"refused"} if refused else {"equivalent", "not judged"}
    row.ok = set(row.outcomes.values()) <= right and folder.refused in row.error
    row.total_seconds = time.perf_counter() - start
    return row


def _outcome(row: FolderRow, module: nn.Module, path: Path, preset: str, out: Path) -> str:
    try:
        result = normfold.convert(str(path), to=preset, output=out)
        row.notes = list(result.report.notes)
        unjudged = [
            item.verdict.why
            for item in result.report.artefacts
            if item.verdict.state == "not judged"
        ]
        if unjudged:
            row.error = unjudged[0][:300]
            return "not judged"
        if result.ok:
            return "equivalent" if _right(row, module, result.artifacts) else "WRONG"
        row.error = " ".join(str(check) for check in result.report.checks if not check)[:600]
        plain = normfold.convert(str(path), to=preset, output=out, verify="off")
        return "false alarm" if _right(row, module, plain.artifacts) else "caught"
    except NormfoldError as error:
        row.error = " | ".join(filter(None, [error.what, error.found, error.where]))[:600]
        return "refused"
    except Exception as error:
        row.error = f"{type(error).__name__}: {error}"[:600]
        return "TRACEBACK"


def _right(row: FolderRow, module: nn.Module, artifacts: list[Path]) -> bool:
    """The file in onnxruntime against the original in float64."""
    import onnxruntime

    file = next(path for path in artifacts if path.suffix == ".onnx")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    row.inputs = " ".join(f"{i.name}{list(i.shape)}" for i in session.get_inputs())
    given = {item.name: _value(item, module) for item in session.get_inputs()}
    found = session.run(None, {name: value.numpy() for name, value in given.items()})
    reference = _leaves(copy.deepcopy(module).double(), {
        name: value.double() if value.is_floating_point() else value for name, value in given.items()
    })  # fmt: skip
    own = _leaves(module, given)
    if len(found) != len(reference):
        row.error = f"{len(found)} outputs, the original has {len(reference)}"
        return False
    for value, single, wanted in zip(found, own, reference, strict=True):
        scale = max(float(wanted.abs().max()), 1e-30)
        if value.shape != tuple(wanted.shape):
            row.error = f"an output of shape {value.shape}, the original's is {tuple(wanted.shape)}"
            return False
        error = float(np.abs(value - wanted.numpy()).max()) / scale
        floor = float((single.double() - wanted).abs().max()) / scale
        row.worst = max(row.worst, error)
        if not error <= max(FLOOR, FACTOR * floor):
            row.error = f"error {error:.1e}, the original in float32 has {floor:.1e}"
            return False
    return True


def _value(item: Any, module: nn.Module) -> Tensor:
    """Rows that differ; tokens above the special ones, and masks with padding at the end."""
    generator = torch.Generator().manual_seed(5)
    length = DECODER_LENGTH if "decoder" in item.name else LENGTH
    if item.type == "tensor(float)":
        length = 2000 if item.name == "input_values" else 64
    sizes = [int(size) if str(size).isdigit() else None for size in item.shape]
    shape = [length if size is None else size for size in sizes]
    shape[0] = ROWS if sizes[0] is None else sizes[0]
    if "mask" in item.name:
        mask = torch.ones(shape, dtype=torch.int64)
        for place in range(1, shape[0]):
            mask[place, ..., shape[-1] - 2 * place :] = 0
        return mask
    if item.name == "bbox":
        return torch.tensor([1, 2, 7, 9]).expand(*shape).clone()
    if item.type == "tensor(int64)":
        return torch.randint(3, 59, shape, generator=generator)
    return torch.randn(*shape, generator=generator)


def _leaves(module: nn.Module, given: dict[str, Tensor]) -> list[Tensor]:
    config: Any = module.config
    for part in (config, getattr(config, "text_config", None), getattr(config, "decoder", None)):
        if part is not None:
            part.use_cache = False
    if any(hasattr(part, "has_gate") for part in module.modules()):
        module.set_experts_implementation("eager")  # type: ignore[operator]  # the loop over experts
    usual = torch.get_default_dtype()
    torch.set_default_dtype(next(module.parameters()).dtype)  # of constants that forward makes
    try:
        with torch.no_grad():
            outputs = pytree.tree_leaves(module(**given))
    finally:
        torch.set_default_dtype(usual)
    return [leaf for leaf in outputs if isinstance(leaf, Tensor)]

"""`.pt2` programs. `torch.export.load` trusts its input in five ways; each is closed here.

In torch 2.13 it unpickles tensors with ``weights_only=False``, falls back to that for the sample
inputs, runs ``pickle.loads`` on opaque constants, loads native code from AOTInductor folders, and
hands the text of symbolic shapes to ``sympy.sympify``, which evaluates Python. Its operator names
are attribute paths from ``torch``. So, unless pickle is trusted:

* every pickled member must first load under ``weights_only=True``. That unpickler accepts a subset
  of what the full one accepts, with the same meaning, so the second reading does nothing new;
* torchbind and opaque objects, native code and the format of torch <= 2.7 are refused;
* shape expressions are parsed here and may only use symbols, numbers and arithmetic;
* targets must be registered operators; tree specs may not name classes to import;
* guards, which are Python text, are dropped.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from normfold.errors import LoadError
from normfold.load import opcodes
from normfold.load.opcodes import Global
from normfold.load.pickled import last_line
from normfold.load.program_text import check_document
from normfold.load.trust import Trust, refusal
from normfold.load.types import Found


def load_program(path: Path, trust: Trust) -> Found:
    """A `.pt2` file as a module, with the inputs that it was exported with.

    Raises:
        LoadError: damaged, refused, or not written by `torch.export.save`.
    """
    if not trust.pickle:
        try:
            _gate(path)
        except LoadError:
            raise
        except Exception as error:
            raise _damaged(path, error) from None
    program = _load(path)
    if not trust.pickle:
        program._guards_code = []
    try:
        module: nn.Module = program.module(check_guards=False)
    except Exception as error:
        raise _damaged(path, error) from None
    inputs = None
    if program.example_inputs is not None:
        args, kwargs = program.example_inputs
        inputs = (tuple(args), dict(kwargs), "the .pt2 program")
    return Found(
        module,
        f"the exported program `{path}`",
        inputs=inputs,
        exported=program,
        dynamic=_dynamic(program),
    )


def _load(path: Path) -> ExportedProgram:
    logs = logging.getLogger("torch.export")
    before, logs.disabled = logs.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(str(path))
    except Exception as error:
        raise _damaged(path, error) from None
    finally:
        logs.disabled = before


def _damaged(path: Path, error: BaseException) -> LoadError:
    return LoadError(
        "the file is not a program of `torch.export.save`, is damaged, or was written by another "
        "torch",
        where=str(path),
        found=last_line(error),
        hint=f"export it again with torch {torch.__version__}",
    )


def _gate(path: Path) -> None:
    from torch.export.pt2_archive import constants as c
    from torch.export.pt2_archive._package import PT2ArchiveReader

    where = str(path)
    try:
        reader = PT2ArchiveReader(str(path))
    except RuntimeError as error:
        raise _damaged(path, error) from None
    with reader:
        names = reader.get_file_names()
        if c.ARCHIVE_VERSION_PATH not in names:
            raise LoadError(
                "the program has the format of torch 2.7 or older, which is read with pickle",
                where=where,
                hint="export it again with a current torch; `--trust-pickle` lifts the check for "
                "a file that you made",
            )
        for name in names:
            if name.startswith(c.AOTINDUCTOR_DIR):
                _refuse(where, name, "native code of AOTInductor")
            elif name.startswith(c.MODELS_DIR):
                check_document(json.loads(reader.read_bytes(name)), where)
            elif name.startswith(c.SAMPLE_INPUTS_DIR):
                _check_pickle(reader.read_bytes(name), where, name)
            elif name.startswith((c.WEIGHTS_DIR, c.CONSTANTS_DIR)):
                if name.endswith(".pt"):
                    _check_pickle(reader.read_bytes(name), where, name)
                elif name.endswith("_config.json"):
                    _check_payloads(reader, name, where)


def _check_payloads(reader: Any, config: str, where: str) -> None:
    from torch.export.pt2_archive import constants as c

    folder = c.WEIGHTS_DIR if config.startswith(c.WEIGHTS_DIR) else c.CONSTANTS_DIR
    for entry in json.loads(reader.read_bytes(config))["config"].values():
        name = str(entry["path_name"])
        plain = folder == c.WEIGHTS_DIR or name.startswith(c.TENSOR_CONSTANT_FILENAME_PREFIX)
        if not plain:
            _refuse(where, name, "a pickled object, not a tensor")
        if entry.get("use_pickle"):
            _check_pickle(reader.read_bytes(os.path.join(folder, name)), where, name)


def _check_pickle(data: bytes, where: str, member: str) -> None:
    if not data:
        return
    if data.startswith(b"PK"):
        record = torch._C.PyTorchFileReader(io.BytesIO(data)).get_record("data.pkl")
        found = opcodes.scan(record, f"{where}, member {member}")
    else:
        found = opcodes.Scan()
        # a record that breaks off still names what it would have imported before
        with contextlib.suppress(ValueError, IndexError):
            opcodes._names_only(data, found)
    refused = {
        entry: f"in member `{member}`" for entry in found.names if not opcodes.torch_safe(entry)
    }
    if refused:
        raise refusal(where, refused)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise LoadError(
            "a pickled member of the program was refused or is damaged",
            where=f"{where}, member {member}",
            found=last_line(error),
            hint="`--trust-pickle` lifts the check for a file that you made",
        ) from None


def _refuse(where: str, member: str, reason: str) -> None:
    raise refusal(where, {Global("<archive>", member): reason})


def _dynamic(program: ExportedProgram) -> tuple[dict[int, str], ...]:
    users = set(program.graph_signature.user_inputs)
    dims: list[dict[int, str]] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users:
            value = node.meta.get("val")
            shape = value.shape if isinstance(value, torch.Tensor) else ()
            dims.append({i: str(d) for i, d in enumerate(shape) if isinstance(d, torch.SymInt)})
    return tuple(dims)

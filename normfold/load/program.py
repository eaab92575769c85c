"""`.pt2` programs, as modules with the inputs that they were exported with.

`torch.export.load` trusts its input in five ways. In torch 2.13 it unpickles tensors with
``weights_only=False``, falls back to that for the sample inputs, runs ``pickle.loads`` on opaque constants, loads
native code from AOTInductor folders, and hands the text of symbolic shapes to ``sympy.sympify``, which evaluates
Python. Its operator names are attribute paths from ``torch``. So, unless pickle is trusted, it is not used:

* members are read by `normfold.load.program_archive`, pickled ones under the rules of checkpoints;
* torchbind and opaque objects, native code and the format of torch <= 2.7 are refused;
* the text is checked by `normfold.load.program_text`: shape expressions may only use symbols, numbers and
  arithmetic, targets must be pure operators, names must be names, tree specs may not name classes to import;
* guards, which are Python text, are dropped.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from normfold.errors import LoadError, NormfoldError, last_line
from normfold.ir.names import with_plain_names
from normfold.load.program_archive import read_program
from normfold.load.trust import Trust
from normfold.load.types import Found


def load_program(path: Path, trust: Trust) -> Found:
    """A `.pt2` file as a module, with the inputs that it was exported with.

    Raises:
        LoadError: damaged, refused, or not written by `torch.export.save`.
    """
    program = _load(path, trust)
    if not trust.pickle:
        program._guards_code = []
    try:
        program, _ = with_plain_names(program)  # before anything of it becomes Python text
        module: nn.Module = program.module(check_guards=False)
    except NormfoldError:
        raise
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


def _load(path: Path, trust: Trust) -> ExportedProgram:
    logs = logging.getLogger("torch.export")
    before, logs.disabled = logs.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(str(path)) if trust.pickle else read_program(path)
    except LoadError:
        raise
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


def _dynamic(program: ExportedProgram) -> tuple[dict[int, str], ...]:
    users = set(program.graph_signature.user_inputs)
    dims: list[dict[int, str]] = []
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in users:
            value = node.meta.get("val")
            shape = value.shape if isinstance(value, torch.Tensor) else ()
            dims.append({i: str(d) for i, d in enumerate(shape) if isinstance(d, torch.SymInt)})
    return tuple(dims)

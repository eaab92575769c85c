"""One network in integers, in every scheme, through the facade to ONNX files that are judged on their bytes.

The networks are random, ranges come from two images and two steps of synthesis: a refusal may be right. A file is
wrong where its runtime does what the simulation in torch does not, and nothing at all may end in a traceback.
"""

from __future__ import annotations

import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import normfold
from normfold.errors import NormfoldError
from normfold.job.source import Task
from normfold.report.verdict import AgreementCheck
from tests import torchvision_shim
from tests.zoo.folder_configs import all_folders
from tests.zoo.folder_trial import write
from tests.zoo.ln_models import is_layer_norm, shift_means
from tests.zoo.models import Member, build, members
from tests.zoo.size_trial import size_members
from tests.zoo.trial import captured

SCHEMES = ("int8", "int8-dynamic", "int4-weights")
PAST: Task = "text-generation-with-past"
SIDES = (96, 128, 224)  # pixels, the first that a network takes
_DECODERS = "gpt2 opt phi llama qwen3 gemma3 mixtral gpt-neox bloom"
_OPTIONS: dict[str, Any] = {"images": 4, "synthesis_steps": 2}  # of networks of a real size


@dataclass
class IntegerRow:
    """What became of one network.

    ``outcomes`` by scheme: written, refused (its simulation fails too), REFUSED (the file alone does), NOT JUDGED
    (no verdict on the bytes of a file, or no file), declared (an error that says what to do), CRASH.

    Attributes:
        said: by scheme, what the verdict or the error says.
        decibels: by scheme, the worst output of the file and of its simulation.
        traces: by scheme, where a crash was.
    """

    source: str
    family: str
    model: str
    ok: bool = False
    error: str = ""
    note: str = ""
    outcomes: dict[str, str] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)
    decibels: dict[str, tuple[float, float]] = field(default_factory=dict)
    traces: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sites: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def integer_members(scheme: str = "") -> list[Member]:
    """Folders with masks and lengths of any size, decoders with their cache, then every network of images once;
    for one scheme alone under a source of its own."""
    found = [Member("integer-folder", folder.model, name) for name, folder in all_folders().items()]
    found += [Member("integer-past", all_folders()[name].model, name) for name in _DECODERS.split()]
    timm = [Member("integer", member.family, member.name) for member in size_members()]
    names = {member.name for member in timm}
    others = [
        member for member in members() if member.source != "timm" and member.name not in names
    ]
    vision = {True: "integer-vision", False: "integer"}
    found += [
        *timm,
        *(Member(vision[item.source == "torchvision"], item.family, item.name) for item in others),
    ]
    return [replace(item, source=item.source + (scheme and f"+{scheme}")) for item in found]


def integer_trial(member: Member) -> IntegerRow:
    """Run one member in every scheme, or that of its source; failures are written into the row."""
    torchvision_shim.install()
    row = IntegerRow(member.source, member.family, member.name)
    source, _, scheme = member.source.partition("+")
    member, schemes = replace(member, source=source), (scheme,) if scheme else SCHEMES
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            convert = _made(member, row, Path(scratch))
        except Exception as error:  # the network itself: the other parts are about that
            row.error = f"not built: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            row.ok = bool(_refused(member))
            return row
        for scheme in schemes:
            start = time.perf_counter()
            row.outcomes[scheme] = _outcome(row, scheme, convert, Path(scratch) / scheme)
            row.seconds[scheme] = round(time.perf_counter() - start, 1)
    row.ok = not any(map(str.isupper, row.outcomes.values()))
    return row


def _refused(member: Member) -> str:
    folder = all_folders().get(member.name) if "folder" in member.source else None
    return folder.refused if folder is not None else ""


def _made(member: Member, row: IntegerRow, scratch: Path) -> Callable[..., normfold.Result]:
    """What converts the member, given a scheme and a folder for the files."""
    if member.source in ("integer-folder", "integer-past"):
        path = scratch / "model"
        write(all_folders()[member.name], path)
        task: Task | None = PAST if member.source == "integer-past" else None
        return partial(normfold.convert, str(path), task=task, export="onnx")
    source = "torchvision" if member.source == "integer-vision" else "timm"
    module, x = build(
        Member(source, member.family, member.name),
        prepare=lambda net: shift_means(net) if any(map(is_layer_norm, net.modules())) else None,
        sides=SIDES,
    )
    graph, _, row.note = captured(module, (x,))
    return partial(normfold.convert, graph, export="onnx", **_OPTIONS)


def _outcome(
    row: IntegerRow, scheme: str, convert: Callable[..., normfold.Result], output: Path
) -> str:
    options = dict(convert.keywords) if isinstance(convert, partial) else {}
    if scheme != "int8":  # nothing is synthesised where no range is needed
        options = {name: value for name, value in options.items() if name not in _OPTIONS}
    assert isinstance(convert, partial)
    try:
        result = convert.func(*convert.args, **options, quantize=scheme, output=output)
    except NormfoldError as error:
        row.said[scheme] = " | ".join(
            filter(None, [type(error).__name__, error.what, error.found, error.where])
        )[:600]
        if error.exit_code != 70:
            return "declared"
        row.traces[scheme] = traceback.format_exc()[-4000:]
        return "CRASH"
    except Exception as error:
        row.said[scheme] = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        row.traces[scheme] = traceback.format_exc()[-4000:]
        return "CRASH"
    return _judged(row, scheme, result)


def _judged(row: IntegerRow, scheme: str, result: normfold.Result) -> str:
    checks = [item for item in result.report.all_checks() if isinstance(item, AgreementCheck)]
    levels = [pair for item in checks for pair in zip(item.snr_db, item.simulated_db, strict=True)]
    if levels:
        row.decibels[scheme] = min(levels)
    states = {item.verdict.state for item in result.report.artefacts}
    if result.ok and states == {"pass"}:
        row.said[scheme] = "; ".join(item.verdict.why for item in result.report.artefacts)[:300]
        return "written"
    failures = result.report.failures()
    if result.ok:
        whys = [item.verdict.why for item in result.report.artefacts]
        row.said[scheme] = "; ".join([*whys, *result.report.missing])[:300]
        return "NOT JUDGED"
    row.said[scheme] = "; ".join(failures)[:600]
    return "refused" if checks and all(map(_as_simulated, checks)) else "REFUSED"


def _as_simulated(check: AgreementCheck) -> bool:
    """True if the file does what its simulation does, within the 3 dB that a budget allows, or that fails too.

    In random networks noise may grow: 60 dB at the input of halonet_h1 are 4 dB at its output.
    """
    pairs = zip(check.snr_db, check.simulated_db, strict=True)
    budget = check.budget
    return check.samples > 0 and all(
        mine >= promised - budget.below_simulation_db or promised < budget.snr_db
        for mine, promised in pairs
    )

"""The parts of the zoo, and how one network is run, also in a process of its own."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import onnxruntime
import torch
from torch import nn

from tests.zoo import (
    bn_table,
    certificate_table,
    folder_table,
    integer_table,
    ln_table,
    size_table,
    trt_table,
)
from tests.zoo.certificate_trial import CertificateRow, certificate_members, certificate_trial
from tests.zoo.folder_trial import FolderRow, folder_members, folder_trial
from tests.zoo.integer_trial import SCHEMES, IntegerRow, integer_members, integer_trial
from tests.zoo.ln_models import is_layer_norm, ln_members
from tests.zoo.ln_trial import NormRow, ln_trial
from tests.zoo.models import Member, is_batch_norm, members
from tests.zoo.size_trial import SizeRow, size_members, size_trial
from tests.zoo.trial import Row, trial
from tests.zoo.trt_trial import EngineRow, engine_members, engine_trial


@dataclass(frozen=True)
class Part:
    """One part of the zoo: what is in it, how a member is run, how rows are shown."""

    members: Callable[[], list[Member]]
    trial: Callable[[Member, bool], Any]
    row: type[Any]
    header: str
    line: Callable[[Any], str]
    summary: Callable[[list[Any], bool], bool]
    counts: Callable[[nn.Module], bool] | None = (
        None  # for `scan`; None where other parts list the members
    )


def _engines(precision: str) -> Part:
    return Part(
        partial(engine_members, precision),
        lambda member, _: engine_trial(member, precision),
        EngineRow,
        trt_table.HEADER,
        trt_table.line,
        trt_table.summary,
    )


def _integers(scheme: str = "") -> Part:
    return Part(
        partial(integer_members, scheme),
        lambda member, _: integer_trial(member),
        IntegerRow,
        integer_table.HEADER,
        integer_table.line,
        integer_table.summary,
    )


PARTS = {
    "bn": Part(
        members, trial, Row, bn_table.HEADER, bn_table.line, bn_table.summary, is_batch_norm
    ),
    "ln": Part(
        ln_members,
        lambda member, _: ln_trial(member),
        NormRow,
        ln_table.HEADER,
        ln_table.line,
        ln_table.summary,
        is_layer_norm,
    ),
    "folders": Part(
        folder_members,
        lambda member, _: folder_trial(member),
        FolderRow,
        folder_table.HEADER,
        folder_table.line,
        folder_table.summary,
    ),
    "certificates": Part(
        certificate_members,
        lambda member, _: certificate_trial(member),
        CertificateRow,
        certificate_table.HEADER,
        certificate_table.line,
        certificate_table.summary,
    ),
    "sizes": Part(
        size_members,
        lambda member, _: size_trial(member),
        SizeRow,
        size_table.HEADER,
        size_table.line,
        size_table.summary,
    ),
    "integers": _integers(),
    "trt": _engines("fp32"),
    "trt-fp16": _engines("fp16"),
    "trt-bf16": _engines("bf16"),
    **{f"integers-{scheme}": _integers(scheme) for scheme in SCHEMES},
}
USUAL = ("bn", "ln", "trt", "folders")


_SessionOptions = onnxruntime.SessionOptions


def _one_thread() -> Any:
    options = _SessionOptions()
    options.intra_op_num_threads = 1
    return options


def be_quiet() -> None:
    """One thread, of onnxruntime too, whose timings would else spin against those of another job; no warnings."""
    torch.set_num_threads(1)
    onnxruntime.SessionOptions = _one_thread
    warnings.simplefilter("ignore")  # what models and torch.export say about each other


def run_one(work: tuple[str, Member, bool]) -> Any:
    """The row of one network: (part, member, whether BatchNorm gains are positive)."""
    name, member, positive = work
    gc.collect()
    return PARTS[name].trial(member, positive)

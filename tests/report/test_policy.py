"""Requirements of a policy: what each name counts, and what is said where one is not met."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from normfold.errors import UsageError
from normfold.report import PassReport, Report, SiteStatus, Timing
from normfold.report.objects import Applied
from normfold.report.policy import Requirement
from normfold.report.quantization import Placement, QuantizationReport
from normfold.report.verdict import Artefact, Verdict

PASSES = ["fold-affine", "bake"]
SITES = [
    SiteStatus("encoder.0.norm", "layer-norm", "left", "NF001"),
    SiteStatus("encoder.1.norm", "layer-norm", "converted"),
    SiteStatus("stem.bn", "batch-norm", "gone"),
    SiteStatus("head.norm", "group-norm", "kept"),
    SiteStatus("0.norm", "instance-norm", "left", "NF101"),
    SiteStatus("12", "instance-norm", "gone"),
]
FILE = Artefact(
    "out/net.onnx", "onnx", "ort-x86", 5_200_000, "00", Verdict("pass", "onnxruntime", "equivalent")
)
TIMED = Timing("a", "b", "ort", "x", 20, 1, 1.0, 1.02, 1.02, (1.0, 1.04), (0.98, 1.06))
MADE = QuantizationReport("int8", "ort-x86", integer={"Conv": 9}, floats={"Conv": 1})
REPORT = Report(
    passes=[PassReport("fold-affine{x=1}", "exact", applied=[Applied("stem.bn", "batch-norm")])],
    sites=SITES,
    census={"Conv": 3, "LayerNormalization": 2},
    opset=20,
    artefacts=[FILE],
    timing=TIMED,
    quantization=[MADE],
)


def said(text: str, report: Report = REPORT) -> str:
    return Requirement.parse(text, PASSES).check(report)


@pytest.mark.parametrize(
    "text",
    [
        "fold-affine==1",
        "bake == 0",
        "batch-norm==0",
        "layer-norm<=1",
        "group-norm>0",
        "encoder.*==1",
        "encoder.1.*==0",
        "*==3",
        "0.*==1",
        "12==0",
        "LayerNormalization==2",
        "BatchNormalization==0",
        "size<=5.2",
        "size>5.1",
        "opset>=20",
        "integers>=0.9",
        "time<=1.0",  # the interval reaches down to 0.98
        "time>=1.05",
    ],
)
def test_met(text: str) -> None:
    assert said(text) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fold-affine>=30", "fold-affine>=30, found 1"),
        ("layer-norm==0", "layer-norm==0, found 1: encoder.0.norm"),
        ("encoder.*==0", "encoder.*==0, found 1: encoder.0.norm"),
        ("decoder.*==0", "decoder.*==0, no such site"),
        ("encoder.2.norm==0", "no such site (did you mean `encoder.1.norm`?)"),
        ("LayerNormalization==0", "LayerNormalization==0, found 2"),
        ("LayerNormalisation==0", "no such op in the file (did you mean `LayerNormalization`?)"),
        ("BatchNormalisation==0", "there is no such op (did you mean `BatchNormalization`?)"),
        ("size<5", "size<5, found 5.2"),
        ("opset==18", "opset==18, found 20"),
        ("integers>0.95", "integers>0.95, found 0.9"),
        ("time<=0.9", "time<=0.9, found 0.98 to 1.06"),
    ],
)
def test_not_met(text: str, words: str) -> None:
    assert words in said(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("size<=9", "no file was written"),
        ("opset==20", "no ONNX file was written"),
        ("integers>=0.5", "nothing was counted in integers"),
        ("time<=1", "nothing was timed on this machine"),
    ],
)
def test_what_there_is_no_number_for_is_not_met(text: str, words: str) -> None:
    assert said(text, Report()) == f"{text}, {words}"


def test_the_time_of_integers_is_that_of_their_placement() -> None:
    placed = Placement("ort-x86", 0.5, (0.45, 0.55), False, ())
    report = replace(REPORT, timing=None, quantization=[replace(MADE, placement=placed)])
    assert said("time<=0.5", report) == ""
    assert said("time<0.4", report) == "time<0.4, found 0.45 to 0.55"


@pytest.mark.parametrize("text", ["fold-afine>=1", "batchnorm==0", "speed<=1", "sise<=3"])
def test_an_unknown_name_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Requirement.parse(text, PASSES)
    assert "kinds: batch-norm" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["", "fold-affine", "size<=a", "size<=1e3", ".1>=2", "a b==1"])
def test_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        Requirement.parse(text, PASSES)


def test_only_some_need_a_file_or_a_clock() -> None:
    def of(text: str) -> Any:
        found = Requirement.parse(text, PASSES)
        return found.of_file, found.times

    assert of("fold-affine>=1") == of("batch-norm==0") == of("a.*==0") == (False, False)
    assert of("Conv==1") == of("size<=1") == of("opset==1") == of("integers>=0.1") == (True, False)
    assert of("time<=1") == (True, True)

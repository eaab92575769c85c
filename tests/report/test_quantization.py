"""What the report of a quantisation concludes, and how it is printed."""

from __future__ import annotations

import pytest

from normfold.report.quantization import Evidence, MixedReport, QuantizationReport
from normfold.report.quantization_text import print_quantization
from normfold.steps.quantize import confidence


def test_a_limit_on_the_loss() -> None:
    made = QuantizationReport("int8", "ort-x86", drift={"agreement": 0.97}, max_drop=1.0)
    assert made.lost == pytest.approx(3.0)
    assert not made.ok
    made.drift = {"agreement": 0.97, "drop": 0.5}  # with labels
    assert made.ok
    made.drift = {}  # no class scores: the limit cannot be judged
    assert not made.ok


def test_confidence_is_a_half_where_doubt_begins() -> None:
    sound = confidence(Evidence("", 0.01, 0.7, covered=0.95, distance=0.2), {"kl": 0.002})
    assert sound.score == pytest.approx(0.95)
    doubtful = confidence(
        Evidence("", Evidence.SUSPICIOUS, 20.0, covered=1.0, distance=0.2), {"kl": 0.0}
    )
    assert doubtful.score == pytest.approx(0.5)
    lying = confidence(Evidence("", 2.4, 20.0, covered=1.0, distance=0.7), {"kl": 0.004})
    assert lying.score == 0.0
    assert confidence(Evidence(""), {}).score == 0.0  # nothing known is no confidence


def test_the_frontier_is_drawn() -> None:
    frontier = tuple((100.0 + n, 1.0 / (n + 1)) for n in range(30))
    mixed = MixedReport("bytes", 120.0, 119.0, 0.05, 0.04, {"a": 4, "b": 8, "c": 8}, frontier, ())
    made = QuantizationReport("int8", "ort-x86", Evidence("distilled"), mixed=mixed)
    lines: list[str] = []
    print_quantization(made, lines.append, verbose=True)
    text = "\n".join(lines)
    assert "1 of 4 bits, 2 of 8 bits: 119 bytes of 120 allowed" in text
    bars = [line.count("#") for line in lines if "#" in line]
    assert bars[0] == 40
    assert bars == sorted(bars, reverse=True)
    assert "a: 4 bits" in text

"""What the steps of one job share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from normfold.ir import Graph
from normfold.job import Job
from normfold.judge import Verifier
from normfold.progress import Listener, Progress
from normfold.ranges.calibration import Calibrated
from normfold.report.events import Recorder
from normfold.report.quantization import MixedReport


@dataclass
class Work:
    """A job at work.

    Attributes:
        job: what was asked for.
        record: takes what happens.
        say: takes progress.
        captured: the network as it was captured.
        verifier: judges against the original, or the trained student; None with ``verify`` off.
        samples: the user's own tensors as a case of the verdict.
        normalisation: ``mean`` and ``std`` of inputs in [0, 1], where the network says so.
        disposable: nobody but this job holds the network: its old weights may go while the new ones are made.
        half_budget: relative error that files are judged by; None where they are judged by ulps.
        calibrated: ranges of the activations, once the job quantises.
        mixed: the format of every layer, once chosen.
        tried, rounding: what ways to put the network on grids err on held-out inputs, and the passes that the best
            of them puts weights on grids with; None for those of the scheme.
        kept: the original, where it is written instead of a result that is not faster.
        source_statistics: buffers that a recalibration replaced, by name.
        rank: of this process under torchrun; only 0 writes.
    """

    job: Job
    record: Recorder
    say: Listener
    captured: Graph
    verifier: Verifier | None
    samples: list[tuple[Any, ...]] | None
    normalisation: dict[str, Any] | None = None
    disposable: bool = False
    half_budget: float | None = None
    calibrated: Calibrated | None = None
    mixed: MixedReport | None = None
    tried: dict[str, float] = field(default_factory=dict)
    rounding: str | None = None
    kept: Graph | None = None
    source_statistics: dict[str, Tensor] = field(default_factory=dict)
    rank: int = 0

    def tell(self, stage: str, text: str = "") -> None:
        """Say what is being done."""
        self.say(Progress(stage, text=text))

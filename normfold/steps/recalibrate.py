"""New statistics of BatchNorms, as a step of a job: the verdict compares with the network that has them."""

from __future__ import annotations

from normfold.ir import Graph
from normfold.job import Recalibrate
from normfold.judge import Verifier
from normfold.ranges.calibration import given_inputs
from normfold.steps.work import Work
from normfold.train.recalibrate import recalibrated, source_statistics
from normfold.train.student import Eval


def recalibrate(step: Recalibrate, graph: Graph, work: Work) -> Graph:
    """The network with statistics of the samples; what they were is written beside its files."""
    source = work.job.source
    work.tell("taking statistics anew")
    inputs = given_inputs(graph, source, work.normalisation)
    result, report = recalibrated(graph, inputs.batches, step)
    work.record.emit(report)
    found = source_statistics(graph, result)
    whole = f"{source.part}." if source.part else ""  # of the network's own state dict
    work.source_statistics = {f"{whole}{name}": x for name, x in found.items()}
    result.original = Eval(result)
    work.captured = result
    if work.verifier is not None:
        work.verifier = Verifier(result, source.seed, work.samples, work.job.policy.tries)
    return result

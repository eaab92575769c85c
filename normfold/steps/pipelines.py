"""The passes that put a network on the grids of a target, as text: by scheme, by layer, by what is known."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from normfold.ir import Graph, facts
from normfold.ir.expressions import is_static
from normfold.ir.provenance import layer_name
from normfold.job import Quantize
from normfold.ops.integers import StaysFloat
from normfold.ops.table import row_of
from normfold.ranges.mixed import pipeline as pipeline_of_bits
from normfold.steps.work import Work

_BLOCKS = "quantize-weights{bits=4 block=32"
_WEIGHTS = {
    "int8-weights": "quantize-weights{block=32},quantize-weights",
    "int4-weights": f"{_BLOCKS} clip=true}},quantize-weights",
    "int8-dynamic": "quantize-dynamic",
    "fp8": "quantize-weights{{grid=e4m3 target={target}}}",
}
_MEASURED = {"int4-weights": f"{_BLOCKS} rounding=feedback}},quantize-weights"}
_TABLES = dict.fromkeys(("int8-weights", "int4-weights"), "quantize-tables{block=128}")


@dataclass(frozen=True)
class About:
    """What decides, of a network, how it gets on grids.

    Attributes:
        tables: it has tables of embeddings.
        attends: it has attention, whose layers read values around zero.
        measured: it has samples, which tell what its layers read.
    """

    tables: bool = False
    attends: bool = False
    measured: bool = False

    @classmethod
    def of(cls, graph: Graph, measured: bool = False) -> About:
        """Read off a graph."""
        rows = [row_of(node) for node in graph.nodes]
        tables, attends = (
            any(kind) for kind in ((r.lookup for r in rows), (r.attention for r in rows))
        )
        return cls(tables, attends, measured)


def pipeline(step: Quantize, target: str, about: About, bits: dict[str, int] | None = None) -> str:
    """The passes that put a calibrated network on the grids of a target; ``bits`` are those of every layer."""
    scheme = step.scheme or "int8"
    if bits is not None:
        parts = [pipeline_of_bits(bits, step.simulate)]
    elif step.weights is not None:
        parts = [step.weights]
    elif scheme == "int8":
        # errors that cancel suit what reads positive values, as behind ReLUs
        options = [
            *([] if step.vnni else ["bits=7"]),
            *([] if about.attends else ["rounding=squant"]),
        ]
        parts = ["quantize-weights" + (f"{{{' '.join(options)}}}" if options else "")]
    else:
        text = (_MEASURED if about.measured else {}).get(scheme, _WEIGHTS[scheme])
        parts = [text.format(target=target) if scheme == "fp8" else text]
    given = step.weights is not None or (bits is not None and step.simulate)
    if about.tables and not given and scheme not in ("fp8", "lossless"):
        parts.insert(0, _TABLES.get(scheme, "quantize-tables"))
    if step.ranged:
        more = f" bits={step.activation_bits}" if step.activation_bits < 8 else ""
        more = " grid=e4m3" if scheme == "fp8" else more
        parts.append(f"quantize-activations{{target={target}{more}}}")
    if step.corrects:
        few = scheme == "int8" and step.activation_bits < 8  # then rounded activations err most
        parts.append("correct-bias" if few else "correct-bias{source=analytic}")
    return ",".join(part for part in [*parts, "bake"] if part)


def with_rounding(step: Quantize, work: Work) -> Quantize:
    """The step with the rounding of weights that more effort has chosen, if any."""
    return step if work.rounding is None else replace(step, weights=work.rounding)


def with_floats(graph: Graph, layers: Iterable[str]) -> Graph:
    """A graph of which these layers stay in floats; the same one for none."""
    chosen = set(layers)
    if not chosen:
        return graph
    graph = graph.copy()
    for node in graph.nodes:
        if node.op == "call_function" and not is_static(node) and layer_name(node) in chosen:
            facts.put(node, StaysFloat())
    return graph

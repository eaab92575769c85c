"""docs/norm-methods.md: what becomes of every method, as a test run has it."""

from __future__ import annotations

from pathlib import Path

from tests.methods.papers import PAPERS
from tests.methods.table import Found

PAGE = Path(__file__).parents[2] / "docs" / "norm-methods.md"
HEAD = """# Methods of normalisation

What the preset `folded` makes of each method that a trained network may carry: a small network with perturbed
parameters is captured, rewritten and judged. *Folded* and *stay* count sites of the report; a norm that is
written by hand has one for each of its constants. A norm that takes statistics of its input at run time stays,
and what it multiplies and adds may fold. The certificate is an [identity test without a tolerance](verdict.md),
the error that of the un-baked graph in float64. `python -m tests.methods` writes this page.

| method | folded | stay | code | certificate | float64 error |
|---|---|---|---|---|---|
"""
TAIL = """
- A number for all channels (SkipInit, Fixup, a temperature) folds as one per channel does. In front of a function
  that is not linear (DyT, Derf, Fixup) it can only go into the weights before it, and stays where a residual
  stream is read elsewhere too.
- Weight, Spectral and orthogonal parametrisations, standardised and conditioned weights, DoRA and the weight of
  a cosine head are parameter expressions: they become plain weights when they are baked, whatever is folded.
- Training-only branches are not in a capture. Batch statistics at inference are the method itself and stay
  ([NF101](codes.md)). So do norms of none of the known forms that measure each input (lengths in hyperbolic space,
  regions, the deviations of EvoNorm, cosines: NF134), and what a gain from another input would have to let
  through (AdaGN, adaLN: NF135); the gain of a conditional BatchNorm is behind it, so the BatchNorm folds.
- `freeze-statistics` makes affines of norms with one mean and deviation for each channel of an input, by averages
  over `--data`: InstanceNorm, BatchNorm without running statistics, and UnMix-TNS once it has adapted.
- An implicit layer is what its loop is: so many steps as the capture has (NF105 between them); a loop that runs
  until it converges cannot be captured, and the error says at which line.
- Binary weights are stored in 2 bits where a product reads them (`keep-grids`), in 4 where a convolution does,
  which no runtime has kernels for (NF203); weights out of a learned table stay floats (NF136).
- LayerNorms that barely normalise (an eps of 1e12) fold by `fold-near-affine`, means that are taken off
  (TaperNorm) by `fold-mean` ([passes](passes.md)).
- An adapter beside a layer (LoRA) is two paths; `merge-linear` makes one of them, and of RepVGG's branches.
"""
TAIL += """
## Papers

What becomes of a network that was trained as one of these says. A pass or a method of the table above does it, and
tests show it (`tests/methods/papers.py`).

| paper | its norm or weights |
|---|---|
"""
TAIL += "".join(f"| {paper} | {what} |\n" for paper, what, _ in PAPERS)


def row(name: str, found: Found) -> str:
    """A line of the table."""
    codes = " ".join(found.codes)
    return f"| {name} | {found.gone} | {found.left} | {codes} | {found.certificate} | {found.error:.0e} |"


def write(rows: list[str]) -> None:
    PAGE.write_text(HEAD + "\n".join(rows) + "\n" + TAIL)


def written() -> dict[str, list[str]]:
    """The rows of the page, without the errors, by method."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    return {cells[0]: cells[1:-1] for cells in rows if len(cells) == 6 and cells[1].isdigit()}

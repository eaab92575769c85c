"""What the comparisons of norms share: the norms, a log of runs that an interruption does not lose, and plots."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

from torch import nn

from normfold.nn import Progressive
from normfold.train import replace_norms

Row = dict[str, Any]

# name -> kind of norm, its options when it starts from nothing, share of the steps that PRepBN takes
KINDS: dict[str, tuple[str | None, dict[str, Any], float]] = {
    "LN": (None, {}, 0.0),
    "BN": ("bn", {}, 0.0),
    "RepBN": ("repbn", {"eta": 1.0}, 0.0),
    "PRepBN 0.2": ("prepbn", {"eta": 1.0}, 0.2),
    "PRepBN 0.5": ("prepbn", {"eta": 1.0}, 0.5),
    "PRepBN 0.8": ("prepbn", {"eta": 1.0}, 0.8),
    "UN": ("un", {}, 0.0),
}
_WARM = 0.1  # of the steps: UN smooths after them; the paper's 4000 are for longer runs


def give(
    module: nn.Module, name: str, steps: int, start: Iterable[Any] | None = None
) -> Callable[[], None]:
    """Replace the LayerNorms of `module` by the norms called `name`; what to call after each of `steps` steps.

    With batches to `start` from, every norm begins as the affine nearest to the LayerNorm that it replaces.
    """
    kind, options, share = KINDS[name]
    if kind is None:
        return _nothing
    if start is not None:
        options = {}
    if kind == "un":
        options = {**options, "warmup": round(_WARM * steps)}
    replace_norms(module, kind, start=start, **options)
    return Progressive(module, max(1, round(share * steps))).step if share else _nothing


def logged(log: Path, keys: Iterable[Row], make: Callable[[Row], Row]) -> None:
    """Make the runs of these keys that the log, a JSON object per line, has not yet."""
    log.parent.mkdir(parents=True, exist_ok=True)
    for key in keys:
        if any(all(row.get(name) == value for name, value in key.items()) for row in read(log)):
            continue
        print(", ".join(f"{name} {value}" for name, value in key.items()), flush=True)
        row = {**key, **make(key)}
        with log.open("a") as file:
            file.write(json.dumps(row) + "\n")


def read(log: Path) -> list[Row]:
    """The rows of a log; none if there is no log."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def table(rows: Sequence[Row], columns: dict[str, str], against: str) -> str:
    """Mean and deviation over the seeds by norm, as Markdown.

    Args:
        rows: with "norm", and a number under each key of `columns`.
        columns: key to heading.
        against: the column of which the difference to LN is given too.
    """
    heads = ["norm", "seeds", *columns.values(), "against LN"]
    lines = [" | ".join(heads), " | ".join("---" for _ in heads)]
    for name in KINDS:
        mine = [row for row in rows if row["norm"] == name]
        if not mine:
            continue
        cells = [_spread([row[key] for row in mine]) for key in columns]
        pairs = [
            row[against] - other[against]
            for row in mine
            for other in rows
            if other["norm"] == "LN" and other["seed"] == row["seed"]
        ]
        gap = f"{mean(pairs):+.3g}" if pairs else ""
        lines.append(" | ".join([name, str(len(mine)), *cells, gap]))
    return "\n".join(f"| {line} |" for line in lines)


def parser(description: str, out: str) -> argparse.ArgumentParser:
    """The options that every comparison has."""
    found = argparse.ArgumentParser(description=description)
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--norms", nargs="+", choices=KINDS, default=list(KINDS))
    found.add_argument("--threads", type=int, default=1)
    found.add_argument("--out", type=Path, default=Path(out))
    return found


def pyplot() -> Any:
    """matplotlib's, drawing into files; None, and a line that says so, where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        print("no plot: matplotlib is not installed")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot as found

    return found


def plot(rows: Sequence[Row], panels: dict[str, str], x: str, spacing: float, path: Path) -> None:
    """Draw histories, one line per run, where matplotlib is installed.

    Args:
        rows: with "norm" and "history", a list of numbers for each panel.
        panels: label of the vertical axis to its scale, "linear" or "log".
        x: label of the horizontal axis.
        spacing: between two points of a history.
        path: of the image.
    """
    draw = pyplot()
    if draw is None:
        return
    figure, axes = draw.subplots(1, len(panels), figsize=(5.5 * len(panels), 4), squeeze=False)
    names = [name for name in KINDS if any(row["norm"] == name for row in rows)]
    for place, (axis, (label, scale)) in enumerate(zip(axes[0], panels.items(), strict=True)):
        for row in rows:
            y = [point[place] for point in row["history"]]
            steps = [spacing * (at + 1) for at in range(len(y))]
            axis.plot(steps, y, f"C{names.index(row['norm'])}", lw=1)
        axis.set(xlabel=x, ylabel=label, yscale=scale)
    for color, name in enumerate(names):
        axes[0][-1].plot([], [], f"C{color}", label=name)
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _nothing() -> None:
    return None


def _spread(values: Sequence[float]) -> str:
    deviation = f" ± {pstdev(values):.2g}" if len(values) > 1 else ""
    return f"{mean(values):.4g}{deviation}"

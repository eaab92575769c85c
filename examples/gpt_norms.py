"""A character GPT with each kind of norm, from scratch and from the shipped checkpoint, in a loop of one's own.

python -m examples.gpt_norms [--start scratch pretrained] [--steps 1500] [--out out/gpt]

What a user with a training loop does: `replace_norms`, a schedule that is called after every step, at the end
`refresh_statistics` and `finalize`. Every run is one line of ``runs.jsonl`` and not made again if it is there.
"""

from __future__ import annotations

import time

import torch

import normfold
from examples import text
from examples.comparison import KINDS, Row, give, logged, parser, plot, read, table
from examples.gpt import gpt_stdlib, load, torch_predictor
from examples.train_gpt import RATE, REPORT, train

_TUNING = 0.1  # of the rate, for a network that is trained already
_WINDOWS = 1600  # for statistics and starts
COLUMNS = {
    "perplexity": "perplexity",
    "refreshed": "statistics anew",
    "worst": "largest gradient",
    "seconds": "CPU seconds",
}


def run(key: Row) -> Row:
    """Train one GPT; perplexity per character on the validation files, before and after."""
    torch.manual_seed(key["seed"])
    ids = torch.from_numpy(text.train_set())
    windows = torch.from_numpy(text.windows(ids.numpy(), _WINDOWS)[0]).split(50)
    pretrained = key["start"] == "pretrained"
    gpt = load() if pretrained else gpt_stdlib()
    after = give(gpt, key["norm"], key["steps"], windows if pretrained else None)
    before = text.perplexity(torch_predictor(gpt)) if pretrained else None
    start = time.process_time()
    history = train(
        gpt, ids, key["steps"], key["seed"], RATE * (_TUNING if pretrained else 1), after
    )
    seconds = time.process_time() - start
    reached = text.perplexity(torch_predictor(gpt))
    if KINDS[key["norm"]][0] is not None:
        normfold.refresh_statistics(gpt, windows)
        normfold.finalize(gpt)
    return {
        "before": before,
        "perplexity": reached,
        "refreshed": text.perplexity(torch_predictor(gpt)),
        "worst": max((norm for _, norm in history), default=float("inf")),
        "seconds": seconds,
        "history": history,
    }


def main() -> None:
    options = parser("Norms compared in a GPT.", "out/gpt")
    options.add_argument("--start", nargs="+", default=["scratch", "pretrained"])
    options.add_argument("--steps", type=int, default=1500)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    log = arguments.out / "runs.jsonl"
    for start in arguments.start:
        same = {"start": start, "steps": arguments.steps}
        keys = [
            {"norm": name, "seed": s, **same} for s in arguments.seeds for name in arguments.norms
        ]
        logged(log, keys, run)
        rows = [row for row in read(log) if same.items() <= row.items()]
        columns = {"before": "before training", **COLUMNS} if start == "pretrained" else COLUMNS
        print(f"\n{start}, {arguments.steps} steps\n\n{table(rows, columns, 'refreshed')}\n")
        panels = {"training loss": "log", f"largest gradient of {REPORT} steps": "log"}
        plot(rows, panels, "step", REPORT, arguments.out / f"{start}.png")


if __name__ == "__main__":
    main()

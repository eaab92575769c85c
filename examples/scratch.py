"""A ViT trained from scratch with each kind of norm: accuracy and stability.

python -m examples.scratch [--epochs 20] [--seeds 0 1 2] [--out out/scratch]     (from the root of the clone)

The shipped ViT's task and recipe on a quarter of its tokens, so that a run to the end of its schedule takes a
quarter of an hour. Every run is one line of ``runs.jsonl``; runs that are there are not made again, so that an
interrupted comparison goes on. A table is printed, and curves are drawn where matplotlib is installed.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from examples import shapes
from examples.accuracy import top1, torch_predictor
from examples.comparison import KINDS, Row, give, logged, parser, plot, read, table
from examples.nets import vit_coarse_shapes
from examples.train_vit import RECIPE
from examples.training import train
from normfold.train import refresh_statistics

_REFRESH = 4000  # images
COLUMNS = {"accuracy": "top-1", "refreshed": "statistics anew", "seconds": "CPU seconds"}


def run(key: Row) -> Row:
    """Train one network; top-1 in percent on the test images, before and after its statistics were taken anew."""
    torch.manual_seed(key["seed"])
    # float32: bfloat16 is twice as slow where the processor only emulates it, and would differ there
    recipe = replace(RECIPE, epochs=key["epochs"], seed=key["seed"], half=False)
    module = vit_coarse_shapes()
    after = give(module, key["norm"], recipe.epochs * (key["images"] // recipe.batch))
    start = time.process_time()
    history = train(module, recipe, key["images"], after)
    accuracy = 100 * top1(torch_predictor(module))
    if KINDS[key["norm"]][0] is not None:
        pixels = torch.from_numpy(shapes.train_set(min(key["images"], _REFRESH))[0])
        refresh_statistics(module, pixels.split(100))
    return {
        "accuracy": accuracy,
        "refreshed": 100 * top1(torch_predictor(module)),
        "finite": all(bool(torch.isfinite(p).all()) for p in module.parameters()),
        "seconds": time.process_time() - start,
        "history": history,
    }


def main() -> None:
    options = parser("Norms compared from scratch.", "out/scratch")
    options.set_defaults(seeds=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--images", type=int, default=shapes.TRAIN_IMAGES)
    arguments = options.parse_args()
    torch.set_num_threads(arguments.threads)
    log = arguments.out / "runs.jsonl"
    same = {"epochs": arguments.epochs, "images": arguments.images}
    keys = [{"norm": name, "seed": s, **same} for s in arguments.seeds for name in arguments.norms]
    logged(log, keys, run)
    rows = [row for row in read(log) if row["epochs"] == arguments.epochs]
    print(table(rows, COLUMNS, "refreshed"))
    panels = {"training loss": "log", "top-1 on 500 test images, %": "linear"}
    plot(rows, panels, "epoch", 1, arguments.out / "curves.png")


if __name__ == "__main__":
    main()

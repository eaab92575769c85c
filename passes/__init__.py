"""The passes, by name: one file each, imported when the registry is asked for one.

Other packages add theirs by the entry-point group `normfold.passes`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# name -> module:class; read without importing them by the command line, too
BUILT_IN = {
    "canonicalize": "normfold.passes.canonicalize:Canonicalize",
    "fold-input": "normfold.passes.fold_input:FoldInput",
    "fold-affine": "normfold.passes.fold_affine:FoldAffine",
    "freeze-statistics": "normfold.passes.freeze_statistics:FreezeStatistics",
    "fold-near-affine": "normfold.passes.fold_near_affine:FoldNearAffine",
    "fold-mean": "normfold.passes.fold_mean:FoldMean",
    "merge-linear": "normfold.passes.merge_linear:MergeLinear",
    "prune-dead-channels": "normfold.passes.prune_dead_channels:PruneDeadChannels",
    "prune-small-channels": "normfold.passes.prune_small_channels:PruneSmallChannels",
    "elide-bias": "normfold.passes.elide_bias:ElideBias",
    "center-stream": "normfold.passes.center_stream:CenterStream",
    "compress-stream": "normfold.passes.compress_stream:CompressStream",
    "rotate-stream": "normfold.passes.rotate_stream:RotateStream",
    "replace-layernorm": "normfold.passes.replace_layernorm:ReplaceLayernorm",
    "equalize": "normfold.passes.equalize:Equalize",
    "correct-bias": "normfold.passes.correct_bias:CorrectBias",
    "migrate-scale": "normfold.passes.migrate_scale:MigrateScale",
    "measure-ranges": "normfold.passes.measure_ranges:MeasureRanges",
    "quantize-tables": "normfold.passes.quantize_tables:QuantizeTables",
    "quantize-weights": "normfold.passes.quantize_weights:QuantizeWeights",
    "quantize-activations": "normfold.passes.quantize_activations:QuantizeActivations",
    "quantize-dynamic": "normfold.passes.quantize_dynamic:QuantizeDynamic",
    "restore": "normfold.passes.restore:Restore",
    "bake": "normfold.passes.bake:Bake",
    "keep-grids": "normfold.passes.keep_grids:KeepGrids",
}


def plugins() -> dict[str, EntryPoint]:
    """Passes that installed packages offer, by name; one that takes a built-in name is never used."""
    from importlib.metadata import entry_points  # a tenth of the time of `normfold explain`

    return {point.name: point for point in entry_points(group="normfold.passes")}


def names() -> list[str]:
    """Every pass name, built-in ones first."""
    return [*BUILT_IN, *(name for name in plugins() if name not in BUILT_IN)]

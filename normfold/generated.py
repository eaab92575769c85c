"""`normfold.convert`: every option of a job as a keyword. Written by `python -m tests.signature`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from normfold.conversion import Result, execute
from normfold.job import EngineOptions, Job, Quantize, Train, all_options
from normfold.job.option import same
from normfold.progress import Listener, silent

if TYPE_CHECKING:
    from normfold.rewrite import Pass

_DEFAULTS = {item.keyword: item.default for item in all_options()}


def convert(
    model: Any,
    to: str = "folded",
    *,
    factory: str | None = None,
    part: str | None = None,
    key: str | None = None,
    task: Literal["text-generation-with-past"] | None = None,
    inputs: Sequence[Any] = (),
    inputs_from: str | None = None,
    uint8_input: bool = False,
    mean: str | None = None,
    std: str | None = None,
    batch: Literal["dynamic", "static"] = "dynamic",
    dynamic: str | Sequence[str] = (),
    data: Any = None,
    limit: int | None = None,
    seed: int = 0,
    trust_modules: str | Sequence[str] = (),
    trust_pickle: bool = False,
    passes: str | Sequence[Pass] | None = None,
    untie: bool = False,
    equalize: bool = False,
    rotate: bool = False,
    recalibrate: Literal["adabn", "alpha", "prior"] | None = None,
    source_weight: float = 0.9,
    source_samples: int = 16,
    recalibrate_part: Literal["both", "mean", "variance"] = "both",
    norms: str | Sequence[str] = (),
    budget: float | None = None,
    steps: int | None = None,
    batch_size: int = 64,
    rate: float = 0.001,
    clip: float = 1.0,
    temperature: float = 1.0,
    features: float = 1.0,
    values: bool = False,
    transition: float | None = None,
    stages: int = 1,
    hold_out: float = 0.1,
    evaluations: int = 20,
    patience: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: Literal["fp32", "fp16", "bf16"] | None = None,
    keep_fp32: str | Sequence[str] = (),
    quantize: Literal["int8", "int8-dynamic", "int8-weights", "int4-weights", "lossless", "fp8"]
    | None = None,
    evidence: Literal["auto", "synthetic", "patches", "zeroq", "analytic", "noise"] = "auto",
    effort: int = 1,
    images: int = 0,
    synthesis_steps: int | None = None,
    flip: bool = True,
    crop: int = 0,
    blur: float = 0.0,
    pixels: tuple[float, float] | None = None,
    save_synthetic: str | os.PathLike[str] | None = None,
    device: str | None = None,
    target_size: float | None = None,
    target_latency: float | None = None,
    simulate: bool = False,
    activation_bits: int = 8,
    migrate: bool = False,
    correct_bias: bool | None = None,
    weights: str | None = None,
    vnni: bool = True,
    export: Literal["onnx", "pt2", "trt", "openvino", "module"]
    | Sequence[Literal["onnx", "pt2", "trt", "openvino", "module"]]
    | None = ("onnx",),
    target: str | Sequence[str] = (),
    opset: int | None = None,
    name: str | None = None,
    input_names: str | Sequence[str] = (),
    output_names: str | Sequence[str] = (),
    output: str | os.PathLike[str] = "out",
    verify: Literal["final", "each", "strict", "off"] = "final",
    tries: str | Sequence[str] = (),
    require: str | Sequence[str] = (),
    require_judged: bool = False,
    max_error: float | None = None,
    max_drop: float | None = None,
    metric: str | None = None,
    half_budget: float | None = None,
    keep_if_faster: bool | None = None,
    gpu_arch: str | Sequence[str] = (),
    workspace: int | None = None,
    timing_cache: str | os.PathLike[str] | None = None,
    version_compatible: bool = False,
    hardware_compatible: Literal["none", "ampere+", "same-cc"] = "none",
    training: Train | None = None,
    quantization: Quantize | None = None,
    engine: EngineOptions | None = None,
    progress: Listener | None = None,
) -> Result:
    """Load, capture, rewrite, verify, export, and verify again what was exported.

    Args:
        model: any MODEL of the command line, a module, or a captured graph.
        to: exact: folded, rmsnorm, crmsnorm, baked. Trained on --data, then folded: affine, bn, repbn, prepbn,
            un.
        factory: builds the network that a state dict belongs to.
        part: convert this submodule alone, as `backbone`.
        key: entry of a checkpoint to take, as `state_dict_ema` or `state.ema.params`.
        task: write a decoder of transformers with its cache of keys and values as inputs and outputs, for
            generation token by token.
        inputs: example input, as `x:1x3x224x224`, with `:f16` or `:i64` behind where it is not f32 and `[0..1]`
            for the range of its values; `batch.image:1x3x64x64` goes into a dictionary; repeatable.
        inputs_from: example inputs: .npz, .npy, .pt or .safetensors, by name or in order; or a function that
            returns them.
        uint8_input: the files take images as bytes, 0 to 255: scaling, mean and deviation go into the first
            layer.
        mean: mean of images from 0 to 1, one number or one for each channel; with --uint8-input.
        std: their deviation, likewise.
        batch: capture with a free or a fixed batch.
        dynamic: another axis that stays free, as `input_ids:1`; for an engine with the sizes that it is built
            for, as `x:0=1..8..64`; repeatable.
        data: samples to train or to measure on, and example inputs where none are given: .npz, .npy, .pt,
            .safetensors, a folder of images, or a loader pkg.mod:fn; labels optional.
        limit: at most so many samples.
        seed: seed of everything random.
        trust_modules: allow a pickle to name classes of this package; repeatable.
        trust_pickle: unpickle without an allow-list: runs whatever the file says.
        passes: pipeline instead of a preset: `a,b{option=value}`.
        untie: an embedding table that is also the head may be copied.
        equalize: equalise channels across layers (exact).
        rotate: rotate the residual streams that RMSNorms read (exact; --to rmsnorm).
        recalibrate: take statistics of BatchNorms from --data: alone (adabn), or blended with the network's
            own, by a share (alpha) or as if those had been of so many samples more (prior).
        source_weight: share of the network's own statistics: new = share * own + (1 - share) * samples; with
            `alpha`.
        source_samples: n samples that the network's own statistics count for: their share is N / (N + n); with
            `prior`.
        recalibrate_part: what of the statistics is new.
        norms: LayerNorms to replace, by module path; repeatable.
        budget: replace only the cheapest norms, as many as (95 % sure) lose at most so much before any
            training.
        steps: optimizer steps; 0: none.
        batch_size: samples per step, over all ranks.
        rate: peak learning rate.
        clip: largest norm of the gradient.
        temperature: of the softmax that is compared.
        features: weight of the residual streams beside the outputs.
        values: outputs are not class scores: compare their values.
        transition: share of the steps over which the norms go from LayerNorm to what replaces it.
        stages: groups in which the norms take turns, front to back; 0: one at a time.
        hold_out: share of the samples that is only judged on.
        evaluations: evaluations on the held-out samples.
        patience: stop after so many evaluations without a better student.
        checkpoint: file to resume from after an interruption; written at every evaluation.
        precision: type of weights and activations; inputs and outputs keep theirs.
        keep_fp32: module paths, ops or nodes that stay in float32 (`blocks.3.*`, `softmax`); repeatable.
        quantize: write integers: weights and activations, inputs at run time, or weights alone; lossless:
            weights that are on a grid already, exactly; fp8: 8-bit floats.
        evidence: without --data: inputs synthesised from the norms' statistics, joined with the statistics
            themselves (auto), or one of them alone; noise is a control.
        effort: 0: 25 steps of synthesis; 1: more until the statistics fit; 2: twice the images above 128
            pixels, until they fit as those of natural images do, and equalized channels where held-out inputs
            say so; 3: and learned rounding.
        images: inputs to synthesise; 0: 64, or 16 above 128 pixels.
        synthesis_steps: steps of their synthesis.
        flip: mirror them every other step.
        crop: shift them by up to so many pixels.
        blur: deviation of their Gaussian blur.
        pixels: smallest and largest value of valid inputs.
        save_synthetic: file (.npz) for the synthesised inputs.
        device: where ranges are found.
        target_size: bytes that the weights may take, or their share of what 8 bits take (up to 1).
        target_latency: milliseconds that the example inputs may take in onnxruntime on this machine.
        simulate: 2, 4 or 8 bits for every layer, as in the ZeroQ paper; stored in 8.
        activation_bits: below 8: simulated, and nothing is written.
        migrate: move scales from behind norms into weights, by what was measured (exact).
        correct_bias: take the mean error of rounded weights out of biases (int8: on; --no-correct-bias).
        weights: what puts weights on grids, as `quantize-weights{bits=6 rounding=squant}`.
        vnni: --no-vnni: x86 without VNNI, weights in 7 bits.
        export: format to write; repeatable.
        target: where the files run: ort-x86, ort-arm, openvino, trt, trt-rtx, pt2, module; repeatable.
        opset: ONNX opset.
        name: name of the files, without suffix.
        input_names: names of the inputs in ONNX files, in order, as `image,mask`.
        output_names: names of the outputs in ONNX files, in order, as `boxes,scores`.
        output: folder for the files and the report.
        verify: judge at the end, after every pass, at the end at full sizes and beside the original's own
            export (strict), or never.
        tries: judge at this size, too, of what is dynamic: `x:1x3x128x96`; repeatable.
        require: fail (exit 1) otherwise: sites that a pass rewrote (`fold-affine>=20`), norms of a kind or
            sites that are left (`batch-norm==0`, `encoder.*==0`), ops of the file (`LayerNormalization==0`),
            `size` in MB, `opset`, the share in `integers`, `time` relative to the original's; repeatable.
        require_judged: exit 3 where a file cannot be run on this machine.
        max_error: relative error that approximate passes may cost: |y - r| / |r| of every output.
        max_drop: what training or quantising may lose: points of top-1, of agreement where there are no labels,
            or of --metric; exit 1 beyond.
        metric: fn(outputs, labels) on samples that are not trained on: reported, and what --max-drop judges;
            more is better.
        half_budget: relative error that half precision may cost, beside --max-error.
        keep_if_faster: write the original's own export instead, unless the result is faster (onnxruntime, CPU).
            int8 without it: what is slower in integers stays in floats; --no-keep-if-faster: nothing is timed.
        gpu_arch: GPUs that a TensorRT-RTX engine is for, as `sm89,sm120`.
        workspace: memory that tactics may use.
        timing_cache: keep TensorRT's timings there, by version and GPU.
        version_compatible: the engine runs in newer TensorRT versions too.
        hardware_compatible: the engine runs on other GPUs too.
        training: options of training as one object.
        quantization: options of quantising as one object.
        engine: options of engines as one object.
        progress: called with a `Progress` before each step.

    Returns:
        The result; ``result.ok`` is False where a verdict or the policy failed.

    Raises:
        NormfoldError: as `normfold.conversion.execute`.
    """
    whole = [group for group in (training, quantization, engine) if group is not None]
    given = {
        name: value
        for name, value in locals().items()
        if name in _DEFAULTS and not same(value, _DEFAULTS[name])
    }
    return execute(Job.of({"model": model, **given}, whole=whole), progress or silent)

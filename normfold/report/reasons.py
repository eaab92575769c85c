"""Why a site was declined, or is worth knowing: stable codes, one line, and what the user can do.

Several passes use one code: its texts are true for all of them, and what only one pass knows is the detail of a
`Decline`. Numbers are never given to anything else.
"""

from __future__ import annotations

from enum import Enum


class Code(Enum):
    """A stable code. ``value`` is (code, slug, what it means, what helps)."""

    _value_: tuple[str, str, str, str]

    @property
    def code(self) -> str:
        return self._value_[0]

    @property
    def slug(self) -> str:
        return self._value_[1]

    @property
    def summary(self) -> str:
        return self._value_[2]

    @property
    def remedy(self) -> str:
        return self._value_[3]


class Reason(Code):
    """Why a pass leaves a site that it has matched as it is: NF101 and up."""

    STATISTICS_NOT_FROZEN = (
        "NF101",
        "statistics-not-frozen",
        "the norm computes its statistics from the batch, also in eval mode (track_running_stats=False, or no "
        "running statistics), so it is not a constant affine",
        "train with running statistics, or replace the norm before deployment",
    )
    PARAMETER_SHARED = (
        "NF102",
        "parameter-shared",
        "the weight that would absorb the change is used elsewhere too, and is not to be copied",
        "allow the copy: `--untie` (fold-affine{untie=true}, center-stream{untie=true}) for an embedding table, "
        "fold-affine{copy-shared=true} for other weights; compress-stream and rotate-stream copy none",
    )
    OUTPUT_REUSED = (
        "NF103",
        "output-reused",
        "a tensor that the change would reach has another reader, which must see it unchanged",
        "nothing to do if the sharing is intended (dense or residual connections)",
    )
    OUTPUT_EXPOSED = (
        "NF104",
        "output-exposed",
        "the tensor that would change is an output of the network",
        "return a later tensor, or accept what is left there (of an affine one multiply-add); "
        "correct-bias{heads=true} corrects outputs too",
    )
    NONLINEAR = (
        "NF105",
        "nonlinear-neighbour",
        "a non-linear op stands between the site and the weights that would absorb the change",
        "mathematically stuck: a scale or shift per channel does not commute with this op",
    )
    SIGN = (
        "NF106",
        "negative-scale",
        "only positive scales pass through ReLU-like ops and max-pooling, and some channel has a scale <= 0",
        "nothing to do: the weights decide",
    )
    ZERO_PADDING = (
        "NF107",
        "zero-padding",
        "a shift does not commute with zero padding here, and a bias map or a pad value is impossible or dearer",
        "capture with fixed spatial sizes (a bias map needs them), or use fold-affine{zero-padding=pad}; a norm "
        "that stays keeps its bias at no cost",
    )
    AXIS_MISMATCH = (
        "NF108",
        "axis-mismatch",
        "the channels of the site lie along another axis than the one that the neighbouring weights write or "
        "read, or cannot be followed there",
        "correct as it is: matching channels by their number alone (C == L) would be wrong",
    )
    NETWORK_INPUT = (
        "NF109",
        "network-input",
        "an input of the network would have to change, and no reader behind it can absorb the change instead",
        "an affine may go into the input normalisation of your data pipeline",
    )
    UNKNOWN_OP = (
        "NF110",
        "unknown-op",
        "an op without a rule stands in the way: it is not in the op table, or it adds the same number to every "
        "channel",
        "add the op to the table in normfold/ops/table.py if it moves elements or is linear; write an added "
        "number as a vector with one entry per channel",
    )
    ZERO_SCALE = (
        "NF111",
        "zero-scale",
        "the change would divide by a scale that is zero or tiny in some channel",
        "prune the dead channels first; of equalize{limit=...}, a smaller limit",
    )
    GATED = (
        "NF112",
        "gated",
        "a product with another activation passes only the scale, and the shift has no other way",
        "nothing to do: the shift is data dependent after the gate",
    )
    ATTENTION_ROWS = (
        "NF113",
        "attention-rows",
        "a shift passes through an attention product only where the attention rows sum to one",
        "nothing to do for masked or linear attention",
    )
    PARTIAL = (
        "NF114",
        "partly-folded",
        "the scale was folded; the shift stays as one addition, because a non-linear op stops it, or because "
        "that is cheaper than a bias map or a pad",
        "at zero padding fold-affine{zero-padding=map} removes it, at the price of a larger addition",
    )
    NO_BIAS = (
        "NF115",
        "no-bias-slot",
        "the op that would absorb the shift has no bias along this axis, or its new bias would cost more than the "
        "addition that it replaces",
        "nothing to do",
    )
    NOT_PER_CHANNEL = (
        "NF116",
        "not-per-channel",
        "the norm, or the constant, is not one fixed number per channel: it runs over several axes, its width "
        "differs at run time, its gain or bias is computed at run time, or it changes the dtype",
        "nothing to do",
    )
    DIRECTION = (
        "NF117",
        "direction",
        "the option `direction` forbids the only way this affine could go",
        "use fold-affine{direction=both} (the default)",
    )
    RESIDUAL_AFTER_NORM = (
        "NF118",
        "residual-after-norm",
        "the residual is taken after a norm (post-LN): its gain and bias put a mean back into the stream, and "
        "removing it would cost as many ops as it saves",
        "mathematically stuck; a norm without gain and bias (elementwise_affine=False) would pass",
    )
    SEES_MEAN = (
        "NF119",
        "reader-sees-mean",
        "an op other than a LayerNorm over the features reads the stream, and would see that the mean is gone",
        "nothing to do unless that reader can move behind the norm",
    )
    WRITER_FIXED = (
        "NF120",
        "writer-cannot-absorb",
        "the op that writes the tensor has no weights over the features that could be centred (an activation, a "
        "depthwise convolution, a network input), and an explicit op would cost as much as it saves",
        "center-stream{op-cost=...} below 1 lets one op pay for one norm",
    )
    SPANS_TOKENS = (
        "NF121",
        "mean-spans-tokens",
        "the norm takes one mean over the features of several tokens, positions or joined tensors (patch merging, "
        "GroupNorm over an image, dense concatenation), which no linear op over features can remove",
        "mathematically stuck",
    )
    NO_GAIN = (
        "NF122",
        "no-gain",
        "the conversion would add as many ops or weights as it removes (explicit ops on the stream, additions of "
        "left-over biases, a bottleneck in one matrix)",
        "center-stream{op-cost=... bias-cost=...} sets what they are worth on your runtime; compress-stream and "
        "rotate-stream want fewer explicit ops than norms",
    )
    STREAM_EXPOSED = (
        "NF123",
        "stream-exposed",
        "the network returns the stream itself, which must keep its mean",
        "return the normalised tensor, or leave this output out of what is captured",
    )
    CONSTANT_NORM = (
        "NF124",
        "constant-norm",
        "a LayerNorm over one feature returns its bias, whatever it reads",
        "look at the model: this norm does nothing",
    )
    GROUPED_FEATURES = (
        "NF125",
        "grouped-features",
        "the norm's features are not all of one axis (heads of a fused projection, several axes at once), or its "
        "eps is not written down, so that its stream cannot be stored in another basis; it stays an RMSNorm",
        "nothing to do for grouped features; write down the eps of an RMSNorm",
    )
    NOT_ASKED_FOR = (
        "NF126",
        "not-asked-for",
        "an option of the pass names the sites to take, and this is not one of them",
        "widen the patterns, or leave the option out (replace-layernorm{norms=...}, quantize-weights{layers=...})",
    )
    NO_SAMPLES = (
        "NF127",
        "no-samples",
        "the pass needs numbers that are measured on samples, and there are none for this site",
        "give `--data`; in a pipeline of your own, set `graph.samples = [(args, kwargs), ...]`, and run "
        "`measure-ranges` in front of the passes that quantise",
    )
    NO_INTERVAL = (
        "NF128",
        "no-interval",
        "nothing is known of the values that this tensor takes: no norm's statistics reach it, and nothing was "
        "measured",
        "give `--data`; in a pipeline of your own, set `graph.samples` and run `measure-ranges` in front; or "
        "quantise weights only",
    )
    NOT_A_MATRIX = (
        "NF129",
        "not-a-matrix",
        "scales per block of inputs are for matrices on the right of a product, and this weight belongs to a "
        "convolution or stands on the left",
        "leave the option `block` out: there is one scale per output channel then",
    )
    ON_A_GRID = (
        "NF130",
        "on-a-grid",
        "the weight is on a grid already, by an earlier pass or in the file",
        "leave the second pass out, or quantise the float network anew",
    )
    NO_KNOWN_GRID = (
        "NF131",
        "no-known-grid",
        "the values of the weight are not on a grid of up to 8 bits (integers times one scale for each output "
        "channel or block of inputs), or storing that saves too little",
        "`--quantize int4-weights` or `int8-weights` rounds it; where a gain was folded into its columns, "
        "`fold-affine{direction=backward}` leaves it on its grid",
    )
    NO_KERNEL = (
        "NF132",
        "no-kernel",
        "the target has no kernel in so few bits for a layer of this kind or size, or none that pays",
        "nothing to do: it stays in floats; quantize-weights{target=...} says whose kernels are asked for",
    )
    NOT_NEAR_AFFINE = (
        "NF133",
        "not-near-affine",
        "the norm divides by a number that varies from input to input, by more than an affine may err",
        "fold-near-affine{max-deviation=...} allows more; `--to affine` trains such a norm away",
    )
    OWN_STATISTICS = (
        "NF134",
        "own-statistics",
        "a norm that is none of the known ones takes a length or a deviation of each input (L2 normalisation, "
        "region and response norms, points of hyperbolic space), so it is no affine",
        "nothing to do: it stays as the ops that it is; what it multiplies and adds behind that may fold",
    )
    CONDITIONED = (
        "NF135",
        "conditioned",
        "the gain behind the norm is computed from another input (conditional norms, AdaGN, adaLN): a shift in "
        "front of it differs with that input",
        "nothing to do for an input that varies; one that is always the same can be fixed before the capture",
    )
    CODEBOOK = (
        "NF136",
        "codebook",
        "the weight takes few values that are not evenly spaced: those of a table (a learned codebook, palettes), "
        "and no runtime has products that look weights up",
        "`--quantize int8-weights` or `int4-weights` rounds them to even steps; without it they stay floats",
    )
    NOT_PARALLEL = (
        "NF137",
        "not-parallel",
        "the two linear ops read other positions of their input, or write other features, so that no kernel of "
        "the larger size is worth both",
        "nothing to do: one op for both would be larger than the two",
    )


class Caution(Code):
    """What is right but worth knowing of a site that was rewritten: NF201 and up."""

    LARGE_GAIN = (
        "NF201",
        "large-gain",
        "a channel is scaled by a large factor, because its running variance is near zero: half precision may "
        "overflow",
        "convert with `--precision`, whose verdict computes every op in half precision; fold-affine{max-gain=...} "
        "sets what is large",
    )
    UNALIGNED_WIDTH = (
        "NF202",
        "unaligned-width",
        "the compressed stream has a width that is not a multiple of 8: its rows are not 16-byte aligned, and "
        "tensor cores want multiples of 8 (int8: 16)",
        "`--to rmsnorm` keeps the width; `normfold bench` measures both",
    )
    FEW_BITS = (
        "NF203",
        "binary-convolution",
        "the weights of a convolution take two or three values, and no runtime has kernels for that: they are "
        "stored in 4 bits and computed as floats",
        "nothing to do: the file is small; matrices run with weights of 2 bits",
    )


def codes() -> list[Code]:
    """Every code that a report may hold, in numeric order."""
    return [*Reason, *Caution]


def by_code(text: str) -> Code | None:
    """The reason or caution with this code or slug (case-insensitive), or None."""
    for found in codes():
        if text.lower() in (found.code.lower(), found.slug):
            return found
    return None

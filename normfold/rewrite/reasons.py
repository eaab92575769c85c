"""Why a site was declined: stable codes, one line, and what the user can do."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """A stable decline code. ``value`` is (code, slug, what it means, what helps)."""

    STATISTICS_NOT_FROZEN = (
        "NF101",
        "statistics-not-frozen",
        "the norm computes its statistics from the batch, also in eval mode (track_running_stats=False, or no "
        "running statistics), so it is no constant affine",
        "train with running statistics, or replace the norm before deployment",
    )
    PARAMETER_SHARED = (
        "NF102",
        "parameter-shared",
        "the weight that would absorb the change is used elsewhere too, and is not to be copied: it is a tied "
        "embedding table, or `copy-shared=false` forbids it",
        "allow the copy: `--untie` (fold-affine{untie=true}, center-stream{untie=true}) for a table, "
        "fold-affine{copy-shared=true} otherwise",
    )
    OUTPUT_REUSED = (
        "NF103",
        "output-reused",
        "the tensor in front of the affine has another reader that must see it unchanged",
        "nothing to do if the sharing is intended (dense or residual connections before the norm)",
    )
    OUTPUT_EXPOSED = (
        "NF104",
        "output-exposed",
        "the affine's result is an output of the network",
        "return a later tensor, or accept one multiply-add at the end",
    )
    NONLINEAR = (
        "NF105",
        "nonlinear-neighbour",
        "a non-linear op stands between the affine and the next weights",
        "mathematically stuck: a per-channel affine does not commute with this op",
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
        "capture with fixed spatial sizes (a bias map needs them), or use fold-affine{zero-padding=pad}",
    )
    AXIS_MISMATCH = (
        "NF108",
        "axis-mismatch",
        "the affine acts along another axis than the one that the neighbouring weights produce or consume",
        "correct as it is: folding by size alone (C == L) would be wrong",
    )
    NETWORK_INPUT = (
        "NF109",
        "network-input",
        "the affine reads the network's input directly, and no reader after it can absorb it",
        "fold the affine into the input normalisation of your data pipeline",
    )
    UNKNOWN_OP = (
        "NF110",
        "unknown-op",
        "an op that the op table does not list stands in the way",
        "add the op to the table in normfold/graph/ops.py if it moves elements or is linear",
    )
    ZERO_SCALE = (
        "NF111",
        "zero-scale",
        "the fold would divide by a scale that is zero or tiny in some channel",
        "prune the dead channels first",
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
        "the producer has no bias along this axis that could absorb the shift",
        "nothing to do",
    )
    NOT_PER_CHANNEL = (
        "NF116",
        "not-per-channel",
        "the constant varies along more than one axis of the tensor, or changes its dtype",
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
        "an op reads the stream that is no LayerNorm over its features, and would see that the mean is gone",
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
        "the conversion would add as many ops (centring, additions of left-over biases) as it removes",
        "center-stream{op-cost=... bias-cost=...} sets what they are worth on your runtime",
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
        "the norm's features are not all of one axis (heads of a fused projection, several axes at once), so "
        "that no one number of a row can be left out; it stays an RMSNorm",
        "nothing to do",
    )
    NOT_ASKED_FOR = (
        "NF126",
        "not-asked-for",
        "the option `norms` leaves this norm as it is",
        "widen the pattern, or leave it out to replace every LayerNorm",
    )
    NO_SAMPLES = (
        "NF127",
        "no-samples",
        "what takes the place of the norm is measured on samples, and there are none",
        "set `graph.samples`, or give `--data`",
    )
    NO_INTERVAL = (
        "NF128",
        "no-interval",
        "nothing is known of the values that this tensor takes: no norm's statistics reach it, and nothing was "
        "measured",
        "give `--data`, or quantise weights only",
    )

    @property
    def code(self) -> str:
        return self.value[0]

    @property
    def slug(self) -> str:
        return self.value[1]

    @property
    def summary(self) -> str:
        return self.value[2]

    @property
    def remedy(self) -> str:
        return self.value[3]


def by_code(text: str) -> Reason | None:
    """The reason with this code or slug (case-insensitive), or None."""
    for reason in Reason:
        if text.lower() in (reason.code.lower(), reason.slug):
            return reason
    return None

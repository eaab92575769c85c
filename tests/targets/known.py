"""What the sweep finds wrong and normfold leaves: faults of onnxruntime's kernels and of rare translations."""

from __future__ import annotations

# an error below half an ulp of 1, in kernels that compute at that size; or numbers below the normal ones
_COARSE = (
    "erfc", "erfc, near zero", "sigmoid", "sigmoid, near zero", "special.expit", "F.silu", "F.silu, near zero",
    "x * sigmoid(x)", "glu", "lstm-like gate", "F.mish", "tanh", "F.tanhshrink", "F.tanhshrink, near zero",
    "F.elu", "F.elu, near zero", "F.selu", "F.selu, near zero", "F.celu", "F.celu, near zero", "elu 0.5",
    "celu 2", "celu 0.01", "expm1", "expm1, near zero", "logaddexp2", "cdist of near", "std_mean axis 0",
    "var_mean axis 0",
)  # fmt: skip
# the file is finite where float32 of torch underflows or overflows
_BETTER = ("log(sigmoid)",)
# maxima and minima that pass over NaN, or begin at the least number; signs of NaN and of -0; powers of -0 and -inf
_NANS = (
    "sign", "sgn", "signbit", "heaviside", "logit eps", "xlogy", "x ** 0.5", "x ** -0.5", "amax", "amin",
    "aminmax", "max", "min", "max of nan", "norm inf", "norm -inf", "max_pool2d of infinities",
    "max_pool2d dilated of infinities", "max_pool2d ceil of infinities", "adaptive_max_pool2d 1 of infinities",
    "max_pool2d of -inf", "max_pool2d ceil of -inf", "max_pool2d ceil over the end of -inf",
    "max_pool2d oblong of -inf", "mean of nothing", "baddbmm beta 0",
)  # fmt: skip
# squares above the largest number, where torch computes in float64
_SQUARES = ("std", "std_mean", "var_mean", "std correction 2")
# onnxruntime's InstanceNormalization computes the variance as E[x^2] - E[x]^2 in float32
_VARIANCES = (
    "group_norm of rows", "group_norm of large means", "instance_norm of rows", "instance_norm of large means",
)  # fmt: skip
# rare translations and kernels
_RARE = (
    "special.erfcx", "special.log_ndtr", "logcumsumexp", "logcumsumexp axis 0",
    "matmul of nothing", "bilinear antialias True", "bicubic antialias True",
)  # fmt: skip
KNOWN = frozenset((*_COARSE, *_BETTER, *_NANS, *_SQUARES, *_VARIANCES, *_RARE))

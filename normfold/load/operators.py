"""Operators that a `.pt2` program may call, by what they do: pure functions of tensors and numbers.

That an operator is registered says nothing: `aten.from_file` maps a file, and what is copied into its result is
written there; others print, send, or run on streams.
"""

from __future__ import annotations

import re
from typing import Any

import torch

_NAMESPACES = {"aten", "prims", "torchvision", "quantized_decomposed", "normfold"}
# Texts that say how to compute: never a file, and nothing that is printed but the message of an assertion.
_TEXTS = {
    "UPLO", "activation", "algorithm", "approximate", "assert_msg", "driver", "equation", "indexing",
    "interpolation", "mode", "norm", "ord", "p", "pad_mode", "padding", "padding_mode", "padding_side", "reduce",
    "rounding_mode", "side",
}  # fmt: skip
_PART = re.compile(
    r"(Optional|List|Future)?\[|\]|,|\s|Tensor|int|float|bool|complex|number|Scalar|SymInt|SymBool|SymFloat|str|"
    r"Device|Layout|MemoryFormat|ScalarType|Generator|QScheme|NoneType"
)
# Asserted, and nothing returned.
_ASSERTIONS = {
    "aten::_assert_async", "aten::_assert_scalar", "aten::_assert_tensor_metadata", "aten::sym_constrain_range",
    "aten::sym_constrain_range_for_size",
}  # fmt: skip
# They take sizes, offsets or indices on trust, and read or write beyond their memory. Gradients do so as a rule,
# and so do the private helpers of other operators: of these only what exported programs hold is admitted.
_UNCHECKED = re.compile(r"aten::(set_?|set_data|segment_reduce|.*sparse.*|_nested_.*|.*backward.*)")
_LISTED = """
    adaptive_avg_pool2d adaptive_avg_pool3d addmm_activation assert_async assert_scalar assert_tensor_metadata
    cdist_forward conj conj_physical convolution euclidean_dist fft_c2c fft_c2r fft_r2c functional_assert_async
    functional_assert_scalar functional_sym_constrain_range functional_sym_constrain_range_for_size grouped_mm
    int_mm is_all_true is_any_true linalg_det linalg_eigh linalg_slogdet linalg_solve_ex linalg_svd
    local_scalar_dense log_softmax native_batch_norm_legit native_batch_norm_legit_functional
    native_batch_norm_legit_no_training native_multi_head_attention neg_view pdist_forward prelu_kernel
    reshape_copy scaled_dot_product_attention_math scaled_dot_product_efficient_attention
    scaled_dot_product_flash_attention_for_cpu scaled_dot_product_fused_attention_overrideable softmax stack
    to_copy transformer_encoder_layer_fwd trilinear unsafe_index unsafe_index_put unsafe_masked_index
    unsafe_masked_index_put_accumulate unsafe_view upsample_bicubic2d_aa upsample_bilinear2d_aa
    upsample_nearest_exact1d upsample_nearest_exact2d upsample_nearest_exact3d weight_norm weight_norm_interface
"""
_PRIVATE = {f"_{name}" for name in _LISTED.split()}
_HIGHER_ORDER = {
    "associative_scan", "cond", "flex_attention", "map_impl", "scan", "wrap_with_autocast",
    "wrap_with_set_grad_enabled",
}  # fmt: skip
_SYMBOLIC = re.compile(r"_?sym_\w+")
_ARITHMETIC = {
    "add", "and_", "eq", "floordiv", "ge", "getitem", "gt", "inv", "invert", "is_", "is_not", "le", "lshift", "lt",
    "matmul", "mod", "mul", "ne", "neg", "not_", "or_", "pos", "pow", "rshift", "sub", "truediv", "truth", "xor",
}  # fmt: skip
_MATH = {"ceil", "floor", "pow", "sqrt", "trunc"}


def obstacle(target: str) -> str | None:
    """Why a program may not call ``target`` (``torch.ops.aten.add.Tensor``); None where it may."""
    match target.split("."):
        case ["torch", "ops", "higher_order", name]:
            return None if name in _HIGHER_ORDER else "a higher-order operator that is not known"
        case ["torch", "ops", namespace, name, overload]:
            if namespace not in _NAMESPACES:
                return f"operators of `{namespace[:40]}` are not known"
            found: Any = _operator(namespace, name, overload)
            return "there is no such operator" if found is None else _of_operator(found)
        case ["torch", name] if _SYMBOLIC.fullmatch(name):
            return None
        case ["_operator", name] if name in _ARITHMETIC:
            return None
        case ["math", name] if name in _MATH:
            return None
    return None if target.startswith("#") else "not an operator"


def _operator(namespace: str, name: str, overload: str) -> torch._ops.OpOverload | None:
    plain = all(part.isidentifier() for part in (name, overload)) and not overload.startswith("__")
    if not plain:
        return None
    packet = getattr(getattr(torch.ops, namespace), name, None)
    found = (
        getattr(packet, overload, None) if isinstance(packet, torch._ops.OpOverloadPacket) else None
    )
    return found if isinstance(found, torch._ops.OpOverload) else None


def _of_operator(found: torch._ops.OpOverload) -> str | None:
    schema = found._schema
    if not torch._C._dispatch_has_kernel(found.name()):
        return "it is not an operator on tensors"
    name = str(schema.name).partition("::")[2]
    private = name.startswith("_") and not name.startswith("__") and name not in _PRIVATE
    if private or _UNCHECKED.fullmatch(str(schema.name)):
        return "it may take sizes, indices or memory on trust"
    for argument in schema.arguments:
        kind = str(argument.type)
        if _PART.sub("", kind):
            return f"its argument `{argument.name}` is neither tensor nor number"
        if "str" in kind and argument.name not in _TEXTS:
            return f"its argument `{argument.name}` is a text"
    if schema.returns or schema.name in _ASSERTIONS:
        return None
    return "it returns nothing"

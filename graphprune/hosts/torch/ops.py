"""ATen names onto the kinds of rules.py: which tensor operands, in which order, with which attributes.

One line an op. The functions take the op's arguments by their schema names, defaults filled in.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import fx

from .casting import unsaid_eps
from .ops_indexing import INDEXING
from .reading import Args, Reading, Table, listed, rank_of

ATEN: Table = dict(INDEXING)
_OF_ZEROS = (torch.ops.aten.zeros_like.default, torch.ops.aten.zeros.default, torch.ops.aten.new_zeros.default)
_WHOLE = (torch.int16, torch.int32, torch.int64)


def _enter(names: str, read: Callable[[Args], Reading]) -> None:
    ATEN.update(dict.fromkeys(names.split(), read))


def _pointwise(a: Args) -> Reading:
    return "pointwise", [v for v in a.values() if hasattr(v, "meta")], {}


def _add(a: Args) -> Reading:
    number = a["other"] if isinstance(a["other"], (int, float)) and a.get("alpha", 1) == 1 else None
    plus = {} if number is None else {"plus": number}
    return "pointwise", _pointwise(a)[1], {**_scaled(a, "add"), **plus}


def _scaled(a: Args, function: str) -> dict[str, Any]:
    """A sum or difference, unless its second part is multiplied."""
    return {"function": function} if a.get("alpha", 1) == 1 else {}


def _cast(a: Args) -> dict[str, Any]:
    dtype = a["other"].meta["val"].dtype if "other" in a else a.get("dtype")
    whole = dtype in _WHOLE and a["self"].meta["val"].dtype in _WHOLE
    return {"function": "cast"} if dtype is None or dtype.is_floating_point or whole else {}


def _just(function: str) -> Callable[[Args], dict[str, Any]]:
    return lambda a: {"function": function}


def _clip(a: Args) -> dict[str, Any]:
    """The bounds of what is cut off, where they are numbers."""
    low, high = (a.get(name, a.get(f"{name}_val")) for name in ("min", "max"))
    if any(hasattr(end, "meta") for end in (low, high)):
        return {}
    return {"function": "clip", "low": low, "high": high}


def _variance(a: Args) -> dict[str, Any]:
    """``population``: divided by how many there are."""
    whole = a.get("correction", 1) == 0 if "correction" in a else not a["unbiased"]
    return {"function": "var", **({"population": True} if whole else {})}


def _norm(a: Args) -> dict[str, Any]:
    """One to which zeros add nothing."""
    order = a.get("p", a.get("ord"))
    return {"function": "norm"} if order is None or order > 0 else {}


def _windows(a: Args) -> dict[str, Any]:
    """Where a convolution's windows lie: ``stride`` and ``dilation`` per spatial axis, ``pads`` before
    and after each."""
    kernel = a["weight"].meta["val"].shape[2:]
    stride, dilation = (list(a[key]) * (len(kernel) if len(a[key]) == 1 else 1) for key in ("stride", "dilation"))
    padding = a["padding"]
    if isinstance(padding, str):
        whole = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        pads = [n for total in whole for n in (total // 2, total - total // 2)]
    else:
        pads = [n for pad in list(padding) * (len(kernel) if len(padding) == 1 else 1) for n in (pad, pad)]
    return {"stride": stride, "pads": pads, "dilation": dilation}


def _grouped(a: Args) -> Reading:
    """Rows sorted by which of the weights they are multiplied with."""
    x, weight = a.get("self", a.get("input")), a.get("mat2", a.get("weight"))
    sorted_rows = rank_of(x) == 2 and rank_of(weight) == 3 and a["offs"] is not None and a.get("bias") is None
    return "grouped_matmul" if sorted_rows else "grouped", [x, weight, a["offs"]], {}


def _convolution(a: Args, transposed: bool) -> Reading:
    """One with as many groups as an open size says has weights that are no parameter."""
    kind, operands, groups = (
        "conv_transpose" if transposed else "conv",
        [a["input"], a["weight"], a["bias"]],
        a["groups"],
    )
    if not isinstance(groups, int):
        return f"{kind}_per_sample", operands, {"groups": groups}
    return kind, operands, {"groups": groups} if transposed else {"groups": groups, **_windows(a)}


_enter(
    "abs acos add add_ addcdiv addcmul alias asin atan atan2 bitwise_and bitwise_not bitwise_or ceil celu clamp "
    "clamp_ clamp_max clamp_min clone contiguous cos cosh detach detach_ div div_ dropout dropout_ elu elu_ eq erf "
    "exp expm1 feature_dropout floor floor_divide fmod ge gelu gelu_ gt hardsigmoid hardsigmoid_ hardswish "
    "hardswish_ hardtanh hardtanh_ isfinite isinf isnan le leaky_relu leaky_relu_ lerp lift_fresh_copy log log1p "
    "log2 log_sigmoid logical_and logical_not logical_or logit lt masked_fill masked_fill_ maximum minimum mish "
    "mish_ mul mul_ ne neg pow reciprocal relu relu6 relu6_ relu_ remainder round rsqrt rsub selu selu_ sigmoid "
    "sigmoid_ sign silu silu_ sin sinh softplus softshrink softsign sqrt square sub sub_ tan tanh tanh_ threshold "
    "where zeros_like ones_like full_like empty_like _to_copy lift_fresh log10 exp2 true_divide divide "
    "multiply subtract rrelu alpha_dropout hardshrink tanhshrink logical_xor nan_to_num "
    "real imag conj _conj conj_physical resolve_conj _neg_view resolve_neg angle complex polar "
    "xlogy bitwise_xor logaddexp sgn hypot",
    _pointwise,
)
ZERO = {  # see the rule of pointwise; what is not listed may make something of nothing
    **dict.fromkeys("mul mul_ multiply".split(), "any"),
    **dict.fromkeys("add add_ sub sub_ subtract maximum minimum complex".split(), "both"),
    **dict.fromkeys(
        "_to_copy abs alias clone contiguous detach detach_ div div_ divide dropout dropout_ erf gelu lift_fresh "
        "lift_fresh_copy neg relu relu_ round sign silu sin sqrt square tanh to true_divide type_as "
        "real imag conj _conj conj_physical resolve_conj _neg_view resolve_neg sgn cumsum flip diff "
        "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft fft_ifft2 fft_rfft2 fft_irfft2 "
        "fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift roll rot90 "
        "sum mean norm linalg_vector_norm amax amin".split(),
        "first",
    ),
}
"""Where the result of a pointwise op, or of one along or over other axes, is zero for sure."""
_BY_FUNCTION = {
    "abs": "abs",
    "neg": "neg",
    "sigmoid": "sigmoid sigmoid_",
    "square": "square",
    "sqrt": "sqrt",
    "rsqrt": "rsqrt",
    "var": "std std_mean",
    "tanh": "tanh tanh_",
    "mul": "mul mul_ multiply",
    "same": "alias clone contiguous detach detach_ lift_fresh lift_fresh_copy",
    "unknown": "empty_like rrelu",
    "max": "maximum amax max adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool1d max_pool2d "
    "max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices",
    "min": "minimum amin min",
    "sum": "sum",
    "softmax": "softmax _softmax",
    "cumsum": "cumsum",
    "mean": "mean adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool1d "
    "_adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d "
    "upsample_linear1d upsample_bilinear2d upsample_trilinear3d",
}
_POWERS: dict[Any, str] = {2: "square", 0.5: "sqrt", -0.5: "rsqrt"}


def _pow(a: Args) -> dict[str, Any]:
    exponent = a["exponent"]
    function = {"function": _POWERS[exponent]} if exponent in _POWERS else {}
    return {**function, **({"zero": "first"} if isinstance(exponent, (int, float)) and exponent > 0 else {})}


def _zero(value: Any) -> bool:
    return isinstance(value, (int, float)) and value == 0


def _zeros(value: Any) -> bool:
    """Whether it is zero, or a tensor of zeros."""
    return value.target in _OF_ZEROS if isinstance(value, fx.Node) else _zero(value)


FUNCTIONS: dict[str, Callable[[Args], dict[str, Any]]] = {
    **{name: _just(function) for function, names in _BY_FUNCTION.items() for name in names.split()},
    **dict.fromkeys("sub sub_ subtract".split(), lambda a: _scaled(a, "sub")),
    **dict.fromkeys("clamp clamp_ clamp_min clamp_max hardtanh hardtanh_".split(), _clip),
    **dict.fromkeys("relu6 relu6_".split(), lambda a: {"function": "clip", "low": 0, "high": 6}),
    **dict.fromkeys(
        "dropout dropout_ feature_dropout alpha_dropout".split(),
        lambda a: {"function": "unknown" if a["train"] else "same"},
    ),
    **dict.fromkeys(("var", "var_mean"), _variance),
    **dict.fromkeys(("norm", "linalg_vector_norm"), _norm),
    "addcmul": lambda a: {"function": "addcmul"} if a["value"] == 1 else {},
    "pow": _pow,
    "eq": lambda a: {"equals": a["other"]} if isinstance(a["other"], int) else {},
    "where": lambda a: {"zero": "any"} if _zeros(a["other"]) else {},
    **dict.fromkeys(
        "div div_ divide true_divide".split(), lambda a: {} if a.get("rounding_mode") else {"function": "div"}
    ),
    "reciprocal": _just("reciprocal"),
    **dict.fromkeys(("to", "_to_copy", "type_as"), _cast),
    "softplus": lambda a: {"function": "softplus"} if a["beta"] == 1 else {},
    **dict.fromkeys(
        "avg_pool1d avg_pool2d avg_pool3d".split(),
        lambda a: {} if a.get("divisor_override") else {"function": "padded_mean"},
    ),
}
"""What an op is a function of: see coupling/interval.py. What is not listed can be anything."""
_enter("conv1d conv2d conv3d", lambda a: _convolution(a, transposed=False))
_enter("conv_transpose1d conv_transpose2d conv_transpose3d", lambda a: _convolution(a, transposed=True))
_enter("convolution", lambda a: _convolution(a, a["transposed"]))
_enter(
    "torchvision::deform_conv2d",
    lambda a: (
        "deform_conv",
        [a["input"], a["weight"], a["bias"], a["offset"], a["mask"] if a["use_mask"] else None],
        {"groups": a["groups"], "offset_groups": a["offset_groups"]},
    ),
)
_enter("linear", lambda a: ("linear", [a["input"], a["weight"], a["bias"]], {}))
_enter(
    "addmm",
    lambda a: (
        "gemm",
        [a["mat1"], a["mat2"], a["self"]],
        {name: a[name] for name in ("alpha", "beta") if a.get(name, 1) != 1},
    ),
)
_enter("mm bmm", lambda a: ("matmul", [a["self"], a["mat2"]], {}))
_enter("matmul", lambda a: ("matmul", [a["self"], a["other"]], {}))
_enter("_grouped_mm transformers::grouped_mm_fallback graphprune::grouped_mm", _grouped)
_enter("baddbmm", lambda a: ("matmul", [a["batch1"], a["batch2"], a["self"]], {}))
_enter("outer ger", lambda a: ("einsum", [a["self"], a["vec2"]], {"equation": "i,j->ij"}))
_enter("einsum", lambda a: ("einsum", list(a["tensors"]), {"equation": a["equation"]}))
_enter(
    "batch_norm instance_norm",
    lambda a: (
        "instance_norm" if "use_input_stats" in a else "standardise" if _own_statistics(a) else "batch_norm",
        [a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"]],
        {"eps": a["eps"], "training": a.get("training", False)},
    ),
)
_enter(
    "_native_batch_norm_legit_no_training",
    lambda a: (
        "batch_norm",
        [a["input"], a["weight"], a["bias"], a["running_mean"], a["running_var"]],
        {"eps": a["eps"], "training": False},
    ),
)
_enter(
    "layer_norm",
    lambda a: ("layer_norm", [a["input"], a["weight"], a["bias"]], {"trailing": len(a["normalized_shape"])}),
)
_enter("rms_norm", lambda a: ("rms_norm", [a["input"], a["weight"]], _rms(a)))
_enter("_weight_norm", lambda a: ("weight_norm", [a["v"], a["g"]], {"axis": a["dim"]}))
_enter("group_norm", lambda a: ("group_norm", [a["input"], a["weight"], a["bias"]], {"groups": a["num_groups"]}))
_enter("prelu", lambda a: ("prelu", [a["self"], a["weight"]], {}))
_enter("cat concat", lambda a: ("concat", _there(a["tensors"]), {"axis": a["dim"]}))
_enter("stack", lambda a: ("stack", list(a["tensors"]), {"axis": a["dim"]}))
_enter("split split_with_sizes chunk", lambda a: ("split", [a["self"]], {"axis": a["dim"]}))
_enter("unbind", lambda a: ("unbind", [a["self"]], {"axis": a["dim"]}))
_enter("select", lambda a: ("select", [a["self"]], {"axis": a["dim"], "index": a["index"]}))
_enter(
    "slice",
    lambda a: (
        "slice",
        [a["self"]],
        {"axes": [a["dim"]], "starts": [a["start"] or 0], "ends": [_end(a["end"])], "steps": [a["step"]]},
    ),
)
_enter(
    "narrow",
    lambda a: (
        "slice",
        [a["self"]],
        {"axes": [a["dim"]], "starts": [a["start"]], "ends": [_plus(a["start"], a["length"])], "steps": [1]},
    ),
)
_enter(
    "pad constant_pad_nd reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d",
    lambda a: ("pad", [a["self"]], {"pads": list(a.get("pad", a.get("padding"))), "mode": a.get("mode")}),
)
_enter(
    "view reshape _unsafe_view view_copy flatten squeeze unsqueeze unflatten squeeze_ unsqueeze_",
    lambda a: ("reshape", [a["self"]], {}),
)
_enter("reshape_as view_as", lambda a: ("reshape_as", [a["self"], a["other"]], {}))
_enter("expand", lambda a: ("expand", [a["self"]], {}))
_enter("add add_", _add)
_enter("copy_", lambda a: ("pointwise", [a["self"], a["src"]], {}))
_enter("relu relu_", lambda a: ("pointwise", [a["self"]], {"function": "relu"}))
_enter("expand_as", _pointwise)
_enter("to type_as", lambda a: ("pointwise", [a["self"]], {}))  # of `other` only the dtype counts
_enter("repeat", lambda a: ("repeat", [a["self"]], {"repeats": list(a["repeats"])}))
_enter(
    "repeat_interleave.self_int",
    lambda a: ("interleave", [a["self"]], {"axis": a["dim"], "times": a["repeats"]}),
)
_enter(
    "repeat_interleave.self_Tensor",
    lambda a: ("interleave", [a["self"], a["repeats"]], {"axis": a["dim"], "times": None}),
)
_enter(
    "tile",
    lambda a: ("repeat", [a["self"]], {"repeats": [1] * (rank_of(a["self"]) - len(a["dims"])) + list(a["dims"])}),
)
_enter("permute", lambda a: ("transpose", [a["self"]], {"perm": list(a["dims"])}))
_enter("transpose swapaxes swapdims", lambda a: ("transpose", [a["self"]], {"swap": (_dim(a, 0), _dim(a, 1))}))
_enter("movedim moveaxis", lambda a: ("transpose", [a["self"]], {"perm": _moved(a)}))
_enter("t numpy_T", lambda a: ("transpose", [a["self"]], {"swap": (0, -1)}))
_enter("mT adjoint", lambda a: ("transpose", [a["self"]], {"swap": (-2, -1)}))
for _spatial in (1, 2, 3):
    _enter(
        f"max_pool{_spatial}d avg_pool{_spatial}d adaptive_avg_pool{_spatial}d adaptive_max_pool{_spatial}d "
        f"max_pool{_spatial}d_with_indices _adaptive_avg_pool{_spatial}d upsample_nearest{_spatial}d "
        f"lp_pool{_spatial}d",
        lambda a, k=_spatial: _window(a, k),  # type: ignore[misc]
    )
_enter("upsample_linear1d", lambda a: _window(a, 1))
_enter("upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa", lambda a: _window(a, 2))
_enter("upsample_trilinear3d", lambda a: _window(a, 3))
_enter(
    "mean sum amax amin aminmax var std var_mean std_mean any all prod max min argmin logsumexp norm "
    "linalg_vector_norm count_nonzero nansum nanmean median nanmedian mode kthvalue",
    lambda a: ("reduce", [a["self"]], {"axes": listed(a.get("dim")), "keepdim": a.get("keepdim", False)}),
)
_enter("roll", lambda a: ("along", [a["self"]], {"axes": listed(a["dims"]) or list(range(a["self"].meta["val"].ndim))}))
_enter("max.other min.other", _pointwise)
_enter("glu", lambda a: ("glu", [a["self"]], {"axis": a["dim"]}))
_enter(
    "softmax _softmax log_softmax _log_softmax cumsum cumprod cummax cummin logcumsumexp flip rot90 diff argsort "
    "fft_fft fft_ifft fft_rfft fft_irfft fft_hfft fft_ihfft",
    lambda a: ("along", [a["self"]], {"axes": listed(a.get("dims", a.get("dim")))}),
)
_enter(
    "fft_fft2 fft_ifft2 fft_rfft2 fft_irfft2 fft_fftn fft_ifftn fft_rfftn fft_irfftn fft_fftshift fft_ifftshift",
    lambda a: ("along", [a["self"]], {"axes": listed(a["dim"]) or _last(a)}),
)
_enter("view_as_complex", lambda a: ("as_complex", [a["self"]], {}))
_enter("view_as_real", lambda a: ("as_real", [a["self"]], {}))
_enter("broadcast_tensors", lambda a: ("pointwise", list(a["tensors"]), {}))
_enter("bilinear", lambda a: ("bilinear", [a["input1"], a["input2"], a["weight"], a["bias"]], {}))
_enter("cdist _cdist_forward", lambda a: ("distance", [a["x1"], a["x2"]], {}))
_enter("cosine_similarity", lambda a: ("similarity", [a["x1"], a["x2"]], {"axis": a["dim"]}))
_enter(
    "scaled_dot_product_attention",
    lambda a: (
        "attention",
        [a["query"], a["key"], a["value"], a["attn_mask"]],
        {"scale": a["scale"], **({"causal": True} if a["is_causal"] else {})},
    ),
)
_enter("pixel_shuffle", lambda a: ("pixel_shuffle", [a["self"]], {"factor": a["upscale_factor"]}))
_enter("pixel_unshuffle", lambda a: ("pixel_unshuffle", [a["self"]], {"factor": a["downscale_factor"]}))
_enter("im2col", lambda a: ("unfold", [a["self"]], {"taps": prod(a["kernel_size"])}))
_enter("col2im", lambda a: ("fold", [a["self"]], {"taps": prod(a["kernel_size"])}))
_enter("unfold", lambda a: ("windows", [a["self"]], {"axis": a["dimension"]}))
_enter("grid_sampler grid_sampler_2d grid_sampler_3d", lambda a: ("grid_sample", [a["input"], a["grid"]], {}))
for _names, _gates in (("lstm", 4), ("gru", 3), ("rnn_tanh rnn_relu", 1)):
    _enter(_names, lambda a, gates=_gates: _recurrent(a, gates))  # type: ignore[misc]
    _cells = " ".join(f"{name}_cell" for name in _names.split())
    _enter(_cells, lambda a, gates=_gates: _cell(a, gates))  # type: ignore[misc]
_enter("arange scalar_tensor eye linspace logspace", lambda a: ("create", [], {}))
_enter("ones full empty new_ones new_full new_empty", lambda a: ("fill", [], {}))
_enter("zeros new_zeros", lambda a: ("fill", [], {"value": 0}))
_enter("zeros_like", lambda a: ("pointwise", [a["self"]], {"value": 0}))
_enter("sym_size sym_numel", lambda a: ("size", [a["self"]], {}))


def _rms(a: Args) -> dict[str, Any]:
    """``eps`` as it is where none is given."""
    eps = unsaid_eps(a["input"].meta["val"].dtype) if a["eps"] is None else a["eps"]
    return {"trailing": len(a["normalized_shape"]), **({} if eps is None else {"eps": eps})}


def _own_statistics(a: Args) -> bool:
    """Batch statistics that are kept nowhere: how weights are standardised."""
    return bool(a["training"]) and a["running_mean"] is None


def _recurrent(a: Args, gates: int) -> Reading:
    """What runs over all steps, in layers and directions."""
    states, weights = _states(a), list(a["params"])
    ways, biases = 2 if a["bidirectional"] else 1, 2 if a["has_biases"] else 0
    packed = "batch_sizes" in a
    attrs = {
        **{"gates": gates, "layers": a["num_layers"], "directions": ways, "states": len(states), "biases": biases},
        "projected": len(weights) > a["num_layers"] * ways * (2 + biases),
        "time": None if packed else int(a["batch_first"] and a["input"].meta["val"].ndim == 3),
    }
    return "recurrent_layers", [a["data"] if packed else a["input"], *states, *weights], attrs


def _cell(a: Args, gates: int) -> Reading:
    """One step."""
    states = _states(a)
    weights = [a[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    return "recurrent_cell", [a["input"], *states, *weights], {"gates": gates, "states": len(states)}


def _states(a: Args) -> list[Any]:
    return list(a["hx"]) if isinstance(a["hx"], (list, tuple)) else [a["hx"]]


def _window(a: Args, spatial: int) -> Reading:
    return "pool", [a["self"] if "self" in a else a["input"]], {"spatial": spatial}


def _there(tensors: Any) -> list[Any]:
    """Without the empty vectors that may stand among tensors of any rank: how caches begin."""
    some = [v for v in tensors if rank_of(v) != 1 or v.meta["val"].shape[0] != 0]
    return some or list(tensors)


def _times(a: Args) -> list[Any]:
    """Repeats for every axis, where they are given for the last."""
    return [1] * (rank_of(a["self"]) - len(a["dims"])) + list(a["dims"])


def _moved(a: Args) -> list[int]:
    rank = rank_of(a["self"])
    froms, tos = ([axis % rank for axis in listed(a[name])] for name in ("source", "destination"))
    left = iter(axis for axis in range(rank) if axis not in froms)
    return [froms[tos.index(axis)] if axis in tos else next(left) for axis in range(rank)]


def _last(a: Args) -> list[int]:
    """The axes of a transform of several, where none is given: the last ones that sizes are given for, or all."""
    rank, sizes = rank_of(a["self"]), a.get("s")
    return list(range(rank - len(sizes), rank)) if sizes is not None else list(range(rank))


def _end(end: Any) -> Any:
    return 2**63 - 1 if end is None else end


def _plus(start: Any, length: Any) -> Any:
    return start + length if isinstance(start, int) and isinstance(length, int) else None


def _dim(a: Args, k: int) -> int:
    value: int = a.get(f"dim{k}", a.get(f"axis{k}"))
    return value

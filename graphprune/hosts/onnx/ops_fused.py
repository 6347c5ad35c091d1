"""The fused ops of graphs that ONNX Runtime has optimised (domain com.microsoft), recurrent layers, and
the ops whose axes cannot change, each with the reason."""

from __future__ import annotations

from .node import Call, Reader, Reading, Unreadable


def _fused_conv(c: Call) -> Reading:
    return "fused_conv", [c.input(k) for k in range(4)], {"groups": c.attr("group", 1)}


def _fused_gemm(c: Call) -> Reading:
    attrs = {"transA": bool(c.attr("transA", 0)), "transB": bool(c.attr("transB", 0))}
    return "fused_gemm", [c.input(0), c.input(1), c.input(2)], attrs


def _fused_matmul(c: Call) -> Reading:
    if c.attr("transBatchA", 0) or c.attr("transBatchB", 0):
        raise Unreadable("`FusedMatMul` turns its batch axes")
    if len(c.shape(0)) < 2 or len(c.shape(1)) < 2:
        raise Unreadable("`FusedMatMul` of a vector")
    attrs = {"transA": bool(c.attr("transA", 0)), "transB": bool(c.attr("transB", 0))}
    return "fused_matmul", [c.input(0), c.input(1)], attrs


def _skip_norm(c: Call) -> Reading:
    c.only_output(3)
    return "skip_norm", list(c.inputs), {"eps": c.attr("epsilon", 1e-5)}


def _add(c: Call) -> Reading:
    return "pointwise", list(c.inputs), {}


def _recurrent(gates: int) -> Reader:
    def read(c: Call) -> Reading:
        made = [k for k, value in enumerate(c.outputs) if value is not None]
        return "recurrent", list(c.inputs), {"gates": gates, "time": int(c.attr("layout", 0)), "outputs": made}

    return read


def _stays(why: str) -> Reader:
    def read(c: Call) -> Reading:
        raise Unreadable(f"`{c.node.op_type}` {why}")

    return read


_PLACES = "picks or sets single entries by their place in the tensor"
_FOUND = "gives as many rows as it finds, by their place in the tensor"

OTHERS: dict[str, Reader] = {
    **{"LSTM": _recurrent(4), "GRU": _recurrent(3), "RNN": _recurrent(1)},
    **dict.fromkeys(("Scatter", "ScatterND", "TensorScatter"), _stays(_PLACES)),
    **dict.fromkeys(("NonMaxSuppression", "Unique", "Compress"), _stays(_FOUND)),
    "ReverseSequence": _stays("turns sequences around by their lengths"),
    "Det": _stays("mixes all of a matrix"),
    **dict.fromkeys(("DFT", "STFT"), _stays("mixes all of a signal")),
}
FUSED: dict[str, Reader] = {
    "FusedConv": _fused_conv,
    "FusedGemm": _fused_gemm,
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    **dict.fromkeys(("SkipLayerNormalization", "SkipSimplifiedLayerNormalization"), _skip_norm),
    "BiasGelu": _add,
    "EmbedLayerNormalization": _stays("normalises a sum of embeddings"),
    **dict.fromkeys(("NhwcFusedConv", "NhwcConv", "NhwcMaxPool"), _stays("has its channels last")),
}

"""What each op kind is, beside what it does to axes: one record a kind, for every other module to ask.

A kind without a record (an op that graphprune does not know, a plug-in's without traits) is one that
costs its memory traffic, that zeros do not pass, and that nothing can be folded into.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..ir.graph import Op
from . import macs

Zeros = Literal["unknown", "written", "moved", "first", "scaled", "declared"]
Latency = Literal["conv", "product", "attention", "stream", "free"]


@dataclass(frozen=True)
class Traits:
    """What a kind is.

    ``products``: the matrix products that it is, whose sizes are its multiply-accumulates.

    ``latency``: how its time is keyed: a ``conv``olution of (x, weight, ...) with ``groups``, one matrix
    ``product``, the several of an ``attention``, a memory ``stream`` of all it reads and writes, or
    ``free``: another name for memory that is there.

    ``zeros``: where its result is zero for sure at a position of an axis: where what makes that position
    is ``written`` by constant operands that are zero there; where every operand that has the axis is, for
    they are ``moved``; where the ``first`` operand is; where operands 1 and 2, by which it is ``scaled``
    and shifted, are; as ``declared`` by the op's attribute ``zero``.

    ``contracts``: y = W x (+ b) of (x, weight, bias), which scores and compensation read weights of.

    ``absorbs``: an affine map of its outputs can go into its weight and bias, operands 1 and 2:
    BatchNorm is folded, and corrections are added, there.

    ``spatial``: its channels come before its spatial axes (otherwise they are the last).

    ``elementwise``: compilers fuse it to what makes its first operand.

    ``along``: channels pass it one by one: each of the result comes from the same of the first operand
    and from weights (of a kind that contracts: where it is depthwise), so that a selection of channels
    may stand before it as well as behind it.

    ``trained``: how many of its first operands training may change; None: all.
    """

    products: macs.Products | None = None
    latency: Latency = "stream"
    zeros: Zeros = "unknown"
    contracts: bool = False
    absorbs: bool = False
    spatial: bool = False
    elementwise: bool = False
    along: bool = False
    trained: int | None = None

    @property
    def computes(self) -> bool:
        """Whether its time is that of arithmetic, which element-wise ops behind it hide in."""
        return self.latency in ("conv", "product", "attention")


PLAIN = Traits()
_MOVES = Traits(zeros="moved")
_FREE = Traits(latency="free")
_CONV = Traits(macs.convolution, "conv", spatial=True)
_PRODUCT = Traits(macs.contraction, "product")

TRAITS: dict[str, Traits] = {
    # layers
    "linear": Traits(macs.layer, "product", "written", contracts=True, absorbs=True),
    "conv": Traits(macs.convolution, "conv", "written", contracts=True, absorbs=True, spatial=True, along=True),
    "conv_transpose": Traits(macs.transposed, "conv", "written", absorbs=True, spatial=True),
    "conv_per_sample": Traits(macs.convolution, "product", spatial=True),
    "conv_transpose_per_sample": Traits(macs.transposed, "product", spatial=True),
    "bilinear": Traits(macs.contraction, "product", "written"),
    "fused_conv": _CONV,
    "integer_conv": _CONV,
    "deform_conv": Traits(macs.sampled, "product", "written", spatial=True),
    "recurrent": Traits(macs.directions, "product"),
    "recurrent_layers": Traits(macs.recurrent_layers, "product"),
    "recurrent_cell": Traits(macs.recurrent_cell, "product"),
    # norms
    "batch_norm": Traits(zeros="scaled", elementwise=True, along=True, trained=3),
    "instance_norm": Traits(along=True, trained=3),
    "prelu": Traits(elementwise=True, along=True),
    **dict.fromkeys(("group_norm", "standardise", "weight_norm", "layer_norm", "skip_norm"), PLAIN),
    "rms_norm": Traits(zeros="first"),
    # products
    "gemm": Traits(macs.contraction, "product", "written", contracts=True, absorbs=True),
    "matmul": Traits(macs.contraction, "product", "written", contracts=True),
    "einsum": Traits(macs.einsum, "product", "written"),
    "fused_matmul": Traits(macs.contraction, "product", "written"),
    "grouped_matmul": Traits(macs.grouped, "product"),
    **dict.fromkeys(("fused_gemm", "integer_gemm", "integer_matmul"), _PRODUCT),
    "attention": Traits(macs.attention, "attention"),
    "multi_head_attention": Traits(macs.packed_heads, "attention"),
    "packed_attention": Traits(macs.own_heads, "attention"),
    "rotary": PLAIN,
    # single positions, windows, axes
    "pointwise": Traits(zeros="declared", elementwise=True, along=True),
    **dict.fromkeys(("pool", "resize"), Traits(along=True)),
    "reduce": Traits(zeros="declared", along=True),
    "along": Traits(zeros="declared"),
    **dict.fromkeys(("as_complex", "as_real"), _MOVES),
    **dict.fromkeys(("glu", "grid_sample", "dynamic_quantize", "opaque", "distance", "similarity"), PLAIN),
    # what moves data, or makes it
    **dict.fromkeys(("size", "create", "fill", "loop_enter", "loop_exit"), _FREE),
    "reshape": Traits(latency="free", zeros="moved", along=True),
    "split": Traits(latency="free", zeros="moved"),
    **dict.fromkeys(("transpose", "if", "slice", "select", "unbind", "concat", "stack", "expand", "repeat"), _MOVES),
    **dict.fromkeys(("windows", "unfold", "fold"), _MOVES),
    **dict.fromkeys(("gather", "gather_bags", "index"), Traits(zeros="written")),
    **dict.fromkeys(("reshape_as", "take_along", "diagonal", "interleave"), Traits(zeros="first")),
    **dict.fromkeys(("pad", "reindex", "pixel_shuffle", "pixel_unshuffle"), PLAIN),
    **dict.fromkeys(("scatter", "index_put", "put_along", "put_diagonal", "masked_scatter"), PLAIN),
    **dict.fromkeys(("nonzero", "masked_select", "unique", "topk", "sort", "one_hot", "count"), PLAIN),
}
"""By kind. Those of plug-ins come with their rules (``rules.table``), which relating a graph loads."""


def handed_on(op: Op, operand: int) -> bool:
    """Whether all that its results hold are numbers of that operand, and of others of which this is so."""
    record = traits(op)
    if op.kind == "pointwise":
        return len(op.inputs) == 1 and op.attrs.get("function") in ("same", "cast")
    if op.kind in ("index", "gather", "take_along", "sort", "interleave"):
        return operand == 0
    return record.zeros == "moved"


def traits(op: Op) -> Traits:
    """The record of the op's kind."""
    return TRAITS.get(op.kind, PLAIN)

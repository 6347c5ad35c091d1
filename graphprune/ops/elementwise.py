"""Rules of ops on single positions or on windows and axes of one tensor, and of what makes tensors."""

from __future__ import annotations

from ..ir.graph import Op
from .registry import rule
from .wording import axes_of, because, per_channel, rank_of, shape_of

rule("grid_sample", axes="n c ~, n ~ -> n c ~")  # the last axis of the grid is a place in the image
rule("as_complex", axes="... _ -> ...")  # real and imaginary part, to one number
rule("as_real", axes="... -> ... _")
rule("distance", axes="... i _, ... j _ -> ... i j")  # of vectors: no zeros in one of them make it zero
rule("size", axes="")  # reads a shape: hosts freeze what it is computed with


@rule("create")
def create(op: Op) -> str:
    """No tensor operands: a tensor of written-down size."""
    return f"-> {', '.join(' '.join('_' * rank_of(out)) for out in op.outputs)}"


@rule("fill")
def fill(op: Op) -> str:
    """No tensor operands: one number everywhere, so that any axis may be cut."""
    return f"-> {axes_of(rank_of(op.outputs[0]), {})} | shape=*"


@rule("pointwise")
def pointwise(op: Op) -> str:
    """Any element by element op, with broadcasting; also casts, copies, dropout. ``zero`` says where its
    result is zero for sure: where ``any``, the ``first`` or ``both`` of its operands are. ``axis``: the
    other operands are quantisation parameters, one for all or one per position of that axis of the
    first; ``block``: one for so many positions. ``scaling``: which operands are such, here and of integer products."""
    if "axis" in op.attrs:
        return _quantised(op)
    return f"{', '.join(['...'] * len(op.inputs))} -> {', '.join(['...'] * len(op.outputs))}"


@rule("dynamic_quantize")
def dynamic_quantize(op: Op) -> str:
    """(x) -> quantised x, scale, zero point: one scale over all of x."""
    names = axes_of(rank_of(op.inputs[0]), {}).split()
    outs = [" ".join(names), *("" for _ in op.outputs[1:])]
    return f"{' '.join(f'{name}^' for name in names)} -> {', '.join(outs)}"


@rule("glu")
def glu(op: Op) -> str:
    """(x), ``axis``: the first half times a gate of the second, position by position."""
    rank = rank_of(op.inputs[0])
    axis = op.attrs["axis"] % rank
    half = shape_of(op.outputs[0])[axis]
    return f"{axes_of(rank, {axis: f'(x:{half} + x:{half})'})} -> {axes_of(rank, {axis: 'x'})}"


@rule("pool")
def pool(op: Op) -> str:
    """(x), ``spatial``: windows over the last axes (pooling, resizing)."""
    rank, spatial = rank_of(op.inputs[0]), op.attrs["spatial"]
    axes = axes_of(rank, dict.fromkeys(range(rank - spatial, rank), "_"))
    return f"{axes} -> {', '.join([axes] * len(op.outputs))}"


@rule("resize")
def resize(op: Op) -> str:
    """(x), ``spatial``: as pool, but the size of the result may be written down."""
    return f"{pool(op)} | shape=*"


@rule("reduce")
def reduce(op: Op) -> str:
    """(x), ``axes`` (empty: all), ``keepdim``."""
    rank = rank_of(op.inputs[0])
    gone = {axis % rank for axis in op.attrs["axes"]} or set(range(rank))
    names = axes_of(rank, {axis: f"r{axis}" for axis in gone}).split()
    outs = [("1" if op.attrs.get("keepdim") else "") if k in gone else name for k, name in enumerate(names)]
    return f"{' '.join(names)} -> {', '.join([' '.join(outs)] * len(op.outputs))}"


@rule("along")
def along(op: Op) -> str:
    """(x), ``axes``: softmax, cumulative sums, flips, Fourier transforms: positions along ``axes`` interact, and what
    comes out may have another number of them. ``zero`` as for pointwise. Softmax along one axis can do without some of
    its positions, and so can a cumulative sum of what is zero there: see coupling/maskable.py."""
    rank = rank_of(op.inputs[0])
    if op.attrs.get("function") in ("softmax", "cumsum") and len(op.attrs["axes"]) == 1:
        return f"{axes_of(rank, {})} -> {axes_of(rank, {})}"
    axes = axes_of(rank, {axis % rank: "_" for axis in op.attrs["axes"]})
    return f"{axes} -> {', '.join([axes] * len(op.outputs))}"


@rule("similarity")
def similarity(op: Op) -> str:
    """(x, y), ``axis``, of one rank, broadcast: of vectors along an axis, which goes away."""
    rank = rank_of(op.inputs[0])
    names = axes_of(rank, {op.attrs["axis"] % rank: "_"}).split()
    ins = [["1" if n == 1 else name for n, name in zip(shape_of(x), names, strict=True)] for x in op.inputs]
    return f"{', '.join(map(' '.join, ins))} -> {' '.join(name for name in names if name != '_')}"


@rule("opaque")
def opaque(op: Op) -> str:
    """Any operands; ``why`` their axes stay as they are. ``draws``: it draws random numbers."""
    values = [value for value in (*op.inputs, *op.outputs) if value is not None]
    because(op, [axis for value in values for axis in value.dims])
    return f"{', '.join(['~'] * len(op.inputs))} -> {', '.join(['~'] * len(op.outputs))}"


def _quantised(op: Op) -> str:
    """(x, scale, zero point) of a (de)quantisation along ``axis``, in blocks of ``block`` or singly."""
    x, block = shape_of(op.inputs[0]), op.attrs.get("block")
    axis = op.attrs["axis"] % max(len(x), 1)
    small = axes_of(len(x), {})
    large = axes_of(len(x), {axis: f"(a{axis} _:{block})"}) if block else small
    rest = [small if block else per_channel(value, f"a{axis}") for value in op.inputs[1:]]
    return f"{', '.join([large, *rest])} -> {large}"

"""Rules of layers with stored weights, and of norms."""

from __future__ import annotations

from math import prod

from ..axes.reshape import divide
from ..ir.graph import Op
from .registry import rule
from .wording import LETTERS, axes_of, per_channel, rank_of, shape_of

rule("linear", axes="... i, o i, o -> ... o")
rule("batch_norm", axes="n c ~, c, c, c, c -> n c ~")
rule("instance_norm", axes="n c ~, c, c, c, c -> n c ~")
rule("prelu", axes="n c ..., c -> n c ...")
rule("bilinear", axes="... i, ... j, o i j, o -> ... o")


@rule("conv")
def conv(op: Op) -> str:
    """(x, weight, bias), ``groups``. Depthwise is g = channels, its multiplier o > 1."""
    batch, groups = _batch(op), op.attrs["groups"]
    return f"{batch} (g:{groups} i) ~, (g o) i ~, (g o) -> {batch} (g o) ~ | groups=g"


@rule("fused_conv")
def fused_conv(op: Op) -> str:
    """As conv, with an activation behind it, and (x, weight, bias, z): a tensor to add before that."""
    batch, groups = _batch(op), op.attrs["groups"]
    return f"{batch} (g:{groups} i) ~, (g o) i ~, (g o), {batch} (g o) ~ -> {batch} (g o) ~ | groups=g"


@rule("integer_conv")
def integer_conv(op: Op) -> str:
    """As conv on integers: (x, weight, bias, parameters...), the parameters one for all or one per
    output channel."""
    batch, groups = _batch(op), op.attrs["groups"]
    rest = "".join(f", {per_channel(value, '(g o)')}" for value in op.inputs[3:])
    return f"{batch} (g:{groups} i) ~, (g o) i ~, (g o){rest} -> {batch} (g o) ~ | groups=g"


@rule("conv_transpose")
def conv_transpose(op: Op) -> str:
    """(x, weight, bias), ``groups``; the weight is input channels first."""
    batch, groups = _batch(op), op.attrs["groups"]
    return f"{batch} (g:{groups} i) ~, (g i) o ~, (g o) -> {batch} (g o) ~ | groups=g"


@rule("conv_per_sample", "conv_transpose_per_sample")
def conv_per_sample(op: Op) -> str:
    """As conv and conv_transpose, with a size for ``groups``: a weight for each sample of a batch that is folded
    into the channels. Groups that are more than the batch are computed with other sizes, which then stay."""
    groups, weight = op.attrs["groups"], shape_of(op.inputs[1])
    rows = divide(weight[0], groups)
    if rows is None:
        return "~, ~, ~ -> ~"
    turned, g = op.kind.startswith("conv_transpose"), "_" if "*" in groups else "g"
    ins, outs = (
        f"({g}:{groups} {name}:{n})" for name, n in zip("io", (rows, weight[1])[:: 1 if turned else -1], strict=True)
    )
    kernel = f"{ins} o ~" if turned else f"{outs} i ~"
    batch = _batch(op)
    return f"{batch} {ins} ~, {kernel}, {outs} -> {batch} {outs} ~"


@rule("deform_conv")
def deform_conv(op: Op) -> str:
    """(x, weight, bias, offset, mask), ``groups``, ``offset_groups``: a convolution that reads every tap
    where the offset says, times the mask. Offsets are told apart (a pair a tap); those of one offset
    group go with its input channels. Both kinds of groups at once are read where they are the same."""
    taps = prod(int(n) for n in shape_of(op.inputs[1])[2:])
    pairs, groups, places = taps * (rank_of(op.inputs[1]) - 2), op.attrs["groups"], op.attrs["offset_groups"]
    if groups == 1 and places > 1:
        return f"n (p:{places} i) ~, o (p i) ~, o, n (p _:{pairs}) ~, n (p _:{taps}) ~ -> n o ~ | offset_groups=p"
    if places not in (1, groups):
        return f"n _ ~, (_:{groups} o) _ ~, (_:{groups} o), n _ ~, n _ ~ -> n (_:{groups} o) ~"
    offset, mask = ("_", "_") if places == 1 else (f"(g _:{pairs})", f"(g _:{taps})")
    literals = "groups=g" if places == 1 else "groups=g offset_groups=g"
    return f"n (g:{groups} i) ~, (g o) i ~, (g o), n {offset} ~, n {mask} ~ -> n (g o) ~ | {literals}"


@rule("group_norm")
def group_norm(op: Op) -> str:
    """(x, weight, bias), ``groups``. Whole groups are independent; inside one, statistics mix.
    ``per_group``: the weight and bias have one number per group."""
    weight = "g" if op.attrs.get("per_group") else "(g i)"
    return f"n (g:{op.attrs['groups']} i^) ~, {weight}, {weight} -> n (g i) ~ | groups=g"


@rule("standardise")
def standardise(op: Op) -> str:
    """(x, weight, bias) with the statistics of x itself, for each position of axis 1."""
    rank = rank_of(op.inputs[0])
    axes = axes_of(rank, {k: "_" for k in range(rank) if k != 1}).split()
    return f"{' '.join(axes)}{f', {axes[1]}' * (len(op.inputs) - 1)} -> {' '.join(axes)}"


@rule("weight_norm")
def weight_norm(op: Op) -> str:
    """(v, g), ``axis``: v at unit length for each position of ``axis``, times g."""
    rank = rank_of(op.inputs[0])
    axis = op.attrs["axis"] % rank
    names = axes_of(rank, {k: "_" for k in range(rank) if k != axis}).split()
    return f"{' '.join(names)}, {' '.join(n if k == axis else '1' for k, n in enumerate(names))} -> {' '.join(names)}"


@rule("rms_norm")
def rms_norm(op: Op) -> str:
    """(x, weight), ``trailing``, ``eps``. With a weight, along one axis, it can be told what it no longer sees: of n of
    d channels, the others zero, the mean of squares is d / n times as much. relate.rescaled has the weight."""
    if op.attrs["trailing"] > 1 or len(op.inputs) < 2 or op.inputs[1] is None or op.attrs.get("eps") is None:
        return layer_norm(op)
    return "... c, c -> ... c | shape=c eps=share(c)"


@rule("layer_norm")
def layer_norm(op: Op) -> str:
    """(x, weight, bias), ``trailing``: how many axes are normalised together."""
    names = LETTERS[: op.attrs["trailing"]]
    mixed, plain = " ".join(f"{c}^" for c in names), " ".join(names)
    return f"... {mixed}, {plain}, {plain} -> ... {mixed} | shape={','.join(names)}"


@rule("skip_norm")
def skip_norm(op: Op) -> str:
    """(x, skip, weights and biases...) -> the normalised sum of x, skip and bias, and the sum itself."""
    return f"... c^, ... c{', c' * (len(op.inputs) - 2)} -> {', '.join(['... c'] * len(op.outputs))}"


def _batch(op: Op) -> str:
    """A convolution's input may come without a batch axis."""
    return "n" if rank_of(op.inputs[0]) == rank_of(op.inputs[1]) else ""

"""THE table: what each op kind does to axes.

A rule is a string in the notation of notation.py, or a function of the op that returns one where
attributes change the coupling. Four users read it: groups, slicing, literals and verification.
A kind that is not here is carried along untouched, and every axis it touches is frozen.

Hosts give ops these kinds, operand orders and attributes; see each rule's line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points

from ..axes.dim import Dim, Size, freeze
from ..axes.notation import parse
from ..axes.reshape import regroup
from ..errors import GraphpruneError
from ..ir.graph import Op, Value

RuleText = str | Callable[[Op], str]
RULES: dict[str, RuleText] = {}

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def rule(*kinds: str, axes: str | None = None) -> Callable[[Callable[[Op], str]], Callable[[Op], str]]:
    """Enter a rule: ``rule("linear", axes="... i, o i, o -> ... o")``, or decorate a function."""
    for kind in kinds:
        if axes is not None:
            parse(axes)
            RULES[kind] = axes

    def enter(function: Callable[[Op], str]) -> Callable[[Op], str]:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return enter


@cache
def table() -> Mapping[str, RuleText]:
    """RULES, with those that the modules of the entry-point group ``graphprune.rules`` enter when they
    are imported. A plug-in cannot replace a built-in rule. Raises GraphpruneError for one that does
    not load."""
    built_in = dict(RULES)
    for entry in sorted(entry_points(group="graphprune.rules"), key=lambda entry: entry.name):
        try:
            entry.load()
        except Exception as error:  # someone else's package: anything may be wrong with it
            raise GraphpruneError(
                f"the rules `{entry.name}` ({entry.value}) do not load: {error}", "repair or uninstall the plug-in"
            ) from error
    RULES.update(built_in)
    return RULES


# ---- the table -----------------------------------------------------------------------------------

rule("linear", axes="... i, o i, o -> ... o")
rule("batch_norm", axes="n c ~, c, c, c, c -> n c ~")
rule("instance_norm", axes="n c ~, c, c, c, c -> n c ~")
rule("prelu", axes="n c ..., c -> n c ...")
rule("grid_sample", axes="n c ~, n ~ -> n c ~")  # the last axis of the grid is a place in the image
rule("size", axes="")  # reads a shape: hosts freeze what it is computed with


@rule("create")
def create(op: Op) -> str:
    """No tensor operands: a tensor of written-down size."""
    return f"-> {', '.join(' '.join('_' * _rank(out)) for out in op.outputs)}"


@rule("fill")
def fill(op: Op) -> str:
    """No tensor operands: one number everywhere, so that any axis may be cut."""
    return f"-> {_axes(_rank(op.outputs[0]), {})} | shape=*"


@rule("pointwise")
def pointwise(op: Op) -> str:
    """Any element by element op, with broadcasting; also casts, copies, dropout. ``zero`` says where its
    result is zero for sure: where ``any``, the ``first`` or ``both`` of its operands are. ``axis``: the
    other operands are quantisation parameters, one for all or one per position of that axis of the
    first; ``block``: one for so many positions."""
    if "axis" in op.attrs:
        return _quantised(op)
    return f"{', '.join(['...'] * len(op.inputs))} -> {', '.join(['...'] * len(op.outputs))}"


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
    rest = "".join(f", {_per_channel(value, '(g o)')}" for value in op.inputs[3:])
    return f"{batch} (g:{groups} i) ~, (g o) i ~, (g o){rest} -> {batch} (g o) ~ | groups=g"


@rule("conv_transpose")
def conv_transpose(op: Op) -> str:
    """(x, weight, bias), ``groups``; the weight is input channels first."""
    batch, groups = _batch(op), op.attrs["groups"]
    return f"{batch} (g:{groups} i) ~, (g i) o ~, (g o) -> {batch} (g o) ~ | groups=g"


@rule("group_norm")
def group_norm(op: Op) -> str:
    """(x, weight, bias), ``groups``. Whole groups are independent; inside one, statistics mix.
    ``per_group``: the weight and bias have one number per group."""
    weight = "g" if op.attrs.get("per_group") else "(g i)"
    return f"n (g:{op.attrs['groups']} i^) ~, {weight}, {weight} -> n (g i) ~ | groups=g"


@rule("standardise")
def standardise(op: Op) -> str:
    """(x, weight, bias) with the statistics of x itself, for each position of axis 1."""
    rank = _rank(op.inputs[0])
    axes = _axes(rank, {k: "_" for k in range(rank) if k != 1}).split()
    return f"{' '.join(axes)}{f', {axes[1]}' * (len(op.inputs) - 1)} -> {' '.join(axes)}"


@rule("weight_norm")
def weight_norm(op: Op) -> str:
    """(v, g), ``axis``: v at unit length for each position of ``axis``, times g."""
    rank = _rank(op.inputs[0])
    axis = op.attrs["axis"] % rank
    names = _axes(rank, {k: "_" for k in range(rank) if k != axis}).split()
    return f"{' '.join(names)}, {' '.join(n if k == axis else '1' for k, n in enumerate(names))} -> {' '.join(names)}"


@rule("layer_norm", "rms_norm")
def layer_norm(op: Op) -> str:
    """(x, weight, bias), ``trailing``: how many axes are normalised together."""
    names = _LETTERS[: op.attrs["trailing"]]
    mixed, plain = " ".join(f"{c}^" for c in names), " ".join(names)
    return f"... {mixed}, {plain}, {plain} -> ... {mixed} | shape={','.join(names)}"


@rule("skip_norm")
def skip_norm(op: Op) -> str:
    """(x, skip, weights and biases...) -> the normalised sum of x, skip and bias, and the sum itself."""
    return f"... c^, ... c{', c' * (len(op.inputs) - 2)} -> {', '.join(['... c'] * len(op.outputs))}"


@rule("matmul")
def matmul(op: Op) -> str:
    """(a, b) as numpy.matmul; with c: a @ b + c."""
    a, b = (_rank(value) for value in op.inputs[:2])
    left = "k" if a == 1 else "... i k"
    right = "k" if b == 1 else "... k j"
    out = " ".join(["...", *("i" for _ in range(a > 1)), *("j" for _ in range(b > 1))])
    if len(op.inputs) > 2:
        added = _shape(op.inputs[2])[-2:]
        names = ["1" if n == 1 else name for n, name in zip(added, "ij"[2 - len(added) :], strict=True)]
        return f"{left}, {right}, {' '.join(['...'] * (len(added) > 1) + names)} -> {out}"
    return f"{left}, {right} -> {out}"


@rule("fused_matmul")
def fused_matmul(op: Op) -> str:
    """(a, b), ``transA``, ``transB``: a matrix product of the last two axes, batches broadcast, times a
    number."""
    left = "... k i" if op.attrs["transA"] else "... i k"
    right = "... j k" if op.attrs["transB"] else "... k j"
    return f"{left}, {right} -> ... i j"


@rule("integer_matmul")
def integer_matmul(op: Op) -> str:
    """(a, b, parameters...): matmul on integers, the parameters one for all or one per output column.
    ``dynamic``: a is quantised on the way, with one scale over all of it."""
    lead = [f"r{k}" for k in range(_rank(op.inputs[0]) - 2)]
    mark = "^" if op.attrs.get("dynamic") else ""
    left = " ".join(f"{name}{mark}" for name in (*lead, "i", "k"))
    right = " ".join((*lead[len(lead) + 2 - _rank(op.inputs[1]) :], "k", "j")) if _rank(op.inputs[1]) > 2 else "k j"
    rest = "".join(f", {_per_channel(value, 'j')}" for value in op.inputs[2:])
    return f"{left}, {right}{rest} -> {' '.join((*lead, 'i', 'j'))}"


@rule("integer_gemm")
def integer_gemm(op: Op) -> str:
    """As gemm on integers: (a, b, c, parameters...), the parameters one for all or one per output."""
    rest = "".join(f", {_per_channel(value, 'j')}" for value in op.inputs[3:])
    left, _, right = gemm(op).partition("->")
    return f"{left}{rest} -> {right}"


@rule("dynamic_quantize")
def dynamic_quantize(op: Op) -> str:
    """(x) -> quantised x, scale, zero point: one scale over all of x."""
    names = _axes(_rank(op.inputs[0]), {}).split()
    outs = [" ".join(names), *("" for _ in op.outputs[1:])]
    return f"{' '.join(f'{name}^' for name in names)} -> {', '.join(outs)}"


@rule("gemm", "fused_gemm")
def gemm(op: Op) -> str:
    """(a, b, c), ``transA``, ``transB``: a @ b + c."""
    a = "k i" if op.attrs.get("transA") else "i k"
    b = "j k" if op.attrs.get("transB") else "k j"
    c = op.inputs[2] if len(op.inputs) > 2 else None
    shape = () if c is None or c.shape is None else c.shape
    bias = " ".join("1" if n == 1 else name for n, name in zip(shape[::-1], "ji", strict=False))
    return f"{a}, {b}, {' '.join(bias.split()[::-1])} -> i j"


@rule("einsum")
def einsum(op: Op) -> str:
    """``equation`` in letters."""
    left, _, right = op.attrs["equation"].replace(" ", "").replace("...", ".").partition("->")
    terms = [" ".join(term).replace(".", "...") for term in (*left.split(","), right)]
    return f"{', '.join(terms[:-1])} -> {terms[-1]}"


@rule("attention")
def attention(op: Op) -> str:
    """(q, k, v, mask) of shapes (..., heads, length, width), ``scale``; more query than key heads is
    GQA. The default scale is 1/sqrt(width), which a narrower head must not change."""
    q, k = op.inputs[0], op.inputs[1]
    many, few = _shape(q)[-3] if _rank(q) > 2 else 1, _shape(k)[-3] if _rank(k) > 2 else 1
    lead = [f"b{i}" for i in range(_rank(q) - 3)]
    heads = "h" if many == few else f"(h:{few} g)"
    mask = op.inputs[3] if len(op.inputs) > 3 else None
    names = [*lead, heads, "q", "_"][-_rank(mask) :] if mask else []
    masked = " ".join("1" if n == 1 else name for n, name in zip(_shape(mask), names, strict=True)) if mask else "_"
    b = " ".join(lead)
    scale = "| scale=rsqrt(d)" if op.attrs.get("scale") is None else ""
    if _rank(q) < 3:
        return f"q d, _ d, _ e, {masked} -> q e {scale}"
    return f"{b} {heads} q d, {b} h _ d, {b} h _ e, {masked} -> {b} {heads} q e {scale}"


@rule("multi_head_attention")
def multi_head_attention(op: Op) -> str:
    """(q, k, v, bias of all three, mask, other, past keys, past values), ``heads``, ``kv_heads``,
    ``widths`` of keys and values, ``scale``, ``packed``: attention with heads and widths packed in the
    last axis, (batch, length, heads x width); k and v are absent where ``packed`` into q. Present keys
    and values may be further outputs. Widths may change where nothing else knows them (``free``)."""
    many, few, (wide, tall) = op.attrs["heads"], op.attrs["kv_heads"], op.attrs["widths"]
    heads, free = f"h:{few}" if many == few else f"h:{few} g:{many // few}", op.attrs["free"]
    d, e = (f"d:{wide}", f"e:{tall}") if free else (f"_:{wide}", f"_:{tall}")
    queries, keys, values = f"({heads} {d})", f"(h:{few} {d})", f"(h:{few} {e})"
    bias = f"({queries} + {keys} + {values})"
    mask = op.inputs[4] if len(op.inputs) > 4 else None
    names = ["_", "h" if many == few else "(h g)", "_", "_"][4 - _rank(mask) :] if mask else []
    masked = " ".join("1" if n == 1 else name for n, name in zip(_shape(mask), names, strict=True)) if mask else "_"
    ins = f"b q {bias if op.attrs.get('packed') else queries}, b _ {keys}, b _ {values}, {bias}, {masked}, ~"
    literals = " ".join(["kv_heads=h", *(["query_group=g"] * (many != few))])
    if free and op.attrs.get("scale") is None:
        literals += " scale=rsqrt(d)"
    return f"{ins}, b h _ _, b h _ _ -> b q ({heads} {e}), b h _ _, b h _ _ | {literals}"


@rule("packed_attention")
def packed_attention(op: Op) -> str:
    """(x, weight, bias, others...), ``heads``, ``widths`` of queries and values: attention that makes its
    own queries, keys and values."""
    made = f"((h:{op.attrs['heads']} d:{op.attrs['widths'][0]}) + (h d) + (h e:{op.attrs['widths'][1]}))"
    rest = ", ~" * len(op.inputs[3:])
    return f"b q i, i {made}, {made}{rest} -> b q (h e) | heads=h value_width=e"


@rule("rotary")
def rotary(op: Op) -> str:
    """(x, positions and caches...), ``heads`` (None: an axis of their own): entries of a head are turned
    in pairs."""
    packed = op.attrs["heads"] is not None
    axes = f"b s (h:{op.attrs['heads']} _)" if packed else "b h s _"
    return f"{axes}{', ~' * len(op.inputs[1:])} -> {axes}{' | heads=h' * packed}"


@rule("recurrent")
def recurrent(op: Op) -> str:
    """(x, input weights..., states and other weights...), ``weights``: how many input weights. The
    state is read at every step by weights of its own: frozen, with ``why`` as the reason."""
    ins = [" ".join(["_"] * (_rank(op.inputs[0]) - 1) + ["i"])]
    for number, value in enumerate(op.inputs[1:]):
        names = ["_"] * (_rank(value) if value is not None else 1)
        if number < op.attrs["weights"]:
            names[-1] = "i"
        ins.append(" ".join(names))
    if "why" in op.attrs:
        others = [axis for value in op.inputs[1 + op.attrs["weights"] :] if value is not None for axis in value.dims]
        gates = [axis for value in op.inputs[1 : 1 + op.attrs["weights"]] if value for axis in value.dims[:-1]]
        _because(op, [*gates, *others, *(axis for value in op.outputs for axis in value.dims)])
    return f"{', '.join(ins)} -> {', '.join(' '.join('_' * _rank(out)) for out in op.outputs)}"


@rule("opaque")
def opaque(op: Op) -> str:
    """Any operands; ``why`` their axes stay as they are. ``draws``: it draws random numbers."""
    values = [value for value in (*op.inputs, *op.outputs) if value is not None]
    _because(op, [axis for value in values for axis in value.dims])
    return f"{', '.join(['~'] * len(op.inputs))} -> {', '.join(['~'] * len(op.outputs))}"


@rule("index")
def index(op: Op) -> str:
    """(x, ids...), ``axes``: neighbouring axes of a tensor by number, as numpy does it."""
    rank, axes = _rank(op.inputs[0]), op.attrs["axes"]
    names = _axes(rank, dict.fromkeys(axes, "_")).split()
    made = ["_"] * (_rank(op.outputs[0]) - rank + len(axes))
    ids = [" ".join("_" * _rank(value)) for value in op.inputs[1:]]
    out = [*names[: axes[0]], *made, *names[axes[-1] + 1 :]]
    return f"{', '.join([' '.join(names), *ids])} -> {' '.join(out)}"


@rule("concat")
def concat(op: Op) -> str:
    """(x, ...), ``axis``."""
    rank = _rank(op.outputs[0])
    axis = op.attrs["axis"] % rank
    parts = [f"x{k}:{_shape(value)[axis]}" for k, value in enumerate(op.inputs)]
    if not _static(op.inputs, axis):
        return f"{', '.join([_axes(rank, {axis: '_'})] * len(op.inputs))} -> {_axes(rank, {axis: '_'})}"
    ins = [_axes(rank, {axis: f"x{k}"}) for k in range(len(op.inputs))]
    return f"{', '.join(ins)} -> {_axes(rank, {axis: _join(parts)})}"


@rule("split")
def split(op: Op) -> str:
    """(x) -> pieces, ``axis``."""
    rank = _rank(op.inputs[0])
    axis = op.attrs["axis"] % rank
    parts = [f"x{k}:{_shape(value)[axis]}" for k, value in enumerate(op.outputs)]
    if not _static(op.outputs, axis):
        return f"{_axes(rank, {axis: '_'})} -> {', '.join([_axes(rank, {axis: '_'})] * len(op.outputs))}"
    outs = [_axes(rank, {axis: f"x{k}"}) for k in range(len(op.outputs))]
    sizes = ",".join(f"x{k}" for k in range(len(op.outputs)))
    return f"{_axes(rank, {axis: _join(parts)})} -> {', '.join(outs)} | sizes={sizes}"


@rule("slice")
def slice_(op: Op) -> str:
    """(x), ``axes``, ``starts``, ``ends``, ``steps``: a split of which one piece is taken."""
    rank, shape = _rank(op.inputs[0]), _shape(op.inputs[0])
    ins: dict[int, str] = {}
    outs: dict[int, str] = {}
    starts, ends, dropped = [], [], []
    for k, axis in enumerate(op.attrs["axes"]):
        axis %= rank
        size, step = shape[axis], op.attrs["steps"][k]
        start, end = op.attrs["starts"][k], op.attrs["ends"][k]
        starts.append("none")
        ends.append("none")
        if isinstance(size, str) or not isinstance(start, int) or not isinstance(end, int):
            ins[axis] = outs[axis] = "_"
            continue
        begin, stop, _ = slice(start, end, step).indices(size)
        if step != 1 or stop <= begin:
            ins[axis] = outs[axis] = "_"
        elif (begin, stop) != (0, size):
            head, body, tail = f"h{k}", f"x{k}", f"t{k}"
            parts = [(head, begin), (body, stop - begin), (tail, size - stop)]
            ins[axis] = _join([f"{name}:{n}" for name, n in parts if n])
            outs[axis] = body
            starts[-1] = head if begin else "0"
            ends[-1] = f"{head}+{body}" if begin else body
            dropped += [name for name, n in (parts[0], parts[2]) if n]
    extra = "".join(f", {name}" for name in dropped)  # pieces nobody takes
    text = f"{_axes(rank, ins)} -> {_axes(rank, outs)}{extra}"
    return f"{text} | starts={','.join(starts)} ends={','.join(ends)}" if dropped else text


@rule("select")
def select(op: Op) -> str:
    """(x), ``axis``: one position of an axis, which goes away."""
    rank = _rank(op.inputs[0])
    axis = op.attrs["axis"] % rank
    names = _axes(rank, {axis: "_"}).split()
    return f"{' '.join(names)} -> {' '.join(names[:axis] + names[axis + 1 :])}"


@rule("glu")
def glu(op: Op) -> str:
    """(x), ``axis``: the first half times a gate of the second, position by position."""
    rank = _rank(op.inputs[0])
    axis = op.attrs["axis"] % rank
    half = _shape(op.outputs[0])[axis]
    return f"{_axes(rank, {axis: f'(x:{half} + x:{half})'})} -> {_axes(rank, {axis: 'x'})}"


@rule("unbind")
def unbind(op: Op) -> str:
    """(x) -> pieces, ``axis``."""
    left, _, right = select(op).partition("->")
    return f"{left} -> {', '.join([right] * len(op.outputs))}"


@rule("stack")
def stack(op: Op) -> str:
    """(x, ...), ``axis``: the new axis tells the pieces apart."""
    rank = _rank(op.outputs[0])
    axis = op.attrs["axis"] % rank
    names = _axes(rank, {axis: "_"}).split()
    return f"{', '.join([' '.join(names[:axis] + names[axis + 1 :])] * len(op.inputs))} -> {' '.join(names)}"


@rule("pad")
def pad(op: Op) -> str:
    """(x), ``pads`` [before, after] per axis, ``mode``: padding makes channels that hold a constant."""
    rank, pads = _rank(op.inputs[0]), op.attrs["pads"]
    ins: dict[int, str] = {}
    outs: dict[int, str] = {}
    literal = []
    for axis in range(rank):
        before, after = pads[2 * axis], pads[2 * axis + 1]
        if before == after == 0:
            literal += ["none", "none"]
        elif (
            isinstance(_shape(op.inputs[0])[axis], str)
            or op.attrs.get("mode", "constant") != "constant"
            or min(before, after) < 0
        ):
            ins[axis] = outs[axis] = "_"
            literal += ["none", "none"]
        else:
            ins[axis] = f"x{axis}"
            parts = [(f"l{axis}", before), (f"x{axis}", _shape(op.inputs[0])[axis]), (f"r{axis}", after)]
            outs[axis] = _join([f"{name}:{n}" for name, n in parts if n])
            literal += [f"l{axis}" if before else "none", f"r{axis}" if after else "none"]
    return f"{_axes(rank, ins)} -> {_axes(rank, outs)} | pads={','.join(literal)}"


@rule("reshape")
def reshape(op: Op) -> str:
    """(x), ``inferred``: view, flatten, squeeze and kin, from the two shapes alone. ``inferred`` lists the
    output axes of dynamic size that the op works out by itself (-1)."""
    return f"{regroup(_shape(op.inputs[0]), _shape(op.outputs[0]))} | shape=*"


@rule("reshape_as")
def reshape_as(op: Op) -> str:
    """(x, like): a reshape that takes the shape of another tensor, and so follows it."""
    before, _, after = regroup(_shape(op.inputs[0]), _shape(op.outputs[0])).partition("->")
    return f"{before}, {after} -> {after}"


@rule("transpose")
def transpose(op: Op) -> str:
    """(x), ``perm``."""
    rank = _rank(op.inputs[0])
    names = _axes(rank, {}).split()
    return f"{' '.join(names)} -> {' '.join(names[k % rank] for k in op.attrs['perm'])}"


@rule("expand")
def expand(op: Op) -> str:
    """(x): axes of size one, or new ones, are repeated; each is an axis of its own."""
    rank = _rank(op.outputs[0])
    names = _axes(rank, {}).split()
    own = names[rank - _rank(op.inputs[0]) :]
    grown = zip(own, _shape(op.inputs[0]), strict=True)
    return f"{' '.join('1' if n == 1 else name for name, n in grown)} -> {' '.join(names)} | shape=*"


@rule("repeat")
def repeat(op: Op) -> str:
    """(x), ``repeats`` per output axis: copies one after the other."""
    rank = _rank(op.outputs[0])
    names = _axes(rank, {}).split()
    lead = rank - _rank(op.inputs[0])
    outs = []
    for k, (name, times) in enumerate(zip(names, op.attrs["repeats"], strict=True)):
        if times == 1:
            outs.append(name if k >= lead else "1")
        elif k < lead or _shape(op.inputs[0])[k - lead] == 1 or isinstance(times, str):
            outs.append("_")
        else:
            outs.append(f"(_:{times} {name}:{_shape(op.inputs[0])[k - lead]})")
    ins = ["1" if n == 1 else name for name, n in zip(names[lead:], _shape(op.inputs[0]), strict=True)]
    return f"{' '.join(ins)} -> {' '.join(outs)}"


@rule("interleave")
def interleave(op: Op) -> str:
    """(x), ``axis``, ``times``: every position of an axis several times in a row."""
    rank, times = _rank(op.inputs[0]), op.attrs["times"]
    axis = op.attrs["axis"] % rank
    size = _shape(op.inputs[0])[axis]
    if size == 1 or isinstance(size, str):
        return f"{_axes(rank, {axis: '1' if size == 1 else '_'})} -> {_axes(rank, {axis: '_'})}"
    return f"{_axes(rank, {axis: 'x'})} -> {_axes(rank, {axis: f'(x:{size} _:{times})'})}"


@rule("windows")
def windows(op: Op) -> str:
    """(x), ``axis``: sliding windows along one axis, laid out along a new last one."""
    rank = _rank(op.inputs[0])
    axes = _axes(rank, {op.attrs["axis"] % rank: "_"})
    return f"{axes} -> {axes} _"


@rule("unfold")
def unfold(op: Op) -> str:
    """(x), ``taps``: image patches as columns; every channel becomes one per tap."""
    return f"n c _ _ -> n (c _:{op.attrs['taps']}) _"


@rule("fold")
def fold(op: Op) -> str:
    """(x), ``taps``: the inverse, overlapping patches summed."""
    return f"n (c _:{op.attrs['taps']}) _ -> n c _ _"


@rule("pool")
def pool(op: Op) -> str:
    """(x), ``spatial``: windows over the last axes (pooling, resizing)."""
    rank, spatial = _rank(op.inputs[0]), op.attrs["spatial"]
    axes = _axes(rank, dict.fromkeys(range(rank - spatial, rank), "_"))
    return f"{axes} -> {', '.join([axes] * len(op.outputs))}"


@rule("resize")
def resize(op: Op) -> str:
    """(x), ``spatial``: as pool, but the size of the result may be written down."""
    return f"{pool(op)} | shape=*"


@rule("reduce")
def reduce(op: Op) -> str:
    """(x), ``axes`` (empty: all), ``keepdim``."""
    rank = _rank(op.inputs[0])
    gone = {axis % rank for axis in op.attrs["axes"]} or set(range(rank))
    names = _axes(rank, {axis: f"r{axis}" for axis in gone}).split()
    outs = [("1" if op.attrs.get("keepdim") else "") if k in gone else name for k, name in enumerate(names)]
    return f"{' '.join(names)} -> {', '.join([' '.join(outs)] * len(op.outputs))}"


@rule("along")
def along(op: Op) -> str:
    """(x), ``axes``: softmax, cumulative sums, flips, sorts: positions along ``axes`` interact."""
    rank = _rank(op.inputs[0])
    axes = _axes(rank, {axis % rank: "_" for axis in op.attrs["axes"]})
    return f"{axes} -> {', '.join([axes] * len(op.outputs))}"


@rule("gather")
def gather(op: Op) -> str:
    """(x, ids), ``axis``: rows of a table by number; embeddings are axis 0."""
    rank, ids = _rank(op.inputs[0]), _rank(op.inputs[1])
    axis = op.attrs["axis"] % rank
    names = _axes(rank, {axis: "_"}).split()
    out = [*names[:axis], *("i" + _LETTERS[k] for k in range(ids)), *names[axis + 1 :]]
    picks = " ".join("i" + _LETTERS[k] for k in range(ids))
    return f"{' '.join(names)}, {picks} -> {' '.join(out)}"


@rule("take_along")
def take_along(op: Op) -> str:
    """(x, ids), ``axis``: one position of ``axis`` for each place of ``ids``; the other axes go along."""
    rank, sizes = _rank(op.inputs[0]), zip(_shape(op.inputs[0]), _shape(op.inputs[1]), strict=True)
    axis = op.attrs["axis"] % rank
    names = _axes(rank, {k: "_" for k, (x, ids) in enumerate(sizes) if k == axis or x != ids})
    return f"{names}, {names} -> {names}"


@rule("reindex")
def reindex(op: Op) -> str:
    """(x), ``axis``, ``inner``, ``fills``: where one axis may become another that holds some of its
    positions (``fills``: that it is some positions of, the others zero), in runs of ``inner``."""
    rank, axis, inner = _rank(op.inputs[0]), op.attrs["axis"], op.attrs["inner"]
    ins, outs = (f"({name} s:{inner})" if inner > 1 else name for name in "ij")
    return f"{_axes(rank, {axis: ins})} -> {_axes(rank, {axis: outs})}"


@rule("pixel_shuffle")
def pixel_shuffle(op: Op) -> str:
    """(x), ``factor``: c*r*r channels become c, r times as large; ``depth_first``: they are r*r*c."""
    r = op.attrs["factor"]
    channels = f"(_:{r} _:{r} c)" if op.attrs.get("depth_first") else f"(c _:{r} _:{r})"
    return f"... {channels} _ _ -> ... c _ _"


@rule("pixel_unshuffle")
def pixel_unshuffle(op: Op) -> str:
    """(x), ``factor``, ``depth_first``: the inverse."""
    r = op.attrs["factor"]
    channels = f"(_:{r} _:{r} c)" if op.attrs.get("depth_first") else f"(c _:{r} _:{r})"
    return f"... c _ _ -> ... {channels} _ _"


# ---- helpers of the table ------------------------------------------------------------------------


def _shape(value: Value | None) -> tuple[Size, ...]:
    assert value is not None and value.shape is not None
    return value.shape


def _rank(value: Value | None) -> int:
    return len(_shape(value))


def _static(values: Sequence[Value | None], axis: int) -> bool:
    return all(isinstance(_shape(value)[axis], int) for value in values)


def _batch(op: Op) -> str:
    """A convolution's input may come without a batch axis."""
    return "n" if _rank(op.inputs[0]) == _rank(op.inputs[1]) else ""


def _axes(rank: int, special: Mapping[int, str]) -> str:
    return " ".join(special.get(k, f"a{k}") for k in range(rank))


def _because(op: Op, axes: Sequence[Dim]) -> None:
    """Freeze axes for a reason that the host gives (``why``)."""
    for axis in axes:
        freeze(axis, f"{op.origin or op.name}: {op.attrs['why']}")


def _per_channel(value: Value | None, channels: str) -> str:
    """An operand that holds one number for all, or one per channel."""
    return "_" if value is None else "" if not _rank(value) else "1" if _shape(value) == (1,) else channels


def _quantised(op: Op) -> str:
    """(x, scale, zero point) of a (de)quantisation along ``axis``, in blocks of ``block`` or singly."""
    x, block = _shape(op.inputs[0]), op.attrs.get("block")
    axis = op.attrs["axis"] % max(len(x), 1)
    small = _axes(len(x), {})
    large = _axes(len(x), {axis: f"(a{axis} _:{block})"}) if block else small
    rest = [small if block else _per_channel(value, f"a{axis}") for value in op.inputs[1:]]
    return f"{', '.join([large, *rest])} -> {large}"


def _join(parts: Sequence[str]) -> str:
    return f"({' + '.join(parts)})" if len(parts) > 1 else parts[0].partition(":")[0]

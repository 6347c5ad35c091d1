"""Rules of ops that move data: cut, join, turn, repeat, and see it in another shape."""

from __future__ import annotations

from collections.abc import Sequence

from ..axes.reshape import regroup
from ..ir.graph import Op, Value
from .registry import rule
from .wording import all_static, axes_of, joined, rank_of, shape_of


@rule("concat")
def concat(op: Op) -> str:
    """(x, ...), ``axis``."""
    rank = rank_of(op.outputs[0])
    axis = op.attrs["axis"] % rank
    parts = [f"x{k}:{shape_of(value)[axis]}" for k, value in enumerate(op.inputs)]
    if not all_static(op.inputs, axis):
        return f"{', '.join([axes_of(rank, {axis: '_'})] * len(op.inputs))} -> {axes_of(rank, {axis: '_'})}"
    ins = [axes_of(rank, {axis: f"x{k}"}) for k in range(len(op.inputs))]
    return f"{', '.join(ins)} -> {axes_of(rank, {axis: joined(parts)})}"


@rule("if")
def if_(op: Op) -> str:
    """(condition, or None for one of sizes, what one branch gives ..., what the other gives ...) -> what the chosen one
    gives. An axis is one where both branches have it in one size."""
    each = (len(op.inputs) - 1) // 2
    terms = []
    for k in range(each):
        one, other = shape_of(op.inputs[1 + k]), shape_of(op.inputs[1 + each + k])
        terms.append(" ".join(f"x{k}a{axis}" if n == other[axis] else "_" for axis, n in enumerate(one)))
    condition = "" if op.inputs[0] is None else axes_of(rank_of(op.inputs[0]), {0: "_"})
    given = ", ".join([condition, *terms, *terms])
    return f"{given} -> {', '.join(terms)}"


@rule("loop_enter")
def loop_enter(op: Op) -> str:
    """(controls ..., initial states ..., sequences ...) -> what one iteration of a loop is given: (controls ...,
    states ..., a step of each sequence). How many ``controls`` there are; ``axes``: along which axis of each sequence
    its steps are."""
    controls, axes = op.attrs["controls"], op.attrs["axes"]
    outs = _states(op.outputs[controls:])
    given = outs[: len(outs) - len(axes)]
    steps = [_sequence(outs[len(given) + k], axis) for k, axis in enumerate(axes)]
    return f"{', '.join(['~'] * controls + given + steps)} -> {', '.join(['~'] * controls + outs)}"


@rule("loop_exit")
def loop_exit(op: Op) -> str:
    """(controls ..., the states that an iteration is given ..., those that it hands on ..., what it adds to sequences
    ...) -> (last states ..., sequences ...). How many ``controls`` and ``states`` there are; ``axes``: along which
    axis of each sequence its steps are; ``outputs``: which results there are."""
    controls, many = op.attrs["controls"], op.attrs["states"]
    made = _states(op.inputs[controls + many :])
    outs = made[:many] + [_sequence(made[many + k], axis) for k, axis in enumerate(op.attrs["axes"])]
    ins = ["~"] * controls + made[:many] + made
    return f"{', '.join(ins)} -> {', '.join(outs[k] for k in op.attrs['outputs'])}"


def _states(values: Sequence[Value | None]) -> list[str]:
    return [" ".join(f"x{k}a{axis}" for axis in range(rank_of(value))) for k, value in enumerate(values)]


def _sequence(step: str, axis: int) -> str:
    names = step.split()
    names.insert(axis % (len(names) + 1), "_")
    return " ".join(names)


@rule("split")
def split(op: Op) -> str:
    """(x) -> pieces, ``axis``."""
    rank = rank_of(op.inputs[0])
    axis = op.attrs["axis"] % rank
    parts = [f"x{k}:{shape_of(value)[axis]}" for k, value in enumerate(op.outputs)]
    if not all_static(op.outputs, axis):
        return f"{axes_of(rank, {axis: '_'})} -> {', '.join([axes_of(rank, {axis: '_'})] * len(op.outputs))}"
    outs = [axes_of(rank, {axis: f"x{k}"}) for k in range(len(op.outputs))]
    sizes = ",".join(f"x{k}" for k in range(len(op.outputs)))
    return f"{axes_of(rank, {axis: joined(parts)})} -> {', '.join(outs)} | sizes={sizes}"


@rule("slice")
def slice_(op: Op) -> str:
    """(x), ``axes``, ``starts``, ``ends``, ``steps``: a split of which one piece is taken."""
    rank, shape = rank_of(op.inputs[0]), shape_of(op.inputs[0])
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
            ins[axis] = joined([f"{name}:{n}" for name, n in parts if n])
            outs[axis] = body
            starts[-1] = head if begin else "0"
            ends[-1] = f"{head}+{body}" if begin else body
            dropped += [name for name, n in (parts[0], parts[2]) if n]
    extra = "".join(f", {name}" for name in dropped)  # pieces nobody takes
    text = f"{axes_of(rank, ins)} -> {axes_of(rank, outs)}{extra}"
    return f"{text} | starts={','.join(starts)} ends={','.join(ends)}" if dropped else text


@rule("select")
def select(op: Op) -> str:
    """(x), ``axis``, ``index``: one position of an axis, which goes away."""
    rank = rank_of(op.inputs[0])
    axis = op.attrs["axis"] % rank
    names = axes_of(rank, {axis: "_"}).split()
    return f"{' '.join(names)} -> {' '.join(names[:axis] + names[axis + 1 :])}"


@rule("unbind")
def unbind(op: Op) -> str:
    """(x) -> pieces, ``axis``."""
    left, _, right = select(op).partition("->")
    return f"{left} -> {', '.join([right] * len(op.outputs))}"


@rule("stack")
def stack(op: Op) -> str:
    """(x, ...), ``axis``: the new axis tells the pieces apart."""
    rank = rank_of(op.outputs[0])
    axis = op.attrs["axis"] % rank
    names = axes_of(rank, {axis: "_"}).split()
    return f"{', '.join([' '.join(names[:axis] + names[axis + 1 :])] * len(op.inputs))} -> {' '.join(names)}"


@rule("pad")
def pad(op: Op) -> str:
    """(x), ``pads`` [before, after] per axis, ``mode``: padding makes channels that hold a constant."""
    rank, pads = rank_of(op.inputs[0]), op.attrs["pads"]
    ins: dict[int, str] = {}
    outs: dict[int, str] = {}
    literal = []
    for axis in range(rank):
        before, after = pads[2 * axis], pads[2 * axis + 1]
        if before == after == 0:
            literal += ["none", "none"]
        elif (
            isinstance(shape_of(op.inputs[0])[axis], str)
            or op.attrs.get("mode", "constant") != "constant"
            or min(before, after) < 0
        ):
            ins[axis] = outs[axis] = "_"
            literal += ["none", "none"]
        else:
            ins[axis] = f"x{axis}"
            parts = [(f"l{axis}", before), (f"x{axis}", shape_of(op.inputs[0])[axis]), (f"r{axis}", after)]
            outs[axis] = joined([f"{name}:{n}" for name, n in parts if n])
            literal += [f"l{axis}" if before else "none", f"r{axis}" if after else "none"]
    return f"{axes_of(rank, ins)} -> {axes_of(rank, outs)} | pads={','.join(literal)}"


@rule("reshape")
def reshape(op: Op) -> str:
    """(x), ``inferred``: view, flatten, squeeze and kin, from the two shapes alone. ``inferred`` lists the
    output axes of dynamic size that the op works out by itself (-1)."""
    return f"{regroup(shape_of(op.inputs[0]), shape_of(op.outputs[0]))} | shape=*"


@rule("reshape_as")
def reshape_as(op: Op) -> str:
    """(x, like): a reshape that takes the shape of another tensor, and so follows it."""
    before, _, after = regroup(shape_of(op.inputs[0]), shape_of(op.outputs[0])).partition("->")
    return f"{before}, {after} -> {after}"


@rule("transpose")
def transpose(op: Op) -> str:
    """(x), ``perm``."""
    rank = rank_of(op.inputs[0])
    names = axes_of(rank, {}).split()
    return f"{' '.join(names)} -> {' '.join(names[k % rank] for k in op.attrs['perm'])}"


@rule("expand")
def expand(op: Op) -> str:
    """(x): axes of size one, or new ones, are repeated; each is an axis of its own."""
    rank = rank_of(op.outputs[0])
    names = axes_of(rank, {}).split()
    own = names[rank - rank_of(op.inputs[0]) :]
    grown = zip(own, shape_of(op.inputs[0]), strict=True)
    return f"{' '.join('1' if n == 1 else name for name, n in grown)} -> {' '.join(names)} | shape=*"


@rule("repeat")
def repeat(op: Op) -> str:
    """(x), ``repeats`` per output axis: copies one after the other."""
    rank = rank_of(op.outputs[0])
    names = axes_of(rank, {}).split()
    lead = rank - rank_of(op.inputs[0])
    outs = []
    for k, (name, times) in enumerate(zip(names, op.attrs["repeats"], strict=True)):
        if times == 1:
            outs.append(name if k >= lead else "1")
        elif k < lead or shape_of(op.inputs[0])[k - lead] == 1 or isinstance(times, str):
            outs.append("_")
        else:
            outs.append(f"(_:{times} {name}:{shape_of(op.inputs[0])[k - lead]})")
    ins = ["1" if n == 1 else name for name, n in zip(names[lead:], shape_of(op.inputs[0]), strict=True)]
    return f"{' '.join(ins)} -> {' '.join(outs)}"


@rule("interleave")
def interleave(op: Op) -> str:
    """(x, numbers?), ``axis``, ``times`` (None: the numbers, one a position): every position of an axis several times
    in a row."""
    rank, times = rank_of(op.inputs[0]), op.attrs["times"]
    axis = op.attrs["axis"] % rank
    size = shape_of(op.inputs[0])[axis]
    if times is None or isinstance(size, str) or size == 1:
        numbers = "".join(f", {' '.join('_' * rank_of(value))}" for value in op.inputs[1:])
        return f"{axes_of(rank, {axis: '1' if size == 1 else '_'})}{numbers} -> {axes_of(rank, {axis: '_'})}"
    return f"{axes_of(rank, {axis: 'x'})} -> {axes_of(rank, {axis: f'(x:{size} _:{times})'})} | shape=*"


@rule("windows")
def windows(op: Op) -> str:
    """(x), ``axis``: sliding windows along one axis, laid out along a new last one."""
    rank = rank_of(op.inputs[0])
    axes = axes_of(rank, {op.attrs["axis"] % rank: "_"})
    return f"{axes} -> {axes} _"


@rule("unfold")
def unfold(op: Op) -> str:
    """(x), ``taps``: image patches as columns; every channel becomes one per tap."""
    return f"n c _ _ -> n (c _:{op.attrs['taps']}) _"


@rule("fold")
def fold(op: Op) -> str:
    """(x), ``taps``: the inverse, overlapping patches summed."""
    return f"n (c _:{op.attrs['taps']}) _ -> n c _ _"


@rule("reindex")
def reindex(op: Op) -> str:
    """(x), ``axis``, ``inner``, ``fills``: where one axis may become another that holds some of its
    positions (``fills``: that it is some positions of, the others zero), in runs of ``inner``."""
    rank, axis, inner = rank_of(op.inputs[0]), op.attrs["axis"], op.attrs["inner"]
    ins, outs = (f"({name} s:{inner})" if inner > 1 else name for name in "ij")
    return f"{axes_of(rank, {axis: ins})} -> {axes_of(rank, {axis: outs})}"


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

"""Rules of ops that read or write positions by number, or by where a mask says."""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.graph import Op, Value
from .registry import rule
from .wording import LETTERS, axes_of, picks, rank_of, shape_of

rule("gather_bags", axes="_ d, ~, ~, ~ -> _ d")


@rule("gather")
def gather(op: Op) -> str:
    """(x, ids), ``axis``: rows of a table by number; embeddings are axis 0. Here and in the rules below, an axis that
    the numbers are known to be positions of can be cut: only what is left of it is picked."""
    rank, ids = rank_of(op.inputs[0]), rank_of(op.inputs[1])
    axis = op.attrs["axis"] % rank
    known = picks(op.inputs[1], shape_of(op.inputs[0])[axis])
    names = axes_of(rank, {axis: "e" if known else "_"}).split()
    out = [*names[:axis], *("i" + LETTERS[k] for k in range(ids)), *names[axis + 1 :]]
    places = " ".join("i" + LETTERS[k] for k in range(ids))
    return f"{' '.join(names)}, {places}{' @e' * known} -> {' '.join(out)}"


@rule("take_along")
def take_along(op: Op) -> str:
    """(x, ids), ``axis``: one position of ``axis`` for each place of ``ids``; the other axes go along."""
    names, whole, mark = _along_picked(op, op.inputs[:2])
    return f"{whole}, {names}{mark} -> {names}"


@rule("scatter")
def scatter(op: Op) -> str:
    """(x, ids, source), ``axis``: x with entries of source, or a number where there is none, written or added
    to one position of ``axis`` for each place of ``ids``; the other axes go along where they are as long."""
    there = [value for value in op.inputs if value is not None]
    names, whole, mark = _along_picked(op, there)
    return f"{', '.join([whole, f'{names}{mark}', names][: len(there)])} -> {whole}"


@rule("index")
def index(op: Op) -> str:
    """(x, ids...), ``axes``: positions of a tensor by number, as numpy does it: the first of its axes that each
    of ``ids`` picks from. A mask picks from as many as it has. ``shared``: how many first axes ids and x have in
    common."""
    names, at, made = _picked(op, op.inputs[0], op.inputs[1:])
    extra = rank_of(op.outputs[0]) - len(names) + len(made)
    left = [name for k, name in enumerate(names) if k not in made]
    shared = op.attrs.get("shared", 0)
    ids = [" ".join([*names[:shared], *"_" * (rank_of(value) - shared)]) for value in op.inputs[1:]]
    whole = list(names)
    for k, (value, axis) in enumerate(zip(op.inputs[1:], made, strict=False)):
        if len(made) == len(op.inputs) - 1 and picks(value, shape_of(op.inputs[0])[axis]):
            whole[axis], ids[k] = f"e{k}", f"{ids[k]} @e{k}"
    return f"{', '.join([' '.join(whole), *ids])} -> {' '.join([*left[:at], *['_'] * extra, *left[at:]])}"


@rule("index_put")
def index_put(op: Op) -> str:
    """(x, values, ids...), ``axes``: x with ``values``, broadcast, written or added where ``index`` would read."""
    names, at, made = _picked(op, op.inputs[0], op.inputs[2:])
    left = [name for k, name in enumerate(names) if k not in made]
    extra = max(1 if value is not None and value.dtype == "bool" else rank_of(value) for value in op.inputs[2:])
    values = _broadcast([*left[:at], *["_"] * extra, *left[at:]], shape_of(op.inputs[1]))
    ids = [" ".join("_" * rank_of(value)) for value in op.inputs[2:]]
    return f"{', '.join([' '.join(names), ' '.join(values), *ids])} -> {' '.join(names)}"


@rule("put_along")
def put_along(op: Op) -> str:
    """(x, ids, source), ``axis``: x with slices of source (or a number) in the places of ``axis`` that ``ids``
    (or where there are none, the op) name; source lacks the axis where it is one slice."""
    rank, (_, ids, source) = rank_of(op.inputs[0]), op.inputs
    axis = op.attrs["axis"] % rank
    names = axes_of(rank, {axis: "_"}).split()
    one = source is not None and rank_of(source) < rank
    pieces = [*names[:axis], *names[axis + 1 :]] if one else names
    given = "~" if source is None else " ".join(_broadcast(pieces, shape_of(source)))
    return f"{' '.join(names)}, {'~' if ids is None else '_' * rank_of(ids)}, {given} -> {' '.join(names)}"


@rule("diagonal")
def diagonal(op: Op) -> str:
    """(x), ``axes``: two axes where they are equal, laid out along a new last one."""
    names, rest = _two(op)
    return f"{names} -> {rest} _"


@rule("put_diagonal")
def put_diagonal(op: Op) -> str:
    """(x, source), ``axes``: the inverse, into x."""
    names, rest = _two(op)
    return f"{names}, {rest} _ -> {names}"


@rule("masked_scatter")
def masked_scatter(op: Op) -> str:
    """(x, mask, source), ``rows``: entries of source, one after the other, where the mask says; along so many
    trailing axes the mask is the same everywhere, so that source is read row by row."""
    rank, rows = rank_of(op.inputs[0]), op.attrs["rows"]
    row = shape_of(op.inputs[0])[rank - rows :]
    if rank_of(op.inputs[2]) <= rows or shape_of(op.inputs[2])[-rows:] != row or not rows:
        return f"{' '.join('_' * rank)}, ~, ~ -> {' '.join('_' * rank)}"
    tail = " ".join(LETTERS[:rows])
    mask = " ".join(_broadcast(LETTERS[:rows], shape_of(op.inputs[1])[-rows:]))
    whole = " ".join(["_"] * (rank - rows) + [tail])
    return f"{whole}, ~ {mask}, ~ {tail} -> {whole}"


@rule("topk")
def topk(op: Op) -> str:
    """(x) -> the ``best`` largest along ``axis``, and their positions; where it gives one of both, ``values`` or those.
    ``keepdim``: of one the axis stays, with size one."""
    rank = rank_of(op.inputs[0])
    axis = op.attrs["axis"] % rank
    names = axes_of(rank, {axis: "_" if op.attrs.get("keepdim", True) else ""})
    both = len(op.outputs) == 2
    made = [names] * (both or op.attrs.get("values", False)) + [f"{names} @e"] * (both or not op.attrs.get("values"))
    return f"{axes_of(rank, {axis: 'e'})} -> {', '.join(made)}"


@rule("sort")
def sort(op: Op) -> str:
    """(x) -> x in order along ``axes``, and where each was."""
    names = axes_of(rank_of(op.inputs[0]), {axis % max(rank_of(op.inputs[0]), 1): "_" for axis in op.attrs["axes"]})
    return f"{names} -> {', '.join([names] * len(op.outputs))}"


@rule("one_hot")
def one_hot(op: Op) -> str:
    """(ids), ``axis``: a new axis that has a one where the number is, zeros elsewhere."""
    rank = rank_of(op.outputs[0])
    axis = op.attrs["axis"] % rank
    known = picks(op.inputs[0], shape_of(op.outputs[0])[axis])
    names = axes_of(rank, {axis: "e" if known else "_"}).split()
    return f"{' '.join(names[:axis] + names[axis + 1 :])}{' @e' * known} -> {' '.join(names)} | size=e"


@rule("count")
def count(op: Op) -> str:
    """(ids), ``bins``: how often every number from 0 on is there, where numbers of one axis are counted; ``exact``:
    nothing else is."""
    if op.attrs["exact"] and picks(op.inputs[0], op.attrs["bins"]):
        return "~ @e -> e | bins=e"
    return "~ -> ~"


@rule("nonzero", "masked_select", "unique")
def positions(op: Op) -> str:
    """Any operands: what comes out is as long as data says, and its order is that of positions."""
    return f"{', '.join(['~'] * len(op.inputs))} -> {', '.join(['~'] * len(op.outputs))}"


def _alike(values: Sequence[Value | None], axis: int) -> str:
    """Axes of tensors of one rank: those that are as long in all of them have a name, but ``axis``."""
    sizes = list(zip(*map(shape_of, values), strict=True))
    rank = len(sizes)
    return axes_of(rank, {k: "_" for k, each in enumerate(sizes) if k == axis % rank or len(set(each)) > 1})


def _along_picked(op: Op, there: Sequence[Value | None]) -> tuple[str, str, str]:
    """The axes of the numbers along an axis of x, those of x, and what marks numbers that are positions of it."""
    names = _alike(there, op.attrs["axis"]).split()
    axis = op.attrs["axis"] % len(names)
    known = picks(there[1], shape_of(there[0])[axis]) if len(there) > 1 else False
    whole = [*names[:axis], "e" if known else "_", *names[axis + 1 :]]
    return " ".join(names), " ".join(whole), " @e" * known


def _picked(op: Op, x: Value | None, ids: Sequence[Value | None]) -> tuple[list[str], int, list[int]]:
    """The axes of x, where among those that stay the picked ones go, and which are picked."""
    wide = [rank_of(value) if value is not None and value.dtype == "bool" else 1 for value in ids]
    if len(ids) == 1 and wide == [1]:  # whose last axis may hold a number for each of several
        made = list(op.attrs["axes"])
    else:
        made = [first + k for first, n in zip(op.attrs["axes"], wide, strict=True) for k in range(n)]
    together = made == list(range(made[0], made[-1] + 1))
    return axes_of(rank_of(x), dict.fromkeys(made, "_")).split(), made[0] if together else 0, made


def _broadcast(names: Sequence[str], shape: Sequence[object]) -> list[str]:
    """The last of the names, for a tensor that is broadcast to them."""
    return ["1" if n == 1 else name for name, n in zip(names[len(names) - len(shape) :], shape, strict=True)]


def _two(op: Op) -> tuple[str, str]:
    rank = rank_of(op.inputs[0])
    axes = [axis % rank for axis in op.attrs["axes"]]
    names = axes_of(rank, dict.fromkeys(axes, "_")).split()
    return " ".join(names), " ".join(name for k, name in enumerate(names) if k not in axes)

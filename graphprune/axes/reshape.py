"""Row-major views: the rule of a reshape, from its two shapes alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .dim import Size

Monomial = tuple[int, tuple[str, ...]]


def regroup(before: Sequence[Size], after: Sequence[Size]) -> str:
    """The axes part of a rule: ``regroup((2, 12), (2, 3, 4))`` is ``a0 (a1:3 a2:4) -> a0 a1 a2``.

    Axes are matched in the smallest blocks of equal volume; a block that does not factor is frozen.
    """
    names = (f"a{k}" for k in range(1000))
    ins: list[str] = []
    outs: list[str] = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and before[i] == 1:
            ins.append("1")
            i += 1
        elif j < len(after) and after[j] == 1:
            outs.append("1")
            j += 1
        else:
            left, right = _block(before[i:], after[j:])
            i, j = i + len(left), j + len(right)
            a, b = _terms(left, right, names)
            ins += a
            outs += b
    return f"{' '.join(ins)} -> {' '.join(outs)}"


def monomial(sizes: Sequence[Size]) -> Monomial:
    """A product of sizes as a coefficient and its sorted dynamic symbols."""
    coefficient, symbols = 1, []
    for size in sizes:
        for part in [size] if _opaque(size) else str(size).split("*"):
            if str(part).isdigit():
                coefficient *= int(part)
            else:
                symbols.append(str(part))
    return coefficient, tuple(sorted(symbols))


def _opaque(size: Size) -> bool:
    return isinstance(size, str) and re.fullmatch(r"\w+(\*\w+)*", size) is None


def _block(xs: Sequence[Size], ys: Sequence[Size]) -> tuple[Sequence[Size], Sequence[Size]]:
    """The shortest heads of equal volume; where none are known to be, everything but the tails that are."""
    if (heads := _heads(xs, ys)) is not None:
        return xs[: heads[0]], ys[: heads[1]]
    while (tails := _heads(xs[::-1], ys[::-1])) is not None:
        xs, ys = xs[: -tails[0]], ys[: -tails[1]]
    return xs, ys


def _heads(xs: Sequence[Size], ys: Sequence[Size]) -> tuple[int, int] | None:
    """How many sizes the shortest heads of equal volume have."""
    i, j = min(1, len(xs)), min(1, len(ys))
    while (left := monomial(xs[:i])) != (right := monomial(ys[:j])):
        (a, sa), (b, sb) = left, right
        if i < len(xs) and (j == len(ys) or (len(sa), a) <= (len(sb), b)):
            i += 1
        elif j < len(ys):
            j += 1
        else:
            return None
    return i, j


def _terms(left: Sequence[Size], right: Sequence[Size], names: Iterator[str]) -> tuple[list[str], list[str]]:
    """One block: both sides in terms of the same factors, or frozen."""
    if len(left) == len(right) == 1 and left == right:
        name = next(names)
        return [name], [name]
    factors = None if any(map(_opaque, (*left, *right))) else _common(left, right)
    if factors is None:
        return ["_"] * len(left), ["_"] * len(right)
    named = [(next(names), size) for size in factors]
    return _spell(left, named), _spell(right, named)


def _common(left: Sequence[Size], right: Sequence[Size]) -> list[Size] | None:
    """The common refinement of two factorisations of one number, or None."""
    xs, ys, out = list(left), list(right), []
    while xs and ys:
        x, y = xs.pop(), ys.pop()
        if (rest := divide(x, y)) is not None:
            out.append(y)
            xs += [rest] if rest != 1 else []
        elif (rest := divide(y, x)) is not None:
            out.append(x)
            ys.append(rest)
        else:
            return None
    return out[::-1] if all(n == 1 for n in xs + ys) else None


def divide(size: Size, by: Size) -> Size | None:
    """``size / by`` where that is a size, else None."""
    (a, symbols), (b, gone) = monomial([size]), monomial([by])
    left = list(symbols)
    for symbol in gone:
        if symbol not in left:
            return None
        left.remove(symbol)
    if a % b:
        return None
    if not left:
        return a // b
    return "*".join([*([str(a // b)] if a != b else []), *left])


def _spell(sizes: Sequence[Size], factors: Sequence[tuple[str, Size]]) -> list[str]:
    """Cut a run of factors into one term per axis."""
    out, rest = [], list(factors)
    for size in sizes:
        taken: list[tuple[str, Size]] = []
        while monomial([n for _, n in taken]) != monomial([size]):
            taken.append(rest.pop(0))
        named = " ".join(f"{name}:{n}" for name, n in taken)
        out.append(taken[0][0] if len(taken) == 1 else f"({named})" if taken else "1")
    return out

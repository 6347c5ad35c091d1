"""One tensor axis up to equality: leaves, products and sums of them, tied together by union-find."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TypeVar

from ..errors import ShapeError

Size = int | str
"""A static size, or the symbol of a dynamic one (``s0``, ``64*s0``)."""

T = TypeVar("T")

LEAF, PRODUCT, SUM = "leaf", "product", "sum"


class Dim:
    """One axis. Compare with ``find(a) is find(b)``; never by value."""

    __slots__ = ("_firm", "_frozen", "_link", "_mixed", "kids", "kind", "size")

    def __init__(self, size: Size, kind: str = LEAF, kids: Sequence[Dim] = ()) -> None:
        self.size = size
        self.kind = kind
        self.kids = list(kids)
        self._link: Dim | None = None
        self._frozen: str | None = None
        self._firm = False
        self._mixed: str | None = None

    def __repr__(self) -> str:
        dim = find(self)
        if dim.kind == LEAF:
            return f"{dim.size}!" if dim.frozen else str(dim.size)
        return f"({(' * ' if dim.kind == PRODUCT else ' + ').join(map(repr, _flat(dim.kids, dim.kind)))})"

    @property
    def frozen(self) -> str | None:
        """Why this leaf may not be pruned, or None."""
        dim = find(self)
        return dim._frozen or (f"dynamic size {dim.size}" if isinstance(dim.size, str) else None)

    @property
    def outside(self) -> bool:
        """Whether this leaf is frozen for no other reason than that inputs or outputs of the graph have it."""
        dim = find(self)
        return dim._frozen is not None and not dim._firm and isinstance(dim.size, int)

    @property
    def mixed(self) -> str | None:
        """The op that normalises across this leaf (LayerNorm, GroupNorm), or None."""
        return find(self)._mixed


def symbols(size: Size) -> list[str]:
    """The names of the open sizes that a size is made of."""
    return re.findall(r"[A-Za-z_]\w*", size) if isinstance(size, str) else []


def find(dim: Dim) -> Dim:
    """The representative of ``dim``'s class, halving the path on the way."""
    while dim._link is not None:
        if dim._link._link is not None:
            dim._link = dim._link._link
        dim = dim._link
    return dim


def product(kids: Sequence[Dim]) -> Dim:
    """The row-major product of ``kids``; factors of size one vanish."""
    kids = [kid for kid in kids if find(kid).size != 1]
    if len(kids) == 1:
        return kids[0]
    sizes = [find(kid).size for kid in kids]
    if not all(isinstance(size, int) for size in sizes):
        return Dim(_spelled(sizes), PRODUCT, kids)
    return Dim(prod(size for size in sizes if isinstance(size, int)), PRODUCT if kids else LEAF, kids)


def _spelled(sizes: Sequence[Size]) -> str:
    """A dynamic product as hosts spell it: ``4*s0*s1``, so that equal sizes are equal strings."""
    parts = [part for size in sizes for part in str(size).split("*")]
    factor = prod(int(part) for part in parts if part.isdigit())
    return "*".join([*([str(factor)] if factor != 1 else []), *sorted(part for part in parts if not part.isdigit())])


def total(kids: Sequence[Dim]) -> Dim:
    """The concatenation of ``kids``."""
    if len(kids) == 1:
        return kids[0]
    sizes = [find(kid).size for kid in kids]
    if not all(isinstance(size, int) for size in sizes):
        return Dim(" + ".join(map(str, sizes)), SUM, kids)
    return Dim(sum(size for size in sizes if isinstance(size, int)), SUM, kids)


def terms(dim: Dim) -> list[Dim]:
    """The parts of a concatenation, in order; any other axis is one part."""
    return _terms([dim])


def factors(dim: Dim) -> list[Dim]:
    """The parts of a row-major product, in order, but those of size one; any other axis is one part."""
    return _factors([dim])


def leaves(dim: Dim) -> Iterator[Dim]:
    """The distinct leaves of ``dim``, in order of first appearance."""
    seen: set[int] = set()
    stack = [dim]
    while stack:
        node = find(stack.pop())
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.kind == LEAF:
            yield node
        stack.extend(reversed(node.kids))


def freeze(dim: Dim, reason: str, *, outside: bool = False) -> None:
    """Nothing of ``dim`` may be pruned; the first reason given is kept. ``outside``: it could be, if whoever
    calls the graph agreed."""
    for leaf in leaves(dim):
        leaf._frozen = leaf._frozen or reason
        leaf._firm |= not outside


def mix(dim: Dim, reason: str) -> None:
    """An op normalises across ``dim``: pruning it is not the same as masking it."""
    for leaf in leaves(dim):
        leaf._mixed = leaf._mixed or reason


def same(a: Dim, b: Dim, where: str) -> None:
    """``a`` and ``b`` are one axis from now on.

    Raises ShapeError naming ``where`` if their static sizes differ.
    """
    a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        if isinstance(a.size, int) and isinstance(b.size, int):
            raise ShapeError(f"{where}: axes of size {a.size} and {b.size} must be equal")
        # Two spellings of one dynamic size: nothing to compare, and neither side can be pruned.
        freeze(a, f"dynamic size {a.size}")
        freeze(b, f"dynamic size {b.size}")
        return
    if a.kind == LEAF or b.kind == LEAF:
        _absorb(*((b, a) if a.kind == LEAF else (a, b)))
        return
    if a.kind == b.kind == PRODUCT:
        _same_products(a.kids, b.kids, where)
    elif a.kind == b.kind == SUM:
        _same_sums(a.kids, b.kids, where)
    else:
        _distribute(*((a, b) if a.kind == SUM else (b, a)), where)


def _absorb(keeper: Dim, leaf: Dim) -> None:
    if leaf._frozen:
        freeze(keeper, leaf._frozen, outside=not leaf._firm)
    if leaf._mixed:
        mix(keeper, leaf._mixed)
    leaf._link = keeper


def _split(leaf: Dim, kind: str, sizes: Sequence[int]) -> list[Dim]:
    """Refine a leaf in place into a product or sum of new leaves."""
    kids = [Dim(size) for size in sizes]
    for kid in kids:
        kid._frozen, kid._firm, kid._mixed = leaf._frozen, leaf._firm, leaf._mixed
    leaf.kind, leaf.kids = kind, kids
    return list(kids)


def _factors(kids: Sequence[Dim]) -> list[Dim]:
    return [kid for kid in _flat(kids, PRODUCT) if kid.size != 1]


def _terms(kids: Sequence[Dim]) -> list[Dim]:
    return _flat(kids, SUM)


def _flat(kids: Sequence[Dim], kind: str) -> list[Dim]:
    """The parts with those of ``kind`` taken apart, however deep: a thousand concats in a row are one sum."""
    out: list[Dim] = []
    stack = list(kids)[::-1]
    while stack:
        kid = find(stack.pop())
        if kid.kind == kind:
            stack += kid.kids[::-1]
        else:
            out.append(kid)
    return out


def _same_products(first: Sequence[Dim], second: Sequence[Dim], where: str) -> None:
    """Relate two row-major products of equal size, from the fastest-running factor on."""
    xs, ys = _factors(first), _factors(second)
    while xs and ys:
        x, y = find(xs.pop()), find(ys.pop())
        if x.kind == PRODUCT or y.kind == PRODUCT:  # refined meanwhile: it occurs more than once
            xs += _factors([x])
            ys += _factors([y])
        elif x.size == y.size:
            same(x, y, where)
        else:
            big, small, rest = (x, y, xs) if _larger(x, y) else (y, x, ys)
            high = _peel(big, small, where)
            if high is None:
                for dim in (x, y, *xs, *ys):
                    freeze(dim, f"{where}: the view does not factor")
                return
            rest.append(high)


def _larger(x: Dim, y: Dim) -> bool:
    return isinstance(y.size, int) and isinstance(x.size, int) and x.size > y.size


def _peel(big: Dim, small: Dim, where: str) -> Dim | None:
    """Write ``big`` as ``high * small`` and return ``high``; None where it does not factor."""
    step = small.size
    if not isinstance(big.size, int) or not isinstance(step, int) or big.size % step:
        return None
    if big.kind == LEAF:
        high, low = _split(big, PRODUCT, [big.size // step, step])
        same(low, small, where)
        return high
    parts = _terms(big.kids)
    if any(not isinstance(part.size, int) or part.size % step for part in parts):
        return None
    return total([_high_part(part, small, step, where) for part in parts])


def _high_part(part: Dim, small: Dim, step: int, where: str) -> Dim:
    """``part`` is ``high * small``: relate it so and return ``high``."""
    part = find(part)
    assert isinstance(part.size, int)
    high = Dim(part.size // step)
    same(part, product([high, small]), where)
    return high


def _same_sums(first: Sequence[Dim], second: Sequence[Dim], where: str) -> None:
    """Relate two concatenations of equal size, from the first part on."""
    xs, ys = _terms(first)[::-1], _terms(second)[::-1]
    while xs and ys:
        x, y = find(xs.pop()), find(ys.pop())
        if x.kind == SUM or y.kind == SUM:  # refined meanwhile: it occurs more than once
            xs += _terms([x])[::-1]
            ys += _terms([y])[::-1]
        elif x.size == y.size:
            same(x, y, where)
        else:
            big, small, rest = (x, y, xs) if _larger(x, y) else (y, x, ys)
            if not isinstance(big.size, int) or not isinstance(small.size, int):
                for dim in (x, y, *xs, *ys):
                    freeze(dim, f"{where}: parts of dynamic size")
                return
            if big.kind == LEAF:
                head, tail = _split(big, SUM, [small.size, big.size - small.size])
                same(head, small, where)
                rest.append(tail)
            else:  # a product meets a boundary: unroll it into copies of its inner part
                rest += _unroll(big, where)[::-1]
                (ys if big is x else xs).append(small)


def _unroll(dim: Dim, where: str) -> list[Dim]:
    """A product as the sum of ``outer`` copies of its inner part; the outer factor is frozen."""
    outer, *inner = _factors(dim.kids)
    freeze(outer, f"{where}: its parts are told apart by position")
    assert isinstance(outer.size, int)
    if outer.kind == SUM:
        return [product([part, *inner]) for part in _terms(outer.kids)]
    return [product(inner)] * outer.size


def _distribute(parts: Dim, factors: Dim, where: str) -> None:
    """A sum meets a product: ``(a*s + b*s) = (a + b)*s``, or else copies of the inner part."""
    outer, *inner = _factors(factors.kids)
    rest, terms = product(inner), _terms(parts.kids)
    step = find(rest).size
    sizes = [term.size for term in terms]
    if isinstance(step, int) and all(isinstance(n, int) and n % step == 0 for n in sizes):
        same(outer, total([_high_part(term, rest, step, where) for term in terms]), where)
    else:
        _same_sums(terms, _unroll(factors, where), where)


def count(dim: Dim, size_of: Callable[[Dim], float]) -> float:
    """The size of ``dim`` when each leaf has ``size_of(leaf)`` positions."""

    def of(part: Dim, sizes: list[float]) -> float:
        return size_of(part) if part.kind == LEAF else prod(sizes) if part.kind == PRODUCT else sum(sizes)

    return _fold(dim, of, {})


def _fold(dim: Dim, of: Callable[[Dim, list[T]], T], done: dict[int, T]) -> T:
    """``of(part, what it is of the parts of the part)``, from the leaves up, each part once. Not recursive:
    axes nest as deep as concats follow one another."""
    stack = [find(dim)]
    while stack:
        part = stack[-1]
        kids = [] if id(part) in done else [find(kid) for kid in part.kids]
        waiting = [kid for kid in kids if id(kid) not in done]
        stack += waiting
        if not waiting:
            stack.pop()
            if id(part) not in done:
                done[id(part)] = of(part, [done[id(kid)] for kid in kids])
    return done[id(find(dim))]

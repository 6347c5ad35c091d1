"""The axis of tokens: what it is made of, and where values have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ..axes.dim import PRODUCT, SUM, Dim, factors, find, leaves, terms
from ..ir.graph import Value


def signature(dim: Dim) -> Any:
    """What an axis is made of: axes that are one have one signature."""
    dim = find(dim)
    if dim.kind not in (PRODUCT, SUM):
        return dim
    parts = factors(dim) if dim.kind == PRODUCT else terms(dim)
    return (dim.kind, *map(signature, parts)) if len(parts) > 1 else signature(parts[0]) if parts else dim


def within(part: Any, dim: Dim) -> bool:
    """Whether an axis is one and others in one: a product of which it, by its signature, is a part."""
    whole, mine = ([one] if not _is_product(one) else list(one[1:]) for one in (signature(dim), part))
    return any(whole[k : k + len(mine)] == mine for k in range(len(whole) - len(mine) + 1))


def _is_product(made: Any) -> bool:
    return isinstance(made, tuple) and made[0] == PRODUCT


@dataclass
class TokenAxis:
    """The axis of tokens, and those of the last of them: ``starts`` says from which on each is, by its signature."""

    starts: dict[Any, int] = field(default_factory=dict)

    def of(self, value: Value) -> list[tuple[int, bool]]:
        """Where a value has the tokens: the numbers of axes, and whether each is theirs alone."""
        found = []
        for number, dim in enumerate(value.dims):
            for mine in self.starts:
                if signature(dim) == mine:
                    found.append((number, True))
                elif within(mine, dim):
                    found.append((number, False))
        return found

    def taken_apart(self, dim: Dim) -> bool:
        """Whether an axis has a part of what the tokens' is made of."""
        mine = {id(leaf) for start in self.starts for leaf in _leaves(start) if leaf.size != 1}
        return any(id(leaf) in mine for leaf in leaves(dim))


def _leaves(made: Any) -> Iterator[Dim]:
    if isinstance(made, tuple):
        for part in made[1:]:
            yield from _leaves(part)
    else:
        yield from leaves(made)

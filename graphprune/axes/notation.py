"""The einops-like notation of rules, parsed.

    "... i, o i, o -> ... o"                       a linear layer: input, weight, bias -> output
    "n (g:2 i) ~, (g o) i ~, (g o) -> n (g o) ~ | groups=g"        a grouped convolution

Operands are separated by commas, axes by spaces. An axis is

    c         a name; the same name is the same axis; ``c:8`` gives its size
    c^        a name the op normalises across (pruning it is not the same as masking it)
    h'        the axis h once more, where the op reads what it made there before: a recurrent weight's inputs
    (a b)     a row-major product; (a + b) a concatenation
    1         an axis of size one, which couples with nothing
    _         an axis along which the op tells positions apart: frozen
    ~         any number of such axes
    ...       any number of axes that the op works on point by point, aligned from the right and
              broadcast
    @e        last of an operand: its numbers are positions of the axis e

After ``|`` come the literals that repeat sizes: ``groups=g``, ``sizes=a,b``, ``end=a+b``, ``shape=*``
(every axis of the first output).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from ..errors import ShapeError
from .dim import PRODUCT, SUM, Size

_TOKEN = re.compile(r"\.\.\.|[A-Za-z_]\w*'?(?::[\w*]+)?\^?|[1~()+]")


@dataclass(frozen=True)
class Axis:
    """A named axis, or one of ``1``, ``_``, ``~``, ``...``."""

    name: str
    size: Size | None = None
    mixed: bool = False


def fed(name: str) -> str | None:
    """The axis that a name with a prime is once more; None for any other name."""
    return name[:-1] if name.endswith("'") else None


@dataclass(frozen=True)
class Compound:
    """A product or sum of terms."""

    kind: str
    parts: tuple[Term, ...]


Term = Axis | Compound
Operand = tuple[Term, ...]


@dataclass(frozen=True)
class Pattern:
    """A parsed rule."""

    text: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    literals: dict[str, str] = field(default_factory=dict, hash=False)
    picks: tuple[tuple[str | None, ...], tuple[str | None, ...]] = ((), ())
    """Of each input and output, the axis that its numbers are positions of, if they are."""


@lru_cache(maxsize=4096)
def parse(text: str) -> Pattern:
    """Parse one rule. Raises ShapeError where the text is not in the notation."""
    axes, _, literals = text.partition("|")
    ins, arrow, outs = axes.partition("->")
    if axes.strip() and not arrow:
        raise ShapeError(f"rule `{text}`: no `->`")
    given = [part.partition("@") for part in ins.split(",")] if ins.strip() else []
    made = [part.partition("@") for part in outs.split(",")] if arrow else []
    return Pattern(
        text,
        tuple(_operand(part, text) for part, _, _ in given),
        tuple(_operand(part, text) for part, _, _ in made),
        dict(item.split("=", 1) for item in literals.split()),
        (tuple(name.strip() or None for _, _, name in given), tuple(name.strip() or None for _, _, name in made)),
    )


def _operand(part: str, text: str) -> Operand:
    if re.sub(r"\s+", "", part) != "".join(_TOKEN.findall(part)) or not _balanced(part):
        raise ShapeError(f"rule `{text}`: cannot read `{part.strip()}`")
    tokens = iter(_TOKEN.findall(part))
    return tuple(_terms(tokens))


def _balanced(part: str) -> bool:
    """Whether brackets close, and each holds a product (no ``+``) or a sum (one between any two)."""
    while found := re.search(r"\(([^()]*)\)", part):
        words = found[1].replace("+", " + ").split()
        if "+" in words and (set(words[1::2]) != {"+"} or "+" in words[::2] or len(words) % 2 == 0):
            return False
        part = f"{part[: found.start()]} x {part[found.end() :]}"
    return not set(part) & set("()+")


def _terms(tokens: Iterator[str]) -> Iterator[Term]:
    for token in tokens:
        if token == ")":
            return
        if token == "(":
            parts, kind = [], PRODUCT
            for term in _terms(tokens):
                if term == Axis("+"):
                    kind = SUM
                else:
                    parts.append(term)
            yield parts[0] if len(parts) == 1 else Compound(kind, tuple(parts))
        else:
            name, _, size = token.removesuffix("^").partition(":")
            yield Axis(name, (int(size) if size.isdigit() else size) if size else None, token.endswith("^"))


@lru_cache(maxsize=4096)
def fit(operand: Operand, rank: int, text: str) -> Operand:
    """One term per axis: ``...`` and ``~`` stand for as many axes as are left over.

    The k-th axis from the right of ``...`` becomes the name ``...k``. Raises ShapeError if the rank
    does not fit.
    """
    wild = [k for k, term in enumerate(operand) if isinstance(term, Axis) and term.name in ("...", "~")]
    if len(wild) > 1 or (not wild and len(operand) != rank) or rank < len(operand) - len(wild):
        raise ShapeError(f"rule `{text}` gives {len(operand)} axes to a tensor of rank {rank}")
    if not wild:
        return operand
    at, many = wild[0], rank - len(operand) + 1
    term = operand[at]
    assert isinstance(term, Axis)
    middle = [Axis("_" if term.name == "~" else f"...{many - k}") for k in range(many)]
    return (*operand[:at], *middle, *operand[at + 1 :])

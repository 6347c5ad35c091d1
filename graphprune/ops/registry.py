"""Where rules and traits are entered, by graphprune's own files and by plug-ins."""

from __future__ import annotations

from collections.abc import Callable

from ..axes.notation import parse
from ..ir.graph import Op
from .traits import TRAITS, Traits

RuleText = str | Callable[[Op], str]
RULES: dict[str, RuleText] = {}


def rule(
    *kinds: str, axes: str | None = None, traits: Traits | None = None
) -> Callable[[Callable[[Op], str]], Callable[[Op], str]]:
    """Enter a rule: ``rule("linear", axes="... i, o i, o -> ... o")``, or decorate a function.

    ``traits``: what else there is to know of these kinds; without them they are ops that cost their
    memory traffic and that zeros do not pass. Raises ShapeError for a text that is not the notation.
    """
    if axes is not None:
        parse(axes)
        RULES.update(dict.fromkeys(kinds, axes))
    if traits is not None:
        TRAITS.update(dict.fromkeys(kinds, traits))

    def enter(function: Callable[[Op], str]) -> Callable[[Op], str]:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return enter

"""THE table: what each op kind does to axes.

A rule is a string in the notation of notation.py, or a function of the op that returns one where
attributes change the coupling. Four users read it: groups, slicing, literals and verification.
A kind that is not here is carried along untouched, and every axis it touches is frozen.

The rules stand in files by subject: ``layers``, ``recurrent``, ``products``, ``elementwise``, ``movement``,
``indexing``. Hosts give ops these kinds, operand orders and attributes; see each rule's line.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points

from ..errors import GraphpruneError
from . import elementwise, indexing, layers, movement, products, recurrent
from .registry import RULES, RuleText, rule
from .traits import TRAITS

__all__ = ["BUILT_IN", "RULES", "RuleText", "rule", "table"]

BUILT_IN = (layers, recurrent, products, elementwise, movement, indexing)
"""The files that enter graphprune's own rules when they are imported."""


@cache
def table() -> Mapping[str, RuleText]:
    """RULES, with those that the modules of the entry-point group ``graphprune.rules`` enter when they
    are imported. A plug-in cannot replace a built-in rule or its traits. Raises GraphpruneError for one
    that does not load."""
    rules, traits = dict(RULES), dict(TRAITS)
    for entry in sorted(entry_points(group="graphprune.rules"), key=lambda entry: entry.name):
        try:
            entry.load()
        except Exception as error:  # someone else's package: anything may be wrong with it
            raise GraphpruneError(
                f"the rules `{entry.name}` ({entry.value}) do not load: {error}", "repair or uninstall the plug-in"
            ) from error
    RULES.update(rules)
    TRAITS.update(traits)
    return RULES

"""The kinds of edits that a plan is made of: Cut and Reindex, Rotate (rotation.py), Factor (factoring.py), Tokens
(tokens.py), Vocabulary (vocabulary.py), Bypass (bypass.py), Correct (correction.py), Rewrite (run.py), and those of
other packages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, field
from functools import cache
from typing import Any, Self

import numpy as np

from ..axes.dim import Dim, leaves
from ..coupling.groups import everything
from ..coupling.relate import role
from ..errors import RecipeError
from ..ir.document import Entry
from ..ir.facts import Groups, Keep, Order
from ..ir.graph import Graph, Op, Site
from ..ir.host import Host
from ..ir.program import Edit, Parameters, Plan, Program
from .base import Pass, plug_ins
from .bypass import Bypass
from .correction import Correct
from .factoring import Factor
from .recipe import Recipe
from .rotation import Rotate
from .run import Rewrite, run_pass
from .tokens import Tokens
from .vocabulary import Vocabulary

Lists = Mapping[str, tuple[int, ...]]


@cache
def kinds() -> Mapping[str, type[Edit]]:
    """Every kind of edit by name: the built-in ones and those of the entry-point group ``graphprune.edits``."""
    built_in: tuple[type[Edit], ...] = (Cut, Reindex, Vocabulary, Rotate, Factor, Tokens, Bypass, Correct, Rewrite)
    return {**plug_ins("graphprune.edits", "edit"), **{kind.kind: kind for kind in built_in}}


@dataclass(frozen=True)
class Cut(Edit):
    """What is left of every group: see facts.Keep, its claims too, and facts.Order for the ``sinks``."""

    kind = "cut"

    keep: Lists
    blank: Lists = field(default_factory=dict)
    sinks: Mapping[str, int] = field(default_factory=dict)
    exact: bool = False
    constant: bool = False

    @classmethod
    def of(cls, keep: Keep, order: Order) -> Self:
        keeps, blank = ({name: tuple(at.tolist()) for name, at in sorted(x.items())} for x in (keep.keep, keep.blank))
        return cls(keeps, blank, dict(sorted(order.sinks.items())), keep.exact, keep.constant)

    def fact(self) -> Keep:
        """The same as a fact. Which layers are whole is in the plan already: it makes two of the others alone."""
        keep, blank = ({name: np.asarray(at, np.intp) for name, at in x.items()} for x in (self.keep, self.blank))
        return Keep(keep, blank, self.exact, self.constant, whole=frozenset())

    def apply(self, program: Program) -> Program:
        groups = everything(program.graph)
        self._fits(groups, program.graph)
        known = program.learn(groups).learn(self.fact()).learn(Order(self.sinks))
        return run_pass(_cutter(self.by), known)

    def masked(self, program: Program, cut: Parameters) -> Program:
        """Nothing is left to do: the masked model is made with zeros for all cuts at once."""
        return program

    def check(self) -> None:
        _cutter(self.by)

    def _fits(self, groups: Groups, graph: Graph) -> None:
        """Whether the model has what is kept. Raises RecipeError."""
        hint, known = "is it the same model?", {group.name: group for group in groups}
        for name in (*self.keep, *self.blank):
            if name not in known:
                raise RecipeError(f"the plan keeps channels of `{name}`, which this model does not have", hint)
        for name, kept in self.keep.items():
            group = known[name]
            if max(kept) >= group.size:
                raise RecipeError(f"the plan keeps channel {max(kept)} of `{name}`, which has {group.size}", hint)
            if len(set(kept)) < len(kept) and (op := _summing(graph, group.dim)):
                raise RecipeError(f"the plan keeps a channel of `{name}` twice, and {op.where} would add it up twice")
        marked = {op.name for op in graph.ops if op.kind == "reindex"}
        for name in self.sinks:
            if name not in marked:
                raise RecipeError(f"the plan says how `{name}` selects channels, which it never opened", hint)

    def content(self) -> dict[str, Any]:
        lists = {"keep": _lists(self.keep), "blank": _lists(self.blank), "sinks": dict(self.sinks)}
        claims = {name: True for name in ("exact", "constant") if getattr(self, name)}
        return {**{name: value for name, value in lists.items() if value or name == "keep"}, **claims}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        parts = entry.table(("keep",), ("blank", "sinks", "exact", "constant"))
        keep = {name: kept.places(again=True) for name, kept in parts["keep"].items()}
        blank, sinks = (parts[name].items() if name in parts else () for name in ("blank", "sinks"))
        return cls(
            keep,
            {name: idle.among(keep.get(name, ())) for name, idle in blank},
            {name: runs.whole() for name, runs in sinks},
            *(name in parts and parts[name].flag() for name in ("exact", "constant")),
        )


def _summing(graph: Graph, leaf: Dim) -> Op | None:
    """An op that sums over an axis made of ``leaf``, if one does; what selects of it may see it twice."""
    for op in graph.ops:
        relation = graph.relations[op.name]
        summed = (dim for name, dim in relation.dims.items() if role(op, relation, name) == "reader")
        if op.kind != "reindex" and any(part is leaf for dim in summed for part in leaves(dim)):
            return op
    return None


def _lists(lists: Lists) -> dict[str, list[int]]:
    return {name: list(at) for name, at in lists.items()}


def _cutter(by: str) -> Pass:
    """The pass that cuts. Raises RecipeError where that is not what ``by`` names."""
    steps = Recipe.parse(by).steps
    if len(steps) != 1 or Keep not in steps[0].needs or not steps[0].rewrites:
        raise RecipeError(f"`{by}` is no pass that cuts", "`propagate` is")
    return steps[0]


@dataclass(frozen=True)
class Reindex(Edit):
    """Sites at which readers may take channels of their own, see the rule of ``reindex``."""

    kind = "reindex"

    sites: tuple[Site, ...]

    @property
    def opens(self) -> bool:
        return True

    def apply(self, program: Program) -> Program:
        ops = {op.name: op for op in program.graph.ops}
        for site in self.sites:
            inputs = ops[site.op].inputs if site.op in ops else ()
            value = inputs[site.operand] if site.operand < len(inputs) else None
            size = value.dims[site.axis].size if value is not None and site.axis < len(value.dims) else 0
            if not isinstance(size, int) or not size or size % site.inner:  # or it is open
                raise RecipeError(
                    f"the plan lets `{site.op}` choose along axis {site.axis} of operand {site.operand} in runs of "
                    f"{site.inner}, which this model does not have",
                    "is it the same model?",
                )
        return program.rewrite(opened(program.host, self.sites), self)

    def masked(self, program: Program, cut: Parameters) -> Program:
        return self.apply(program)

    def content(self) -> dict[str, Any]:
        return {"reindex": [list(astuple(site)) for site in self.sites]}

    @classmethod
    def read(cls, entry: Entry) -> Self:
        sites: dict[Site, None] = {}
        for found in entry.table(("reindex",))["reindex"].entries():
            site = _site(found)
            if site in sites:
                raise found.error("this site is there already")
            sites[site] = None
        return cls(tuple(sites))


def _site(entry: Entry) -> Site:
    parts = entry.entries()
    if len(parts) != 5:
        raise entry.unlike("a site: op, operand, axis, inner, fills")
    op, operand, axis, inner, fills = parts
    return Site(op.text(), operand.whole(), axis.whole(), inner.whole(1), fills.flag())


def opened(host: Host, sites: Iterable[Site]) -> Host:
    """A copy of the host with a ``reindex`` op at every site."""
    host = host.copy()
    for site in sites:
        host.insert_reindex(site)
    return host


def original(program: Program) -> Host:
    """The model as it was given, with all that its plan opened: what the groups of the plan are groups of."""
    made = Program(host=program.source, source=program.source)
    for edit in program.plan.openings:
        made = edit.apply(made)
    return made.host


def kept(plan: Plan) -> dict[str, int]:
    """How many channels are left of every group that was cut."""
    return {name: len(own) for edit in plan.of(Cut) for name, own in edit.keep.items()}

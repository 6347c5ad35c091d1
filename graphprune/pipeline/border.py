"""What is checked between passes: that a pass did what it says of itself, and that its facts are facts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..axes.dim import find
from ..axes.index import Indices
from ..errors import RecipeError
from ..ir.facts import Group, Groups, Keep, Losses, Order, Scores
from ..ir.graph import Graph
from ..ir.host import Array
from ..ir.program import Program
from .base import Pass
from .contract import foreign, noun, place
from .fingerprint import digests


@contextmanager
def left_alone(step: Pass, program: Program) -> Iterator[None]:
    """Raises RecipeError where a pass of another package edits the host of ``program`` itself, as none may: earlier
    programs, the source among them, share its weights. For graphprune's own the tests look."""
    if not foreign(type(step)):
        yield
        return
    before, text = digests(program), program.graph.text()
    yield
    now = Program(program.host, program.source)  # which reads its graph anew
    wrong = None if now.graph.text() == text else "its ops"
    wrong = wrong or next((f"`{name}`" for name, digest in digests(now).items() if before.get(name) != digest), None)
    if wrong:
        raise RecipeError(
            f"{_place(step)} changed {wrong} of the model that it was given",
            "edit host = program.host.copy(), set rewrites = True and return program.rewrite(host)",
        )


def checked(step: Pass, before: Program, made: object) -> Program:
    """What ``step`` made of ``before``, its new facts as ``sound`` gives them.

    Raises RecipeError where it made no Program, or its ``gives``, ``also``, ``rewrites`` and ``carries`` are not
    true of what it did.
    """
    if not isinstance(made, Program):
        raise RecipeError(f"{_place(step)} returned {noun(made)}, not a Program", "end `run` with return program...")
    if made.host is not before.host:
        if not step.rewrites:
            raise RecipeError(f"{_place(step)} changed the model and says rewrites = False", "set rewrites = True")
        stale = [kind for kind, fact in made.facts.items() if before.facts.get(kind) is fact]
        if kept := [kind.__name__ for kind in stale if kind not in step.carries]:
            raise RecipeError(
                f"{_place(step)} changed the model and kept {', '.join(kept)} of the one before it",
                "return program.rewrite(host), which drops all facts",
            )
    for kind in step.gives:
        if not made.knows(kind):
            raise RecipeError(f"{_place(step)} says that it gives {kind.__name__}, and did not")
    new = {kind: fact for kind, fact in made.facts.items() if before.facts.get(kind) is not fact}
    if extra := [kind.__name__ for kind in new if kind not in (*step.gives, *step.also, *step.carries)]:
        named = [kind.__name__ for kind in step.gives]
        raise RecipeError(
            f"{_place(step)} gave {', '.join(extra)} and says that it gives {', '.join(named) or 'nothing'}",
            f"set gives = ({', '.join((*named, *extra))},)",
        )
    made = sound(made, f"`{step.text()}` gave", new)
    if made.facts.get(Groups) is not before.facts.get(Groups):
        old = {kind: fact for kind, fact in made.facts.items() if before.facts.get(kind) is fact}
        made = sound(made, f"`{step.text()}` found other groups than those of", old)
    if Scores in step.gives and made.fact(Scores) is not before.facts.get(Scores):
        made = _signed(step, made)
    return made


def _place(step: Pass) -> str:
    return place("pass", type(step))


def _signed(step: Pass, made: Program) -> Program:
    """Scores that say which pass makes them again, where that pass can: it needs no more than groups."""
    scores = made.fact(Scores)
    if scores.made or step.rewrites or not {*step.needs} <= {Groups}:
        return made
    return made.learn(scores.signed(step.text()))


def sound(program: Program, who: str, facts: Mapping[type, Any]) -> Program:
    """The program with lists in Keep and Scores as arrays. Raises RecipeError, beginning with ``who`` gave the
    fact, where one names what is not there or is out of range."""
    if Groups in facts:
        _groups(facts[Groups], program.graph, who)
    sizes = {group.name: group.size for group in program.fact(Groups)} if program.knows(Groups) else None
    branches = {group.name for group in program.fact(Groups).gates} if program.knows(Groups) else set()
    if Keep in facts:
        keep: Keep = facts[Keep]
        kept = _lists(keep.keep, sizes, f"{who} a Keep that", _indices)
        idle = _lists(keep.blank, sizes, f"{who} a Keep whose blank", _indices)
        for name, own in kept.items():
            if not len(own) and name not in branches:
                raise RecipeError(f"{who} a Keep that leaves nothing of `{name}`", "keep one channel at least")
        for name, own in idle.items():
            if name not in kept or not np.isin(own, kept[name]).all():
                raise RecipeError(f"{who} a Keep whose blank of `{name}` has channels that are not kept")
        program = program.learn(replace(keep, keep=kept, blank=idle))
    if Scores in facts:
        scores: Scores = facts[Scores]
        every = _lists(scores.scores, sizes, f"{who} Scores that", _numbers)
        if missing := [name for name in sizes or () if name not in every]:
            raise RecipeError(f"{who} Scores that have none of `{missing[0]}`", "score every group")
        if any(every[name] is not own for name, own in scores.scores.items()):
            program = program.learn(replace(scores, scores=every))
    if Losses in facts and program.knows(Groups):
        _losses(facts[Losses], program.fact(Groups), f"{who} Losses that")
    if Order in facts:
        _mapping(facts[Order].sinks, f"{who} an Order whose sinks are", "by op")
    return program


def _groups(groups: Groups, graph: Graph, who: str) -> None:
    """They are of this network, and each is there once."""
    if not groups.groups:
        raise RecipeError(f"{who} Groups that are none", "raise a ModelError where nothing can be pruned")
    seen = set()
    for group in groups.groups:
        if not isinstance(group, Group):
            raise RecipeError(f"{who} Groups with {noun(group)} among them, not a Group")
        if group.name in seen:
            raise RecipeError(f"{who} Groups that have `{group.name}` twice", "a group is all that its name stands for")
        seen.add(group.name)
        if group.size != find(group.dim).size:
            raise RecipeError(f"{who} Groups whose `{group.name}` says {group.size} channels, of {group.dim}")
        for member in group.members:
            value = graph.parameters.get(member.parameter)
            if value is None or not 0 <= member.axis < len(value.dims):
                raise RecipeError(
                    f"{who} Groups whose `{group.name}` has {member}, which this network has not",
                    "find_groups(program.graph) finds those of the program that is given",
                )


def _losses(losses: Losses, groups: Groups, who: str) -> None:
    """They are of groups, and have a number for every count that one may keep. Of groups whose count another decides
    there need be none."""
    sizes = {group.name: group.size for group in groups}
    for name, own in _mapping(losses.losses, f"{who} are", "by group").items():
        if name not in sizes:
            raise RecipeError(f"{who} name `{name}`, which is no group", f"groups: {', '.join([*sizes][:5])}")
        missing = [k for k in range(1, sizes[name] + 1) if not isinstance(own, Mapping) or k not in own]
        if missing:
            raise RecipeError(
                f"{who} have none of `{name}` at {missing[0]} of {sizes[name]} channels",
                "give a number for every count from 1 to all",
            )


def _mapping(lists: Any, who: str, by: str) -> Mapping[str, Any]:
    if not isinstance(lists, Mapping):
        raise RecipeError(f"{who} {noun(lists)}, not a mapping {by}")
    return lists


def _lists(lists: Any, sizes: Mapping[str, int] | None, who: str, read: Any) -> dict[str, Any]:
    for name in _mapping(lists, f"{who} is", "by group"):
        if sizes is not None and name not in sizes:
            some = ", ".join(list(sizes)[:5])
            raise RecipeError(f"{who} names `{name}`, which is no group", f"groups: {some}")
    return {name: read(own, f"{who} has for `{name}`", (sizes or {}).get(name)) for name, own in lists.items()}


def _indices(own: Any, who: str, size: int | None) -> Indices:
    at = _array(own, who)
    if len(at) and at.dtype.kind not in "iu":
        hint = "np.flatnonzero makes positions of a mask" if at.dtype.kind == "b" else None
        raise RecipeError(f"{who} {at.dtype} and not whole numbers", hint)
    at = at.astype(np.intp, copy=False)
    wrong = at[(at < 0) | (at >= (size if size is not None else np.inf))]
    if len(wrong):
        raise RecipeError(f"{who} channel {wrong[0]}, of {size if size is not None else 'more than none'}")
    return at


def _numbers(own: Any, who: str, size: int | None) -> Array:
    values = _array(own, who)
    if values.dtype.kind not in "fiu":
        raise RecipeError(f"{who} {values.dtype} and not numbers")
    if size is not None and len(values) != size:
        raise RecipeError(f"{who} {len(values)} numbers for {size} channels")
    if np.isnan(values).any():
        raise RecipeError(f"{who} {int(np.isnan(values).sum())} NaN among {len(values)} numbers")
    return values


def _array(own: Any, who: str) -> Array:
    try:
        found: Array = np.asarray(own)
    except ValueError as error:  # lists of lists of different lengths
        raise RecipeError(f"{who} a {type(own).__name__} that is no list: {error}") from error
    if found.ndim != 1:
        raise RecipeError(f"{who} {found.ndim} axes, not a list")
    return found

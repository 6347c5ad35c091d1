"""propagate: cut what is not kept, everywhere it shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..axes.dim import find
from ..axes.index import Index
from ..coupling.lanes import thin
from ..coupling.relate import literals, raised, rescaled
from ..errors import RecipeError, ShapeError
from ..ir.facts import Groups, Keep, Order
from ..ir.graph import Graph
from ..ir.host import Host
from ..ir.program import Axis, Parameters, Program
from ..pipeline.base import Pass
from ..pipeline.bypass import Bypass
from ..pipeline.edits import Cut
from ..pipeline.factoring import settled
from ..reorder.reindex import positions, selections


@dataclass(frozen=True)
class Propagate(Pass):
    """Slice parameters, patch literals, infer every shape again and compare."""

    name = "propagate"
    needs = (Groups, Keep)
    rewrites = True

    def run(self, program: Program) -> Program:
        """Layers that are no smaller as two are one again; then channels, then branches of which nothing is kept."""
        program = settled(program)
        cut = self._channels(program)
        keep = program.fact(Keep).keep
        gone = [group for group in program.fact(Groups).gates if not len(keep.get(group.name, [0]))]
        if not gone:
            return cut
        branches = tuple(dict.fromkeys(branch for group in gone for branch in group.branches))
        return Bypass(branches).apply(cut)

    def _channels(self, program: Program) -> Program:
        groups, keep = program.fact(Groups).channels, program.fact(Keep)
        names = {group.name for group in groups}
        if program.fact(Groups).gates and not names & {*keep.keep}:
            return program
        keep = replace(keep, keep={name: kept for name, kept in keep.keep.items() if name in names})
        _enough(groups, keep)
        keep, notes = _apart(program.graph, groups, keep)
        order = program.fact(Order) if program.knows(Order) else Order()
        index, graph, host = keep.index(groups), program.graph, program.host.copy()
        _blank(groups, keep, host)
        _slice(graph, host, index)
        for name, (factor, more) in rescaled(graph, index).items():
            host.set_parameter(name, host.parameter(name) * factor + more)
        for op in graph.ops:
            for name, value in literals(op, graph.relations[op.name], index).items():
                host.set_literal(op, name, value)
        eps = raised(graph, index)
        for op in graph.ops:
            if op.name in eps:
                host.set_literal(op, "plus", eps[op.name])
        for op, pieces in selections(graph, index, order):
            host.set_reindex(op, pieces)
        thin(graph, host, index)
        notes += _narrowed(graph, host, index)
        host.own()
        _compare(graph, host, index)
        parameters = _parameters(groups, keep, index, program.plan.parameters)
        chosen = {"segments": order.segments} if order.segments else {}
        return program.rewrite(host, Cut.of(keep, order), parameters=parameters, **chosen).note(*notes)


def _enough(groups: Groups, keep: Keep) -> None:
    """Whether as many are left of every group as are chosen of it. Raises RecipeError."""
    for group in groups:
        if len(keep.keep.get(group.name, range(group.size))) < group.least:
            raise RecipeError(
                f"{len(keep.keep[group.name])} of `{group.name}` would be left, of which {group.least} are chosen",
                f"keep at least {group.least}, or leave it alone with `group{{freeze={group.name}}}`",
            )


def _apart(graph: Graph, groups: Groups, keep: Keep) -> tuple[Keep, list[str]]:
    """One hidden channel more where an LSTM's projection would be as wide as what it projects: torch tells by
    the two sizes whether there is a projection."""
    kept, notes, sizes = dict(keep.keep), [], {group.dim: group for group in groups}
    for op in graph.ops:
        dims = graph.relations[op.name].dims if op.attrs.get("projected") else {}
        hidden = sizes.get(find(dims["h"])) if dims else None
        if hidden is None or hidden.name not in kept:
            continue
        index, own = keep.index(groups), kept[hidden.name]
        if len(own) == len(index(dims["p"])) and len(own) < hidden.size:
            spare = np.setdiff1d(np.arange(hidden.size), own)[:1]
            kept[hidden.name] = np.concatenate([own, spare])
            notes.append(f"{op.where}: one hidden channel more, as torch takes a projection of equal width for none")
    return replace(keep, keep=kept), notes


def _blank(groups: Groups, keep: Keep, host: Host) -> None:
    """Zero what reads a survivor that counts for nothing."""
    for group in groups:
        if group.name in keep.blank:
            for member in group.members:
                if member.zeroed:
                    host.zero(member.parameter, member.axis, positions(member.dim, group.dim, keep.blank[group.name]))


def _slice(graph: Graph, host: Host, index: Index) -> None:
    for value in graph.parameters.values():
        for axis, dim in enumerate(value.dims):
            if index.touches(dim):
                kept = index(dim)
                if not np.array_equal(kept, np.arange(find(dim).size)):
                    host.take(value.name, axis, kept)


def _narrowed(graph: Graph, host: Host, index: Index) -> list[str]:
    """Cut the model's own inputs and outputs; what is to be said of them."""
    notes = []
    for what, values in (("input", graph.inputs), ("output", graph.outputs)):
        for value in dict.fromkeys(values):
            if not any(map(index.touches, value.dims)):
                continue
            for axis, dim in enumerate(value.dims):
                if index.touches(dim) and isinstance(dim.size, int):  # an open axis of an output is what comes out
                    host.narrow(value.name, axis, index(dim))
            old, new = ("x".join(map(str, sizes)) for sizes in (value.shape or (), map(index.length, value.dims)))
            notes.append(f"the {what} `{value.name}` is {new} now, it was {old}")
    return notes


def _compare(graph: Graph, host: Host, index: Index) -> None:
    """Every shape the host infers must be the one that the dims promise."""
    inferred = host.shapes()
    for op in graph.ops:
        for value in op.outputs:
            want = tuple(index.length(dim) for dim in value.dims)
            have = inferred.get(value.name)
            if have is None or value.shape is None:
                continue
            wrong = [
                k
                for k, (a, b) in enumerate(zip(have, want, strict=False))
                if a != b and isinstance(a, int) and isinstance(b, int)
            ]
            if len(have) != len(want) or wrong:
                raise ShapeError(f"{op.where}: the cut gives shape {have}, its axes promise {want}")


def _parameters(groups: Groups, keep: Keep, index: Index, before: Parameters) -> Parameters:
    """The plan's record: every parameter axis of a group, its role and the original indices kept."""
    rank = {"reader": 0, "writer": 1, "carrier": 2}
    out: dict[str, dict[str, Axis]] = {name: dict(axes) for name, axes in before.items()}
    for group in groups:
        for member in group.members:
            axes = out.setdefault(member.parameter, {})
            known = axes.get(str(member.axis))
            kept = index(member.dim).tolist()
            blank = keep.blank.get(group.name)
            idle = [] if blank is None else positions(member.dim, group.dim, blank).tolist()
            earlier = before.get(member.parameter, {}).get(str(member.axis))
            if earlier is not None:  # a second cut: name positions of the original axis
                kept, idle = ([earlier["keep"][k] for k in at] for at in (kept, idle))
            mine = "reader" if member.zeroed else member.role  # of a plan, what is zeroed
            role = min(known["role"] if known else mine, mine, key=rank.__getitem__)
            axes[str(member.axis)] = {"role": role, "keep": kept}
            if idle := sorted({*idle, *(known.get("blank", ()) if known else ())}):
                axes[str(member.axis)]["blank"] = idle
    return out

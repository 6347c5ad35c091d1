"""dead: channels that count for nothing already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ..axes.dim import Dim, leaves
from ..axes.index import coordinates, shares
from ..axes.notation import fed
from ..coupling.bounds import bounds, pads
from ..coupling.contractions import contractions
from ..ir.facts import Group, Groups, Keep, Member
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.base import Pass

Live = dict[str, Array]


@dataclass(frozen=True)
class Dead(Pass):
    """Find the channels that count for nothing: nothing reads them, or they are always zero."""

    name = "dead"
    needs = (Groups,)
    gives = (Keep,)

    constant: bool = False  # also channels that never change: `compensate{by=mean}` then adds their part to biases

    def run(self, program: Program) -> Program:
        """A channel is dead where the weights prove it, for every input: where all that reads it is zero, counting
        only weights that join it to other live channels, repeated until nothing more dies (Tessier et al.,
        2022); or where it is zero itself at every place that reads it, by interval arithmetic from the inputs, of
        which nothing is known, through all ops (coupling/bounds.py). Cutting the dead changes no output. With
        ``constant`` any constant will do where no reader pads with zeros: `compensate{by=mean}` after the cut is
        then exact. Every group keeps one channel: one that nothing reads, or else one that is zero, with all that
        makes it so. What was merely never seen to do anything is no such channel: `score{by=active}` ranks those."""
        groups = program.fact(Groups)
        names = {group.dim: group.name for group in groups}
        idle = _idle(program, groups, self.constant)
        live: Live = {group.name: np.ones(group.size, bool) for group in groups}
        while True:
            read = {group.name: _read(program, group, live, names, idle) for group in groups}
            again = {name: live[name] & _lives(read[name], idle.silent[name]) for name in live}
            if all(np.array_equal(again[name], live[name]) for name in live):
                break
            live = again
        keep = {n: np.flatnonzero(alive) if alive.any() else np.flatnonzero(~read[n])[:1] for n, alive in live.items()}
        dead = sum(int((~alive).sum()) for alive in live.values())
        told = f"{dead} channels counted for nothing"
        if self.constant:
            told += " or never change: the part of these is lost unless `compensate{by=mean}` follows the cut"
        return program.learn(Keep(keep, exact=True, constant=self.constant)).note(told)


def _lives(read: Array, silent: Array) -> Array:
    """One channel of a group is left: where it is read, it is zero as long as what makes it is left too."""
    live: Array = read & ~silent
    live[0] |= bool((read & silent).all())
    return live


def _read(program: Program, group: Group, live: Live, names: Mapping[Dim, str], idle: Idle) -> Array:
    """Per channel, whether anything that lives reads it."""
    readers = [member for member in group.members if member.role == "reader"]
    if not readers or group.dim in idle.elsewhere or _always(group):
        return np.ones(group.size, bool)
    read = np.zeros(group.size, bool)
    for member in readers:
        read |= _touched(program, group, member, live, names)
    return read


def _always(group: Group) -> bool:
    """Whether zeros count too: a norm has them in its mean, or whoever calls the network reads them."""
    return group.dim.outside or any(member.across for member in group.members)


def _touched(program: Program, group: Group, member: Member, live: Live, names: Mapping[Dim, str]) -> Array:
    """Per channel, whether any of its slices of a weight has an entry that is not zero."""
    weight = program.host.parameter(member.parameter) != 0
    others = tuple(k for k in range(weight.ndim) if k != member.axis)
    for axis in others:
        alive = np.ones(weight.shape[axis], bool)
        for leaf, (at, index) in shares(program.graph.parameters[member.parameter].dims[axis]).items():
            if leaf in names:
                alive[at] &= live[names[leaf]][index]
        weight = weight & alive.reshape([-1 if k == axis else 1 for k in range(weight.ndim)])
    at = coordinates(member.dim, group.dim)
    touched = np.zeros(group.size, bool)
    np.logical_or.at(touched, at[at >= 0], weight.any(others)[at >= 0])
    return touched


@dataclass(frozen=True)
class Idle:
    """``silent``: per group, the channels that are proven to be zero (or never to change, see Dead) at every place
    that reads them. ``elsewhere``: what is read by other things than weights."""

    silent: Live
    elsewhere: frozenset[Dim]


def _idle(program: Program, groups: Groups, constant: bool) -> Idle:
    graph, known = program.graph, bounds(program.graph, program.host)
    constants = {read.op.name for read in contractions(graph) if not pads(read.op)} if constant else set()
    silent: Live = {}
    elsewhere: set[Dim] = set()
    for op, value, axis, alone in _places(graph):
        parts = [group for group in groups if any(leaf is group.dim for leaf in leaves(value.dims[axis]))]
        if not parts:
            continue
        size = value.dims[axis].size
        assert isinstance(size, int)  # a group's channels are counted
        box = known[value.name].along(axis, size)
        quiet = box.constant if op.name in constants else box.zero
        for group in parts:
            at = coordinates(value.dims[axis], group.dim)
            silent.setdefault(group.name, np.ones(group.size, bool))[at[(at >= 0) & ~quiet]] = False
            elsewhere |= {group.dim} if alone else set()
    for group in groups:
        if group.name not in silent or group.dim.mixed or _always(group):
            silent[group.name] = np.zeros(group.size, bool)
    return Idle(silent, frozenset(elsewhere))


def _places(graph: Graph) -> Iterator[tuple[Op, Value, int, bool]]:
    """Every operand that depends on the input, and its axis, which an op reduces over; whether no weight does."""
    for op in graph.ops:
        relation = graph.relations[op.name]
        for name, uses in relation.inputs.items():
            if (state := fed(name)) is not None:  # what the op made before, whatever it was
                yield from ((op, op.outputs[k], axis, False) for k, axis in relation.outputs[state] if k >= 0)
            if name in relation.outputs:
                continue
            values = [(value, axis) for k, axis in uses if (value := op.inputs[k]) is not None]
            for value, axis in values:
                if not value.constant:
                    yield op, value, axis, all(not other.constant for other, _ in values)

"""dead: channels that count for nothing already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..axes.dim import Dim, leaves
from ..axes.index import coordinates, shares
from ..coupling.contractions import contractions
from ..ir.facts import Group, Groups, Keep, Member
from ..ir.host import Array, random_array
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
        """A channel lives iff what is written to it and what reads it are both not all zero, counting only
        weights that join it to other live channels; repeated until nothing more dies (Tessier et al., 2022).
        Cutting the dead changes no output. Where all writers are zero the channel is constant; it is dead if
        that constant, after biases, norms and activations, is zero. With ``constant`` any constant will do
        where no reader pads with zeros: `compensate{by=mean}` after the cut is then exact. Every group
        keeps one channel."""
        groups = program.fact(Groups)
        names = {group.dim: group.name for group in groups}
        silent = _silent(program, groups, self.constant)
        live: Live = {group.name: np.ones(group.size, bool) for group in groups}
        while True:
            again = {group.name: live[group.name] & _lives(program, group, live, names, silent) for group in groups}
            if all(np.array_equal(again[name], live[name]) for name in live):
                break
            live = again
        keep = {name: np.flatnonzero(alive) if alive.any() else np.arange(1) for name, alive in live.items()}
        dead = sum(int((~alive).sum()) for alive in live.values())
        return program.learn(Keep(keep)).note(f"{dead} channels counted for nothing")


def _lives(program: Program, group: Group, live: Live, names: Mapping[Dim, str], silent: Mapping[str, Array]) -> Array:
    readers = [member for member in group.members if member.role == "reader"]
    read = np.zeros(group.size, bool) if readers else np.ones(group.size, bool)
    for member in readers:
        read |= _touched(program, group, member, live, names)
    written = np.zeros(group.size, bool)
    for member in group.members:
        if member.role == "writer" and len(program.graph.parameters[member.parameter].dims) > 1:  # no bias
            written |= _touched(program, group, member, live, names)
    return read & (written | ~silent[group.name])


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


def _silent(program: Program, groups: Groups, constant: bool) -> Live:
    """Per group, the channels that are zero (or never change, see Dead) wherever they are read, on the
    example and on random inputs."""
    example, rng = program.host.example(), np.random.default_rng(program.seed)
    noise = [random_array(rng, x.shape, str(x.dtype)) if x.dtype.kind == "f" else x for x in example]
    found = contractions(program.graph)
    seen = [program.host.watch(batch, sorted({read.value.name for read in found})) for batch in (example, noise)]
    silent = {group.name: np.ones(group.size, bool) for group in groups}
    known = {group.name: False for group in groups}
    for read in found:
        values = [np.moveaxis(one[read.value.name], read.axis, 0) for one in seen]
        flat = np.concatenate([v.reshape(len(v), -1) for v in values], 1)
        padded = read.op.kind == "conv" and any(read.op.attrs.get("pads") or (1,))
        quiet = (flat == (flat[:, :1] if constant and not padded else 0)).all(1)
        for group in groups:
            if any(leaf is group.dim for leaf in leaves(read.dim)):
                at = coordinates(read.dim, group.dim)
                noisy = at[(at >= 0) & ~quiet]
                silent[group.name][noisy] = False
                known[group.name] = True
    return {name: alive if known[name] else np.zeros_like(alive) for name, alive in silent.items()}

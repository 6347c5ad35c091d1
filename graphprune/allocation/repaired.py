"""A network without some of its channels and branches, as it will be once it is repaired: every layer by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

import numpy as np

from ..axes.index import coordinates
from ..calibration.before_norms import preimage
from ..calibration.curvature import Curvature, Reading, measured
from ..calibration.least_squares import draw, rows_wanted
from ..calibration.optimal_brain_surgeon import Problem, left_out, problems
from ..coupling.affine import affine
from ..coupling.branches import Gap, adds, gaps, silence
from ..coupling.contractions import contractions
from ..ir.facts import Group
from ..ir.host import Array, Batch, Host
from ..ir.large import Room, are_large
from ..ir.liveness import dead
from ..ir.program import Program

Gone = Mapping[str, Array]
"""By group, the channels that go; of a group of branches, whatever is said, they go."""


@dataclass(frozen=True)
class Mend:
    """What a layer's weight (groups, outputs, inputs) and outputs get on top, so that it makes up for branches."""

    layer: str
    weight: Array
    mean: Array


@dataclass(frozen=True)
class Repaired:
    """Makes copies of a program's model. What reads a channel that goes is fitted to the rest, with a bias that keeps
    the mean (optimal brain surgeon); the layer before branches that go is fitted to what was behind them (ReplaceMe,
    see compensation.lsq, which does both once more when all is decided)."""

    program: Program
    groups: Mapping[str, Group]
    data: Sequence[Batch]  # what is fitted to
    _mends: dict[tuple[str, str, str], Mend] = field(default_factory=dict)
    _made: dict[tuple[object, ...], tuple[Array, Array]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program, groups: Iterable[Group], data: Sequence[Batch]) -> Repaired:
        return cls(program, {group.name: group for group in groups}, data)

    @cached_property
    def curvature(self) -> Curvature:
        program = self.program
        if program.knows(Curvature) and self.data is program.data:
            return program.fact(Curvature)
        found = contractions(program.graph, own=True)
        return measured(found, program.graph, program.host, self.data, program.seed)

    @cached_property
    def problems(self) -> Mapping[str, list[Problem]]:
        """By group of channels, what each layer that reads it has to solve."""
        channels = (group for group in self.groups.values() if not group.branches)
        return {group.name: problems(group, self.curvature) for group in channels}

    @cached_property
    def _room(self) -> Room | None:
        """Where what was fitted is, if not in memory."""
        layers = (reading.layer for reading in self.curvature.readings.values())
        return Room() if are_large(8 * layer.inputs * layer.outputs for layer in layers) else None

    @cached_property
    def _place(self) -> Mapping[str, int]:
        return {op.name: k for k, op in enumerate(self.program.graph.ops)}

    def first(self, name: str) -> int:
        """The place of the first op that is another where all or some of a group goes."""
        graph, group = self.program.graph, self.groups[name]
        if group.branches:
            holders = (self._holder(gap, {}) for gap in gaps(graph, group.branches))
            ops = [*dead(graph, group.branches), *(one.layer.op.name for one in holders if one is not None)]
            return min(self._place[op] for op in ops)
        mine = {member.parameter for member in group.members if member.zeroed}
        read = (k for k, op in enumerate(graph.ops) if any(v is not None and v.name in mine for v in op.inputs))
        return min(read, default=0)

    def without(self, gone: Gone, host: Host | None = None, before: Gone = MappingProxyType({})) -> Host:
        """The model without them. ``host``: one without ``before``, fewer channels of the same groups, to go on
        from."""
        graph, host = self.program.graph, host or self.program.host.copy()
        branches = [branch for name in gone for branch in self.groups[name].branches]
        silence(graph, host, branches)
        off = dead(graph, branches) if branches else {}
        mends = [mend for gap in gaps(graph, branches) if (mend := self._mend(gap, off)) is not None]
        lost: dict[str, list[tuple[str, Problem]]] = {mend.layer: [] for mend in mends}
        for name in gone:
            for problem in self.problems.get(name, ()):
                lost.setdefault(problem.layer.op.name, []).append((name, problem))
        for op, parts in lost.items():
            if op not in off:
                self._fit(host, op, parts, [mend for mend in mends if mend.layer == op], gone, before)
        for name in gone:
            self._zero(host, name, gone)
        return host

    def _zero(self, host: Host, name: str, gone: Gone) -> None:
        """What reads it and cannot be fitted has zeros in its place."""
        fitted = {problem.layer.weight for problem in self.problems.get(name, ())}
        group = self.groups[name]
        for member in group.members if not group.branches else ():
            if member.across or (member.role == "reader" and member.parameter not in fitted):
                drop = np.flatnonzero(np.isin(coordinates(member.dim, group.dim), gone[name]))
                host.zero(member.parameter, member.axis, drop)

    def _fit(
        self, host: Host, op: str, parts: list[tuple[str, Problem]], mends: list[Mend], gone: Gone, before: Gone
    ) -> None:
        layer = self.curvature.readings[op].layer
        changed, change = self._fitted(op, parts, mends, gone)
        had = self._fitted(op, parts, mends, before)[1] if before else 0.0
        tensor = self.program.host.parameter(layer.weight)
        host.set_parameter(layer.weight, layer.tensor(changed, tensor.shape).astype(tensor.dtype))
        host.add_bias(layer.op, change - had)

    def _fitted(self, op: str, parts: list[tuple[str, Problem]], mends: list[Mend], gone: Gone) -> tuple[Array, Array]:
        """A layer's matrix, and what its outputs get on top."""
        reading = self.curvature.readings[op]
        layer = reading.layer
        key = (op, *((name, len(gone[name])) for name, _ in parts), *map(id, mends))
        if key not in self._made:
            matrix = layer.flat_matrix(self.program.host)
            changed = matrix + sum(mend.weight for mend in mends)
            for part in range(layer.groups):
                rows = [problem.rows(gone[name].tolist()) for name, problem in parts if problem.part == part]
                if rows:
                    at = np.unique(np.concatenate(rows))
                    changed[part] = left_out(changed[part].T, reading.inverse[part], at).T
            change = ((matrix - changed) @ reading.mean[:, :, None]).ravel() + sum(mend.mean for mend in mends)
            self._made[key] = changed if self._room is None else self._room.put(changed), change
        return self._made[key]

    def forget(self) -> None:
        """What was fitted; kept until then, since choices have much in common."""
        self._made.clear()

    def _holder(self, gap: Gap, off: Mapping[str, object]) -> Reading | None:
        """The last layer that ends in what is before a gap, and stays."""
        found = None
        for reading in self.curvature.readings.values():
            value, user = reading.layer.out, self.program.graph.only_user(reading.layer.out)
            if user is not None and user.kind == "batch_norm" and reading.layer.out_axis == 1:
                value, user = user.outputs[0], self.program.graph.only_user(user.outputs[0])
            ends = value if user is None or not adds(user) else user.outputs[0]
            if gap.before in (value, ends) and reading.layer.op.name not in off:
                found = reading
        return found

    def _mend(self, gap: Gap, off: Mapping[str, object]) -> Mend | None:
        reading = self._holder(gap, off)
        if reading is None:
            return None
        if (key := _key(gap, reading)) not in self._mends:
            self._regress([(gap, reading), *self._alone()])
        return self._mends[key]

    def _alone(self) -> list[tuple[Gap, Reading]]:
        """The gap of each group of branches by itself, as long as none is known."""
        graph, found = self.program.graph, list[tuple[Gap, Reading]]()
        for group in self.groups.values() if not self._mends else ():
            off = dead(graph, group.branches) if group.branches else {}
            each = ((gap, self._holder(gap, off)) for gap in gaps(graph, group.branches))
            found += [(gap, reading) for gap, reading in each if reading is not None]
        return found

    def _regress(self, asked: Sequence[tuple[Gap, Reading]]) -> None:
        """Of each gap what is missing before it, from what a layer reads; some of them in each pass over the data."""
        each = [*{_key(gap, reading): _Missing(gap, reading, self.program) for gap, reading in asked}.items()]
        for k in range(0, len(each), TOGETHER):
            some = dict(each[k : k + TOGETHER])
            names = sorted({name for one in some.values() for name in one.names})
            for number, batch in enumerate(self.data):
                seen = self.program.host.watch(batch, names)
                for one in some.values():
                    rng = np.random.default_rng([self.program.seed, number, self._place[one.reading.layer.op.name]])
                    one.add(seen, rng, len(self.data))
            self._mends.update({key: one.mend() for key, one in some.items()})


TOGETHER = 8
"""Gaps that are looked at in one pass over the data: what is read about each is in memory for a batch."""


def _key(gap: Gap, reading: Reading) -> tuple[str, str, str]:
    return reading.layer.op.name, gap.before.name, gap.behind.name


class _Missing:
    """What is missing before a gap, regressed on what a layer reads; damped as the layer's covariance is."""

    def __init__(self, gap: Gap, reading: Reading, program: Program) -> None:
        self.gap, self.reading, self.host, layer = gap, reading, program.host, reading.layer
        self.names = {layer.value.name, gap.before.name, gap.behind.name}
        norm = program.graph.only_user(layer.out)
        scale = affine(norm, self.host)[0] if norm is not None and norm.kind == "batch_norm" else np.ones(1)
        self.scale = np.where(np.abs(scale) < SMALL * np.abs(scale).max(), np.inf, scale)
        groups, outputs, inputs = layer.flat_matrix(self.host).shape
        self.cross, self.total, self.count = np.zeros((groups, inputs, outputs)), np.zeros(groups * outputs), 0

    def add(self, seen: Mapping[str, Array], rng: np.random.Generator, batches: int) -> None:
        layer, gap = self.reading.layer, self.gap
        wanted = -(-rows_wanted(self.reading.mean.shape[1]) // batches)
        at = draw(rng, layer.positions(seen[layer.value.name]), wanted)
        before, behind = (layer.targets(seen[value.name], at).astype(np.float64) for value in (gap.before, gap.behind))
        missing = (_as_before(behind, before, gap, self.host) - before) / self.scale
        x = layer.rows(seen[layer.value.name], at) - self.reading.mean
        self.cross += np.moveaxis(x, 0, 2) @ missing.reshape(len(missing), layer.groups, -1).swapaxes(0, 1)
        self.total += missing.sum(0)
        self.count += len(missing)

    def mend(self) -> Mend:
        weight = (self.reading.inverse @ (self.cross / self.count)).swapaxes(1, 2)
        return Mend(self.reading.layer.op.name, weight, self.total / self.count)


SMALL = 1e-3
"""Of the largest scale of a BatchNorm: a channel that it all but leaves out makes up for nothing."""


def _as_before(behind: Array, before: Array, gap: Gap, host: Host) -> Array:
    """What would have to be before the gap."""
    if not gap.norms:
        return behind
    deviation, mean = before.std(-1, keepdims=True), before.mean(-1, keepdims=True)
    made: Array = deviation * preimage(behind, gap.norms, host) + mean
    return made

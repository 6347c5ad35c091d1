"""The law: permuting a group changes nothing, and leaving one member out of the permutation does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphprune.axes.index import Index, coordinates
from graphprune.cost.static import evaluate
from graphprune.coupling.groups import find_groups
from graphprune.ir.facts import Group, Member
from graphprune.ir.graph import Graph
from graphprune.ir.host import Host
from graphprune.ir.program import Program

from .network import Network, weights
from .reference import MOVES, STILL, Broken, Outputs, agree, distance

REDRAWN = 6  # times that a network whose output does not tell gets other weights


def law(net: Network, program: Program) -> Counter[str]:
    """Raises Broken where a permuted group moves the output, and where one does without a member that has effect, as
    another member has too, whatever the weights."""
    host, kind = program.host, program.host.kind
    groups = find_groups(program.graph, normalised=True)
    given = Given(program.graph, host)
    tally = Counter({"groups": len(groups), "frozen dims": len(groups.frozen)})
    for group in groups:
        if group.size == 1:
            continue
        after = given.outputs(given.index(group, np.roll(np.arange(group.size), 1)))
        agree(net, given.before, after, host, f"{kind}: permuting {group.name} ({group.size}) moves the output")
        if all(member.role == "reader" for member in group.members):
            continue  # nothing stored makes it: padding, whose channels are all alike
        for member in group.members:
            if _shows(given, group, member):
                tally["members"] += 1
            elif not _matters(given, group, member) or not any(
                _matters(given, group, other) for other in group.members if other is not member
            ):
                tally["members without effect"] += 1
            elif any(_shows(other, group, member) for other in _others(net, given, group)):
                tally["members that show with other numbers"] += 1
            else:
                raise Broken(f"{kind}: {group.name} does not need {member} ({member.role}){net!r}")
    return tally


@dataclass(frozen=True)
class Given:
    """A network on its example; ``known``: values of it that are what they are told to be."""

    graph: Graph
    host: Host
    known: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @cached_property
    def before(self) -> Outputs:
        return self.outputs()

    def index(self, group: Group, order: NDArray[Any]) -> Index:
        return Index({group.dim: order}, lambda size: evaluate(size, self.host.sizes()))

    def outputs(self, index: Index | None = None, leave_out: Member | None = None) -> Outputs:
        """With all that is stored, and told, permuted, but for one member."""
        host, index = self.host.copy(), index or Index({})
        for value in self.graph.parameters.values():
            for axis, dim in enumerate(value.dims):
                left = leave_out is not None and (value.name, axis) == (leave_out.parameter, leave_out.axis)
                if index.touches(dim) and not left:
                    host.take(value.name, axis, index(dim))
        if not self.known:
            return list(host.run(host.example()))
        dims = {value.name: value.dims for value in self.graph.values()}
        told = {name: index.cut(x, dims[name]) for name, x in self.known.items()}
        names = [value.name for value in self.graph.outputs]
        seen = host.watch(host.example(), names, told)
        return [seen[name] for name in names]


def _shows(given: Given, group: Group, member: Member) -> bool:
    """Whether some permutation of the group, which changes nothing, moves the output without the member."""
    before, still = given.before, STILL[given.host.kind]
    rng = np.random.default_rng(group.size)
    for order in (np.roll(np.arange(group.size), 1), np.arange(group.size)[::-1], rng.permutation(group.size)):
        index = given.index(group, order)
        if distance(before, given.outputs(index, member)) > still >= distance(before, given.outputs(index)):
            return True
    return False


def _matters(given: Given, group: Group, member: Member) -> bool:
    """Whether the member's slices reach the output, and differ. Only then must leaving it out show.

    Noise that differs from channel to channel of the group, on its positions alone, must move the
    output, whichever noise it is: an activation may be saturated there, or the slices not be read.
    """
    host, at = given.host, coordinates(member.dim, group.dim)
    value = np.asarray(host.parameter(member.parameter), np.float64)
    order = given.index(group, np.roll(np.arange(group.size), 1))(member.dim)
    if np.array_equal(value, value.take(order, member.axis)):
        return False
    rng = np.random.default_rng(0)
    shape = [n if axis == member.axis else 1 for axis, n in enumerate(value.shape)]
    for _ in range(3):
        noise = np.where(at >= 0, rng.standard_normal(group.size)[at], 0).reshape(shape)
        noisy = host.copy()
        noisy.set_parameter(member.parameter, value + 0.5 * np.abs(value).mean() * noise)
        if distance(given.before, replace(given, host=noisy).outputs()) <= MOVES[host.kind]:
            return False
    return True


def _others(net: Network, given: Given, group: Group) -> Iterator[Given]:
    """The network in which a member shows that is blind as it is: with other weights, for what is rectified may be off,
    or two channels may hold nearly the same; and with noise on a value that has the channels of the group, for those
    may be alike (padding, what is filled, copies)."""
    rng, index = np.random.default_rng(0), given.index(group, np.arange(group.size))
    names = [
        value.name
        for op in given.graph.ops
        for value in op.outputs
        if not value.constant and value.dtype.startswith("float") and any(map(index.touches, value.dims))
    ]
    hosts = [_redrawn(net, given, k) for k in range(REDRAWN)]
    yield from (replace(given, host=host) for host in hosts)
    for host in (given.host, *hosts):
        for name, x in host.watch(host.example(), names).items():
            yield replace(given, host=host, known={name: (x + rng.standard_normal(x.shape)).astype(x.dtype)})


def _redrawn(net: Network, given: Given, number: int) -> Host:
    """Other weights. Vectors are positive, so that biases keep open what is rectified."""
    host = given.host.copy()
    for name, array in weights(replace(net, seed=net.seed + 1 + number)).items():
        if (value := given.graph.parameters.get(name)) is not None:
            host.set_parameter(name, (np.abs(array) + 0.5 if array.ndim == 1 else array).astype(value.dtype))
    return host

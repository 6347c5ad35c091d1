"""From related axes to groups: what lives or dies together, and what may not be pruned and why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set

from ..axes.dim import Dim, count, find, leaves
from ..errors import one_line
from ..ir.facts import Frozen, Group, Groups, Member, Role
from ..ir.graph import Graph, Value
from .names import matching
from .names import names as known_as
from .relate import role

_BYTES = {"float64": 8, "bfloat16": 2, "float16": 2}
_RANK: dict[Role, int] = {"reader": 0, "writer": 1, "carrier": 2}


def everything(graph: Graph) -> Groups:
    """All that any options of ``find_groups`` offer."""
    return find_groups(graph, normalised=True, states=("*",) if graph.inputs else ())


def find_groups(
    graph: Graph,
    *,
    normalised: bool = False,
    freeze: Sequence[str] = (),
    only: Sequence[str] = (),
    states: Sequence[str] = (),
    strict: bool = True,
) -> Groups:
    """Every leaf dim that weights have, with the parameter axes that contain it.

    ``normalised`` also offers dims that LayerNorm or GroupNorm normalise across, where a pruned
    network no longer computes what the masked one does. ``freeze``: patterns (see names.matching) of
    groups, layers and parameters to leave alone, a layer with what it reads; ``only``: of those whose
    outputs may go, no others. ``states``: patterns of graph inputs whose dims are offered, too, where no other
    input has them: inputs, and outputs that have them, become as narrow. Names depend on none of them. Raises
    RecipeError for a pattern that matches nothing, where ``strict``.
    """
    import networkx as nx

    members, ops = _members(graph)
    names = _names(members, ops)
    called = [known_as(names[leaf], found, _by_parameter(ops, leaf, found)) for leaf, found in members.items()]
    kept = matching(freeze, [one.touched for one in called], strict=strict)
    chosen = matching(only, [one.made for one in called], strict=strict) if only else ["*"] * len(called)
    dependency = nx.Graph()
    groups, frozen = [], []
    given = _given(graph, states) if states else set[Dim]()
    least, rows = _chosen(graph), _multiples(graph)
    for (leaf, found), held, wanted in zip(members.items(), kept, chosen, strict=True):
        name = one_line(names[leaf])
        reason = _reason(leaf, normalised, given) or _asked(held, wanted)
        dependency.add_node(name, kind="dim", size=leaf.size, frozen=reason or "")
        for member in found:
            axis = f"{member.parameter}:{member.axis}"  # not str(member), which may be the name of a dim
            dependency.add_node(axis, kind="axis")
            dependency.add_edge(name, axis, role=member.role, ops=tuple(ops[leaf, member.parameter]))
        if reason is None and isinstance(leaf.size, int):
            groups.append(Group(name, leaf, leaf.size, tuple(found), (), least.get(leaf, 1), rows.get(leaf, 1)))
        else:
            frozen.append(Frozen(name, leaf.size, reason or f"dynamic size {leaf.size}"))
    return Groups(tuple(groups), tuple(frozen), dependency)


def sources(graph: Graph) -> dict[str, tuple[Value, ...]]:
    """For every constant value, the parameters that it is computed from."""
    found: dict[str, tuple[Value, ...]] = {name: (value,) for name, value in graph.parameters.items()}
    for op in graph.ops:
        for out in op.outputs:
            if out.constant:
                inputs = [value for value in op.inputs if value is not None]
                found[out.name] = tuple(dict.fromkeys(p for value in inputs for p in found.get(value.name, ())))
    return found


def _members(graph: Graph) -> tuple[dict[Dim, list[Member]], dict[tuple[Dim, str], list[str]]]:
    """Per leaf, the parameter axes that contain it, in graph order; and the ops that say so."""
    roles: dict[tuple[Dim, str, int], Role] = {}
    ops: dict[tuple[Dim, str], list[str]] = defaultdict(list)
    for leaf, parameter, axis, part, where in _uses(graph):
        key = (leaf, parameter.name, axis)
        if key not in roles or _RANK[part] < _RANK[roles[key]]:
            roles[key] = part
        ops[leaf, parameter.name].append(where)
    across = {(find(one.dim), one.parameter, one.axis) for one in graph.maskers if one.across}
    members: dict[Dim, list[Member]] = defaultdict(list)
    for (leaf, name, axis), part in roles.items():
        mean = (leaf, name, axis) in across and not leaf.mixed
        members[leaf].append(Member(name, axis, part, graph.parameters[name].dims[axis], mean))
    return members, ops


def _uses(graph: Graph) -> Iterator[tuple[Dim, Value, int, Role, str]]:
    """(leaf, parameter, axis, role, op) wherever an op says that a parameter's axis has that leaf."""
    yield from _stored_uses(graph)
    for masker in graph.maskers:  # zeroed like a reader, for want of one
        if masker.across or masker.dim.size == 1:
            continue
        yield masker.dim, graph.parameters[masker.parameter], masker.axis, "reader", masker.op


def _stored_uses(graph: Graph) -> Iterator[tuple[Dim, Value, int, Role, str]]:
    origin = sources(graph)
    axes_of = {name: _axes(value) for name, value in graph.parameters.items()}
    for op in graph.ops:
        relation = graph.relations[op.name]
        if not relation.dims:  # no rule: whatever it does, its weights stay as they are
            weights = [value for value in op.inputs if value is not None and value.name in graph.parameters]
            for parameter in weights:
                for leaf, axes in axes_of[parameter.name].items():
                    yield from ((leaf, parameter, axis, "carrier", op.origin or op.name) for axis in axes)
        for name, dim in relation.dims.items():
            part = role(op, relation, name)
            if part is None:
                continue
            constants = [v for k, _ in relation.inputs[name] if (v := op.inputs[k]) is not None and v.constant]
            for value in constants:
                own = {axis for k, axis in relation.inputs[name] if op.inputs[k] is value}
                for parameter in origin.get(value.name, ()):
                    for leaf in leaves(dim):
                        for axis in axes_of[parameter.name].get(leaf, ()):
                            if parameter is not value or axis in own:  # one axis may write, another read
                                yield leaf, parameter, axis, part, op.origin or op.name


def _axes(value: Value) -> dict[Dim, list[int]]:
    """Leaf -> the axes of a parameter that contain it; axes of size one do not count."""
    found: dict[Dim, list[int]] = defaultdict(list)
    for axis, dim in enumerate(value.dims):
        for leaf in leaves(dim):
            if leaf.size != 1:
                found[leaf].append(axis)
    return found


_NUMBERED = re.compile(r"(val_?|v_|onnx::\w+_)?\d+")
"""What exporters call a weight that they computed (a transposed one), whatever it was called before."""


def _names(members: Mapping[Dim, Sequence[Member]], ops: Mapping[tuple[Dim, str], Sequence[str]]) -> dict[Dim, str]:
    """A readable, unique name per leaf: the first axis that writes it; where its parameter has a number for a name,
    the layer of the bias beside it, or the op that reads it."""
    names: dict[Dim, str] = {}
    taken: set[str] = set()
    for leaf, found in members.items():
        first = min(found, key=lambda member: member.role != "writer")  # stable: the first of its kind
        whole, base = first.parameter, first.parameter.removesuffix(".weight")
        if _NUMBERED.fullmatch(whole):
            stems = (m.parameter.removesuffix(".bias") for m in found if m.parameter.endswith(".bias"))
            beside = stems if first.role == "writer" else iter(())
            whole = base = next(iter((*beside, *ops[leaf, first.parameter])), base)
        parts = list(leaves(first.dim))
        place = f".{parts.index(leaf)}" if len(parts) > 1 else ""
        name = f"{base}{place}" if first.role == "writer" else f"{whole}[{first.axis}]{place}"
        names[leaf] = name if name not in taken else f"{first.parameter}[{first.axis}]{place}"
        taken.add(names[leaf])
    return names


def _by_parameter(
    ops: Mapping[tuple[Dim, str], Sequence[str]], leaf: Dim, found: Sequence[Member]
) -> dict[str, Sequence[str]]:
    return {member.parameter: ops[leaf, member.parameter] for member in found}


def _chosen(graph: Graph) -> dict[Dim, int]:
    """Per leaf, how many of it an op that chooses the best so many needs, though one is left of all others that go."""
    found: dict[Dim, int] = {}
    for choice in graph.choices:
        sizes = {leaf: leaf.size for leaf in leaves(choice.dim) if isinstance(leaf.size, int)}
        least = {leaf: size if leaf.frozen and not leaf.outside else 1 for leaf, size in sizes.items()}
        for leaf, size in sizes.items():
            enough = (n for n in range(1, size + 1) if _length(choice.dim, {**least, leaf: n}) >= choice.best)
            found[leaf] = max(found.get(leaf, 1), next(enough, size))
    return found


def _multiples(graph: Graph) -> dict[Dim, int]:
    """Torch multiplies groups of rows of whole 16 bytes alone (torch.nn.functional.grouped_mm)."""
    found: dict[Dim, int] = {}
    for op in graph.ops:
        if op.kind == "grouped_matmul" and op.inputs[1] is not None:
            size = _BYTES.get(op.inputs[1].dtype, 4)
            for name in "io":
                for leaf in leaves(graph.relations[op.name].dims[name]):
                    if isinstance(leaf.size, int) and leaf.size % (16 // size) == 0:
                        found[leaf] = 16 // size
    return found


def _length(dim: Dim, sizes: Mapping[Dim, int]) -> float:
    return count(dim, lambda leaf: sizes.get(leaf, 1))


def _given(graph: Graph, states: Sequence[str]) -> set[Dim]:
    """The leaves of inputs that match a pattern, and of no others."""
    found: dict[bool, set[Dim]] = {True: set(), False: set()}
    wanted = matching(states, [{value.name} for value in graph.inputs], "input of the model")
    for value, pattern in zip(graph.inputs, wanted, strict=True):
        own = {leaf for dim in value.dims for leaf in leaves(dim) if leaf.outside}
        found[pattern is not None] |= own
    return found[True] - found[False]


def _reason(leaf: Dim, normalised: bool, given: Set[Dim]) -> str | None:
    if find(leaf).frozen and leaf not in given:
        return leaf.frozen
    if leaf.mixed and not normalised:
        return (
            f"{leaf.mixed} normalises across it (`group{{normalised=true}}` with `--no-verify` prunes it all the same)"
        )
    return None


def _asked(held: str | None, wanted: str | None) -> str | None:
    if held:
        return f"asked for by `{held}`"
    return None if wanted else "not among those that alone may go"

"""Do computed literals follow when axes shrink?

A Reshape whose size is computed by a chain of Shape, Gather and Concat may come out right by itself
when a tensor gets smaller, may be set by ``set_literal``, or neither. In the last case the number is
written down as a constant before anything is edited, or the axes that it was computed from are frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ...axes.dim import Dim, find, freeze, leaves
from ...ir.graph import Graph, Op, Value
from .node import constant_tensor
from .shape_probe import Seen
from .size_flow import Entry, Flow, Sizes, known, slots

_SIZES = (ir.DataType.INT32, ir.DataType.INT64)
_PINNABLE = frozenset({"Slice", "Split", "Pad", "Tile"})
_NAMES = {("slice", 1): "starts", ("slice", 2): "ends", ("split", 1): "sizes", ("pad", 1): "pads"}


@dataclass(frozen=True)
class Known:
    """One number of a literal: as seen (None: it varies), whether it follows by itself the axis whose
    size it is, and whether it is written down as a constant."""

    number: int | float | None
    follows: bool
    fixed: bool


@dataclass(frozen=True)
class Written:
    """One literal of an op. ``pinned``: to be replaced by a constant before the first edit."""

    entries: tuple[Known, ...]
    dtype: ir.DataType
    pinned: bool


class Follower:
    def __init__(self, graph: Graph, nodes: Mapping[str, ir.Node], flow: Flow, seen: Seen) -> None:
        self.graph, self.nodes, self.flow, self.seen = graph, nodes, flow, seen
        self.sizes = Sizes(flow, seen)
        self.values: dict[str, Value] = {value.name: value for value in graph.values()}

    def follow(self) -> dict[tuple[str, int], Written]:
        """Every literal by op name and input; freezes the axes of those that cannot follow."""
        out: dict[tuple[str, int], Written] = {}
        for op in self.graph.ops:
            node = self.nodes[op.name]
            if op.kind == "create" and node.outputs[0] in self.flow.sized:  # it flows into data
                reads = [Entry(frozenset(self.sizes.reads(made))) for made in node.outputs]
                self._freeze(op, self._loose(reads, [], []))
                continue
            for k in sorted(slots(node)):
                value = node.inputs[k] if k < len(node.inputs) else None
                if value is not None and (value in self.flow.sized or value in self.flow.constant):
                    written = self._literal(op, node, k, value)
                    if written is not None:
                        out[op.name, k] = written
        return out

    def _literal(self, op: Op, node: ir.Node, slot: int, value: ir.Value) -> Written | None:
        entries = self.sizes.of(value)
        numbers = known(value, self.seen)
        twins = _twins(op, node, slot, len(entries))
        loose = list(self._loose(entries, twins, self._set_by(op, slot, len(entries))))
        static = numbers is not None and None not in numbers and len(numbers) == len(entries)
        pinned = bool(loose) and static and node.op_type in _PINNABLE
        if not pinned:
            self._freeze(op, loose)
        if numbers is None:
            return None
        if len(entries) != len(numbers):
            entries, twins = [Entry()] * len(numbers), []
        flags = [(self._follows(entry, twins[k : k + 1]), not entry.reads) for k, entry in enumerate(entries)]
        each = tuple(Known(n, follows, fixed) for n, (follows, fixed) in zip(numbers, flags, strict=True))
        return Written(each, self._dtype(value), pinned)

    def _loose(self, entries: Sequence[Entry], twins: Sequence[Dim], sets: Sequence[set[int]]) -> Iterator[Dim]:
        """The leaves whose change would make an entry wrong without its being set."""
        for k, entry in enumerate(entries):
            if self._follows(entry, twins[k : k + 1]):
                continue
            for name, axis in sorted(entry.reads):
                dims = self.values[name].dims if name in self.values else ()
                if axis < len(dims):
                    covered = sets[k] if k < len(sets) else set()
                    yield from (leaf for leaf in leaves(dims[axis]) if id(leaf) not in covered)

    @staticmethod
    def _freeze(op: Op, dims: Iterator[Dim] | list[Dim]) -> None:
        for dim in dims:
            freeze(dim, f"{op.origin}: computes with its size")

    def _follows(self, entry: Entry, twin: Sequence[Dim]) -> bool:
        """Whether an entry reads the size of just the axis that it sets."""
        if not entry.exact or not twin:
            return False
        ((name, axis),) = entry.reads
        dims = self.values[name].dims if name in self.values else ()
        return axis < len(dims) and find(dims[axis]) is find(twin[0])

    def _set_by(self, op: Op, slot: int, count: int) -> list[set[int]]:
        """Per entry, the leaves whose change makes ``relate.literals`` set it."""
        relation = self.graph.relations[op.name]
        if relation.literals.get("shape") == "*":
            every = {id(leaf) for dim in op.outputs[0].dims for leaf in leaves(dim)}
            dynamic = [isinstance(find(dim).size, str) for dim in _aligned(op, self.nodes[op.name], slot, count)]
            return [set() if moves else every for moves in dynamic]
        text = relation.literals.get(_NAMES.get((op.kind, slot), ""))
        if text is None or op.kind == "pad":  # a Pad orders its numbers otherwise
            return []
        parts = [item.split("+") for item in text.split(",")]
        dims = [[relation.dims[part] for part in item if part in relation.dims] for item in parts]
        return [{id(leaf) for dim in item for leaf in leaves(dim)} for item in dims]

    def _dtype(self, value: ir.Value) -> ir.DataType:
        tensor = constant_tensor(value)
        if tensor is not None:
            return tensor.dtype
        spelled = self.seen.dtypes.get(str(value.name), "int64")
        made = ir.DataType.INT32 if spelled == "int32" else ir.DataType.INT64
        return value.dtype if value.dtype in _SIZES else made  # an output may be declared as what it is not


def _aligned(op: Op, node: ir.Node, slot: int, count: int) -> list[Dim]:
    """The output axes that the ``count`` entries of a size that is written down speak of."""
    dims = op.outputs[0].dims
    if node.op_type in ("Reshape", "Expand", "ConstantOfShape"):
        return list(dims[len(dims) - count :]) if count <= len(dims) else []
    if node.op_type == "Resize" and slot == 3:
        axes = node.attributes["axes"].value if "axes" in node.attributes else range(count)
        return [dims[axis] for axis in axes]
    return []


def _twins(op: Op, node: ir.Node, slot: int, count: int) -> list[Dim]:
    """The axes whose sizes the entries of a literal are, where they are."""
    source = op.inputs[0] if op.inputs else None
    if op.kind in ("reshape", "expand", "resize", "fill"):
        return _aligned(op, node, slot, count)
    if op.kind == "slice" and slot == 2 and source is not None:
        return [source.dims[axis] for axis in op.attrs["axes"]]
    if op.kind == "split":
        return [out.dims[op.attrs["axis"]] for out in op.outputs]
    return []

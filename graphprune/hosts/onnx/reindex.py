"""``reindex`` ops in an ONNX graph: an Identity that is marked, and what takes its place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...axes.index import Indices
from ...ir.graph import Site
from ...ir.host import Array
from . import edit

MARK = "graphprune_reindex"

Source = tuple[ir.Value, Indices, int]
"""A value, positions along the axis (-1: zeros), and the size of that axis."""


def insert(graph: ir.Graph, node: ir.Node, site: Site) -> None:
    operand = node.inputs[site.operand]
    assert operand is not None
    name = f"{node.outputs[0].name}_reindex_{site.operand}"
    identity = edit.insert(graph, node, "Identity", [operand], name, operand.dtype, before=True)
    identity.metadata_props[MARK] = f"{site.axis} {site.inner} {int(site.fills)}"
    node.replace_input_with(site.operand, identity.outputs[0])


def attributes(node: ir.Node) -> dict[str, int | bool] | None:
    """The attributes of the ``reindex`` op that a node stands for, if it does."""
    mark = node.metadata_props.get(MARK)
    if mark is None:
        return None
    axis, inner, fills = map(int, mark.split())
    return {"axis": axis, "inner": inner, "fills": bool(fills)}


def build(graph: ir.Graph, identity: ir.Node, sources: Sequence[Source], rank: int, version: int) -> None:
    """Put the pieces in the place of ``identity``, and drop what nobody reads any more."""
    axis = int((attributes(identity) or {})["axis"])
    maker = _Maker(graph, identity, axis, rank, version)
    parts = [maker.piece(*source) for source in sources]
    made = parts[0] if len(parts) == 1 else maker.concat(parts)
    for reader, k in list(identity.outputs[0].uses()):
        reader.replace_input_with(k, made)
    edit.sweep(graph, identity)


class _Maker:
    def __init__(self, graph: ir.Graph, at: ir.Node, axis: int, rank: int, version: int) -> None:
        self.graph, self.at, self.axis, self.version = graph, at, axis, version
        self.name, self.rank = str(at.outputs[0].name), rank

    def piece(self, value: ir.Value, at: Indices, size: int) -> ir.Value:
        run = len(at) > 0 and at[0] >= 0 and bool((np.diff(at) == 1).all())
        if run and len(at) == size:
            return value
        if run:
            return self._slice(value, int(at[0]), int(at[0]) + len(at))
        kept = np.flatnonzero(at >= 0)
        if len(kept) < len(at) and np.array_equal(at[kept], np.arange(size)) and bool((np.diff(kept) == 1).all()):
            return self._pad(value, int(kept[0]), len(at) - 1 - int(kept[-1]))
        if len(kept) < len(at):  # one channel of zeros, from which all zeros are taken
            value, at = self._pad(value, 0, 1), np.where(at < 0, size, at)
        return self._node("Gather", [value, self._numbers(at)], [ir.AttrInt64("axis", self.axis)], value)

    def concat(self, parts: Sequence[ir.Value]) -> ir.Value:
        return self._node("Concat", parts, [ir.AttrInt64("axis", self.axis)], parts[0])

    def _slice(self, value: ir.Value, start: int, end: int) -> ir.Value:
        if self.version < 10:
            bounds = {"starts": start, "ends": end, "axes": self.axis}
            attributes = [ir.AttrInt64s(name, [number]) for name, number in bounds.items()]
            return self._node("Slice", [value], attributes, value)
        numbers = [self._numbers(np.array([n])) for n in (start, end, self.axis)]
        return self._node("Slice", [value, *numbers], [], value)

    def _pad(self, value: ir.Value, before: int, after: int) -> ir.Value:
        pads = np.zeros(2 * self.rank, np.int64)
        pads[self.axis], pads[self.rank + self.axis] = before, after
        if self.version < 11:
            return self._node("Pad", [value], [ir.AttrInt64s("pads", pads.tolist())], value)
        return self._node("Pad", [value, self._numbers(pads)], [], value)

    def _numbers(self, numbers: Array) -> ir.Value:
        return edit.make_tensor(self.graph, f"{self.name}_at", numbers.astype(np.int64), ir.DataType.INT64)

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value], attributes: Sequence[ir.Attr], like: ir.Value
    ) -> ir.Value:
        name = f"{self.name}_{op_type.lower()}"
        node = edit.insert(self.graph, self.at, op_type, inputs, name, like.dtype, before=True)
        for attribute in attributes:
            node.attributes[attribute.name] = attribute
        return node.outputs[0]

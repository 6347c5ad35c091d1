"""``reindex`` ops in an fx graph: an alias that is marked, and what takes its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from ...axes.index import Indices
from ...ir.graph import Site

_ATEN = torch.ops.aten
MARK = "graphprune_reindex"

Source = tuple[fx.Node, Indices, int]
"""A node, positions along the axis (-1: zeros), and the size of that axis."""


def insert(graph: fx.Graph, node: fx.Node, operand: fx.Node, site: Site) -> None:
    with graph.inserting_before(node):
        name = f"{node.name}_reindex_{site.operand}"
        alias = graph.create_node("call_function", _ATEN.alias.default, (operand,), {}, name=name)
    alias.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
    alias.meta["val"] = operand.meta["val"]
    alias.meta[MARK] = {"axis": site.axis, "inner": site.inner, "fills": site.fills}
    node.replace_input_with(operand, alias)


def build(alias: fx.Node, sources: Sequence[Source], constant: Callable[[str, torch.Tensor], fx.Node]) -> None:
    """Put the pieces in the place of ``alias``, and drop what nobody reads any more. ``constant`` makes a
    tensor of the module."""
    graph, axis = alias.graph, alias.meta[MARK]["axis"]
    with graph.inserting_before(alias):
        parts = [_piece(graph, source, axis, alias, constant) for source in sources]
        made = parts[0]
        if len(parts) > 1:
            total = sum(len(at) for _, at, _ in sources)
            made = _call(graph, alias, _ATEN.cat.default, (parts, axis), total, axis)
    alias.replace_all_uses_with(made)
    _sweep(graph, alias)


def _piece(graph: fx.Graph, source: Source, axis: int, alias: fx.Node, constant: Any) -> fx.Node:
    node, at, size = source
    run = len(at) > 0 and at[0] >= 0 and bool((np.diff(at) == 1).all())
    if run and len(at) == size:
        return node
    if run:
        start = int(at[0])
        return _call(graph, alias, _ATEN.slice.Tensor, (node, axis, start, start + len(at)), len(at), axis, node)
    kept = np.flatnonzero(at >= 0)
    if len(kept) < len(at) and len(kept) == size and np.array_equal(at[kept], np.arange(size)) and _run(kept):
        pads = (int(kept[0]), len(at) - 1 - int(kept[-1])) if len(kept) else (len(at), 0)
        return _pad(graph, alias, node, axis, pads, len(at))
    if len(kept) < len(at):  # one channel of zeros, from which all zeros are taken
        node = _pad(graph, alias, node, axis, (0, 1), size + 1)
        at = np.where(at < 0, size, at)
    ids = constant(f"{alias.name}_ids", torch.from_numpy(np.ascontiguousarray(at, dtype=np.int64)))
    return _call(graph, alias, _ATEN.index_select.default, (node, axis, ids), len(at), axis, node)


def _run(at: Indices) -> bool:
    return bool((np.diff(at) == 1).all())


def _pad(graph: fx.Graph, alias: fx.Node, node: fx.Node, axis: int, pads: tuple[int, int], length: int) -> fx.Node:
    rank = node.meta["val"].ndim
    written = [0, 0] * (rank - 1 - axis) + list(pads)
    return _call(graph, alias, _ATEN.constant_pad_nd.default, (node, written, 0), length, axis, node)


def _call(
    graph: fx.Graph, alias: fx.Node, target: Any, args: tuple[Any, ...], length: int, axis: int, like: Any = None
) -> fx.Node:
    made = graph.call_function(target, args)
    made.meta = {key: value for key, value in alias.meta.items() if key != MARK}
    val = (like or alias).meta["val"]
    made.meta["val"] = val.new_empty([length if k == axis else n for k, n in enumerate(val.shape)])
    return made


def _sweep(graph: fx.Graph, node: fx.Node) -> None:
    """Drop a node, and what only it was for."""
    sources = node.all_input_nodes
    graph.erase_node(node)
    for source in sources:
        if not source.users and source.op == "call_function":
            _sweep(graph, source)

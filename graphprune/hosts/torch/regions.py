"""Regions of a graph that torch.export keeps apart: autocast and gradient modes, and the branches of ``torch.cond``.

``with torch.autocast(...)`` and ``with torch.no_grad()`` in a forward are ops that run a graph of their own. What
they do is written out here, so that everything reads one graph of ATen ops: the casts that autocast makes are casts,
and what is made without gradients is detached. Of ``cond``, both branches are there, or the one that is decided on.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import fx
from torch.fx.graph_module import _get_attr
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .conditions import COND, can_open, choose, mark

_ATEN = torch.ops.aten
_HIGHER = torch.ops.higher_order


def write_out(model: fx.GraphModule, branches: bool) -> list[str]:
    """Rewrite the graph of ``model`` without regions that can be written out, from the innermost on; ``branches``:
    also without those of a ``cond`` that decides when it is run. Returns what there is to say of it."""
    notes: dict[str, None] = {}
    before = list(model.graph.nodes)
    for node in before:
        region = _region(node)
        if region is not None:
            body: fx.GraphModule = _get_attr(model, str(region[0].target))
            notes.update(dict.fromkeys(write_out(body, branches)))
            notes.update(dict.fromkeys(_inline(model, node, body, *region)))
        elif branches and node.target is COND:
            both = [_get_attr(model, str(holder.target)) for holder in node.args[1:3]]
            for body in both:
                notes.update(dict.fromkeys(write_out(body, branches)))
            if all(map(can_open, both)):
                _open(model, node, both)
    if list(model.graph.nodes) != before:
        model.graph.lint()
        model.recompile()
    return list(notes)


_Region = tuple[fx.Node, Sequence[Any], Mapping[str, Any]]
"""The node that holds its graph, what its graph is called with, and the modes that it sets."""


def _region(node: fx.Node) -> _Region | None:
    """What a node runs, where it is a region that can be written out."""
    if node.op != "call_function":
        return None
    if node.target is _HIGHER.wrap_with_set_grad_enabled:
        enabled, body, *operands = node.args
        return body, operands, {"gradients": enabled}  # type: ignore[return-value]
    if str(node.target) == "wrap_with_autocast":
        device, dtype, enabled, _, body, *operands = node.args
        return body, operands, {"autocast": (device, dtype) if enabled else None}  # type: ignore[return-value]
    if node.target is COND and isinstance(node.args[0], bool):
        taken = node.args[1] if node.args[0] else node.args[2]
        return taken, node.args[3], {}  # type: ignore[return-value]
    return None


_SETTLED = "graphprune_settled"
"""Marks an op whose operands are cast as autocast has them: no region around it changes them."""


def _inline(
    model: fx.GraphModule,
    node: fx.Node,
    body: fx.GraphModule,
    holder: fx.Node,
    operands: Sequence[Any],
    modes: Mapping[str, Any],
) -> list[str]:
    before = set(model.graph.nodes)
    with model.graph.inserting_before(node):
        returned = _copied(model, body, holder, operands)
        if modes.get("gradients") is False:
            returned = fx.node.map_arg(returned, lambda n: _detached(model.graph, n))
    new = [one for one in model.graph.nodes if one not in before]
    notes = []
    if "autocast" in modes:
        if modes["autocast"] is not None and not all(_with_casts(one, *modes["autocast"]) for one in new):
            for one in [one for one in reversed(model.graph.nodes) if one not in before]:
                model.graph.erase_node(one)
            return []
        for one in new:
            one.meta[_SETTLED] = True
        where = "off" if modes["autocast"] is None else "on"
        notes = [f"what is inside of autocast {where} is written out in casts: autocast around the result reaches it"]
    _replace(model.graph, node, returned)
    if not holder.users:
        model.graph.erase_node(holder)
    return notes


def _copied(model: fx.GraphModule, body: fx.GraphModule, holder: fx.Node, operands: Sequence[Any]) -> Any:
    """What a region computes, in the graph that it is called in. Returns what it returns."""
    made: dict[fx.Node, Any] = dict(zip(body.graph.find_nodes(op="placeholder"), operands, strict=True))
    for one in body.graph.nodes:
        if one.op == "output":
            return fx.node.map_arg(one.args[0], made.__getitem__)
        if one.op != "placeholder":
            copy = made[one] = model.graph.node_copy(one, made.__getitem__)
            if one.op == "get_attr":
                copy.target = f"{holder.target}.{one.target}"
    return None


def _open(model: fx.GraphModule, node: fx.Node, bodies: Sequence[fx.GraphModule]) -> None:
    """Both branches of a ``cond`` in the graph, and a ``choose`` in its place."""
    condition, *holders, operands = node.args
    before = set(model.graph.nodes)
    with model.graph.inserting_before(node):
        made = [
            _copied(model, body, holder, operands)  # type: ignore[arg-type]
            for body, holder in zip(bodies, holders, strict=True)
        ]
        for one in [one for one in model.graph.nodes if one not in before and one.op != "get_attr"]:
            mark(one)
        chosen = model.graph.call_function(choose, (condition, *made))
    chosen.meta = dict(node.meta)
    node.replace_all_uses_with(chosen)
    model.graph.erase_node(node)
    for holder in holders:
        if not holder.users:  # type: ignore[union-attr]
            model.graph.erase_node(holder)  # type: ignore[arg-type]


def _replace(graph: fx.Graph, node: fx.Node, returned: Any) -> None:
    """What reads a region reads what it returned."""
    for user in list(node.users):
        if user.target is operator.getitem and isinstance(returned, (tuple, list)):
            user.replace_all_uses_with(returned[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    if node.users:
        node.replace_all_uses_with(returned)
    graph.erase_node(node)


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    val = node.meta.get("val")
    if not isinstance(val, torch.Tensor) or not (val.is_floating_point() or val.is_complex()):
        return node
    made = graph.call_function(_ATEN.detach.default, (node,))
    made.meta = dict(node.meta)
    return made


class _Casts(TorchDispatchMode):
    """Notes which tensors are cast, and to what."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: list[tuple[int, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATEN._to_copy.default and kwargs.get("dtype") is not None:
            self.made.append((id(args[0]), kwargs["dtype"]))
        return func(*args, **kwargs)


def _with_casts(node: fx.Node, device: str, dtype: torch.dtype) -> bool:
    """Put the casts that autocast makes of an op's operands before it; False where that is not what it does."""
    if node.op != "call_function" or node.meta.get(_SETTLED) or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    if schema.name in ("aten::to", "aten::_to_copy"):
        return True
    operands = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    if not any(n.meta["val"].is_floating_point() for n in operands):
        return True
    watch = _Casts()
    _run(node, lambda n: n.meta["val"], watch, torch.autocast(device, dtype, cache_enabled=False))
    own = {id(n.meta["val"]): n for n in operands}
    wanted = {own[key]: to for key, to in watch.made if key in own}
    inside = {to for key, to in watch.made if key not in own}
    if inside and not wanted:  # views of the operands were cast
        wanted = {n: to for n in operands for to in inside if n.meta["val"].is_floating_point()}
    for operand, to in wanted.items():
        if operand.meta["val"].dtype == to:
            continue
        cast = node.graph.call_function(_ATEN.to.dtype, (operand, to))
        cast.meta = {**node.meta, "val": operand.meta["val"].to(to)}
        node.prepend(cast)
        node.replace_input_with(operand, cast)
    made = _run(node, lambda n: n.meta["val"])
    old = pytree.tree_leaves(node.meta["val"])
    return [getattr(a, "dtype", None) for a in pytree.tree_leaves(made)] == [getattr(b, "dtype", None) for b in old]


def _run(node: fx.Node, value: Any, *modes: Any) -> Any:
    """An op on the fake tensors of its operands."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    fake = next(v.fake_mode for v in pytree.tree_leaves((args, kwargs)) if hasattr(v, "fake_mode"))
    with ExitStack() as stack:
        for mode in (torch.no_grad(), fake, *modes):
            stack.enter_context(mode)
        return node.target(*args, **kwargs)  # type: ignore[operator]

"""Fx nodes one after the other for one that multiplies by a weight: see ir.Host.factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import fx

from .edit import arguments, set_argument

_BARE = {"stride": 1, "padding": 0, "dilation": 1}


def weight_of(node: fx.Node) -> fx.Node:
    """The weight that a layer multiplies by."""
    named = arguments(node)
    weight: fx.Node = next(named[name] for name in ("weight", "mat2", "other") if name in named)
    return weight


def transposed(node: fx.Node) -> bool:
    """Whether a layer multiplies by the transpose of the parameter that it has for a weight: of a matrix each op on
    the way that changes its layout swaps both axes."""
    weight, swaps = weight_of(node), 0
    while weight.op != "get_attr":
        named = arguments(weight)
        swaps += list(named.get("dims", (1, 0))) in ([1, 0], [-1, 0], [1, -2], [-1, -2])
        weight = weight.all_input_nodes[0]
    return swaps % 2 == 1


def before(node: fx.Node, inner: fx.Node) -> fx.Node:
    """A new node that reads what ``node`` does, with the weight ``inner``; a convolution has the windows of it along
    the axes where its kernel is one."""
    graph, named = node.graph, arguments(node)
    target = torch.ops.aten.mm.default if "mat1" in named else node.target  # addmm without what it adds
    args, kwargs = ((named[_read(node)], inner), {}) if "mat1" in named else (node.args, node.kwargs)
    with graph.inserting_before(node):
        new = graph.create_node("call_function", target, args, kwargs, name=f"{node.name}_rank")
    new.meta = dict(node.meta)
    if "mat1" not in named:
        new.replace_input_with(weight_of(new), inner)
    if named.get("bias") is not None:
        set_argument(new, "bias", None)
    kernel = tuple(weight_of(node).meta["val"].shape[2:])
    _plain(new, [mine == whole for mine, whole in zip(inner.meta["val"].shape[2:], kernel, strict=True)])
    return new


def after(node: fx.Node, new: fx.Node, inner: Sequence[int], kernel: Sequence[int]) -> None:
    """Let a node read ``new``, whose kernel is ``inner`` of its own ``kernel``."""
    set_argument(node, _read(node), new)
    _plain(node, [mine != whole for mine, whole in zip(inner, kernel, strict=True)])


def _read(node: fx.Node) -> str:
    return next(name for name in ("input", "mat1", "self") if name in arguments(node))


def _plain(node: fx.Node, keeps: Sequence[bool]) -> None:
    """No stride, padding or dilation along the axes that do not keep theirs."""
    named = arguments(node)
    if "stride" not in named:
        return
    for name, plain in _BARE.items():
        given = named[name]
        if not isinstance(given, str):  # "same" and "valid" are right for a kernel of one
            each = list(given) * (len(keeps) if len(given) == 1 else 1)
            set_argument(node, name, [own if keep else plain for own, keep in zip(each, keeps, strict=True)])

"""New fx nodes of kinds of rules.py: see ir.Host.insert."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.graph_module import _get_attr

from ...ir.host import Array
from .casting import wider

_ATEN = torch.ops.aten
_FUNCTIONS = {"add": _ATEN.add.Tensor, "mul": _ATEN.mul.Tensor, "div": _ATEN.div.Tensor}
_OF_ONE = {"abs": _ATEN.abs.default, "log": _ATEN.log.default}
_REDUCED = {"mean": _ATEN.mean.dim, "sum": _ATEN.sum.dim_IntList}
_ALIKE = {_ATEN.masked_scatter.default: lambda x, mask, source: torch.where(mask, x, x)}
"""What makes the same shape and dtype as an op of which torch infers no open sizes (its mask is broadcast)."""


class Shapes:
    """What nodes make of fake tensors, open sizes as they are spelled."""

    def __init__(self, model: fx.GraphModule, floats: torch.dtype | None = None) -> None:
        self.model, self.floats = model, floats  # what weights are cast to where they are read
        values = (node.meta.get("val") for node in model.graph.nodes)
        self.mode = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)

    def made(self, target: Any, args: Any, kwargs: Any = {}) -> Any:  # noqa: B006 (read alone)
        with torch.no_grad(), self.mode or nullcontext():  # else one that makes a tensor of a size settles what that is
            return _ALIKE.get(target, target)(*fx.node.map_arg(args, self._val), **fx.node.map_arg(kwargs, self._val))

    def _val(self, node: fx.Node) -> Any:
        value = _get_attr(self.model, str(node.target)) if node.op == "get_attr" else node.meta["val"]
        if self.mode is None or isinstance(value, FakeTensor) or not isinstance(value, torch.Tensor):
            return value
        made = self.mode.from_tensor(value, static_shapes=True)
        return made if self.floats is None else made.to(wider(made.dtype, self.floats))


def respell(model: fx.GraphModule, end: fx.Node | None = None, floats: torch.dtype | None = None) -> None:
    """Infer every shape anew, of open sizes too, up to a node, where an edit has changed what they are made of."""
    shapes = Shapes(model, floats)
    for node in model.graph.nodes:
        if node is end:
            return
        if node.op == "call_function" and "val" in node.meta:
            node.meta["val"] = shapes.made(node.target, node.args, node.kwargs)


class Inserter:
    """Makes nodes before ``anchor``, their shapes inferred from those of what they read. ``constant`` makes a tensor of
    the module."""

    def __init__(
        self, model: fx.GraphModule, anchor: fx.Node, constant: Callable[[str, torch.Tensor], fx.Node]
    ) -> None:
        self.graph, self.anchor, self.new_constant, self.shapes = model.graph, anchor, constant, Shapes(model)

    def __call__(self, kind: str, inputs: Sequence[fx.Node], attrs: Mapping[str, Any]) -> fx.Node:
        return KINDS[kind](self, *inputs, **attrs)

    def call(self, target: Any, *args: Any) -> fx.Node:
        with self.graph.inserting_before(self.anchor):
            node = self.graph.call_function(target, args)
        node.meta["val"] = self.shapes.made(target, args)
        return node

    def pointwise(self, *inputs: fx.Node, function: str, number: float | None = None) -> fx.Node:
        if function in _OF_ONE:
            return self.call(_OF_ONE[function], *inputs)
        return self.call(_FUNCTIONS[function], *inputs, *([] if number is None else [number]))

    def positions(self, x: fx.Node, best: int) -> fx.Node:
        largest = self._part(self.call(_ATEN.topk.default, x, best, -1), 1)
        return self._part(self.call(_ATEN.sort.default, largest, -1), 0)

    def _part(self, node: fx.Node, number: int) -> fx.Node:
        with self.graph.inserting_before(self.anchor):
            made = self.graph.call_function(operator.getitem, (node, number))
        made.meta["val"] = node.meta["val"][number]
        return made

    def constant(self, x: fx.Node, value: Array) -> fx.Node:
        with self.graph.inserting_before(self.anchor):
            like, made = x.meta["val"], torch.from_numpy(value)
            dtype = like.dtype if made.is_floating_point() else made.dtype
            return self.new_constant(f"{self.anchor.name}_number", made.to(like.device, dtype))

    def gather(self, x: fx.Node, ids: fx.Node, axis: int) -> fx.Node:
        if self._rank(ids) == 1:
            return self.call(_ATEN.index_select.default, x, axis, ids)
        return self.call(_ATEN.index.Tensor, x, [*[None] * axis, ids])

    def _rank(self, node: fx.Node) -> int:
        return int(node.meta["val"].dim())

    def take(self, x: fx.Node, ids: fx.Node) -> fx.Node:
        width = [int(n) for n in x.meta["val"].shape[2:]]
        for _ in width:
            ids = self.call(_ATEN.unsqueeze.default, ids, -1)
        ids = self.call(_ATEN.expand.default, ids, [-1, -1, *width]) if width else ids
        return self.call(_ATEN.gather.default, x, 1, ids)


KINDS: dict[str, Callable[..., fx.Node]] = {
    "pointwise": Inserter.pointwise,
    "matmul": lambda self, a, b: self.call(_ATEN.matmul.default, a, b),
    "softmax": lambda self, x: self.call(_ATEN.softmax.int, x, -1),
    "reduce": lambda self, x, function, axes: self.call(_REDUCED[function], x, list(axes)),
    "slice": lambda self, x, axis, start, end: self.call(_ATEN.slice.Tensor, x, axis, start, end),
    "reshape": lambda self, x, shape: self.call(_ATEN.reshape.default, x, list(shape)),
    "expand": lambda self, x, shape: self.call(_ATEN.expand.default, x, list(shape)),
    "transpose": lambda self, x, perm: self.call(_ATEN.permute.default, x, list(perm)),
    "concat": lambda self, *x, axis: self.call(_ATEN.cat.default, list(x), axis),
    "constant": Inserter.constant,
    "positions": Inserter.positions,
    "take": Inserter.take,
    "gather": Inserter.gather,
    "where": lambda self, condition, x, y: self.call(_ATEN.where.self, condition, x, y),
    "mark": lambda self, x, ids: self.call(_ATEN.scatter.value, x, 1, ids, 1.0),
}

"""From an fx graph of ATen ops to the thin graph."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import fx
from torch.fx.graph_module import _get_attr
from torch.utils import _pytree as pytree

from ...axes.dim import Size
from ...ir.graph import Graph, Op, Value
from ..boundary import DRAWN
from .conditions import choose
from .edit import arguments
from .ops import ATEN, FUNCTIONS, ZERO
from .reindex import MARK

_IGNORED = ("_assert", "sym_constrain_range")
CONTROL = {
    "cond": "`cond` runs one of its branches, as what is computed says, and both read it as it is",
    "while_loop": "`while_loop` runs its body as often as what is computed says, and that reads it as it is",
    "scan": "`scan` runs its body at every step, and that reads it as it is",
    "associative_scan": "`associative_scan` combines steps by its body, and that reads it as it is",
    "map_impl": "`map` runs its body for every slice, and that reads it as it is",
    "wrap_with_autocast": "autocast inside of it does more than cast its operands",
}
"""Why what enters a region of control flow stays as it is."""


def spelled(n: Any) -> Size:
    """A size as shapes of the thin graph spell it."""
    text = str(n).replace(" ", "")  # a symbol that torch.export found to be fixed is a number too
    return int(text) if text.isdigit() else text


class Reader:
    """Lifts the fx graph to the thin graph."""

    def __init__(self, model: fx.GraphModule) -> None:
        self.model = model
        self.values: dict[fx.Node, Any] = {}  # a Value, or a tuple of them

    def graph(self) -> Graph:
        inputs: list[Value] = []
        outputs: list[Value] = []
        ops: list[Op] = []
        parameters: dict[str, Value] = {}
        for node in self.model.graph.nodes:
            if node.op == "placeholder":
                if isinstance(node.meta.get("val"), torch.Tensor):
                    self.values[node] = self._value(node.name, node.meta["val"])
                    inputs.append(self.values[node])
            elif node.op == "get_attr":
                tensor = _get_attr(self.model, node.target)
                if isinstance(tensor, torch.Tensor):
                    known = parameters.get(node.target) or self._value(node.target, tensor, constant=True)
                    self.values[node] = parameters.setdefault(node.target, known)
            elif node.op == "output":
                # not all_input_nodes, which has a tensor that is returned twice once
                returned = (one for one in pytree.tree_leaves(node.args) if isinstance(one, fx.Node))
                outputs = [v for arg in returned for v in self._all(arg)]
            elif node.target is operator.getitem and isinstance(self.values.get(node.args[0]), tuple):
                self.values[node] = self.values[node.args[0]][node.args[1]]
            elif node.op == "call_function" and not any(word in str(node.target) for word in _IGNORED):
                op = self._op(node)
                if op is not None:
                    ops.append(op)
        return Graph(ops, inputs, outputs, parameters, tables=self._tables(parameters))

    def _tables(self, names: Iterable[str]) -> frozenset[str]:
        """Numbers in buffers, beside parameters: angles of positions, masks. Where there is nothing but buffers, they
        are the weights."""
        tensors = {name: _get_attr(self.model, name) for name in names}
        trained = {name for name, tensor in tensors.items() if isinstance(tensor, torch.nn.Parameter)}
        numbers = {name for name, tensor in tensors.items() if tensor.is_floating_point() or tensor.is_complex()}
        return frozenset(numbers - trained if trained else ())

    def _value(self, name: str, val: Any, constant: bool = False) -> Value:
        return Value(name, tuple(map(spelled, val.shape)), str(val.dtype).removeprefix("torch."), constant)

    def _all(self, node: fx.Node) -> list[Value]:
        value = self.values.get(node)
        return [v for v in value if v] if isinstance(value, tuple) else [value] if value is not None else []

    def _op(self, node: fx.Node) -> Op | None:
        val = node.meta.get("val")
        operands = [v for arg in node.all_input_nodes for v in self._all(arg)]
        kind, nodes, attrs = self._read(node)
        constant = kind != "fill" and all(v.constant for v in operands)  # what weights read of it is data
        if kind == "gather_bags" and isinstance(val, (tuple, list)):  # beside it, what its gradient needs
            made: Any = (self._value(node.name, val[0], constant), *[None] * (len(val) - 1))
        elif isinstance(val, (tuple, list)):
            made = tuple(
                self._value(f"{node.name}#{k}" if k else node.name, v, constant)
                if isinstance(v, torch.Tensor)
                else None
                for k, v in enumerate(val)
            )
        elif isinstance(val, torch.Tensor):
            made = self._value(node.name, val, constant)
        elif val is None and operands:
            made = Value(node.name, None, constant=constant)
        else:
            made = ()  # a number: sizes, conditions
        self.values[node] = made
        outputs = tuple(v for v in (made if isinstance(made, tuple) else (made,)) if v is not None)
        inputs = tuple(operands) if nodes is None else tuple(self._one(arg) for arg in nodes)
        if not outputs and kind != "size":
            return None if not operands else Op(node.name, kind, inputs, (), attrs, origin(node))
        if nodes is not None and not _fits(kind, inputs, outputs, attrs):
            kind, inputs = str(node.target), tuple(operands)
        return Op(node.name, kind, inputs, outputs, attrs, origin(node))

    def _one(self, arg: Any) -> Value | None:
        value = self.values.get(arg) if isinstance(arg, fx.Node) else None
        return value if isinstance(value, Value) else None

    def operands(self, node: fx.Node) -> list[Any]:
        """The nodes that the operands of a node's op stand for."""
        return self._read(node)[1] or []

    def _read(self, node: fx.Node) -> tuple[str, list[Any] | None, dict[str, Any]]:
        """Kind, operands and attributes; no operands where aten.py does not know the op."""
        if MARK in node.meta:
            return "reindex", [node.args[0]], dict(node.meta[MARK])
        if node.target is choose:
            condition, then, other = node.args
            return "if", [condition, *then, *other], {}  # type: ignore[misc]
        schema = getattr(node.target, "_schema", None)
        if schema is None and (why := CONTROL.get(str(node.target))):
            return "opaque", node.all_input_nodes, {"why": why}
        if schema is None:
            return str(node.target), None, {}
        name = schema.name.removeprefix("aten::")
        read = ATEN.get(f"{name}.{schema.overload_name or 'default'}") or ATEN.get(name)
        if draws(node) and (read is None or (_drops(node.target) and not _attends(node.target))):
            return "opaque", node.all_input_nodes, {"why": DRAWN, "draws": True}
        if read is None:
            return _as_given(node)
        given = arguments(node)
        kind, nodes, attrs = read(given)
        if name in FUNCTIONS and kind in ("pointwise", "pool", "reduce", "along"):
            attrs = {**attrs, **FUNCTIONS[name](given)}
        if kind == "prelu" and nodes[1].meta["val"].numel() == 1:
            kind = "pointwise"  # one slope for all channels
        if kind in ("pointwise", "along", "reduce") and name in ZERO and (ZERO[name] != "both" or len(nodes) == 2):
            attrs = {**attrs, "zero": ZERO[name]}
        if draws(node):
            attrs = {**attrs, "draws": True}
        return kind, nodes, _concrete(kind, node, attrs)


def draws(node: fx.Node) -> bool:
    """Whether a node draws random numbers."""
    if _drops(node.target):
        return _active(node)
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


@cache
def _drops(target: Any) -> bool:
    """Whether dropout, or what else there is in training only, is all that an op may draw: recurrent layers have it
    between one another."""
    schema = getattr(target, "_schema", None)
    return schema is not None and (
        "dropout" in schema.name
        or "rrelu" in schema.name
        or _attends(target)
        or any(argument.name == "dropout" for argument in schema.arguments)
    )


@cache
def _attends(target: Any) -> bool:
    """Whether what is dropped are weights of attention, which all channels share."""
    return any(argument.name == "dropout_p" for argument in target._schema.arguments)


def _active(node: fx.Node) -> bool:
    """Whether a dropout (or another op that draws in training only) is in training, and drops anything. Attention is
    not told which it is in."""
    given = arguments(node)
    share = next((given[name] for name in ("p", "dropout", "dropout_p") if name in given), 1)
    return bool(given.get("train", given.get("training", True))) and share != 0


def _as_given(node: fx.Node) -> tuple[str, list[Any] | None, dict[str, Any]]:
    """An op that nothing here reads, as its schema has it: tensors are operands (None: absent), the rest are
    attributes. A plug-in's rule may know more."""
    nodes: list[Any] = []
    attrs: dict[str, Any] = {}
    given = arguments(node)
    for argument in node.target._schema.arguments:  # type: ignore[union-attr]
        value = given[argument.name]
        if "Tensor" not in str(argument.type):
            attrs[argument.name] = fx.node.map_arg(value, lambda n: str(n.meta.get("val")))
        elif isinstance(value, (list, tuple)):
            nodes += value
        else:
            nodes.append(value)
    known = all(v in nodes for v in node.all_input_nodes if isinstance(v.meta.get("val"), torch.Tensor))
    return str(node.target), nodes if known else None, attrs


def _concrete(kind: str, node: fx.Node, attrs: dict[str, Any]) -> dict[str, Any]:
    """Attributes in the form rules.py documents."""
    first = next((arg for arg in node.all_input_nodes if isinstance(arg.meta.get("val"), torch.Tensor)), None)
    rank = first.meta["val"].ndim if first is not None else 0
    if kind == "transpose" and "swap" in attrs:
        perm = list(range(rank))
        a, b = attrs["swap"]
        if rank > 1:
            perm[a], perm[b] = perm[b], perm[a]
        return {"perm": perm}
    if kind == "pad":
        flat = attrs["pads"]
        pads = [0] * (2 * rank)
        for k in range(len(flat) // 2):
            axis = rank - 1 - k
            pads[2 * axis], pads[2 * axis + 1] = flat[2 * k], flat[2 * k + 1]
        name = str(node.target)
        mode = (
            "reflect" if "reflection" in name else "replicate" if "replication" in name else attrs["mode"] or "constant"
        )
        return {"pads": pads, "mode": mode}
    if kind == "slice":
        return {key: [_number(v) for v in value] for key, value in attrs.items()}
    if kind == "repeat":  # by a dynamic size: its spelling
        return {"repeats": [_spelled(n) for n in attrs["repeats"]]}
    if kind.endswith("_per_sample"):
        return {"groups": _spelled(attrs["groups"])}
    if kind == "reshape" and (inferred := _inferred(node)):
        return {"inferred": inferred}
    return attrs


def _inferred(node: fx.Node) -> list[int]:
    """The axes of the result that are of open size times a number, and that the op works out by itself: given as
    -1, or not at all, or computed where nothing else is."""
    given = next((list(v) for key, v in arguments(node).items() if key in ("size", "shape", "sizes")), None)
    axes = [k for k, n in enumerate(node.meta["val"].shape) if "*" in str(spelled(n))]
    if given is None or (len(axes) == 1 and -1 not in given and len(given) == node.meta["val"].ndim):
        return axes
    return [k for k in axes if given[k : k + 1] == [-1]]


def _spelled(n: Any) -> Size:
    return n if isinstance(n, int) else str(spelled(n.meta["val"]))


def _number(value: Any) -> Any:
    if isinstance(value, fx.Node):
        val = value.meta.get("val")
        return int(val) if isinstance(val, int) else None
    return value


def _fits(kind: str, inputs: Sequence[Value | None], outputs: Sequence[Value], attrs: Mapping[str, Any]) -> bool:
    """Whether an overload has the shape of result that its kind's rule speaks of."""
    shapes = [value.shape for value in (*inputs, *outputs) if value is not None]
    if any(shape is None for shape in shapes) or (
        kind not in ("create", "fill", "pointwise", "opaque", "if") and (not inputs or inputs[0] is None)
    ):
        return False
    if kind == "along":
        return all(_but(out.shape, attrs["axes"]) == _but(inputs[0].shape, attrs["axes"]) for out in outputs)  # type: ignore[union-attr]
    if kind == "reduce":
        gone = len(attrs["axes"]) or len(inputs[0].shape or ())  # type: ignore[union-attr]
        rank = len(inputs[0].shape or ()) - (0 if attrs["keepdim"] else gone)  # type: ignore[union-attr]
        return all(len(out.shape or ()) == rank for out in outputs)
    if kind == "pad":
        return all(isinstance(n, int) for n in attrs["pads"])
    if kind == "batch_norm":
        return not attrs.get("training")
    if kind == "interleave":
        return isinstance(attrs["axis"], int) and isinstance(attrs["times"], (int, type(None)))
    if kind == "similarity":
        return len({len(value.shape or ()) for value in inputs if value is not None}) == 1
    if kind in ("unfold", "fold"):  # with a batch axis
        return len(inputs[0].shape or ()) == (4 if kind == "unfold" else 3)  # type: ignore[union-attr]
    return True


def _but(shape: Sequence[Size] | None, axes: Sequence[int]) -> list[Size]:
    """The sizes of the other axes, and one for each of these."""
    sizes = list(shape or ())
    for axis in axes or range(len(sizes)):
        sizes[axis] = 0
    return sizes


def origin(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    return path.removeprefix("L['self'].") or node.name

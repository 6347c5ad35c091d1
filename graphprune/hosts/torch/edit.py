"""Editing fx nodes: arguments by schema name, and the literals that rules.py speaks of."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten


def arguments(node: fx.Node) -> dict[str, Any]:
    """An op's arguments by schema name, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    out = {}
    for k, argument in enumerate(schema.arguments):
        if k < len(node.args):
            out[argument.name] = node.args[k]
        elif argument.name in node.kwargs:
            out[argument.name] = node.kwargs[argument.name]
        else:
            out[argument.name] = argument.default_value if argument.has_default_value() else None
    return out


def set_argument(node: fx.Node, name: str, value: Any) -> None:
    """Set one argument by schema name, spelling out the defaults before it."""
    schema = node.target._schema  # type: ignore[union-attr]
    names = [argument.name for argument in schema.arguments]
    if schema.arguments[names.index(name)].kwarg_only or name in node.kwargs:
        node.update_kwarg(name, value)
        return
    values = arguments(node)
    upto = max(names.index(name) + 1, len(node.args))
    values[name] = value
    node.args = tuple(values[n] for n in names[:upto])


def stored(node: fx.Node) -> fx.Node:
    """The first parameter that a constant is computed from."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    return node


def pointwise(graph: fx.Graph, target: Any, *operands: fx.Node) -> fx.Node:
    """A new op on operands of which the first has the shape of the result."""
    node = graph.call_function(target, operands)
    node.meta["val"] = operands[0].meta["val"]
    return node


def added_to(node: fx.Node) -> Iterator[tuple[fx.Node, float]]:
    """The parameters that are added to what a layer makes, and how many times: its bias, what addmm adds, and what is
    added to a product that nothing else reads."""
    named = arguments(node)
    found = [(named.get("self" if "mat1" in named else "bias"), float(named.get("beta", 1)))]
    add = next(iter(node.users)) if len(node.users) == 1 and "stride" not in named else None
    if add is not None and add.target is torch.ops.aten.add.Tensor and not add.kwargs:
        found += [(one, 1.0) for one in add.all_input_nodes if one is not node]
    for one, times in found:
        if one is not None and one.op == "get_attr" and times:
            yield one, times


def _shape(node: fx.Node, value: Sequence[int | None]) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    name = next((n for n in ("size", "shape", "normalized_shape", "sizes") if n in names), None)
    if name is None:  # flatten, squeeze, view_as: no size is written down
        return
    old = list(arguments(node)[name])
    new: Sequence[int | None] = value
    if name == "sizes":  # unflatten: the sizes of some of the axes
        dim = arguments(node)["dim"] % (len(value) - len(old) + 1)
        new = value[dim : dim + len(old)]
    fixed = [o if n is None or not isinstance(o, int) or o == -1 else n for o, n in zip(old, new, strict=True)]
    set_argument(node, name, fixed)


def _view_shape(node: fx.Node, value: Sequence[int | None]) -> None:
    """One size that is computed with a number that may have changed is left to the op."""
    _shape(node, value)
    name = next((n for n in ("size", "shape") if n in arguments(node)), None)
    sizes = list(arguments(node)[name]) if name is not None else []
    computed = [k for k, n in enumerate(sizes) if isinstance(n, fx.Node) and "*" in str(n.meta["val"])]
    if name is not None and len(computed) == 1 and -1 not in sizes:
        sizes[computed[0]] = -1
        set_argument(node, name, sizes)


def _split_sizes(node: fx.Node, value: Sequence[int]) -> None:
    named = arguments(node)
    node.target = _ATEN.split_with_sizes.default
    node.args, node.kwargs = (named["self"], list(value), named["dim"]), {}


def narrow_to_slice(model: fx.GraphModule) -> None:
    """``narrow`` made ``slice``: what is the whole axis then stays so when the axis is cut."""
    changed = False
    for node in model.graph.nodes:
        if node.target is _ATEN.narrow.default:
            named = arguments(node)
            start, length = named["start"], named["length"]
            if isinstance(start, int) and isinstance(length, int):
                end = sys.maxsize if start < 0 and start + length == 0 else start + length
                node.target = _ATEN.slice.Tensor
                node.args, node.kwargs = (named["self"], named["dim"], start, end), {}
                changed = True
    if changed:
        model.recompile()


def _slice(name: str) -> Callable[[fx.Node, Sequence[int | None]], None]:
    return lambda node, value: set_argument(node, name, value[0])


def _pads(node: fx.Node, value: Sequence[int | None]) -> None:
    old = list(arguments(node)["pad"])
    rank = len(value) // 2
    for k in range(len(old) // 2):
        axis = rank - 1 - k
        for side in (0, 1):
            new = value[2 * axis + side]
            old[2 * k + side] = old[2 * k + side] if new is None else new
    set_argument(node, "pad", old)


def _groups(node: fx.Node, value: int) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    set_argument(node, "num_groups" if "num_groups" in names else "groups", value)


def _interleaved(node: fx.Node, value: Sequence[int | None]) -> None:
    """The size of the result may be written down along the axis."""
    named = arguments(node)
    if named["output_size"] is not None and value[named["dim"]] is not None:
        set_argument(node, "output_size", value[named["dim"]])


def _bins(node: fx.Node, value: Sequence[int]) -> None:
    """The last bin holds the largest number."""
    set_argument(node, "bins", value[0])
    set_argument(node, "max", value[0] - 1)


def _scale(node: fx.Node, value: float) -> None:
    set_argument(node, "scale", value)


LITERALS: dict[tuple[str, str], Callable[[fx.Node, Any], None]] = {
    ("conv", "groups"): _groups,
    ("conv_transpose", "groups"): _groups,
    ("deform_conv", "groups"): _groups,
    ("deform_conv", "offset_groups"): lambda node, value: set_argument(node, "offset_groups", value[0]),
    ("group_norm", "groups"): _groups,
    ("reshape", "shape"): _view_shape,
    ("expand", "shape"): _shape,
    ("fill", "shape"): _shape,
    ("interleave", "shape"): _interleaved,
    ("layer_norm", "shape"): _shape,
    ("rms_norm", "shape"): _shape,
    ("pointwise", "plus"): lambda node, value: set_argument(node, "other", value),
    ("rms_norm", "eps"): lambda node, value: set_argument(node, "eps", value),
    ("one_hot", "size"): lambda node, value: set_argument(node, "num_classes", value[0]),
    ("count", "bins"): _bins,
    ("split", "sizes"): _split_sizes,
    ("slice", "starts"): _slice("start"),
    ("slice", "ends"): _slice("end"),
    ("pad", "pads"): _pads,
    ("attention", "scale"): _scale,
    ("attention", "causal"): lambda node, v: set_argument(node, "is_causal", v),
}

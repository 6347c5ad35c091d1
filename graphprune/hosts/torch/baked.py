"""Weights that a module computes from others whenever it is called, computed once.

``weight_norm``, ``spectral_norm`` and every parametrization of torch make a weight out of parameters that no layer
reads itself. A channel of such a weight is not a channel of those: what is left of a row at unit length has another
length. In eval mode the weight is always the same, so it is made a parameter, of the name that the layer has for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.graph_module import _assign_attr, _get_attr

from .lift import draws, origin
from .network import find

_MARK = "parametrizations"


def bake(model: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """Put a parameter in the place of every weight that is computed so. Returns by its name those that it was
    computed from, which the model has no more where nothing else reads them."""
    baked = {}
    for name, names in _computed(model).items():
        made = _made(model, name, set(names)) if find(model, name) is None else []
        if made and _put(model, name, made):
            baked[name] = names
    for names in baked.values():
        _drop(model, names)
    if baked:
        model.graph.lint()
        model.recompile()
    return baked


def note(baked: Mapping[str, Sequence[str]]) -> list[str]:
    """What is to be said of it."""
    if not baked:
        return []
    some, more = ", ".join(list(baked)[:3]), f" and {len(baked) - 3} more" if len(baked) > 3 else ""
    return [
        f"{some}{more}: computed anew at every call by a parametrization (weight_norm, spectral_norm and kin); the "
        "result has them as plain weights, and training it trains those"
    ]


def _computed(model: fx.GraphModule) -> dict[str, tuple[str, ...]]:
    """By the name of a computed weight, the parameters and buffers that are there for it alone."""
    found: dict[str, list[str]] = {}
    given = [name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())]
    for name in given:
        for whole in _wholes(name, given):
            found.setdefault(whole, []).append(name)
    return {whole: tuple(names) for whole, names in found.items()}


def _wholes(name: str, given: Sequence[str]) -> Iterator[str]:
    """``layer.parametrizations.weight.original0`` is there for ``layer.weight``; so is, of torch's older hooks, one
    of ``layer.weight_g`` and ``layer.weight_v``, or of ``layer.weight_orig``, ``_u`` and ``_v``."""
    parts = name.split(".")
    if _MARK in parts[:-2]:
        at = parts.index(_MARK)
        yield ".".join([*parts[:at], parts[at + 1]])
    base, _, end = name.rpartition("_")
    others = {"g": ("v",), "orig": ("u",), "u": ("orig",), "v": ("g", "orig")}.get(end, ())
    if any(f"{base}_{other}" in given for other in others):
        yield base


def _made(model: fx.GraphModule, name: str, names: set[str]) -> list[fx.Node]:
    """The nodes that make the weight, sources first: what is computed from those alone, up to where the
    parametrization ends."""
    inside: dict[fx.Node, None] = {}
    owner, _, leaf = name.rpartition(".")
    place = f"{owner}.{_MARK}.{leaf}".removeprefix(".")
    for node in model.graph.nodes:
        if node.op == "get_attr" and node.target in names:
            inside[node] = None
        elif node.op == "call_function" and inside.keys() >= {*node.all_input_nodes} and not draws(node):
            ended = any(map(_whole, node.all_input_nodes))  # torch's older hooks leave no mark
            if origin(node).startswith(place) or not ended:
                inside[node] = None
    return list(inside) if any(node.op == "get_attr" for node in inside) else []


def _whole(node: fx.Node) -> bool:
    """Whether a node is the weight that an older hook makes: v at unit length times g, or w over its norm."""
    if node.op == "get_attr" or (schema := getattr(node.target, "_schema", None)) is None:
        return False
    first = node.args[0]
    divided = schema.name == "aten::div" and isinstance(first, fx.Node) and str(first.target).endswith("_orig")
    return divided or schema.name == "aten::_weight_norm"


def _put(model: fx.GraphModule, name: str, nodes: Sequence[fx.Node]) -> bool:
    """Compute the weight and put it in the place of what reads it; False where it is not one tensor."""
    values: dict[fx.Node, Any] = {}
    with torch.no_grad():
        for node in nodes:
            if node.op == "get_attr":
                values[node] = _get_attr(model, str(node.target))
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    ends = [n for n in nodes if n.op != "get_attr" and any(user not in values for user in n.users)]
    marked = any(_MARK in str(n.target).split(".") for n in nodes if n.op == "get_attr")
    if not marked and not all(map(_whole, ends)):  # only named as those of torch's hooks are
        return False
    first = values[ends[0]] if ends else None
    if not isinstance(first, torch.Tensor) or not all(torch.equal(first, values[end]) for end in ends):
        return False
    trained = any(isinstance(v, torch.nn.Parameter) and v.requires_grad for v in values.values())
    _assign_attr(torch.nn.Parameter(first.clone(), requires_grad=trained), model, name)
    with model.graph.inserting_before(ends[0]):
        weight = model.graph.create_node("get_attr", name)
        weight.meta = {**ends[0].meta, "val": _get_attr(model, name)}
    for end in ends:
        end.replace_all_uses_with(weight)
    for node in reversed(nodes):
        if not node.users:
            model.graph.erase_node(node)
    return True


def _drop(model: fx.GraphModule, names: Sequence[str]) -> None:
    """Tensors that nothing reads any more."""
    read = {node.target for node in model.graph.find_nodes(op="get_attr")}
    for name in names:
        owner, _, leaf = name.rpartition(".")
        if name not in read:
            delattr(model.get_submodule(owner), leaf)

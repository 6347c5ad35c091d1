"""The network as pickle writes it: torch's own classes alone, so that it loads where graphprune is not."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator as _Region
from torch.fx.graph_module import _assign_attr

from ...errors import first_line
from .conditions import choose

_RANKS: Mapping[str, Mapping[int, Callable[..., nn.Module]]] = {
    "batch_norm": {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d},
    "instance_norm": {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d},
    "dropout": dict.fromkeys(range(9), nn.Dropout),
    "feature_dropout": {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d},
    "alpha_dropout": dict.fromkeys(range(9), nn.AlphaDropout),
    "feature_alpha_dropout": dict.fromkeys(range(9), nn.FeatureAlphaDropout),
}
"""Per op that depends on the mode, and rank of its input, the layer that is it."""
_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


def reduced(plain: fx.GraphModule, training: bool) -> tuple[Any, ...]:
    """What ``__reduce__`` is to return for a copy of a network, which is changed.

    torch.fx stores the code of a GraphModule and traces it anew when it is loaded;
    it does so here on a skeleton of parameters, for what is made of buffers alone it would compute then. All tensors
    and modules, the unread ones too, are stored beside it and put in the place of the skeleton's.

    What follows ``train()`` and ``eval()`` becomes a layer of torch's, as a plain GraphModule has no other way to
    follow; of what cannot, a warning says so. Raises PicklingError for random numbers that depend on no input:
    tracing would draw them once and for all.
    """
    regions = [node.name for node in plain.graph.nodes if node.target is choose or isinstance(node.target, _Region)]
    if regions:
        raise pickle.PicklingError(
            f"`{regions[0]}`: torch.fx traces no branch or loop anew; save the network by torch.export.save"
        )
    plain.graph._tracer_cls = None  # torch.export's own cannot be made again
    plain._tracer_cls = None
    for node in list(plain.graph.nodes):
        if mode_flag(node) is not None:
            _to_layer(plain, node)
        elif node.op == "call_function" and not node.all_input_nodes:
            _to_constant(plain, node)
        elif (op := getattr(node.target, "overloadpacket", None)) in _LIKE:
            _to_method(plain, node, _LIKE[op])
    plain.recompile()
    for part in plain.modules():
        part.training = training
    function, (body, imports) = fx.GraphModule.__reduce__(plain)[:2]
    bare, state = ({name: each.__dict__[name] for name in _STATE} for each in (_skeleton(plain), plain))
    arguments = {**body, **bare}, imports
    try:
        function({**arguments[0]}, imports)
    except Exception as error:  # whatever cannot be traced would be found out by who loads it
        raise pickle.PicklingError(f"{first_line(error)}; save the network by torch.export.save") from error
    return function, arguments, state


def mode_flag(node: fx.Node) -> int | None:
    """Where an op keeps its ``training`` or ``train`` argument; None where it has none, or no statistics but those
    of the batch."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None:
        return None
    names = [argument.name for argument in schema.arguments]
    if "running_mean" in names and node.args[names.index("running_mean")] is None:
        return None
    return next((names.index(name) for name in ("training", "train", "use_input_stats") if name in names), None)


def _skeleton(model: fx.GraphModule) -> nn.Module:
    """A module of the same names, with empty parameters for all tensors that the graph reads."""
    skeleton = nn.Module()
    for kind, make in (("call_module", nn.Module), ("get_attr", _empty)):
        for node in model.graph.nodes:
            if node.op == kind:
                _assign_attr(make(), skeleton, str(node.target))
    return skeleton


def _empty() -> nn.Parameter:
    return nn.Parameter(torch.empty(0), requires_grad=False)


def _to_layer(model: fx.GraphModule, node: fx.Node) -> None:
    """The same as a layer that the module has."""
    kind = str(node.target).split(".")[1]
    val = node.all_input_nodes[0].meta.get("val")
    make = _RANKS.get(kind, {}).get(val.ndim) if isinstance(val, torch.Tensor) else None
    name = _normed(model, node) if kind in _NORMS else _free(model, node.name)
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    if "dropout" in names and not node.args[names.index("dropout")]:  # recurrent layers: they are the same in both
        return
    if make is None or not name:
        warnings.warn(
            f"once loaded, `{node.name}` stays in the mode it is saved in: no layer of torch's is the same",
            stacklevel=6,
        )
        return
    if kind in _NORMS:
        held = model.get_submodule(name)
        momentum, eps = node.args[6:8]
        layer: nn.Module = make(1, eps, momentum, node.args[1] is not None, True)
        for part in ("_parameters", "_buffers"):
            getattr(layer, part).clear()
            getattr(layer, part).update({**dict.fromkeys(_NORM[part]), **getattr(held, part)})
        layer._non_persistent_buffers_set = held._non_persistent_buffers_set
        layer.num_features = len(held.running_mean)  # type: ignore[assignment, arg-type]
    else:
        layer = make(node.args[1])
    model.set_submodule(name, layer)
    with model.graph.inserting_before(node):
        called = model.graph.call_module(name, (node.args[0],))
    called.meta = dict(node.meta)
    node.replace_all_uses_with(called)
    model.graph.erase_node(node)


_NORMS = ("batch_norm", "instance_norm")
_NORM = {"_parameters": ("weight", "bias"), "_buffers": ("running_mean", "running_var", "num_batches_tracked")}


def _normed(model: fx.GraphModule, node: fx.Node) -> str:
    """The module of all four tensors of a norm, if they have one to themselves and the names of torch's layer."""
    names = [str(arg.target) if isinstance(arg, fx.Node) else "" for arg in node.args[1:5]]
    owner = names[2].rpartition(".")[0]
    wanted = [f"{owner}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    if not owner or names not in (wanted, ["", "", *wanted[2:]]):
        return ""
    held = model.get_submodule(owner)
    mine = {*held._parameters, *held._buffers} <= {*_NORM["_parameters"], *_NORM["_buffers"]}
    same = type(held) is nn.Module or (held.eps, held.momentum) == (node.args[7], node.args[6])
    return owner if mine and same and not held._modules else ""


_LIKE = {
    torch.ops.aten.zeros: torch.ops.aten.new_zeros.default,
    torch.ops.aten.ones: torch.ops.aten.new_ones.default,
    torch.ops.aten.full: torch.ops.aten.new_full.default,
    torch.ops.aten.empty: torch.ops.aten.new_empty.default,
}


def _to_method(model: fx.GraphModule, node: fx.Node, target: Callable[..., Any]) -> None:
    """The same made of a tensor: that an open size is among a list of sizes tracing sees only beside one."""
    val, like = node.meta["val"], next(n for n in model.graph.nodes if isinstance(n.meta.get("val"), torch.Tensor))
    node.args, node.target = (like, *node.args), target
    node.kwargs = {"dtype": val.dtype, "device": val.device}


def _to_constant(model: fx.GraphModule, node: fx.Node) -> None:
    """What is made of numbers alone as a buffer, as tracing would make it one that is saved."""
    if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
        raise pickle.PicklingError(
            f"`{node.name}` draws random numbers that depend on no input: save the network by torch.export.save"
        )
    assert callable(node.target)
    value = node.target(*node.args, **node.kwargs)
    if isinstance(value, torch.Tensor):
        name = _free(model, node.name)
        model.register_buffer(name, value, persistent=False)
        with model.graph.inserting_before(node):
            node.replace_all_uses_with(model.graph.get_attr(name))
        model.graph.erase_node(node)


def _free(model: fx.GraphModule, name: str) -> str:
    return next(one for one in (name, *(f"{name}_{k}" for k in range(1, 10000))) if not hasattr(model, one))

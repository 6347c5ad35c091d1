"""The network as pickle writes it: torch's own classes alone, so that it loads where graphprune is not."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from .network import Network, find, mode_flag, network

_RANKS: Mapping[str, Mapping[int, Callable[..., nn.Module]]] = {
    "batch_norm": {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d},
    "dropout": dict.fromkeys(range(9), nn.Dropout),
    "feature_dropout": {3: nn.Dropout1d, 4: nn.Dropout2d, 5: nn.Dropout3d},
    "alpha_dropout": dict.fromkeys(range(9), nn.AlphaDropout),
    "feature_alpha_dropout": dict.fromkeys(range(9), nn.FeatureAlphaDropout),
}
"""Per op that depends on the mode, and rank of its input, the layer that is it."""
_STATE = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training")


def reduced(model: Network) -> tuple[Any, ...]:
    """What ``__reduce__`` is to return. torch.fx stores the code of a GraphModule and traces it anew, keeping what
    the code names; all tensors and modules are therefore stored beside it.

    What follows ``train()`` and ``eval()`` becomes a layer of torch's, as a plain GraphModule has no other way to
    follow; of what cannot, a warning says so. Raises PicklingError for random numbers that depend on no input:
    tracing would draw them once and for all.
    """
    plain = network(model)
    plain.graph._tracer_cls = None  # torch.export's own cannot be made again
    plain._tracer_cls = None
    for node in list(plain.graph.nodes):
        if mode_flag(node) is not None:
            _to_layer(plain, node)
        elif node.op == "call_function" and not node.all_input_nodes:
            _to_constant(plain, node)
    plain.recompile()
    for part in plain.modules():
        part.training = model.training
    function, arguments = fx.GraphModule.__reduce__(plain)[:2]
    return function, arguments, {name: plain.__dict__[name] for name in _STATE}


def _to_layer(model: Network, node: fx.Node) -> None:
    """The same as a layer that the module has."""
    kind = str(node.target).split(".")[1]
    val = node.all_input_nodes[0].meta.get("val")
    make = _RANKS.get(kind, {}).get(val.ndim) if isinstance(val, torch.Tensor) else None
    name = _normed(model, node) if kind == "batch_norm" else _free(model, node.name)
    if make is None or not name:
        warnings.warn(
            f"once loaded, `{node.name}` stays as it is in {'train' if model.training else 'eval'}(): no layer of "
            "torch's is the same; set the mode before you save",
            stacklevel=6,
        )
        return
    if kind == "batch_norm":
        held = model.get_submodule(name)
        momentum, eps = node.args[6:8]
        layer: nn.Module = make(1, eps=eps, momentum=momentum, affine=node.args[1] is not None)
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
    node.replace_all_uses_with(called)
    model.graph.erase_node(node)


_NORM = {"_parameters": ("weight", "bias"), "_buffers": ("running_mean", "running_var", "num_batches_tracked")}


def _normed(model: Network, node: fx.Node) -> str:
    """The module of all four tensors of a BatchNorm, if they have one to themselves and the names of torch's layer."""
    names = [str(arg.target) if isinstance(arg, fx.Node) else "" for arg in node.args[1:5]]
    owner = names[2].rpartition(".")[0]
    wanted = [f"{owner}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    if not owner or names not in (wanted, ["", "", *wanted[2:]]):
        return ""
    held = model.get_submodule(owner)
    mine = {*held._parameters, *held._buffers} <= {*_NORM["_parameters"], *_NORM["_buffers"]}
    same = type(held) is nn.Module or (held.eps, held.momentum) == (node.args[7], node.args[6])
    return owner if mine and same and not held._modules else ""


def _to_constant(model: Network, node: fx.Node) -> None:
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


def _free(model: Network, name: str) -> str:
    return next(one for one in (name, *(f"{name}_{k}" for k in range(1, 10000))) if find(model, one) is None)

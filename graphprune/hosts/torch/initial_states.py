"""Initial states that a recurrent layer makes for itself, which an export fixes to one dtype and device."""

from __future__ import annotations

import torch
from torch import fx

_ATEN = torch.ops.aten
_LAYERS = ("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu")


def follow_inputs(model: fx.GraphModule) -> None:
    """Zeros that only a recurrent layer reads are made like what it reads (in place): the network may be cast and moved
    as the layer could be."""
    changed = False
    for node in model.graph.find_nodes(op="call_function", target=_ATEN.zeros.default):
        layers = [user for user in node.users if getattr(user.target, "_schema", None) is not None]
        if not layers or len(layers) < len(node.users):
            continue
        if any(layer.target._schema.name not in _LAYERS for layer in layers):
            continue
        x = layers[0].args[0]
        assert isinstance(x, fx.Node)
        if x.meta["val"].dtype == node.meta["val"].dtype:
            with model.graph.inserting_before(layers[0]):
                made = model.graph.call_function(_ATEN.new_zeros.default, (x, node.args[0]))
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            model.graph.erase_node(node)
            changed = True
    if changed:
        model.recompile()

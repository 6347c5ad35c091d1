"""``Loop`` and ``Scan``: one iteration of their body as part of the whole.

What a body computes again and again it computes on tensors of the same shapes, or else it is not looked into
(``why_unlike``). So one iteration stands for all: a copy of the model has it beside the loop, started from what the
loop ends with (``unroll``), and the nodes that are read and edited stay in the body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from ...axes.dim import Size
from .node import constant_tensor, standard

_OF_BATCHES = 8
"""The last opset whose Scan goes over batches."""


def is_loop(node: ir.Node) -> bool:
    return node.op_type in ("Loop", "Scan") and standard(node)


@dataclass(frozen=True)
class Body:
    """What a ``Loop`` or ``Scan`` computes, and how its values go in and out.

    ``controls``: the iteration's number and its condition, which a Loop has (given as inputs of the node: how many
    iterations, and whether there is a first). ``states``: (initial, at the beginning of an iteration, at its end,
    final). ``read``: (sequence, axis, its step), ``written``: (step, axis, sequence).
    """

    graph: ir.Graph
    given: tuple[ir.Value | None, ...]
    controls: tuple[ir.Value, ...]
    states: tuple[tuple[ir.Value | None, ir.Value, ir.Value, ir.Value], ...]
    read: tuple[tuple[ir.Value | None, int, ir.Value], ...]
    written: tuple[tuple[ir.Value, int, ir.Value], ...]


def body_of(node: ir.Node) -> Body:
    graph = node.attributes["body"].as_graph()
    loop = node.op_type == "Loop"
    lead = 2 if loop else 0
    steps = 0 if loop else int(node.attributes["num_scan_inputs"].value)
    given, entering, made = list(node.inputs), list(graph.inputs), list(graph.outputs)[lead // 2 :]
    many = len(entering) - lead - steps
    given += [None] * (len(entering) - len(given))
    states = zip(given[lead:], entering[lead : lead + many], made, node.outputs, strict=False)
    read = [
        (given[lead + many + k], _axis(node, "scan_input_axes", k), entering[lead + many + k]) for k in range(steps)
    ]
    written = [(made[k], _axis(node, "scan_output_axes", k - many), node.outputs[k]) for k in range(many, len(made))]
    return Body(graph, tuple(given[:lead]), tuple(entering[:lead]), tuple(states), tuple(read), tuple(written))


def _axis(node: ir.Node, name: str, k: int) -> int:
    return int(node.attributes[name].value[k]) if name in node.attributes else 0


def why_shut(node: ir.Node, version: int) -> str | None:
    """Why one iteration cannot be told before anything is run."""
    if node.op_type == "Scan" and version <= _OF_BATCHES:
        return f"it is computed in the body of a `Scan` of opset {version}"
    if any("Quantize" in part.op_type for part in node.attributes["body"].as_graph().all_nodes()):
        return f"it is computed in the body of a `{node.op_type}`, which quantises what it carries on"
    return None


def why_unlike(node: ir.Node, shapes: Mapping[str, tuple[Size, ...] | None]) -> str | None:
    """Why one iteration does not stand for all: what it hands on has another shape than what it was given."""
    for state in body_of(node).states:
        seen = [_shape(value, shapes) for value in state if value is not None and value.name]
        if None in seen:
            return f"it is computed in the body of a `{node.op_type}`, which carries `{state[1].name}`, not a tensor"
        if len(set(seen)) > 1:
            return (
                f"it is computed in the body of a `{node.op_type}`, where `{state[1].name}` changes its shape from one "
                "iteration to the next"
            )
    return None


def _shape(value: ir.Value, shapes: Mapping[str, tuple[Size, ...] | None]) -> tuple[Size, ...] | None:
    tensor = constant_tensor(value)
    return shapes.get(str(value.name)) if tensor is None else tuple(tensor.shape.numpy())


def unroll(node: ir.Node) -> None:
    """Put one iteration behind a loop (in place): the nodes of its body, which go on from its last states with the
    first step of what it reads. The loop keeps a copy of them under other names."""
    body, place = body_of(node), node.graph
    assert isinstance(place, ir.Graph)
    again = body.graph.clone(allow_outer_scope_values=True)
    _rename(again)
    body.graph.outputs.clear()
    added: list[ir.Node] = []
    for k, value in enumerate(body.controls):
        lead = [1] if value.shape is not None and len(value.shape) == 1 else []
        numbers = ir.tensor([0] if lead else 0, ir.DataType.INT64) if not k else ir.tensor([True] if lead else True)
        added.append(_made("Constant", [], value, ir.AttrTensor("value", numbers)))
    for k, (_, state, _, final) in enumerate(body.states):
        final.name = final.name or f"{state.name}:last:{k}"
        added.append(_made("Identity", [final], state))
    for sequence, axis, step in body.read:
        first = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(0, ir.DataType.INT64))], num_outputs=1)
        first.outputs[0].name = f"{step.name}:first"
        assert sequence is not None
        added += [first, _made("Gather", [sequence, first.outputs[0]], step, ir.AttrInt64("axis", axis))]
    for value in list(body.graph.initializers.values()):
        body.graph.initializers.pop(str(value.name))
        place.register_initializer(value)
    for part in list(body.graph):
        body.graph.remove(part)
        added.append(part)
    node.attributes["body"] = ir.AttrGraph("body", again)
    place.insert_after(node, added)


def _made(op_type: str, inputs: list[ir.Value], value: ir.Value, *attributes: ir.Attr) -> ir.Node:
    """A node that makes what a body was given as ``value``, by its name."""
    node = ir.Node("", op_type, inputs, list(attributes), num_outputs=1, name=str(value.name))
    made = node.outputs[0]
    for reader, k in list(value.uses()):
        reader.replace_input_with(k, made)
    made.name, made.type = value.name, value.type
    value.name = f"{made.name}:given"
    return node


def _rename(graph: ir.Graph) -> None:
    """Names of a copy that its original does not have."""
    for inner in (graph, *graph.subgraphs()):
        for value in (*inner.inputs, *inner.initializers.values(), *(out for node in inner for out in node.outputs)):
            if value.name:
                if value.const_value is not None:
                    value.const_value = ir.Tensor(value.const_value.numpy(), value.const_value.dtype)
                value.name = f"{value.name}:again"
        for node in inner:
            node.name = f"{node.name}:again" if node.name else None

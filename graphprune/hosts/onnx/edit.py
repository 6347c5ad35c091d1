"""Edits of an onnx_ir Model: tensors, biases, removals.

Nothing is edited that another reader shares without being asked to: it gets a copy of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ...axes.index import Indices
from ...errors import ModelError
from ...ir.graph import Op
from ...ir.host import Array, beside
from ...ops.traits import traits
from .node import constant_tensor

# ---- tensors -------------------------------------------------------------------------------------


def set_tensor(value: ir.Value, array: Array) -> None:
    """Give an initializer or Constant node a new tensor of the dtype it has."""
    old = constant_tensor(value)
    assert old is not None
    new = ir.Tensor(
        np.asarray(array, old.dtype.numpy(), order="C"),
        old.dtype,
        name=value.name,
        doc_string=old.doc_string,
        metadata_props=dict(old.metadata_props),
    )
    if value.is_initializer():
        value.const_value = new
        value.shape = ir.Shape(new.shape)
    else:
        node = value.producer()
        assert node is not None
        node.attributes.clear()
        node.attributes["value"] = ir.AttrTensor("value", new)
        value.const_value, value.shape = None, None


def untied(model: ir.Model) -> ir.Model:
    """The model, or a copy of it in which every reader of a uniform vector (all ones, all zeros) has one
    of its own. Exporters share them between layers that have nothing else in common."""
    if not any(_uniform(value) for value in model.graph.initializers.values()):
        return model
    model = model.clone()
    found = {value for value in model.graph.initializers.values() if _uniform(value)}
    read: set[ir.Value] = set()
    taken = _taken(model.graph)
    for node in list(model.graph.all_nodes()):
        for k, value in enumerate(node.inputs):
            if value in found and value not in read:
                read.add(value)
            elif value in found:
                tensor = constant_tensor(value)
                assert tensor is not None
                own = make_tensor(model.graph, str(value.name), tensor.numpy(), tensor.dtype, taken)
                taken.add(str(own.name))
                node.replace_input_with(k, own)
    return model


def _uniform(value: ir.Value) -> bool:
    tensor = constant_tensor(value)
    if tensor is None or not shared(value) or value.is_graph_output() or value.is_graph_input():
        return False
    if len(tensor.shape) != 1 or not 1 < tensor.size <= 65536 or not tensor.dtype.is_floating_point():
        return False
    array = tensor.numpy()
    return bool((array == array[0]).all())


def make_tensor(
    graph: ir.Graph, name: str, array: Array, dtype: ir.DataType, taken: set[str] | None = None
) -> ir.Value:
    """A new initializer, of that name or one like it; ``taken``: the names there are, if they are known."""
    name = fresh(graph, name, taken)
    tensor = ir.Tensor(np.asarray(array, dtype.numpy(), order="C"), dtype, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def fresh(graph: ir.Graph, name: str, taken: set[str] | None = None) -> str:
    """``name``, or ``name_1``, ... where that is taken anywhere in the graph."""
    taken = _taken(graph) if taken is None else taken
    return next(n for n in (name, *(f"{name}_{k}" for k in range(1, len(taken) + 2))) if n not in taken)


def _taken(graph: ir.Graph) -> set[str]:
    taken = {str(value.name) for value in [*graph.inputs, *graph.initializers.values()]}
    for node in graph.all_nodes():
        taken |= {str(value.name) for value in [*node.inputs, *node.outputs] if value is not None} | {str(node.name)}
    for inner in graph.subgraphs():
        taken |= set(inner.initializers) | {str(value.name) for value in inner.inputs}
    return taken


def shared(value: ir.Value) -> bool:
    return len(value.uses()) > 1 or value.is_graph_output() or value.is_graph_input()


def drop_unread(graph: ir.Graph, values: Sequence[ir.Value | None]) -> None:
    """Forget those constants that an edit has left without a reader."""
    for value in values:
        if value is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        node = value.producer()
        if value.is_initializer() and value.graph is not None:
            value.graph.initializers.pop(str(value.name), None)
        elif node is not None and isinstance(node.graph, ir.Graph) and node.op_type == "Constant":
            node.graph.remove(node, safe=True)


def set_input(node: ir.Node, k: int, value: ir.Value) -> None:
    if k >= len(node.inputs):
        node.resize_inputs(k + 1)
    node.replace_input_with(k, value)


# ---- ops -----------------------------------------------------------------------------------------


def insert(
    graph: ir.Graph,
    at: ir.Node | None,
    op_type: str,
    inputs: Sequence[ir.Value],
    name: str,
    dtype: ir.DataType | None,
    before: bool = False,
) -> ir.Node:
    """A new node before or after ``at``, or (None) behind all, its output named like itself."""
    name = fresh(graph, name)
    node = ir.Node("", op_type, list(inputs), num_outputs=1, name=name)
    node.outputs[0].name = name
    node.outputs[0].type = ir.TensorType(dtype) if dtype is not None else None
    place(graph, at, node, before)
    return node


def place(graph: ir.Graph, at: ir.Node | None, node: ir.Node, before: bool = False) -> None:
    """Put a node before or after another, or (None) behind all."""
    if at is None:
        graph.append(node)
        return
    assert isinstance(at.graph, ir.Graph)  # which may be a branch
    (at.graph.insert_before if before else at.graph.insert_after)(at, node)


def exclude(graph: ir.Graph, node: ir.Node, name: str, size: int, behind: int, drop: Indices) -> None:
    """See ir.Host.exclude; ``size``: of the axis, ``behind`` which there are so many."""
    x = node.inputs[0]
    assert x is not None
    array = np.zeros((size, *(1 for _ in range(behind))))
    array[drop] = -np.inf
    made = make_tensor(graph, f"{name}_excluded", array, x.dtype or ir.DataType.FLOAT)
    add = insert(graph, node, "Add", [x, made], f"{name}_left", x.dtype, before=True)
    node.replace_input_with(0, add.outputs[0])


def add_bias(graph: ir.Graph, node: ir.Node, op: Op, bias: Array) -> None:
    """See ir.Host.add_bias. A product's without a bias goes into the Add that follows it, which is made for a MatMul
    where there is none."""
    bias, weight = np.asarray(bias, np.float64), op.inputs[1] if len(op.inputs) > 1 else None
    product = traits(op).contracts and not traits(op).spatial and weight is not None and weight.constant
    add = _added_behind(node) if product and all(one is None for one in node.inputs[2:]) else None
    if add is not None:
        _raise(graph, *add, f"{op.name}_bias", bias)
    elif traits(op).absorbs:
        _add_to_input(graph, node, op, bias)
    elif product:
        _insert_add(graph, node, op, bias)
    else:
        raise ModelError(f"{op.where}: a bias can be added to a convolution, Gemm or MatMul with a constant weight")


def _added_behind(node: ir.Node) -> tuple[ir.Node, int, ir.Value] | None:
    """The Add of a constant to what a node makes, where nothing else reads that, and which of its inputs that is."""
    out = node.outputs[0]
    readers = list(out.uses())
    if len(readers) != 1 or out.is_graph_output() or readers[0].node.op_type != "Add":
        return None
    add, k = readers[0].node, 1 - readers[0].idx
    other = add.inputs[k]
    return None if other is None or constant_tensor(other) is None else (add, k, other)


def _add_to_input(graph: ir.Graph, node: ir.Node, op: Op, bias: Array) -> None:
    if op.kind == "gemm" and (beta := float(op.attrs.get("beta", 1.0))) != 1.0:
        if beta == 0.0:
            raise ModelError(f"{op.where}: beta is 0, its bias is not used")
        bias = bias / beta
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        weight = node.inputs[1]
        assert weight is not None
        set_input(node, 2, make_tensor(graph, beside(str(weight.name), "bias"), bias, _dtype(weight, op)))
    elif constant_tensor(value) is not None:
        _raise(graph, node, 2, value, f"{op.name}_bias", bias)
    else:  # computed, as by DequantizeLinear
        dtype = _dtype(value, op)
        made = make_tensor(graph, f"{op.name}_bias", bias, dtype)
        add = insert(graph, node, "Add", [value, made], f"{op.name}_bias_raised", dtype, before=True)
        set_input(node, 2, add.outputs[0])


def _dtype(value: ir.Value, op: Op) -> ir.DataType:
    """The element type of a value, or else of what the op makes."""
    spelled = op.outputs[0].dtype
    return value.dtype or {"bfloat16": ir.DataType.BFLOAT16}.get(spelled) or ir.DataType.from_numpy(np.dtype(spelled))


def _raise(graph: ir.Graph, node: ir.Node, k: int, value: ir.Value, name: str, bias: Array) -> None:
    tensor = constant_tensor(value)
    assert tensor is not None
    raised = tensor.numpy().astype(np.float64) + bias
    if shared(value):
        set_input(node, k, make_tensor(graph, name, raised, tensor.dtype))
    else:
        set_tensor(value, raised)


def _insert_add(graph: ir.Graph, node: ir.Node, op: Op, bias: Array) -> None:
    out, weight = node.outputs[0], node.inputs[1]
    assert weight is not None
    dtype = out.dtype or _dtype(weight, op)
    made = make_tensor(graph, beside(str(weight.name), "bias"), bias, dtype)
    add_after(graph, node, made, f"{op.name}_biased", dtype)


def add_after(graph: ir.Graph, node: ir.Node, value: ir.Value, name: str, dtype: ir.DataType | None) -> None:
    """Add a value to what a node makes."""
    out = node.outputs[0]
    readers = out.uses()
    add = insert(graph, node, "Add", [out, value], name, dtype)
    for reader, k in readers:
        reader.replace_input_with(k, add.outputs[0])
    if out.is_graph_output():
        assert isinstance(node.graph, ir.Graph)
        take_over(graph, node.graph, out, add.outputs[0])


def take_over(graph: ir.Graph, place: ir.Graph, out: ir.Value, new: ir.Value) -> None:
    """``new`` becomes the output of ``place``, the graph or one within it, that ``out`` was, with its name."""
    name = str(out.name)
    out.name = fresh(graph, f"{name}_before")
    new.name, new.type, new.shape, new.doc_string = name, out.type, out.shape, out.doc_string
    new.metadata_props.update(out.metadata_props)
    for k, value in enumerate(place.outputs):
        if value is out:
            place.outputs[k] = new


def to_rms_norm(graph: ir.Graph, node: ir.Node, op: Op, standard: bool, keeps_bias: bool) -> None:
    """See ir.Host.to_rms_norm. ``standard``: the opset has one; else it is ONNX Runtime's own."""
    bias, out = node.inputs[2] if len(node.inputs) > 2 else None, node.outputs[0]
    node.resize_inputs(2)
    node.resize_outputs(1)
    node.op_type = "RMSNormalization" if standard else "SimplifiedLayerNormalization"
    if bias is not None and keeps_bias:
        add_after(graph, node, bias, f"{op.name}_biased", out.dtype)
    drop_unread(graph, [bias])


def insert_linear(graph: ir.Graph, node: ir.Node, k: int, weight: Array, of: str) -> None:
    """See ir.Host.insert_linear."""
    read, like = node.inputs[k], graph.initializers[of].dtype
    assert read is not None and like is not None
    made = make_tensor(graph, beside(of, "shortcut"), weight.T, like)
    new = insert(graph, node, "MatMul", [read, made], f"{node.outputs[0].name}_shortcut", read.dtype, before=True)
    node.replace_input_with(k, new.outputs[0])


def untie(graph: ir.Graph, node: ir.Node, k: int) -> None:
    """See ir.Host.untie."""
    value = node.inputs[k]
    assert value is not None
    tensor = constant_tensor(value)
    assert tensor is not None
    set_input(node, k, make_tensor(graph, f"{value.name}_untied", tensor.numpy(), tensor.dtype))


def remove(graph: ir.Graph, node: ir.Node, stays: int = 0) -> None:
    """Drop a node; its readers read its input number ``stays``, a graph output keeps its name, and what only the other
    inputs were for goes along."""
    out, source, place = node.outputs[0], node.inputs[stays], node.graph
    assert source is not None
    assert isinstance(place, ir.Graph)
    if out.is_graph_output():
        if source.producer() is None or source.is_graph_output() or source.graph is not place:
            source = insert(graph, node, "Identity", [source], f"{out.name}_kept", out.dtype).outputs[0]
        for reader, k in out.uses():
            reader.replace_input_with(k, source)
        take_over(graph, place, out, source)
    else:
        for reader, k in out.uses():
            reader.replace_input_with(k, source)
    sweep(graph, node)


def sweep(graph: ir.Graph, node: ir.Node) -> None:
    """Drop a node that nobody reads, and what only it was for; the inputs of the model stay."""
    todo = [node]
    while todo:
        node = todo.pop()
        inputs = [value for value in node.inputs if value is not None]
        for k in range(len(node.inputs)):
            node.replace_input_with(k, None)
        assert isinstance(node.graph, ir.Graph)
        node.graph.remove(node)
        makers = {maker for value in inputs if (maker := value.producer()) is not None}
        for maker in sorted(makers, key=lambda maker: str(maker.outputs[0].name)):
            if not any(out.uses() or out.is_graph_output() for out in maker.outputs):
                todo.append(maker)
        drop_unread(graph, [value for value in inputs if value.producer() is None])


def forget_shapes(model: ir.Model) -> None:
    """Drop the recorded shapes that an edit may make wrong (in place): of all that nodes make but the outputs of the
    model, of what subgraphs are given and make but the number of axes, which those have to declare."""
    kept = set(model.graph.outputs)
    for graph in model.graph.subgraphs():
        ends = [value for value in (*graph.inputs, *graph.outputs) if value.graph is graph]
        kept.update(ends)
        for value in ends:
            value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
    nodes = [*model.graph.all_nodes(), *(node for part in model.functions.values() for node in part.all_nodes())]
    for value in (out for node in nodes for out in node.outputs if out not in kept):
        value.shape = None

"""ONNX graphs mutated as graphs: what is left is well-formed protobuf of a network that nobody exported."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Mutation = Callable[[onnx.GraphProto, random.Random], None]
MUTATIONS: list[Mutation] = []

OPS: tuple[str, ...] = (
    "Relu",
    "Add",
    "Mul",
    "Concat",
    "Conv",
    "Gemm",
    "MatMul",
    "Reshape",
    "Transpose",
    "Split",
    "Slice",
    "Softmax",
)
OPS += ("BatchNormalization", "LayerNormalization", "Gather", "Flatten", "ReduceMean", "Shape", "Cast", "If", "Nothing")
DTYPES = (np.float16, np.float64, np.int64, np.int32, np.uint8, np.bool_)


def mutated_structure(content: bytes, rng: random.Random) -> bytes:
    """One to three changes to the graph, or to the graphs within it."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(rng.choice([1, 1, 1, 2])):
        inner = [a.g for node in model.graph.node for a in node.attribute if a.HasField("g")]
        rng.choice(MUTATIONS)(rng.choice(inner) if inner and rng.random() < 0.7 else model.graph, rng)
    return bytes(model.SerializeToString())


def _mutation(f: Mutation) -> Mutation:
    MUTATIONS.append(f)
    return f


def _values(graph: onnx.GraphProto) -> list[str]:
    """Every name that something of the graph may read."""
    made = [name for node in graph.node for name in node.output]
    return [*(x.name for x in graph.input), *(x.name for x in graph.initializer), *made] or ["x"]


def _node(graph: onnx.GraphProto, rng: random.Random) -> onnx.NodeProto:
    if not graph.node:
        graph.node.append(helper.make_node("Relu", [rng.choice(_values(graph))], ["new"]))
    return rng.choice(list(graph.node))


def _reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]


# ---- nodes -------------------------------------------------------------------------------------------


@_mutation
def drop(graph: onnx.GraphProto, rng: random.Random) -> None:
    graph.node.remove(_node(graph, rng))


@_mutation
def bypass(graph: onnx.GraphProto, rng: random.Random) -> None:
    """What read the node reads what it read."""
    node = _node(graph, rng)
    graph.node.remove(node)
    if node.input:
        for name in node.output:
            _reads(graph, name, rng.choice(list(node.input)))


@_mutation
def rewire(graph: onnx.GraphProto, rng: random.Random) -> None:
    node = _node(graph, rng)
    if node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice([*_values(graph), *_values(graph), "", "nobody"])


@_mutation
def cycle(graph: onnx.GraphProto, rng: random.Random) -> None:
    """An early node reads a late one."""
    first = rng.randrange(max(len(graph.node) // 2, 1))
    if len(graph.node) > 1 and graph.node[first].input:
        graph.node[first].input[0] = graph.node[rng.randrange(first, len(graph.node))].output[0]


@_mutation
def disorder(graph: onnx.GraphProto, rng: random.Random) -> None:
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node]
    rng.shuffle(nodes)
    del graph.node[:]
    graph.node.extend(nodes)


@_mutation
def twice(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A node that stands there twice, with the same outputs, or with others that are read instead."""
    node = onnx.NodeProto.FromString(_node(graph, rng).SerializeToString())
    if rng.random() < 0.5 and node.output:
        _reads(graph, node.output[0], node.output[0] + "_twin")
        node.output[0] += "_twin"
    graph.node.insert(rng.randrange(len(graph.node) + 1), node)


@_mutation
def operands(graph: onnx.GraphProto, rng: random.Random) -> None:
    """One more, one less, another order, or an optional one left out."""
    node = _node(graph, rng)
    names = list(node.input)
    how = rng.choice(["more", "less", "order", "empty"])
    if how == "more" or not names:
        names.append(rng.choice(_values(graph)))
    elif how == "less":
        names.pop()
    elif how == "order":
        rng.shuffle(names)
    else:
        names[rng.randrange(len(names))] = ""
    node.input[:] = names


@_mutation
def another_op(graph: onnx.GraphProto, rng: random.Random) -> None:
    node = _node(graph, rng)
    node.op_type = rng.choice(OPS)
    if rng.random() < 0.1:
        node.domain = rng.choice(["com.microsoft", "ai.onnx", "nobody's"])


@_mutation
def attribute(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Removed, doubled, of another type, or with other numbers."""
    having = [node for node in graph.node if node.attribute] or [_node(graph, rng)]
    node = rng.choice(having)
    if not node.attribute:
        node.attribute.append(helper.make_attribute(rng.choice(["axis", "group", "perm"]), rng.choice([0, 1, -1])))
        return
    old = rng.choice(list(node.attribute))
    how = rng.choice(["remove", "double", "type", "numbers", "numbers"])
    if how != "double":
        node.attribute.remove(old)
    if how == "double":
        node.attribute.append(old)
    elif how == "type":
        other = rng.choice([1, 1.5, "text", [1, 2], [0.5], np.zeros((2, 2), np.float32)])
        made = numpy_helper.from_array(other) if isinstance(other, np.ndarray) else other
        node.attribute.append(helper.make_attribute(old.name, made))
    elif how == "numbers" and old.type in (onnx.AttributeProto.INT, onnx.AttributeProto.INTS):
        value = helper.get_attribute_value(old)
        few = rng.choice([-1, 0, 1, 2, 3, 5, 100, 2**40])
        many = [rng.choice([n, n, -n, n + 1, few]) for n in (value if isinstance(value, list) else [])]
        made = rng.choice([many, many[:-1] or [few], [*many, few]]) if isinstance(value, list) else few
        node.attribute.append(helper.make_attribute(old.name, made))


# ---- weights, inputs, outputs, names -----------------------------------------------------------------


@_mutation
def weight(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Of another shape, another type, cut short, or with more numbers than its shape has."""
    if not graph.initializer:
        return
    old = rng.choice(list(graph.initializer))
    array = numpy_helper.to_array(old)
    how = rng.choice(["turn", "axis", "crop", "grow", "type", "type", "scalar", "empty", "lost", "dims"])
    if how in ("lost", "dims"):
        if how == "lost":
            old.ClearField("raw_data")
        old.dims[:] = [n + (how == "dims") for n in old.dims]
        return
    made = {
        "turn": lambda: array.T,
        "axis": lambda: array[None] if rng.random() < 0.5 else array.reshape(-1),
        "crop": lambda: array[:-1] if array.ndim else array,
        "grow": lambda: np.concatenate([array, array]) if array.ndim else array,
        "type": lambda: array.astype(rng.choice(DTYPES)),
        "scalar": lambda: array.reshape(-1)[:1].reshape(()) if array.size else array,
        "empty": lambda: array.reshape(-1)[:0],
    }[how]()
    old.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(made).reshape(made.shape), old.name))


@_mutation
def outputs(graph: onnx.GraphProto, rng: random.Random) -> None:
    """An inner value, a weight or an input leaves the graph as well, under a type that may be wrong; or none does."""
    how = rng.choice(["add", "add", "add", "none", "twice", "nobody"])
    if how == "none":
        del graph.output[:]
    elif how == "twice" and graph.output:
        graph.output.append(graph.output[0])
    elif how == "nobody":
        graph.output.append(helper.make_tensor_value_info("nobody", TensorProto.FLOAT, None))
    else:
        shape = rng.choice([None, [], [7, 3], ["n", 1, 2]])
        kind = rng.choice([TensorProto.FLOAT, TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING])
        value = helper.make_tensor_value_info(rng.choice(_values(graph)), kind, shape)
        graph.output.insert(rng.randrange(len(graph.output) + 1), value)


@_mutation
def inputs(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A weight that is an input too, an input that nobody reads or that is gone, a shape of other sizes."""
    how = rng.choice(["weight", "unread", "gone", "shape", "shape"])
    if how == "weight" and graph.initializer:
        one = rng.choice(list(graph.initializer))
        graph.input.append(helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
    elif how == "unread":
        kind = rng.choice([TensorProto.FLOAT, TensorProto.BOOL, TensorProto.STRING, TensorProto.BFLOAT16])
        graph.input.append(helper.make_tensor_value_info("unread", kind, [2, "n"]))
    elif graph.input and how == "gone":
        del graph.input[rng.randrange(len(graph.input))]
    elif graph.input and how == "shape":
        dims = rng.choice(list(graph.input)).type.tensor_type.shape.dim
        if not len(dims) or rng.random() < 0.2:
            dims.add().dim_value = 2
        elif rng.random() < 0.2:
            del dims[-1]
        else:
            at = rng.choice(list(dims))
            at.dim_value = rng.choice([0, 1, 2, 5, 1000, -1])
            if rng.random() < 0.3:
                at.dim_param = rng.choice(["n", "batch", "n + 1", ""])


@_mutation
def names(graph: onnx.GraphProto, rng: random.Random) -> None:
    """Two things of one name."""
    how = rng.choice(["nodes", "weights", "weight and value", "input and value", "info"])
    if how == "nodes":
        for node in graph.node:
            node.name = "same"
    elif how == "weights" and len(graph.initializer) > 1:
        one, other = rng.sample(list(graph.initializer), 2)
        one.name = other.name
    elif how == "weight and value" and graph.initializer and graph.node:
        rng.choice(list(graph.initializer)).name = _node(graph, rng).output[0]
    elif how == "input and value" and graph.input:
        node = _node(graph, rng)
        node.output[0] = graph.input[0].name
    else:
        graph.value_info.append(
            helper.make_tensor_value_info(rng.choice(_values(graph)), TensorProto.INT32, [rng.choice([1, 2, 9])])
        )


# ---- graphs within -----------------------------------------------------------------------------------


@_mutation
def branch(graph: onnx.GraphProto, rng: random.Random) -> None:
    """A node moves into both branches of an If; then one of them may lose it, its output or its name."""
    node = _node(graph, rng)
    if not node.output:
        return
    at = list(graph.node).index(node)
    arms = []
    for side in ("then", "else"):
        moved = onnx.NodeProto.FromString(node.SerializeToString())
        out = rng.choice([f"{node.output[0]}_{side}", f"{node.output[0]}_{side}", node.output[0]])  # or it shadows
        moved.output[0] = out
        leaves = [helper.make_tensor_value_info(out, TensorProto.FLOAT, None)]
        arm = helper.make_graph([moved], side, [], leaves)
        harm = rng.choice(["", "", "", "node", "output", "input", "outside"])
        if harm == "node":
            del arm.node[:]
        elif harm == "output":
            del arm.output[:]
        elif harm == "input":
            arm.input.append(helper.make_tensor_value_info("given", TensorProto.FLOAT, [1]))
        elif harm == "outside" and moved.input:
            arm.node[0].input[0] = rng.choice([*_values(graph), node.output[0], "nobody"])
        arms.append(arm)
    given = {"then_branch": arms[0], "else_branch": arms[1]}
    if rng.random() < 0.1:
        given.popitem()
    condition = numpy_helper.from_array(np.array(rng.random() < 0.5), f"{node.output[0]}_if")
    graph.initializer.append(condition)
    made = helper.make_node("If", [condition.name], list(node.output), **given)
    graph.node.remove(node)
    graph.node.insert(at, made)

"""What an ONNX file must be before it is made a model: names that are made once and before they are read,
tensors that are as large as they say, functions that end."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import onnx

from ...errors import ModelError

DENSE = "export the model for inference, with dense weights"
_MOST_OPS = 10**6  # after functions are written out
_BITS = {
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    "COMPLEX128": 128,
}


def check_proto(proto: onnx.ModelProto, where: str) -> bool:
    """Whether nodes stand behind what they read, which ONNX asks for, ONNX Runtime does without, and some tools do not
    write. Raises ModelError at the first thing amiss."""
    functions = {(f.domain, f.name): f for f in proto.functions}
    _check_functions(functions, proto.graph, where)
    for function in proto.functions:
        if not _check_names(function.node, set(function.input), set(), list(function.output), where):
            raise ModelError(f"{where}: the function `{function.name[:100]}` reads what it makes later")
    return _check_graph(proto.graph, set(), set(), where)


def _check_graph(graph: onnx.GraphProto, outer: set[str], later: set[str], where: str) -> bool:
    for tensor in graph.initializer:
        if not tensor.name:
            raise ModelError(f"{where}: an initializer has no name")
        _check_tensor(tensor, where)
    _check_once([value.name for value in graph.input], "inputs", where)
    _check_once([tensor.name for tensor in graph.initializer], "initializers", where)
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    given |= {tensor.values.name for tensor in graph.sparse_initializer}
    return _check_names(graph.node, outer | given, later, [value.name for value in graph.output], where)


def _check_once(names: list[str], what: str, where: str) -> None:
    """Of two by one name readers take the first or the last, as they happen to."""
    if len(set(names)) < len(names):
        double = next(name for k, name in enumerate(names) if name in names[:k])
        raise ModelError(f"{where}: two {what} are called `{double[:100]}`")


def _check_names(nodes: Any, known: set[str], later: set[str], outputs: list[str], where: str) -> bool:
    """Every name is made once. ``known``: those from outside; ``later``: those that are made there behind this. Whether
    every name is made before it is read."""
    made: set[str] = set()
    later, ordered = later | {name for node in nodes for name in node.output}, True
    for node in nodes:
        called = f"{where}: `{(node.name or next(iter(node.output), ''))[:100]}` ({node.op_type[:100]})"
        for name in node.input:
            if name and name not in known:
                if name not in later:
                    raise ModelError(f"{called} reads `{name[:100]}`, which nothing makes")
                ordered = False
        for attribute in node.attribute:
            if attribute.type in (onnx.AttributeProto.SPARSE_TENSOR, onnx.AttributeProto.SPARSE_TENSORS):
                raise ModelError(f"{called} is a sparse tensor, which cannot be carried through", DENSE)
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor, where)
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                ordered &= _check_graph(graph, known, later, where)
        for name in node.output:
            if name and name in made:
                raise ModelError(f"{called} makes `{name[:100]}`, which is there already")
            made.add(name)
            known.add(name)
    for name in outputs:
        if name not in known:
            raise ModelError(f"{where}: nothing makes the output `{name[:100]}`")
    return ordered


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """Its dims against its data: a reader would make room for what they promise."""
    if any(n < 0 for n in tensor.dims):
        raise ModelError(f"{where}: `{tensor.name[:100]}` has shape {tuple(tensor.dims)}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.data_type == onnx.TensorProto.STRING:
        return
    known = onnx.TensorProto.DataType.values()
    bits = _BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type), 8) if tensor.data_type in known else 8
    typed = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    stored = max(len(tensor.raw_data) * 8 // bits, *(len(data) * max(1, 8 // bits) for data in typed))
    if prod(tensor.dims) > stored and tensor.data_type:
        raise ModelError(f"{where}: `{tensor.name[:100]}` has shape {tuple(tensor.dims)}, {stored} elements are stored")


def _check_functions(functions: dict[tuple[str, str], onnx.FunctionProto], graph: onnx.GraphProto, where: str) -> None:
    """They are written out where they are called, so none may call itself, nor all together be too many."""
    sizes: dict[tuple[str, str], int] = {}
    for start in functions:
        stack = [(start, False)]
        inside: set[tuple[str, str]] = set()
        while stack:
            key, done = stack.pop()
            if key in sizes:
                continue
            called = [(n.domain, n.op_type) for n in _nodes(functions[key].node) if (n.domain, n.op_type) in functions]
            if done:
                inside.discard(key)
                sizes[key] = len(functions[key].node) + sum(sizes[k] for k in called)
                continue
            if key in inside or any(k in inside or k == key for k in called):
                raise ModelError(f"{where}: the function `{key[1][:100]}` calls itself")
            inside.add(key)
            stack += [(key, True), *((k, False) for k in dict.fromkeys(called) if k not in sizes)]
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _nodes(graph.node))
    if total > _MOST_OPS:
        raise ModelError(f"{where}: its functions come to {total:.3g} ops when written out")


def all_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions too."""
    yield from _nodes(proto.graph.node)
    for function in proto.functions:
        yield from _nodes(function.node)


def _nodes(nodes: object) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their subgraphs."""
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for attribute in node.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _nodes(graph.node)

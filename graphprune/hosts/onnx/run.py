"""Running an onnx_ir Model in ONNX Runtime."""

from __future__ import annotations

import os
import re
import threading
import zlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from ...errors import ModelError, ShapeError
from ...ir.host import Array
from ...ir.large import are_large
from .checker import all_nodes
from .float32_reference import unround
from .node import RANDOM

_PATIENCE_S = 8.0  # for a model with loops, which only running shows to end
_INLINE = 1024  # tensors of more elements are handed to ONNX Runtime as they lie in memory
_SLOW = ["ConstantSharing"]  # an optimizer that takes the square of a network's layers, and saves nothing of one
_SHAPE_OF = "graphprune_shape_of:"  # what begins the names of shapes
_SHAPES, _END = "graphprune_shapes", "graphprune_end_of_shape"


class Session:
    """A model in ONNX Runtime on the CPU. Weights are shared with it, not copied.

    ``watch``: values to return instead of the model's outputs; ``known``: values that are fed like inputs,
    so that what only they depend on is not computed, nor what ``watch`` does not need. ``shapes``: also learn every
    tensor's shape, see ``shaped``. ``exact``: without the rounding of quantised activations. Raises ShapeError naming
    the node that ONNX Runtime refuses.
    """

    def __init__(
        self,
        model: ir.Model,
        watch: Sequence[str] | None = None,
        shapes: bool = False,
        exact: bool = False,
        known: Sequence[str] | None = None,
    ) -> None:
        self.proto, self._weights = _light(model, exact)
        names = _name_nodes(self.proto)
        _seed(self.proto)
        _check_crashes(self.proto)
        graph = self.proto.graph
        if watch is not None:
            del graph.output[:]
            graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(watch))
            if known is not None:
                _start_at(self.proto, known)
        self._shaped = _tell_shapes(self.proto) if shapes else []
        self.outputs = [value.name for value in graph.output]
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1 if shapes else _threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # others share the machine
        options.enable_mem_pattern = False  # or all that lives at any time of a run is one block, and held
        if shapes:  # told as soon as they can be: what they are of goes before the rest is computed
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_BASIC if watch is None else level.ORT_DISABLE_ALL
        read = {name for node in all_nodes(self.proto) for name in node.input} | set(self.outputs)
        kept = {tensor.name for tensor in graph.initializer} & read  # the others it drops before they get their values
        self._weights = {name: array for name, array in self._weights.items() if name in kept}
        self._fed: dict[str, Array] = {}  # weights that are inputs
        self._session = self._made(options, names)
        self._names = names
        self._inputs = {value.name: value.type for value in self._session.get_inputs()}
        self._loops = any(node.op_type in ("Loop", "Scan") for node in all_nodes(self.proto))

    def _made(self, options: ort.SessionOptions, names: Mapping[str, str]) -> ort.InferenceSession:
        """ONNX Runtime copies all weights that a model has, and lays them out anew, and reads inputs where they lie:
        weights that are large are inputs, but for a model with an op that takes no such."""
        if are_large(array.nbytes for array in self._weights.values()):
            try:
                made = _session(_fed(self.proto, self._weights), options)
                self._fed = self._weights
                return made
            except Exception:  # it is made as any, or refused as any
                pass
        if self._weights:
            values = [ort.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
            options.add_external_initializers(list(self._weights), values)
        try:
            return _session(self.proto.SerializeToString(), options)
        except Exception as error:  # ONNX Runtime has no common base for what it raises
            raise _refused(error, names) from error

    def run(self, feed: Mapping[str, Array]) -> list[Any]:
        """Every output for one feed. Raises ShapeError naming the node that ONNX Runtime refuses, and
        ModelError for a loop that does not end."""
        options = ort.RunOptions()
        watch = threading.Timer(_PATIENCE_S, setattr, (options, "terminate", True))
        if self._loops:
            watch.start()
        try:
            given = {name: _narrow(feed[name], kind) for name, kind in self._inputs.items() if name in feed}
            return list(self._session.run(None, {**self._fed, **given}, options))
        except Exception as error:
            if options.terminate:
                raise ModelError(f"its loops do not end within {_PATIENCE_S:g} seconds") from error
            raise _refused(error, self._names) from error
        finally:
            watch.cancel()

    def shaped(self, feed: Mapping[str, Array]) -> tuple[dict[str, Any], dict[str, tuple[int, ...]]]:
        """Of a session that learns shapes, for one feed: what it returns, and the shape of every tensor that a node
        makes. Raises as ``run``."""
        made = dict(zip(self.outputs, self.run(feed), strict=True))
        told = [int(size) for size in made.pop(_SHAPES, ())]
        ends = pairwise([-1, *(k for k, size in enumerate(told) if size == -1)])
        return made, {name: tuple(told[a + 1 : b]) for name, (a, b) in zip(self._shaped, ends, strict=True)}


def _session(model: bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    return ort.InferenceSession(model, options, ["CPUExecutionProvider"], disabled_optimizers=_SLOW)


def _threads() -> int:
    """As many as OMP_NUM_THREADS says, which ONNX Runtime does not read; else up to four."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(said) if said.isdigit() and int(said) else min(4, os.cpu_count() or 1)


def _seed(proto: onnx.ModelProto) -> None:
    """Draws depend on the node alone, so that two models that differ elsewhere draw the same."""
    for node in all_nodes(proto):
        if node.op_type in RANDOM and all(attribute.name != "seed" for attribute in node.attribute):
            seed = zlib.crc32(node.output[0].encode()) % 2**20
            node.attribute.append(onnx.helper.make_attribute("seed", float(seed)))


def _narrow(array: Array, kind: str) -> Array:
    """What was widened to be looked at, as the model has it."""
    return array.astype(np.float16, copy=False) if kind == "tensor(float16)" else array


def _light(model: ir.Model, exact: bool) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The model as a proto without its large weights, and these as arrays by name."""
    copy = model.clone()
    if exact:
        unround(copy)
    weights: dict[str, Array] = {}
    for value in copy.graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.size > _INLINE and tensor.dtype in _NATIVE:
            array = weights[str(value.name)] = np.ascontiguousarray(tensor.numpy())
            value.const_value = ir.ExternalTensor(
                "memory", 0, array.nbytes, tensor.dtype, shape=ir.Shape(array.shape), name=str(value.name)
            )
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)
    for graph in copy.graph.subgraphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = ir.Tensor(value.const_value.numpy(), value.const_value.dtype, name=value.name)
    return ir.to_proto(copy), weights


def _fed(proto: onnx.ModelProto, weights: Mapping[str, Array]) -> bytes:
    """The model with ``weights`` as inputs."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            made.graph.initializer.remove(tensor)
            made.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    data: bytes = made.SerializeToString()
    return data


def _start_at(proto: onnx.ModelProto, known: Sequence[str]) -> None:
    """Drop the nodes that the outputs do not need, or need only for ``known`` values, which become inputs."""
    graph = proto.graph
    types = {v.name: v.type for v in onnx.shape_inference.infer_shapes(proto).graph.value_info}
    makers = {name: node for node in graph.node for name in node.output if name}
    needed: set[str] = set()
    stack, fed = [value.name for value in graph.output], set(known)
    used: set[int] = set()
    while stack:
        name = stack.pop()
        if name in needed:
            continue
        needed.add(name)
        if name not in fed and name in makers:
            used.add(id(makers[name]))
            stack += _reads(makers[name])
    nodes = [node for node in graph.node if id(node) in used]
    for node in nodes:  # of several results, some may be known
        node.output[:] = [f"{name}:unread" if name in fed else name for name in node.output]
    del graph.node[:]
    graph.node.extend(nodes)
    kept = [value for value in graph.input if value.name in needed]
    del graph.input[:]
    graph.input.extend(kept)
    for name in sorted(fed & needed - {value.name for value in kept}):
        kind = types[name].tensor_type.elem_type if name in types else onnx.TensorProto.FLOAT
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    del graph.value_info[:]


def _reads(node: onnx.NodeProto) -> list[str]:
    """The names a node reads, those that its subgraphs take from outside included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            names += [name for part in inner.node for name in _reads(part)]
            names += [value.name for value in inner.output]
    return names


_NATIVE = {
    ir.DataType.FLOAT,
    ir.DataType.DOUBLE,
    ir.DataType.FLOAT16,
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.BOOL,
}


def _name_nodes(proto: onnx.ModelProto) -> dict[str, str]:
    """Name the nameless, so that errors can say where; returns op types by name."""
    taken = {node.name for node in proto.graph.node}
    for node in proto.graph.node:
        if not node.name:
            name = next((output for output in node.output if output), node.op_type)
            node.name = name if name not in taken else f"{name}:{node.op_type}"
            taken.add(node.name)
    return {node.name: node.op_type for node in proto.graph.node}


def _check_crashes(proto: onnx.ModelProto) -> None:
    """Raises ShapeError for what ends the process in ONNX Runtime (1.31) instead of being refused."""
    for node in proto.graph.node:
        heads = [a for a in node.attribute if a.name in ("q_num_heads", "kv_num_heads", "num_heads") and a.i < 1]
        said = f"{node.name} ({node.op_type}): ONNX Runtime cannot run it"
        if "Attention" in node.op_type and heads:
            raise ShapeError(f"{said}: its `{heads[0].name}` is {heads[0].i}")
        if (node.domain, node.op_type) == ("com.microsoft", "Attention") and not "".join(node.input[2:3]):
            raise ShapeError(f"{said}: it has no bias")


def _tell_shapes(proto: onnx.ModelProto) -> list[str]:
    """A Shape node for every tensor that a node makes: cheap to run, where the tensors would be large. They are one
    output, a number that is no size behind each, as ONNX Runtime takes the square of many outputs. Returns of what they
    are, in turn; what is no tensor is an output itself."""
    graph = proto.graph
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    if not {"", "ai.onnx"} & set(versions):
        proto.opset_import.add(domain="", version=17)
    known, named, joined = {value.name for value in graph.output}, list[str](), list[str]()
    for node in list(graph.node):
        for k, name in enumerate(node.output):
            if name and _makes_tensor(node, k, versions):
                graph.node.add(op_type="Shape", name=f"{_SHAPE_OF}{name}", input=[name], output=[f"{_SHAPE_OF}{name}"])
                named.append(name)
                joined += [f"{_SHAPE_OF}{name}", _END]
            elif name and name not in known:  # those are asked for as they are
                graph.output.add(name=name)
    if named:
        end = onnx.numpy_helper.from_array(np.array([-1]))
        graph.node.append(onnx.helper.make_node("Constant", [], [_END], _END, value=end))
        graph.node.append(onnx.helper.make_node("Concat", joined, [_SHAPES], _SHAPES, axis=0))
        graph.output.add(name=_SHAPES)
    return named


def _makes_tensor(node: onnx.NodeProto, output: int, versions: Mapping[str, int]) -> bool:
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, versions.get(domain, versions.get("ai.onnx", 1)), domain)
    except onnx.defs.SchemaError:
        return False
    formal = schema.outputs[min(output, len(schema.outputs) - 1)]
    return all(kind.startswith("tensor(") for kind in formal.types)


def _refused(error: Exception, names: Mapping[str, str]) -> ShapeError:
    """What ONNX Runtime said, with the node first. ``names``: op types by node name."""
    text = " ".join(str(error).split())
    said = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)[:400]
    quoted = re.findall(r"Name:'([^']*)'|node with name '([^']*)'|Node:? ?\(([^)]*)\)", text)
    mentioned = [part for parts in quoted for part in parts if part in names]
    unknown = re.search(r":(\w+)\(-?\d+\) is not a registered", text)
    if unknown:
        mentioned += [name for name, op_type in names.items() if op_type == unknown[1]]
    where = f"{mentioned[0]} ({names[mentioned[0]]}): " if mentioned else ""
    return ShapeError(f"{where}ONNX Runtime cannot run it: {said}")

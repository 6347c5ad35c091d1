"""LSTM layers as what they are: one product for the inputs of all steps, and one kernel for the steps.

TVM's frontend for torch writes every step out, which takes minutes to compile and runs slower; that for ONNX refuses
the op. Here layers come through the frontends as calls of a name, and become kernels where the CPU is known.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ...ir.host import Array
from .lstm_steps import GATES, Steps
from .rewrites import OPAQUE, rewritten

FORWARD, BACKWARD = "graphprune.lstm", "graphprune.lstm_backward"
"""Of x [steps, batch, inputs], two states [batch, hidden], and of constants (an input and a recurrent weight
[gates x hidden, ...], and biases [gates x hidden]) the states of all steps and both last ones."""

ONNX_ORDER = (0, 2, 3, 1)  # where ONNX has the input, forget, cell and output gate


def kernels(module: Any, lanes: int, tile: int, threads: int) -> Any:
    """A module with its layers as kernels. ``lanes``: floats in a vector, ``tile``: vectors in registers, ``threads``:
    see Steps."""
    from tvm import ir, relax

    @relax.expr_functor.mutator
    class Kernels(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.call_dps_packed":
                return call
            name = str(call.args[0].global_symbol)
            if name not in (FORWARD, BACKWARD):
                return call
            x, hidden, cell, *constants = call.args[1].fields
            assert all(isinstance(value, ir.GenericConst) for value in constants)
            weights = [value.value.numpy() for value in constants]
            steps, batch, inputs = (int(n) for n in x.ty.shape.values)
            sizes = Steps(steps, batch, weights[1].shape[1], name == BACKWARD, lanes, tile // GATES, threads)
            emit = self.builder_.emit
            gates = emit(relax.op.reshape(x, [steps * batch, inputs]))
            gates = emit(relax.op.matmul(gates, relax.const(sizes.input_weights(weights[0]))))
            if biases := weights[2:]:
                gates = emit(relax.op.add(gates, relax.const(sizes.input_weights(_sum(biases)))))
            gates = emit(relax.op.reshape(gates, [steps, batch, sizes.blocks, GATES, sizes.lanes]))
            function = sizes.function().with_attr("op_pattern", OPAQUE)
            operands = [gates, hidden, cell, relax.const(sizes.recurrent_weights(weights[1]))]
            return relax.call_tir(self.builder_.add_func(function, "lstm_steps"), operands, list(call.ty.fields))

    return rewritten(module, Kernels)


def _sum(biases: Sequence[Array]) -> Array:
    total: Array = np.sum([each.astype(np.float64) for each in biases], 0)
    return total.astype(np.float32)


def _layer(
    emit: Callable[[Any], Any], x: Any, states: Sequence[Any], weights: Sequence[Any], backward: bool
) -> list[Any]:
    """The outputs of one direction of a layer."""
    from tvm import relax

    steps = int(x.ty.shape.values[0])
    last = [int(n) for n in states[0].ty.shape.values]
    types = [relax.TensorType(shape, "float32") for shape in ([steps, *last], last, last)]
    made = emit(relax.call_dps_packed(BACKWARD if backward else FORWARD, [x, *states, *weights], types))
    return [emit(made[k]) for k in range(3)]


def _swapped(emit: Callable[[Any], Any], x: Any) -> Any:
    """Time and batch the other way round."""
    from tvm import relax

    first, second, last = (int(n) for n in x.ty.shape.values)
    if 1 in (first, second):
        return emit(relax.op.reshape(x, [second, first, last]))
    return emit(relax.op.permute_dims(x, [1, 0, 2]))


def _state(emit: Callable[[Any], Any], states: Any, number: int) -> Any:
    """One of several states."""
    from tvm import relax

    count, *shape = (int(n) for n in states.ty.shape.values)
    if count > 1:
        states = emit(relax.op.strided_slice(states, [0], [number], [number + 1]))
    return emit(relax.op.reshape(states, shape))


def _stacked(emit: Callable[[Any], Any], states: Sequence[Any]) -> Any:
    from tvm import relax

    whole = [emit(relax.op.expand_dims(state, [0])) for state in states]
    return emit(relax.op.concat(whole, 0)) if len(whole) > 1 else whole[0]


# ---- torch ------------------------------------------------------------------------------------------------


def whole(exported: Any) -> list[Any]:
    """The ops of a program of torch's that are not to be taken apart: LSTM layers where kernels take them all."""
    import torch

    layers = [node for node in exported.graph.nodes if node.target is torch.ops.aten.lstm.input]
    known = layers and all(_known(node, exported.graph_signature) for node in layers)
    return [torch.ops.aten.lstm.input] if known else []


def _known(node: Any, signature: Any) -> bool:
    """Whether weights are constants, numbers are of single precision and states are as wide as cells."""
    import torch

    x, _, weights, biased, layers, _, _, both, _ = node.args
    constants = (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    )
    fixed = all(any(weight.name in names for names in constants) for weight in weights)
    count = layers * (1 + both) * (4 if biased else 2)
    return fixed and len(weights) == count and x.meta["val"].dtype == torch.float32


def torch_converters() -> dict[str, Callable[[Any, Any], Any]]:
    """For ``from_exported_program``."""
    return {"lstm.input": _from_torch}


def _from_torch(node: Any, importer: Any) -> Any:
    from tvm import relax

    x, states, weights, biased, layers, _, _, both, batch_first = importer.retrieve_args(node)
    emit, ways, each = importer.block_builder.emit, 2 if both else 1, 4 if biased else 2
    x = _swapped(emit, x) if batch_first else x
    lasts: list[list[Any]] = [[], []]
    for layer in range(layers):
        made = []
        for way in range(ways):
            number = layer * ways + way
            own = [_state(emit, state, number) for state in states]
            y, *last = _layer(emit, x, own, weights[number * each : (number + 1) * each], way == 1)
            made.append(y)
            for found, state in zip(lasts, last, strict=True):
                found.append(state)
        x = emit(relax.op.concat(made, 2)) if both else made[0]
    return (_swapped(emit, x) if batch_first else x, *(_stacked(emit, last) for last in lasts))


# ---- ONNX -------------------------------------------------------------------------------------------------


@contextmanager
def read_from_onnx() -> Iterator[None]:
    """Within it TVM's frontend for ONNX, whose table of ops has no room for others, knows LSTM."""
    from tvm.relax.frontend.onnx import onnx_frontend

    class Lstm(onnx_frontend.OnnxOpConverter):  # type: ignore[misc]
        @classmethod
        def _impl_v1(cls, builder: Any, inputs: Any, attributes: dict[str, Any], _: Any) -> Any:
            return _from_onnx(builder.emit, list(inputs), attributes)

    known = onnx_frontend._get_convert_map
    onnx_frontend._get_convert_map = lambda: {**known(), "LSTM": Lstm}
    try:
        yield
    finally:
        onnx_frontend._get_convert_map = known


def _from_onnx(emit: Callable[[Any], Any], inputs: list[Any], attributes: dict[str, Any]) -> Any:
    from tvm import relax

    given: list[Any] = [*inputs, *[None] * (8 - len(inputs))]
    x, weight, recurrent, bias, lengths, hidden, cell, peepholes = given
    weights = [_array(value) for value in (weight, recurrent, bias) if value is not None]
    _refuse(attributes, lengths, peepholes, int(x.ty.shape.values[0]))
    batch, (ways, _, size) = int(x.ty.shape.values[1]), weights[1].shape
    zero = relax.const(np.zeros((ways, batch, size), np.float32))
    outputs = []
    for way in range(ways):
        own = [_state(emit, zero if state is None else state, way) for state in (hidden, cell)]
        ordered = [relax.const(part) for each in weights for part in _ordered(each[way], size)]
        backward = way == 1 or attributes.get("direction") == b"reverse"
        outputs.append(_layer(emit, x, own, ordered, backward))
    y, *last = ([each[k] for each in outputs] for k in range(3))
    joined = [emit(relax.op.expand_dims(each, [1])) for each in y]
    whole = emit(relax.op.concat(joined, 1)) if ways > 1 else joined[0]
    return relax.Tuple([whole, *(_stacked(emit, states) for states in last)])


def _ordered(weight: Array, hidden: int) -> Iterator[Array]:
    """A weight in our order of gates, of a bias both halves."""
    for part in np.split(weight, len(weight) // (GATES * hidden)):
        gates = part.reshape(GATES, hidden, *part.shape[1:])
        yield np.ascontiguousarray(gates[list(ONNX_ORDER)].reshape(part.shape))


def _array(value: Any) -> Array:
    from tvm import ir

    if not isinstance(value, ir.GenericConst):
        raise NotImplementedError("weights that are computed")
    array: Array = value.value.numpy()
    if array.dtype != np.float32:
        raise NotImplementedError(f"weights of {array.dtype}")
    return array


def _refuse(attributes: dict[str, Any], lengths: Any, peepholes: Any, steps: int) -> None:
    """Raises NotImplementedError for what kernels do not compute."""
    from tvm import ir

    directions = 2 if attributes.get("direction") == b"bidirectional" else 1
    usual = (b"sigmoid", b"tanh", b"tanh") * directions
    if tuple(name.lower() for name in attributes.get("activations", usual)) != usual:
        raise NotImplementedError("activations other than sigmoid and tanh")
    for name in ("clip", "input_forget", "layout"):
        if attributes.get(name):
            raise NotImplementedError(f"attribute `{name}`")
    if peepholes is not None:
        raise NotImplementedError("peepholes")
    if lengths is not None and not (isinstance(lengths, ir.GenericConst) and (lengths.value.numpy() == steps).all()):
        raise NotImplementedError("sequences of different lengths")

"""A torch.export program as an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...errors import ModelError, first_line


def write_onnx(exported: torch.export.ExportedProgram, path: Path, about: Mapping[str, str]) -> None:
    """Parameters keep their names, nothing is folded away; ``about`` is its metadata.

    Raises ModelError for what torch.onnx cannot express."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    try:
        with _quiet():
            # The optimizer would fold BatchNorm and rename parameters: ONNX Runtime does the first anyway.
            made = torch.onnx.export(exported, dynamo=True, optimize=False, verbose=False)
            assert made is not None
            _without_zero_biases(made.model)
            _without_casts(made.model)
            _with_stored_weights(made.model)
            RemoveUnusedNodesPass()(made.model)
            made.model.metadata_props.update(about)
            made.save(path)
    except Exception as error:  # the exporter raises whatever its decompositions raise
        said = first_line(error.__cause__ or error)
        raise ModelError(f"torch.onnx cannot express the model: {said}") from error


def _without_zero_biases(model: Any) -> None:
    """The exporter gives a convolution without bias one of zeros that is computed at run time, and
    ONNX Runtime fuses nothing with a convolution whose bias is computed."""
    for node in model.graph:
        if node.op_type in ("Conv", "ConvTranspose") and len(node.inputs) > 2 and _zeros(node.inputs[2]):
            node.replace_input_with(2, None)


def _without_casts(model: Any) -> None:
    """The exporter casts the bounds of a clip to what they are already, by the type of what is clipped: as
    if the bounds were computed from it."""
    from onnx_ir.convenience import get_const_tensor

    for node in model.graph:
        if node.op_type == "CastLike" and node.inputs[0] is not None:
            tensor, like = get_const_tensor(node.inputs[0]), node.inputs[1].dtype
            if tensor is not None and tensor.dtype == like and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(node.inputs[0])


def _with_stored_weights(model: Any) -> None:
    """The exporter computes the weights of a recurrent layer from torch's, whose gates are in another order: stored as
    they come out they can be read, and cut, as what they are."""
    import onnx_ir as ir

    for node in [node for node in model.graph if node.op_type in ("LSTM", "GRU", "RNN")]:
        for k, letter in ((1, "W"), (2, "R"), (3, "B")):
            value = node.inputs[k] if k < len(node.inputs) else None
            array, source = _stored(value) if value is not None and value.producer() is not None else (None, "")
            if array is None:
                continue
            stem = f"{source.rpartition('.')[0] or source}.{letter}"
            name = next(
                n for n in (stem, *(f"{stem}_{i}" for i in range(1, 10**6))) if n not in model.graph.initializers
            )
            tensor = ir.tensor(np.ascontiguousarray(array), name=name)
            stored = ir.Value(
                name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor
            )
            model.graph.register_initializer(stored)
            node.replace_input_with(k, stored)


def _stored(value: Any) -> tuple[Any, str]:
    """What a value comes to that is made of stored tensors and known sizes by moving them about, and the name of the
    first of them; None where it is made of more."""
    from onnx_ir.convenience import get_const_tensor

    tensor = get_const_tensor(value)
    if tensor is not None:
        return tensor.numpy(), str(value.name) if value.is_initializer() else ""
    node = value.producer()
    if node is not None and node.op_type == "Shape":
        ends = (node.attributes[name].value if name in node.attributes else None for name in ("start", "end"))
        sizes = list(node.inputs[0].shape or ())[slice(*ends)]
        return (np.array(sizes, np.int64), "") if sizes and all(isinstance(n, int) for n in sizes) else (None, "")
    move = _MOVES.get(node.op_type) if node is not None else None
    given = [_stored(operand) for operand in node.inputs] if move is not None else [(None, "")]
    if move is None or any(array is None for array, _ in given):
        return None, ""
    axis = node.attributes["axis"].value if "axis" in node.attributes else 0
    return move([array for array, _ in given], axis), next((name for _, name in given if name), "")


def _sliced(given: list[Any], _: int) -> Any:
    x, starts, ends, axes = given[:4]
    cut = [slice(None)] * x.ndim
    for axis, start, end in zip(axes, starts, ends, strict=True):
        cut[axis] = slice(int(start), int(end))
    return x[tuple(cut)]


_MOVES: Mapping[str, Callable[[list[Any], int], Any]] = {
    "Identity": lambda given, _: given[0],
    "Mul": lambda given, _: given[0] * given[1],
    "Slice": lambda given, axis: _sliced(given, axis),
    "Concat": lambda given, axis: np.concatenate(given, axis),
    "Unsqueeze": lambda given, _: np.expand_dims(given[0], tuple(int(n) for n in given[1])),
}


def _zeros(value: Any) -> bool:
    """Whether ``value`` is zero whatever the inputs are: Expand(CastLike(0.0, anything), any shape)."""
    from onnx_ir.convenience import get_const_tensor

    while value is not None and (node := value.producer()) and node.op_type in ("Expand", "CastLike"):
        value = node.inputs[0]
    tensor = None if value is None else get_const_tensor(value)
    return tensor is not None and not np.any(tensor.numpy())


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs and warns about its own workings."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

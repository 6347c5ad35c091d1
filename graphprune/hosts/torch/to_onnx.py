"""A torch.export program as an ONNX file."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
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

"""ONNX files: read with care, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from ...errors import ModelError, OutputError, absent
from ...ir.atomic import followed, stage, unwritable
from ..boundary import refusing
from .checker import DENSE, check_proto

_INLINE_BYTES = 3 * 2**29  # 1.5 GB: protobuf ends at 2


_SMALL_BYTES = 256
"""What onnx_ir leaves in the model itself where it writes external data."""

CHANGED = "graphprune.changed"
"""Where a model that was read holds in what it is not as it was given: sentences for the user."""


WHOLE = "a pointer of Git LFS or half a download look so; torch.onnx.export(module, inputs, 'model.onnx') writes one"


def read(path: Path) -> ir.Model:
    """Read a file. Raises ModelError for what is not a whole, self-contained ONNX model."""
    if not path.is_file():
        raise ModelError(f"{path}: {'not a file' if path.exists() else 'no such file'}", absent(path))
    try:
        proto = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"{path}: not an ONNX file, or a truncated one", WHOLE) from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error})") from error
    model = from_proto(proto, str(path))
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    with refusing(f"{path}: its external data cannot be read"):
        check_external(model, str(path))
    return model


def from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    """Deserialise; refuse what would be lost."""
    if not proto.ir_version or not proto.HasField("graph") or not (proto.graph.node or proto.graph.output):
        raise ModelError(f"{where}: not an ONNX model, or an empty one", WHOLE)
    for field, what in (
        (proto.graph.sparse_initializer, "sparse initializers"),
        (proto.training_info, "training information"),
    ):
        if field:
            raise ModelError(f"{where}: {what} cannot be carried through", DENSE)
    ordered = check_proto(proto, where)
    try:
        model = ir.from_proto(proto)
        if not ordered:
            model.graph.sort()
        _hold_weights(model)
        return model
    except Exception as error:  # onnx_ir raises plain ValueErrors and RuntimeErrors for broken graphs
        cause: BaseException = error
        while inner := cause.__cause__ or cause.__context__:  # its own wrapping may fail, without a cause
            cause = inner
        raise ModelError(f"{where}: not a valid ONNX model ({str(cause).splitlines()[0][:200]})") from error


def _hold_weights(model: ir.Model) -> None:
    """Where every weight is an input as well, as IR 3 had to have it and PyTorch long wrote it, none is any more:
    what a caller could replace ONNX Runtime neither folds nor lays out anew, which can double the latency. Where
    only some are, they are meant as inputs with a default."""
    weights, inputs = model.graph.initializers, model.graph.inputs
    open_ = [name for name, value in weights.items() if value.is_graph_input()]
    if open_ and len(open_) == len(weights):
        inputs[:] = [value for value in inputs if value.name not in weights]
        newer = f", and IR version {model.ir_version} became 4" if model.ir_version < 4 else ""
        model.ir_version = max(model.ir_version, 4)
        model.meta[CHANGED] = (
            f"its {len(weights)} weights are no inputs of the model any more{newer}: what a caller could replace "
            "ONNX Runtime does not optimise",
        )
    elif open_:
        more = f" and {len(open_) - 4} more" if len(open_) > 4 else ""
        model.meta[CHANGED] = (
            f"inputs with a default that a caller may replace: {', '.join(open_[:4])}{more}; what is cut of one, its "
            "input has no more either",
        )


def external(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """Every tensor whose data is in another file."""
    graphs: list[Any] = [*model.graphs(), *model.functions.values()]
    for graph in graphs:
        for value in getattr(graph, "initializers", {}).values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if isinstance(attribute.value, ir.ExternalTensor):
                    yield attribute.value


def check_external(model: ir.Model, where: str) -> None:
    """Raises ModelError for external data that is missing, too short, or outside the model's folder."""
    for tensor in external(model):
        location = os.fspath(tensor.location)
        base = Path(tensor.base_dir).resolve()
        target = base / location
        what = f"{where}: the data of `{tensor.name}`"
        if Path(location).is_absolute() or not target.resolve().is_relative_to(base):
            raise ModelError(
                f"{what} is at `{location}`, outside the model's folder", "keep external data beside the model"
            )
        if not target.is_file():
            raise ModelError(
                f"{what} should be at `{location}`, which is missing", "copy the data file along with the model"
            )
        end = (tensor.offset or 0) + (tensor.nbytes if tensor.length is None else max(tensor.length, tensor.nbytes))
        if target.stat().st_size < end:
            raise ModelError(f"{what} ends at byte {end} of `{location}`, which has {target.stat().st_size}")
        if tensor.length is not None and tensor.length < tensor.nbytes:
            raise ModelError(f"{what} takes {tensor.nbytes} bytes, {tensor.length} are given")


def write(
    model: ir.Model,
    path: Path,
    data_beside: bool,
    replace: bool = True,
    about: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``path``, and ``path``.data beside it for large models and where ``data_beside``: under another name
    where there is such a file, so that the old model has its own until the new one is in its place. ``about`` goes
    into its metadata.

    Raises OutputError; then nothing is left behind. It is one that ``path`` exists, unless ``replace``.
    """
    tensors = [
        v.const_value for graph in model.graphs() for v in graph.initializers.values() if v.const_value is not None
    ]
    split = data_beside or sum(tensor.nbytes for tensor in tensors) > _INLINE_BYTES
    if split and path.is_symlink():
        raise OutputError(f"{path} is a link, and its weights go into a file beside it", "name the file it leads to")
    path = followed(path)
    copy = model.clone()
    copy.metadata_props.update(about)
    for tensor in external(copy):
        tensor.numpy()  # mapped now: the file may be the one that is replaced
    _load_inline(copy, _SMALL_BYTES if split else None)
    with stage(path) as place:
        names = [f"{path.name}.data", f"{path.name}.1.data"]
        free = next((name for name in names if not path.with_name(name).exists()), None)
        if split and free is None:
            raise OutputError(f"{path}: both {' and '.join(names)} exist beside it", "move one away")
        try:
            ir.save(
                copy, place.new / path.name, external_data=free if split else None, size_threshold_bytes=_SMALL_BYTES
            )
            beside = [name for name in names if name in _data_of(place.new / path.name)]
            place.put_model(replace, beside, [name for name in names if name in _data_of(path)] if replace else ())
        except OSError as error:
            raise unwritable(path, error) from error


def _data_of(path: Path) -> set[str]:
    """The names of the files that the model at ``path`` has its weights in; none where that is no model."""
    try:
        return {os.fspath(tensor.location) for tensor in external(ir.load(path))}
    except Exception:  # what is replaced may be anything
        return set()


def _load_inline(model: ir.Model, most: int | None) -> None:
    """Copies of what is in other files, of no more than ``most`` bytes each (None: whatever it takes). Such small ones
    onnx_ir would put into the model itself, and close the map that others look at."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and (most is None or tensor.nbytes <= most):
                value.const_value = ir.Tensor(tensor.numpy().copy(), tensor.dtype, name=tensor.name)

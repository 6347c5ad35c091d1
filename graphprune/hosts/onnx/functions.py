"""Model-local functions, written out where they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx
import onnx.inliner
import onnx_ir as ir
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def

from ..boundary import refusing
from .checker import all_nodes
from .file import external


def written_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without functions of its own; as it is where it has none. A function by the name of an op that ONNX
    Runtime has a kernel for is dropped: the kernel is what runs (ONNX leaves the choice to the runtime)."""
    if not proto.functions:
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    kernels = {(one.domain, one.op_name) for one in get_all_opkernel_def() if one.provider == "CPUExecutionProvider"}
    for function in [one for one in copy.functions if (one.domain, one.name) in kernels]:
        copy.functions.remove(function)
    _say_defaults(all_nodes(copy), {(f.domain, f.name, f.overload): f for f in copy.functions})
    return onnx.inliner.inline_local_functions(copy, convert_version=True)


def _say_defaults(
    nodes: Iterable[onnx.NodeProto], functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
) -> None:
    """Give each call the attributes that it leaves to their defaults, which onnx (1.23) forgets."""
    for node in nodes:
        function = functions.get((node.domain, node.op_type, node.overload))
        if function is not None:
            said = {attribute.name for attribute in node.attribute}
            node.attribute.extend(default for default in function.attribute_proto if default.name not in said)


def without_functions(model: ir.Model) -> ir.Model:
    """The same of a model that was read already."""
    with refusing("its functions cannot be written out where they are called"):
        made = ir.from_proto(written_out(ir.to_proto(model)))
    beside = next(external(model), None)
    if beside is not None:
        ir.external_data.set_base_dir(made.graph, beside.base_dir)
    return made

"""A graph whose arithmetic is of another precision: what proofs are run in."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.graph_module import _get_attr

from . import grouped  # noqa: F401  (its op)
from .edit import arguments, set_argument

_COMPLEX = {torch.float16: torch.complex32, torch.float32: torch.complex64, torch.float64: torch.complex128}


_OF_NUMBERS = (torch.ops.aten.where.Scalar,)


def wider(dtype: torch.dtype, floats: torch.dtype) -> torch.dtype:
    """The dtype in a model whose floating point numbers are ``floats``: complex ones are pairs of them."""
    if dtype.is_complex:
        return _COMPLEX.get(floats, dtype)
    return floats if dtype.is_floating_point else dtype


def as_read(stored: Any, floats: torch.dtype | None) -> Any:
    """What an op reads of what is stored, where floating point numbers are cast as they are read."""
    return stored.to(wider(stored.dtype, floats)) if floats is not None and isinstance(stored, torch.Tensor) else stored


def unsaid_eps(dtype: torch.dtype) -> float | None:
    """The eps of a ``rms_norm`` that gives none: the resolution of the dtype; of half precision it is not known."""
    return torch.finfo(dtype).eps if dtype in (torch.float32, torch.float64) else None


def cast_graph(model: fx.GraphModule, dtype: torch.dtype) -> None:
    """Every dtype that is written in the graph, or that an op which makes tensors takes by default; an eps that goes by
    the dtype stays what it was; an op of bfloat16 alone is another; what asserts dtypes goes."""

    def wanted(argument: Any) -> Any:
        return wider(argument, dtype) if isinstance(argument, torch.dtype) else argument

    for node in list(model.graph.nodes):
        if node.op == "get_attr" and isinstance(body := _get_attr(model, str(node.target)), fx.GraphModule):
            cast_graph(body, dtype)  # a branch, the body of a loop
            body.recompile()
        if node.op == "call_function" and "_assert_tensor_metadata" in str(node.target):
            model.graph.erase_node(node)
            continue
        node.args = fx.node.map_aggregate(node.args, wanted)
        node.kwargs = fx.node.map_aggregate(node.kwargs, wanted)
        val = node.meta.get("val")
        if node.target is torch.ops.aten.rms_norm.default and arguments(node)["eps"] is None:
            set_argument(node, "eps", unsaid_eps(val.dtype))
        if node.target is torch.ops.aten._grouped_mm.default and dtype is not torch.bfloat16:
            _regroup(node)
        if _makes(node) and wider(val.dtype, dtype) is not val.dtype:
            node.update_kwarg("dtype", wider(val.dtype, dtype))
        if node.target in _OF_NUMBERS and isinstance(val, torch.Tensor) and wider(val.dtype, dtype) is not val.dtype:
            with model.graph.inserting_after(node):  # two numbers make a tensor of the default dtype
                made = model.graph.call_function(torch.ops.aten.to.dtype, (node, wider(val.dtype, dtype)))
            made.meta["val"] = val.to(wider(val.dtype, dtype))
            node.replace_all_uses_with(made, lambda user, made=made: user is not made)
        if node.op == "placeholder" and isinstance(val, torch.Tensor):
            node.meta["val"] = val.to(wider(val.dtype, dtype))


def _regroup(node: fx.Node) -> None:
    given = arguments(node)
    x, weight, offs = given["self"], given["mat2"], given["offs"]
    if x.meta["val"].ndim == 2 and weight.meta["val"].ndim == 3 and offs is not None and given["bias"] is None:
        node.target, node.args, node.kwargs = torch.ops.graphprune.grouped_mm.default, (x, weight, offs), {}


def _makes(node: fx.Node) -> bool:
    """Whether an op makes a tensor of the default dtype, from no other tensor."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not isinstance(node.meta.get("val"), torch.Tensor):
        return False
    takes = any(argument.name == "dtype" for argument in schema.arguments)
    reads = any(isinstance(one.meta.get("val"), torch.Tensor) for one in node.all_input_nodes)
    return takes and not reads and node.kwargs.get("dtype") is None

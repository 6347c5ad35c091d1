"""Ops of torch that TVM's frontend does not know, or reads as something else.

torch is imported inside functions, as a target for ONNX files does without it; so is TVM, an extra and slow to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .rewrites import rewritten


def decompositions() -> dict[Any, Callable[..., Any]]:
    """For ``run_decompositions``: factors that the frontend leaves out (``alpha`` of sums, the scales of ELU, and of
    SELU, which is one), and what it has no word for."""
    import torch

    aten = torch.ops.aten

    def summed(sign: int) -> Callable[..., Any]:
        def rule(x: Any, y: Any, alpha: Any = 1) -> Any:
            return NotImplemented if alpha == 1 else x + y * (sign * alpha)

        return rule

    def reversed_(x: Any, y: Any, alpha: Any = 1) -> Any:
        return (-x if alpha == 1 else x * -alpha) + y

    def index(x: Any, indices: Any) -> Any:
        """Several tensors, not of the first axes: of each pair of numbers one place, not all places of both."""
        at = [axis for axis, each in enumerate(indices) if each is not None]
        if len(at) < 2 or at[-1] == len(at) - 1 or any(indices[axis].dtype == torch.bool for axis in at):
            return NotImplemented
        rest = [axis for axis in range(x.ndim) if axis not in at]
        made = x.permute(at + rest)[tuple(indices[axis] for axis in at)]
        many = made.ndim - len(rest)
        together = at == list(range(at[0], at[0] + len(at)))  # else what they find comes first
        return made.movedim(tuple(range(many)), tuple(range(at[0], at[0] + many))) if together else made

    def elu(x: Any, alpha: Any = 1, scale: Any = 1, input_scale: Any = 1) -> Any:
        if scale == input_scale == 1:
            return NotImplemented
        return torch.where(x > 0, x * scale, torch.expm1(torch.clamp(x, max=0) * input_scale) * (alpha * scale))

    def var_mean(x: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
        mean = x.mean(dim, keepdim=keepdim) if dim is not None else x.mean()
        return torch.var(x, dim, correction=1 if correction is None else correction, keepdim=keepdim), mean

    def index_copy(x: Any, axis: int, at: Any, new: Any) -> Any:
        shape = [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]
        return x.scatter(axis, at.reshape(shape).expand(new.shape), new)

    def unfold(x: Any, axis: int, size: int, step: int) -> Any:
        axis %= x.ndim
        count = (x.shape[axis] - size) // step + 1
        at = torch.arange(count)[:, None] * step + torch.arange(size)
        return x.index_select(axis, at.flatten()).unflatten(axis, (count, size)).movedim(axis + 1, -1)

    def adaptive_max_pool2d(x: Any, size: Any) -> Any:
        """Windows of sizes of their own, one after the other, and where each has its largest."""
        *_, height, width = x.shape
        places, pairs = torch.arange(height * width).reshape(height, width), zip((height, width), size, strict=True)
        rows, columns = ([(k * n // m, -(-(k + 1) * n // m)) for k in range(m)] for n, m in pairs)
        found = []
        for top, end in rows:
            for left, right in columns:
                most, at = x[..., top:end, left:right].flatten(-2).max(-1)
                found.append((most, places[top:end, left:right].flatten()[at]))
        return tuple(torch.stack(each, -1).unflatten(-1, tuple(size)) for each in zip(*found, strict=True))

    def kthvalue(x: Any, k: int, axis: int = -1, keepdim: bool = False) -> Any:
        found = [each.narrow(axis, k - 1, 1) for each in x.sort(axis)]
        return tuple(each if keepdim else each.squeeze(axis) for each in found)

    def col2im(x: Any, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
        """What overlaps is added: the transposed convolution whose kernel has a one for each place."""
        axes = list(zip(size, kernel, dilation, padding, stride, strict=True))
        free = [n + 2 * pad - d * (k - 1) - 1 for n, k, d, pad, _ in axes]  # how far a window may move
        steps, rest = zip(*(divmod(way, stride) for way, (*_, stride) in zip(free, axes, strict=True)), strict=True)
        places = math.prod(kernel)
        many = x.shape[-2] // places
        ones = torch.eye(places, dtype=x.dtype).reshape(places, 1, *kernel).repeat(many, 1, 1, 1)
        columns = x.reshape(-1, many * places, *(n + 1 for n in steps))
        return torch.nn.functional.conv_transpose2d(columns, ones, None, stride, padding, rest, many, dilation)

    return {
        **torch._decomp.get_decompositions([aten.grid_sampler_2d]),  # which the frontend reads with axes swapped
        aten.adaptive_max_pool2d.default: adaptive_max_pool2d,
        aten.unfold.default: unfold,
        aten.index_copy.default: index_copy,
        aten.kthvalue.default: kthvalue,
        aten.col2im.default: col2im,
        aten.add.Tensor: summed(1),
        aten.add.Scalar: summed(1),
        aten.sub.Tensor: summed(-1),
        aten.sub.Scalar: summed(-1),
        aten.rsub.Tensor: reversed_,
        aten.rsub.Scalar: reversed_,
        aten.index.Tensor: index,
        aten.elu.default: elu,
        aten.var_mean.correction: var_mean,
        aten.exp2.default: lambda x: torch.exp(x * math.log(2)),
        aten.sinh.default: lambda x: 0.5 * (torch.exp(x) - torch.exp(-x)),
        aten.cosh.default: lambda x: 0.5 * (torch.exp(x) + torch.exp(-x)),
    }


def converters() -> dict[str, Callable[[Any, Any], Any]]:
    """For ``from_exported_program``."""
    return {"amax.default": _reduced("max"), "amin.default": _reduced("min"), "prod.dim_int": _reduced("prod")}


def _reduced(name: str) -> Callable[[Any, Any], Any]:
    def convert(node: Any, importer: Any) -> Any:
        from tvm import relax

        x, axes, keep, *_ = [*importer.retrieve_args(node), None, False][:3]
        axes, keep = node.kwargs.get("dim", axes), node.kwargs.get("keepdim", keep)
        return importer.block_builder.emit(getattr(relax.op, name)(x, None if axes == [] else axes, bool(keep)))

    return convert


def indices(module: Any) -> Any:
    """Indices counted from the first, which torch lets count from the last too; those of one axis within bounds, since
    TVM reads whatever lies there."""
    from tvm import ir, relax

    @relax.expr_functor.mutator
    class Counter(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            name = getattr(call.op, "name", "")
            if name == "relax.take":
                axis = None if call.attrs.axis is None else int(call.attrs.axis)  # None where there is one alone
                size = int(call.args[0].ty.shape.values[axis or 0])
                return relax.op.take(call.args[0], self.counted(call.args[1], size), axis, mode="clip")
            if name == "relax.index_tensor":
                sizes = [int(size) for size in call.args[0].ty.shape.values]
                fields = self.bound(call.args[1]).fields
                return relax.op.index_tensor(
                    call.args[0], [self.counted(each, size) for each, size in zip(fields, sizes, strict=False)]
                )
            return call

        def counted(self, index: Any, size: int) -> Any:
            known = self.bound(index)
            if isinstance(known, ir.GenericConst):
                at = known.value.numpy()
                return relax.const(np.where(at < 0, at + size, at), str(at.dtype)) if (at < 0).any() else index
            if "int" not in str(index.ty.dtype):
                return index
            zero, whole = (relax.const(value, index.ty.dtype) for value in (0, size))
            behind = self.builder_.emit(relax.op.less(index, zero))
            other = self.builder_.emit(relax.op.add(index, whole))
            return self.builder_.emit(relax.op.where(behind, other, index))

        def bound(self, value: Any) -> Any:
            found = self.lookup_binding(value) if isinstance(value, ir.Var) else None
            return value if found is None else found

    return rewritten(module, Counter)

"""Setting the literals of ONNX nodes: groups, view sizes, split points.

They are attributes, constants, or computed by a chain of nodes, depending on opset and exporter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from ...axes.dim import find
from ...errors import ModelError
from ...ir.graph import Op
from .edit import drop_unread, insert, make_tensor, set_input, set_tensor, shared
from .literal_tracking import Known, Written
from .node import constant_tensor


class Literals:
    """Sets the literals of one op. ``known``: what lifting learnt of them, by input."""

    def __init__(self, graph: ir.Graph, node: ir.Node, op: Op, known: Mapping[int, Written], version: int) -> None:
        self.graph, self.node, self.op, self.version = graph, node, op, version
        self.known: dict[int, tuple[Known, ...]] = {k: written.entries for k, written in known.items()}
        self.dtypes = {k: written.dtype for k, written in known.items()}

    def set(self, name: str, value: Any) -> None:
        setters: Mapping[tuple[str, str], Callable[[Any], None]] = {
            ("conv", "groups"): self._groups,
            ("conv_transpose", "groups"): self._groups,
            ("fused_conv", "groups"): self._groups,
            ("integer_conv", "groups"): self._groups,
            ("deform_conv", "groups"): self._groups,
            ("deform_conv", "offset_groups"): lambda v: self._integer("offset_group", v[0]),
            ("group_norm", "groups"): self._groups,
            ("attention", "scale"): self._scale,
            ("attention", "causal"): lambda v: self._integer("is_causal", int(v)),
            ("multi_head_attention", "scale"): self._scale,
            ("multi_head_attention", "kv_heads"): lambda v: self._heads(v[0], None),
            ("multi_head_attention", "query_group"): lambda v: self._heads(None, v[0]),
            ("packed_attention", "heads"): lambda v: self._own_heads(v[0], None),
            ("packed_attention", "value_width"): lambda v: self._own_heads(None, v[0]),
            ("recurrent", "hidden_size"): lambda v: self._integer("hidden_size", v[0]),
            ("rotary", "heads"): lambda v: self._integer("num_heads", v[0]) if self._number("num_heads") else None,
            ("layer_norm", "shape"): lambda _: None,  # ONNX writes none down
            ("rms_norm", "shape"): lambda _: None,
            ("rms_norm", "eps"): self._eps,
            ("pointwise", "plus"): self._plus,
            ("reshape", "shape"): self._shape,
            ("expand", "shape"): self._shape,
            ("resize", "shape"): self._resize,
            ("fill", "shape"): self._fill,
            ("one_hot", "size"): self._depth,
            ("split", "sizes"): self._split,
            ("slice", "starts"): lambda v: self._bound(1, "starts", v),
            ("slice", "ends"): lambda v: self._bound(2, "ends", v),
            ("pad", "pads"): self._pads,
        }
        setter = setters.get((self.op.kind, name))
        if setter is None:
            raise ModelError(f"{self.op.where}: no way to set its `{name}`")
        setter(value)

    def _integer(self, name: str, number: int) -> None:
        self.node.attributes[name] = ir.AttrInt64(name, int(number))

    def _number(self, name: str) -> int:
        return int(self.node.attributes[name].value) if name in self.node.attributes else 0

    def _groups(self, groups: int) -> None:
        self._integer("num_groups" if self.op.kind == "group_norm" else "group", groups)

    def _eps(self, eps: float) -> None:
        self.node.attributes["epsilon"] = ir.AttrFloat32("epsilon", eps)

    def _plus(self, number: float) -> None:
        """The one constant that is added, which others may read too."""
        k, tensor = next(
            (k, tensor)
            for k, value in enumerate(self.node.inputs)
            if value is not None and (tensor := constant_tensor(value)) is not None
        )
        old = self.node.inputs[k]
        assert old is not None
        array = np.full(tensor.shape.numpy(), number)
        if shared(old):
            set_input(self.node, k, make_tensor(self.graph, f"{old.name}_{self.op.name}", array, tensor.dtype))
        else:
            set_tensor(old, array)

    def _depth(self, sizes: Sequence[int]) -> None:
        """Others may read the old one."""
        old = self.node.inputs[1]
        set_input(self.node, 1, make_tensor(self.graph, f"{self.op.name}_depth", np.array(sizes[0]), ir.DataType.INT64))
        drop_unread(self.graph, [old])

    def _scale(self, scale: float) -> None:
        """The scale of an attention, where it was left to follow the width of a head."""
        self.node.attributes["scale"] = ir.AttrFloat32("scale", scale)

    def _heads(self, keys: int | None, group: int | None) -> None:
        """Heads of keys, and heads of queries for each; what is not given stays."""
        standard_op = self.node.op_type == "Attention"
        many = "q_num_heads" if standard_op else "num_heads"
        few = many if self.node.op_type == "MultiHeadAttention" else "kv_num_heads"
        group = self._number(many) // self._number(few) if group is None else group
        keys = self._number(few) if keys is None else keys
        self._integer(few, keys)
        self._integer(many, keys * group)

    def _own_heads(self, heads: int | None, width: int | None) -> None:
        """Heads, and the width of one's values, of an attention with weights of its own."""
        old, new = self._number("num_heads"), heads or self._number("num_heads")
        given = self.node.attributes.get("qkv_hidden_sizes")
        wide, tall = self.op.attrs["widths"]
        sizes = list(given.value) if given is not None else [old * wide, old * wide, old * tall]
        sizes = [size // old * new for size in sizes]
        if width is not None:
            sizes[2] = new * width
        self._integer("num_heads", new)
        if given is not None or len(set(sizes)) > 1:
            self.node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", sizes)

    def _shape(self, sizes: Sequence[int | None]) -> None:
        if self.node.op_type not in ("Reshape", "Expand"):
            return  # Flatten, Squeeze, Unsqueeze write no sizes down
        known = self.known[1]
        wanted = list(sizes)[len(sizes) - len(known) :]
        for k, (number, size) in enumerate(zip((entry.number for entry in known), list(wanted), strict=True)):
            if self._right(k, number, size):
                wanted[k] = None
        self._write(1, "shape", wanted)

    def _fill(self, sizes: Sequence[int | None]) -> None:
        self._write(0, "shape", sizes)

    def _right(self, k: int, number: int | float | None, size: int | None) -> bool:
        """Whether an entry that means something else than a size may stay."""
        if size is None or self.node.op_type == "Expand":
            return size is None or number == 1  # the operand's own size
        if number == 0 and not ("allowzero" in self.node.attributes and self.node.attributes["allowzero"].value):
            source = self.op.inputs[0]
            assert source is not None
            return k < len(source.dims) and find(source.dims[k]) is find(self.op.outputs[0].dims[k])
        return number == -1

    def _resize(self, sizes: Sequence[int | None]) -> None:
        if 3 not in self.known:  # it has scales, or attributes
            return
        axes = self.node.attributes["axes"].value if "axes" in self.node.attributes else range(len(sizes))
        self._write(3, "sizes", [sizes[axis] for axis in axes])

    def _split(self, sizes: Sequence[int]) -> None:
        given = "split" in self.node.attributes or (len(self.node.inputs) > 1 and self.node.inputs[1] is not None)
        if not given and len(set(sizes)) == 1:
            return  # equal parts, as before
        if self.version < 13:
            self.node.attributes["split"] = ir.AttrInt64s("split", [int(n) for n in sizes])
        elif given:
            self._write(1, "split", sizes)
        else:
            self.node.attributes.pop("num_outputs", None)
            set_input(
                self.node, 1, make_tensor(self.graph, f"{self.op.name}_split", np.asarray(sizes), ir.DataType.INT64)
            )

    def _bound(self, k: int, name: str, numbers: Sequence[int | None]) -> None:
        self._write(k, name, numbers)

    def _pads(self, pads: Sequence[int | None]) -> None:
        rank = len(pads) // 2
        if len(self.node.inputs) > 3 and self.node.inputs[3] is not None:
            axes = [int(entry.number or 0) % rank for entry in self.known[3]]
        else:
            axes = list(range(rank))
        self._write(1, "pads", [pads[2 * axis] for axis in axes] + [pads[2 * axis + 1] for axis in axes])

    def _write(self, k: int, name: str, wanted: Sequence[int | None]) -> None:
        """Set the given entries of an attribute (old opsets) or input; None: what it was."""
        if name in self.node.attributes:
            old = self.node.attributes[name].value
            self.node.attributes[name] = ir.AttrInt64s(
                name, [int(o if n is None else n) for o, n in zip(old, wanted, strict=True)]
            )
            return
        known = self.known[k]
        new = [
            None if n is None or e.follows or (e.fixed and e.number == n) else n
            for n, e in zip(wanted, known, strict=True)
        ]
        if all(n is None for n in new):
            return
        value = self.node.inputs[k]
        assert value is not None
        if constant_tensor(value) is not None:
            self._write_constant(k, name, value, new)
        elif not self._write_concat(name, value, new):
            self._write_where(k, name, value, new)

    def _write_constant(self, k: int, name: str, value: ir.Value, new: Sequence[int | None]) -> None:
        tensor = constant_tensor(value)
        assert tensor is not None
        old = tensor.numpy()
        array = np.asarray([o if n is None else n for o, n in zip(old.ravel().tolist(), new, strict=True)]).reshape(
            old.shape
        )
        if shared(value):
            set_input(self.node, k, make_tensor(self.graph, f"{self.op.name}_{name}", array, tensor.dtype))
        else:
            set_tensor(value, array)

    def _write_concat(self, name: str, value: ir.Value, new: Sequence[int | None]) -> bool:
        """Where the list is put together from numbers for this op alone, replace some of them."""
        concat = value.producer()
        if concat is None or concat.op_type != "Concat" or shared(value):
            return False
        tensors = [constant_tensor(part) if part is not None else None for part in concat.inputs]
        lengths = [1 if tensor is None else tensor.size for tensor in tensors]
        if sum(lengths) != len(new) or any(t is not None and t.dtype != ir.DataType.INT64 for t in tensors):
            return False
        before, start = list(concat.inputs), 0
        for k, (tensor, length) in enumerate(zip(tensors, lengths, strict=True)):
            piece, start = new[start : start + length], start + length
            if any(n is not None for n in piece):
                old = [0] * length if tensor is None else tensor.numpy().ravel().tolist()
                array = np.asarray([o if n is None else n for o, n in zip(old, piece, strict=True)])
                made = make_tensor(self.graph, f"{self.op.name}_{name}_{k}", array, ir.DataType.INT64)
                concat.replace_input_with(k, made)
        drop_unread(self.graph, before)
        return True

    def _write_where(self, k: int, name: str, value: ir.Value, new: Sequence[int | None]) -> None:
        if self.version < 9:
            raise ModelError(f"{self.op.where}: its computed `{name}` cannot be patched in opset {self.version}")
        label = f"{self.op.name}_{name}"
        dtype = self.dtypes[k]
        mask = make_tensor(self.graph, f"{label}_set", np.asarray([n is not None for n in new]), ir.DataType.BOOL)
        numbers = make_tensor(self.graph, f"{label}_to", np.asarray([n or 0 for n in new]), dtype)
        node = insert(self.graph, self.node, "Where", [mask, numbers, value], f"{label}_patched", dtype, before=True)
        set_input(self.node, k, node.outputs[0])


def pin(graph: ir.Graph, node: ir.Node, k: int, label: str, written: Written) -> Written:
    """Write down, as a constant, what a chain of nodes computes for input ``k``."""
    numbers = np.asarray([entry.number for entry in written.entries])
    set_input(node, k, make_tensor(graph, f"{label}_input{k}", numbers, written.dtype))
    return Written(tuple(Known(entry.number, False, True) for entry in written.entries), written.dtype, pinned=False)

"""A network of static shapes as straight-line code: kernels, and the buffers they read and write.

What Relax's virtual machine would interpret is read off here, so that nothing of TVM is left to run, and memory is
planned: see arena.py. c_writer.py writes it down as C.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np

from ...errors import TargetError
from ...ir.host import Array
from .arena import Life, extent, offsets, peak

ALIGN = 64  # bytes: a cache line, and the widest vector register


@dataclass(frozen=True)
class Buffer:
    """Where a tensor lives: ``at`` is a byte offset into the weights or the arena, or the number of an
    input or output."""

    place: str  # weight, input, output or arena
    at: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass
class Plan:
    """Calls in order, each a kernel's name and its buffers; None copies the first to the second."""

    inputs: list[Buffer]
    outputs: list[Buffer] = field(default_factory=list)
    calls: list[tuple[str | None, tuple[Buffer, ...]]] = field(default_factory=list)
    weights: list[Array] = field(default_factory=list)  # in the order of their offsets
    weights_bytes: int = 0
    arena_bytes: int = 0
    live_bytes: int = 0  # the most that is alive at once in the arena
    workspace_bytes: int = 0  # the most that a kernel asks malloc for beside it, on one thread

    def packed(self) -> bytes:
        """The weights as one file."""
        out, at = bytearray(self.weights_bytes), 0
        for array in self.weights:
            out[at : at + array.nbytes] = array.tobytes()
            at += aligned(array.nbytes)
        return bytes(out)


def aligned(size: int) -> int:
    return -(-size // ALIGN) * ALIGN


def plan(module: Any, label: str) -> tuple[Plan, Any]:
    """The plan of a lowered Relax module (see relax.lowered), and its kernels as a module to build.
    ``label``: the target's, for messages. Raises TargetError for what only the virtual machine can do."""
    import tvm
    from tvm import relax, tirx

    steps = relax.transform
    for step in (
        steps.RewriteDataflowReshape(),
        steps.ToNonDataflow(),
        steps.RemovePurityChecking(),
        steps.CallTIRRewrite(),
    ):
        module = step(module)
    kernels = {
        name.name_hint: func.with_attr("global_symbol", name.name_hint)
        for name, func in module.functions_items()
        if isinstance(func, tirx.PrimFunc)
    }
    return _Reader(label).read(module["main"]), tvm.IRModule(kernels)


class _Reader:
    """Reads the body of ``main``: allocations, kernel calls, and other names for the same tensor."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.values: dict[Any, Any] = {}  # of a variable: a Buffer, or a tuple of such
        self.weights: dict[tuple[Any, ...], Buffer] = {}
        self.made = 0  # buffers, numbered as they are made
        self.plan = Plan([])

    def read(self, main: Any) -> Plan:
        self.plan.inputs = [Buffer("input", k, *_type(var)) for k, var in enumerate(main.params)]
        self.values.update(zip(main.params, self.plan.inputs, strict=True))
        for block in main.body.blocks:
            for binding in block.bindings:
                self.values[binding.var] = self._value(binding.value)
        self._finish(list(_flat(self._value(main.body.body))))
        return self.plan

    def _finish(self, found: list[Buffer]) -> None:
        """Results are written where the caller wants them; what is one for another reason (an input, a
        weight, a result given twice) is copied there."""
        homes: dict[int, int] = {}
        for k, buffer in enumerate(found):
            if buffer.place == "made":
                homes.setdefault(buffer.at, k)
        places = self._arena(homes)

        def home(buffer: Buffer) -> Buffer:
            if buffer.place != "made":
                return buffer
            inside = buffer.at not in homes
            return (
                replace(buffer, place="arena", at=places[buffer.at])
                if inside
                else replace(buffer, place="output", at=homes[buffer.at])
            )

        self.plan.calls = [(kernel, tuple(map(home, buffers))) for kernel, buffers in self.plan.calls]
        self.plan.outputs = [replace(buffer, place="output", at=k) for k, buffer in enumerate(found)]
        for buffer, output in zip(map(home, found), self.plan.outputs, strict=True):
            if buffer != output:
                self.plan.calls.append((None, (buffer, output)))

    def _arena(self, homes: Container[int]) -> dict[int, int]:
        """The offset of every buffer that does not leave the network, by its number."""
        sizes: dict[int, int] = {}
        touched: dict[int, list[int]] = {}
        for moment, (_, buffers) in enumerate(self.plan.calls):
            for buffer in buffers:
                if buffer.place == "made" and buffer.at not in homes:
                    sizes[buffer.at] = max(sizes.get(buffer.at, 0), aligned(buffer.bytes))
                    touched.setdefault(buffer.at, []).append(moment)
        lives = [Life(size, touched[number][0], touched[number][-1]) for number, size in sizes.items()]
        at = offsets(lives)
        self.plan.arena_bytes, self.plan.live_bytes = extent(lives, at), peak(lives)
        return dict(zip(sizes, at, strict=True))

    def _value(self, value: Any) -> Any:
        from tvm import ir

        if isinstance(value, ir.Var):
            return self.values[value]
        if isinstance(value, ir.GenericConst):
            return self._weight(value.value.numpy())
        if isinstance(value, ir.Tuple):
            return tuple(self._value(part) for part in value.fields)
        if isinstance(value, ir.TupleGetItem):
            return self._value(value.tuple_value)[value.index]
        if isinstance(value, ir.Call):
            return self._call(value)
        raise self._beyond(type(value).__name__)

    def _call(self, call: Any) -> Any:
        from tvm.ir import GlobalVar

        if isinstance(call.op, GlobalVar):
            self.plan.calls.append((call.op.name_hint, tuple(_flat(tuple(map(self._value, call.args))))))
            return ()
        name = getattr(call.op, "name", str(call.op))
        if name == "relax.builtin.alloc_tensor":
            self.made += 1
            return Buffer("made", self.made - 1, *_type(call))
        if name == "relax.reshape":  # the same bytes under another shape
            found = self._value(call.args[0])
            return Buffer(found.place, found.at, *_type(call))
        raise self._beyond(name)

    def _weight(self, array: Array) -> Buffer:
        key = (array.tobytes(), str(array.dtype), array.shape)
        if key not in self.weights:
            self.weights[key] = Buffer("weight", self.plan.weights_bytes, array.shape, str(array.dtype))
            self.plan.weights.append(array)
            self.plan.weights_bytes += aligned(array.nbytes)
        return self.weights[key]

    def _beyond(self, what: str) -> TargetError:
        message = f"target `{self.label}`: `{what}` needs TVM's virtual machine, which a device does not have"
        return TargetError(message, "use the target `tvm` or `onnx`, or take the op out of the model")


def _type(value: Any) -> tuple[tuple[int, ...], str]:
    """Shape and dtype of a Relax tensor."""
    return tuple(int(size) for size in value.ty.shape.values), str(value.ty.dtype)


def _flat(value: Any) -> Iterator[Buffer]:
    if isinstance(value, Buffer):
        yield value
    else:
        for part in value:
            yield from _flat(part)

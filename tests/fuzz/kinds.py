"""What a step of a random network can be: how it is drawn, and how torch and ONNX spell it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import torch

Shape = tuple[int, ...]
Options = dict[str, Any]

BATCH, LENGTH = 7, 53
"""What stands for the batch in a shape, and for the size that is open beside it. No other size is a multiple of one,
so that every multiple is open. What they come to is drawn with the network."""


def static(shape: Shape, axis: int) -> bool:
    return shape[axis] % BATCH != 0 and shape[axis] % LENGTH != 0


def divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]


@dataclass(frozen=True)
class Drawer:
    """Choices of one draw. The first of a list is what a failing draw shrinks to."""

    draw: Any
    shapes: Sequence[Shape | None]  # of the values there are; None: token ids

    def one(self, choices: Sequence[Any]) -> Any:
        return self.draw(st.sampled_from(list(choices)))

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def flag(self) -> bool:
        return bool(self.draw(st.booleans()))

    def channels(self) -> int:
        return int(self.one([2, 3, 4, 5, 6, 8, 9, 10, 12]))

    def axis(self, shape: Shape, fits: Any = lambda n: True, *, length: bool = False) -> int | None:
        """A static axis whose size fits; or one that is as long as ``LENGTH``."""
        axes = [k for k, n in enumerate(shape) if (static(shape, k) and fits(n)) or (length and n == LENGTH)]
        return self.one(axes) if axes else None

    def alike(self, shape: Shape, but: int | None = None) -> list[int]:
        """The values of the same shape (``but`` for one axis, which must be static), the latest first."""
        found = []
        for k, other in enumerate(self.shapes):
            if other is None or len(other) != len(shape):
                continue
            pairs = enumerate(zip(shape, other, strict=True))
            if all(a == b or (axis == but and static(other, axis)) for axis, (a, b) in pairs):
                found.append(k)
        return found[::-1]


@dataclass
class Sizes:
    """What the sizes of a shape come to."""

    batch: Any  # an int or a SymInt
    length: Any = LENGTH

    def __call__(self, sizes: Sequence[int]) -> list[Any]:
        return [self.of(n) for n in sizes]

    def of(self, size: int) -> Any:
        for stands, actual in ((BATCH, self.batch), (LENGTH, self.length)):
            if size and size % stands == 0:
                return self.of(size // stands) * actual
        return size


@dataclass
class Onnx:
    """An ONNX graph under construction."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    length: tuple[str, int] = ("", 0)  # the input and its axis that tell the open size beside the batch

    def __call__(self, op: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        number = len(self.nodes)
        names = [f"{op}_{number}" if k == 0 else f"{op}_{number}_{k}" for k in range(outputs)]
        self.nodes.append(oh.make_node(op, inputs, names, name=names[0], **attrs))
        return names[0] if outputs == 1 else names

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = f"const_{len(self.initializers)}"
        self.initializers.append(nh.from_array(np.asarray(value, dtype), name))
        return name

    def weight(self, name: str, array: Any) -> str:
        self.initializers.append(nh.from_array(np.asarray(array, np.float32), name))
        return name

    def reshape(self, x: str, sizes: Sequence[int], computed: bool = False) -> str:
        """To ``sizes``, the open one as -1, or computed by the chain that exporters write."""
        opened = [k for k in range(len(sizes)) if not static(tuple(sizes), k)]
        if not computed and len(opened) == 1:
            return str(self("Reshape", x, self.const([-1 if k in opened else n for k, n in enumerate(sizes)])))
        return str(self("Reshape", x, self("Concat", *map(self._size, sizes), axis=0)))

    def _size(self, size: int) -> str:
        """One size as a list of one."""
        for stands, (name, axis) in ((BATCH, ("x0", 0)), (LENGTH, self.length)):
            if size % stands == 0:
                actual = self("Gather", self("Shape", name), self.const([axis]), axis=0)
                return str(self("Mul", actual, self._size(size // stands)))
        return self.const([size])


class Kind:
    """One kind of step. ``inputs`` is the shape of the first operand throughout."""

    name = ""

    def fits(self, shape: Shape) -> bool:
        return True

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        """The options (``with``: further operands), or None where nothing fits."""
        return {}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return {}

    def torch(self, x: torch.Tensor, w: Mapping[str, torch.Tensor], o: Options, size: Sizes, *more: Any) -> Any:
        raise NotImplementedError

    def onnx(self, g: Onnx, x: str, w: Mapping[str, str], o: Options, shape: Shape, *more: str) -> Any:
        """Names of the results."""
        raise NotImplementedError


KINDS: dict[str, Kind] = {}


def enter(kind: type[Kind]) -> type[Kind]:
    kind.name = "".join(f"_{c.lower()}" if c.isupper() else c for c in kind.__name__).lstrip("_")
    KINDS[kind.name] = kind()
    return kind

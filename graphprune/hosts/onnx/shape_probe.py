"""Learning a model's shapes by watching it run.

Legacy exports compute the sizes of views by chains of Shape, Gather and Div. Instead of inferring
what they come to, the model is run once, and once more for every size its inputs leave open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
import onnx_ir as ir

from ...axes.dim import Size
from ...errors import DataError, GraphpruneError, ModelError, ShapeError
from ...ir.graph import Value
from ...ir.host import Array, random_array
from ..example import Given
from .inputs import dtype_name, feed, holes
from .node import Literal
from .run import Session
from .size_search import candidates, largest_stride

SMALL = 64  # literals of up to this many elements are read: sizes, indices, pads
_SEED = 0


@dataclass(frozen=True)
class Seen:
    """What running a model showed: every tensor's shape, small tensors' values, and what open sizes came to
    on the first inputs, by what shapes call them."""

    shapes: Mapping[str, tuple[Size, ...] | None]
    literals: Mapping[str, Literal]
    dtypes: Mapping[str, str]
    sizes: Mapping[str, int]


class Watcher:
    """Runs a model on growing inputs until it is known which sizes follow which.

    ``starts``: what is known of the inputs to start from, the first taken that runs; sizes that one leaves open
    are tried until the model runs.
    """

    def __init__(self, model: ir.Model, literals: Sequence[str], starts: Sequence[Given] = ({},)) -> None:
        self.model, self.holes = model, holes(model)
        self.extra = list(literals)
        self.session = Session(model, self.extra, shapes=True)
        self.starts, self.given = starts, starts[0]

    def start(self) -> dict[str, Array]:
        """The first inputs that the model runs on. Raises ShapeError where it runs on none."""
        return self._feed(self._start()[0])

    def see(self) -> Seen:
        base, first = self._start()
        self.first_feed = self._feed(base)
        groups, runs = self._vary(base)
        namer = _Namer([group[0] for group in groups], [base[group[0]] for group in groups], list(groups.values()))
        shapes: dict[str, tuple[Size, ...] | None] = {}
        for name, shape in first.shapes.items():
            others = [run.shapes.get(name) for run in runs]
            if shape is None or any(other is None or len(other) != len(shape) for other in others):
                shapes[name] = None
            else:
                shapes[name] = tuple(namer(v) for v in zip(shape, *(o for o in others if o is not None), strict=True))
        literals = {name: _steady(first, runs, name) for name in first.small}
        return Seen(shapes, literals, _dtypes(self.session.proto), namer.numbers)

    def _start(self) -> tuple[dict[str, int], _Run]:
        failure: GraphpruneError | None = None
        stride = largest_stride(self.model)
        for start in self.starts:
            self.given = start
            bound = self._bound()
            for sizes in candidates(self.holes, bound, stride):
                try:
                    return sizes, self._run(sizes)
                except ShapeError as error:
                    failure = failure or error
        assert failure is not None
        searched = any(hole.name not in self.given and _open(hole) for hole in self.holes)
        hint = (
            "give example inputs of a shape that it takes: --input NAME=1x16000, gp.load(model, {NAME: (1, 16000)})"
            if searched
            else None
        )
        raise ShapeError(failure.message, hint) from failure

    def _bound(self) -> dict[str, int]:
        """The open sizes that are given. Raises DataError where one is given twice."""
        bound: dict[str, int] = {}
        for hole in self.holes:
            item = self.given.get(hole.name)
            if item is None and hole.shape is None:
                raise ModelError(
                    f"input `{hole.name}` does not declare its shape",
                    "give example inputs: --input NAME=1x3x224x224, gp.load(model, example_inputs)",
                )
            sizes = () if item is None else item if isinstance(item, tuple) else item.shape
            for n, size in zip(hole.shape or (), sizes, strict=False):
                if isinstance(n, str) and bound.setdefault(n, size) != size:
                    raise DataError(f"the open size `{n}` is {bound[n]} in one input and {size} in `{hole.name}`")
        return bound

    def _feed(self, sizes: Mapping[str, int]) -> dict[str, Array]:
        rng, out = np.random.default_rng(_SEED), {}
        for hole in self.holes:
            item = self.given.get(hole.name)
            if item is None or isinstance(item, tuple):
                shape = [n if isinstance(n, int) else sizes[n] for n in hole.shape or ()]
                if hole.shape is None and isinstance(item, tuple):
                    shape = list(item)
                wide = "float32" if hole.dtype in ("float16", "bfloat16") else hole.dtype
                array = random_array(rng, shape, wide)
            else:
                array = item
                for axis, n in enumerate(hole.shape or ()):
                    if isinstance(n, str) and sizes[n] != array.shape[axis]:  # more of the same data
                        array = np.take(array, np.arange(sizes[n]) % array.shape[axis], axis)
            out[hole.name] = array
        return feed(self.model, list(out.values()))

    def _run(self, sizes: Mapping[str, int]) -> _Run:
        given = self._feed(sizes)
        made, told = self.session.shaped(given)
        shapes: dict[str, tuple[int, ...] | None] = {name: array.shape for name, array in given.items()}
        shapes |= told
        small: dict[str, Array] = {}
        for name, value in made.items():
            if isinstance(value, np.ndarray):
                shapes.setdefault(name, value.shape)
                if name in self.extra and value.size <= SMALL:
                    small[name] = value
            else:
                shapes[name] = None
        return _Run(shapes, small)

    def _vary(self, base: Mapping[str, int]) -> tuple[dict[tuple[str, ...], int], list[_Run]]:
        """Change every open size alone, then together those that will not be changed alone.

        Returns the sizes that moved with what they became, and the runs. A size that cannot be
        changed at all is taken as the number it is.
        """
        groups: dict[tuple[str, ...], int] = {}
        runs: list[_Run] = []
        stuck: dict[int, tuple[str, ...]] = {}
        for symbol, size in base.items():
            if not self._try((symbol,), base, groups, runs):
                stuck[size] = (*stuck.get(size, ()), symbol)
        for together in stuck.values():
            if len(together) > 1:
                self._try(together, base, groups, runs)
        return groups, runs

    def _try(
        self, symbols: tuple[str, ...], base: Mapping[str, int], groups: dict[tuple[str, ...], int], runs: list[_Run]
    ) -> bool:
        size = base[symbols[0]]
        leading = any(hole.shape and hole.shape[0] == symbols[0] for hole in self.holes)
        for new in (size + 1, size * 2) if leading else (size * 2, size // 2, size + 1):
            if new > 0:
                try:
                    runs.append(self._run({**base, **dict.fromkeys(symbols, new)}))
                except ShapeError:
                    continue
                groups[symbols] = new
                return True
        return False


def _open(hole: Value) -> bool:
    return any(isinstance(n, str) for n in hole.shape or ())


@dataclass(frozen=True)
class _Run:
    shapes: Mapping[str, tuple[int, ...] | None]
    small: Mapping[str, Array]


def _steady(first: _Run, runs: Sequence[_Run], name: str) -> Literal:
    """A small tensor's entries, None where a run changed them."""
    array = first.small[name]
    flat = array.ravel().tolist()
    for run in runs:
        other = run.small[name]
        if other.shape != array.shape:
            return (None,) * len(flat)
        flat = [a if a == b else None for a, b in zip(flat, other.ravel().tolist(), strict=True)]
    return tuple(flat)


class _Namer:
    """Names a size by how it moved: a number, ``s``, ``k*s``, ``k*s*t``, or a name of its own. ``numbers``: what
    each name came to first."""

    def __init__(self, symbols: Sequence[str], base: Sequence[int], changed: Sequence[int]) -> None:
        self.symbols, self.base, self.changed = symbols, base, changed
        self.opaque: dict[tuple[int, ...], str] = {}
        self.numbers: dict[str, int] = {}

    def __call__(self, sizes: tuple[int, ...]) -> Size:
        first, *others = sizes
        moved = [k for k, size in enumerate(others) if size != first]
        if not moved:
            return first
        name = self._name(first, others, moved)
        self.numbers[name] = first
        return name

    def _name(self, first: int, others: Sequence[int], moved: Sequence[int]) -> str:
        factor, rest = divmod(first, prod(self.base[k] for k in moved))
        exact = not rest and all(
            others[k] == factor * prod(self.changed[j] if j == k else self.base[j] for j in moved) for k in moved
        )
        if exact:
            return "*".join([*([str(factor)] if factor > 1 else []), *sorted(self.symbols[k] for k in moved)])
        return self.opaque.setdefault((first, *others), f"dyn{len(self.opaque) + 1}")


def _dtypes(proto: onnx.ModelProto) -> dict[str, str]:
    """Element types of what nodes make, as far as the operators' definitions say."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto).graph
    except onnx.shape_inference.InferenceError:
        inferred = proto.graph
    infos = [*inferred.value_info, *inferred.output]
    return {
        info.name: dtype_name(ir.DataType(info.type.tensor_type.elem_type))
        for info in infos
        if info.type.WhichOneof("value") == "tensor_type" and info.type.tensor_type.elem_type
    }

"""What flows through an ONNX graph: constants, sizes read off tensors, and data.

Exporters write the arguments of Reshape and its kin as arithmetic on Shape ops. Such values are
literals, not operands. This module tells them apart, and knows for each of their entries which
tensors' axes it was computed from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...ir.host import Array
from .control_flow import Closed, branches, graphs_of, is_if, key, opens, subgraphs, walk, within
from .loops import body_of, is_loop
from .node import SLOTS, TYPES, constant_tensor, standard
from .shape_probe import SMALL, Seen

_FLOATS = {ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


@dataclass(frozen=True)
class Entry:
    """One number of a literal. ``reads``: the (value name, axis) whose sizes it was computed from;
    ``exact``: it is that size itself."""

    reads: frozenset[tuple[str, int]] = frozenset()
    exact: bool = False


Entries = NDArray[Any]
"""An array of Entry, shaped like the value it describes (0-d where that is too large to follow)."""


def slots(node: ir.Node) -> frozenset[int]:
    """The inputs of a node that are literals."""
    return SLOTS.get(node.op_type, frozenset()) if standard(node) else frozenset()


def operands(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of a node that its outputs are computed from; None in place of those whose type alone matters."""
    idle = TYPES.get(node.op_type, frozenset[int]()) if standard(node) else frozenset[int]()
    return [None if k in idle else value for k, value in enumerate(node.inputs)]


def captured(node: ir.Node, outer: Mapping[ir.Value, Any] | set[ir.Value]) -> list[ir.Value]:
    """The values of the main graph that a node's subgraphs use."""
    found: dict[ir.Value, None] = {}
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            used = [value for inner in graph.all_nodes() for value in inner.inputs if value is not None]
            found.update(dict.fromkeys(value for value in [*used, *graph.outputs] if value in outer))
    return list(found)


class Flow:
    """Sorts a model's values into constants, sizes and data, before it is run."""

    def __init__(self, model: ir.Model, closed: Closed = MappingProxyType({})) -> None:
        self.closed = closed
        self.order = list(walk(model.graph, closed))  # loops that begin as well
        self.nodes = [node for node, begins in self.order if not begins]
        self.constant: set[ir.Value] = {v for graph in graphs_of(model.graph) for v in graph.initializers.values()}
        self.constant |= {value for node in self.nodes for value in self.stored(node)}
        self.sized: set[ir.Value] = set()
        self._weighty = {v for v in self.constant if _weighty(v.const_value)}
        self.inside = self.constant | set(model.graph.inputs) | {out for node in self.nodes for out in node.outputs}
        self.inside |= {value for node, begins in self.order if begins for value in body_of(node).graph.inputs}
        for node in self.nodes:
            self._sort(node)

    def opened(self, node: ir.Node) -> bool:
        """Whether it is an ``If`` or a loop that is looked into."""
        return opens(node, self.closed)

    def handed(self, node: ir.Node) -> list[ir.Value]:
        """What the branches of an ``If`` that is looked into hand on: of one all, then of the other; of a loop what
        an iteration is given and hands on."""
        if is_loop(node):
            return [*body_of(node).graph.inputs, *body_of(node).graph.outputs]
        return [value for branch in branches(node) for value in branch.outputs]

    def stored(self, node: ir.Node) -> list[ir.Value]:
        """The weights in the subgraphs of a node that is not looked into."""
        found = [] if self.opened(node) else within(node)
        return [value for value in found if _weighty(constant_tensor(value))]

    def taken_in(self, node: ir.Node) -> list[ir.Value]:
        """What the subgraphs of a node read of the values that are looked into, and hold themselves."""
        return self.handed(node) if self.opened(node) else [*captured(node, self.inside), *self.stored(node)]

    def weighs(self, node: ir.Node) -> bool:
        """Whether weights are read in the subgraphs of a node."""
        inner = [part for graph in subgraphs(node) for part in graph.all_nodes()]
        return any(value in self._weighty or _weighty(constant_tensor(value)) for value in _read(inner))

    def _sort(self, node: ir.Node) -> None:
        inputs = [value for value in operands(node) if value is not None] + self.taken_in(node)
        outputs = set(node.outputs)
        literal = slots(node)
        weighty = any(v in self._weighty for k, v in enumerate(operands(node)) if k not in literal)
        if standard(node) and node.op_type == "Constant":
            self.constant |= outputs
            if (tensor := constant_tensor(node.outputs[0])) is not None and _weighty(tensor):
                self._weighty |= outputs
        elif standard(node) and node.op_type in ("Shape", "Size"):
            self.sized |= outputs
        elif inputs and all(v in self.constant for v in inputs):
            self.constant |= outputs
            self._weighty |= outputs if weighty else set()
        elif inputs and not weighty and not _fills(node) and all(v in self.constant or v in self.sized for v in inputs):
            self.sized |= outputs

    def literal(self, node: ir.Node) -> bool:
        """Whether every literal input of the node is a literal indeed, not data."""
        given = [node.inputs[k] for k in slots(node) if k < len(node.inputs)]
        return all(v is None or v in self.constant or v in self.sized for v in given)

    def to_watch(self) -> list[str]:
        """The literals that have to be computed to be known."""
        names: dict[str, None] = {}
        for node in self.nodes:
            wanted = {v for k, v in enumerate(node.inputs) if k in slots(node) and v is not None}
            if self.sized & set(node.outputs) and node.op_type in ("Gather", "Slice"):
                wanted |= {v for v in node.inputs[1:] if v is not None}
            if is_if(node) and node.inputs[0] is not None:
                wanted.add(node.inputs[0])
            for value in sorted(wanted, key=lambda v: str(v.name)):
                if value in self.sized or (value in self.constant and constant_tensor(value) is None):
                    names[str(value.name)] = None
        return list(names)


def _read(nodes: Sequence[ir.Node]) -> Iterator[ir.Value]:
    yield from (value for node in nodes for value in node.inputs if value is not None)


def _fills(node: ir.Node) -> bool:
    """Whether a node makes floats of a size that it is given, one number everywhere: data, if any is."""
    if not standard(node) or node.op_type not in ("ConstantOfShape", "Expand"):
        return False
    if node.op_type == "Expand":
        filler = node.inputs[0]
        tensor = constant_tensor(filler) if filler is not None else None
    else:
        tensor = node.attributes["value"].value if "value" in node.attributes else None
    return (tensor.dtype in _FLOATS) if tensor is not None else node.op_type == "ConstantOfShape"


def _weighty(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.dtype in _FLOATS and tensor.size > 1


def known(value: ir.Value, seen: Seen) -> tuple[Any, ...] | None:
    """A literal's entries, flat (None for one that varies), or None where it was too large to read."""
    tensor = constant_tensor(value)
    if tensor is None:
        return seen.literals.get(str(value.name))
    return tuple(tensor.numpy().ravel().tolist()) if tensor.size <= SMALL else None


class Sizes:
    """Follows sizes from the Shape ops that read them, entry by entry."""

    def __init__(self, flow: Flow, seen: Seen) -> None:
        self.flow, self.seen = flow, seen
        self.entries: dict[ir.Value, Entries] = {}
        for node in flow.nodes:
            for value in node.outputs:
                if value in flow.sized:
                    self.entries[value] = self._entries(node, value)

    def of(self, value: ir.Value) -> list[Entry]:
        """The entries of a literal, flat; a constant has none that read anything."""
        return list(self._given(value).ravel())

    def decided(self) -> dict[str, bool]:
        """Every ``If``, by key, whose condition is computed from sizes that are not open, and what it comes to."""
        found: dict[str, bool] = {}
        for node in self.flow.nodes:
            condition = node.inputs[0] if is_if(node) else None
            if condition is not None and condition in self.flow.sized:
                numbers = known(condition, self.seen)
                sizes = [(self.seen.shapes.get(name) or ())[axis : axis + 1] for name, axis in self.reads(condition)]
                if numbers and numbers[0] is not None and all(n and isinstance(n[0], int) for n in sizes):
                    found[key(node)] = bool(numbers[0])
        return found

    def reads(self, value: ir.Value) -> Iterator[tuple[str, int]]:
        """Every (value name, axis) whose size a value was computed from."""
        yield from dict.fromkeys(read for entry in self.of(value) for read in sorted(entry.reads))

    def _shape(self, value: ir.Value) -> tuple[int, ...] | None:
        shape = self.seen.shapes.get(str(value.name))
        if shape is None and (tensor := constant_tensor(value)) is not None:
            shape = tuple(tensor.shape.numpy())
        if shape is None or any(isinstance(n, str) for n in shape):
            return None
        static = tuple(int(n) for n in shape)
        return static if np.prod(static) <= SMALL else None

    def _given(self, value: ir.Value) -> Entries:
        if value in self.entries:
            return self.entries[value]
        return _filled(self._shape(value) or (), Entry())

    def _entries(self, node: ir.Node, value: ir.Value) -> Entries:
        shape = self._shape(value)
        if node.op_type in ("Shape", "Size") and standard(node):
            return self._read(node, shape or ())
        given = [self._given(v) for v in node.inputs if v is not None]
        try:
            made = self._moved(node, given, shape or ())
        except (ValueError, IndexError, TypeError):
            made = None
        if made is None or shape is None or made.shape != shape:
            reads: frozenset[tuple[str, int]] = frozenset().union(*(e.reads for g in given for e in g.ravel()))
            made = _filled(shape or (), Entry(reads))
        return made

    def _read(self, node: ir.Node, shape: tuple[int, ...]) -> Entries:
        source = node.inputs[0]
        assert source is not None
        seen = self.seen.shapes.get(str(source.name))
        rank = len(seen) if seen is not None else 0
        if source in self.flow.sized:  # the shape of a shape, which has as many entries as there are axes
            return _filled(shape, Entry() if self._shape(source) is not None else Entry(frozenset(self.reads(source))))
        axes = [(str(source.name), axis) for axis in range(rank)]
        if node.op_type == "Size":
            return _filled((), Entry(frozenset(axes)))
        first = node.attributes["start"].value if "start" in node.attributes else 0
        last = node.attributes["end"].value if "end" in node.attributes else None
        out = np.empty(len(axes[first:last]), dtype=object)
        out[:] = [Entry(frozenset({read}), exact=True) for read in axes[first:last]]
        return out

    def _moved(self, node: ir.Node, given: list[Entries], shape: tuple[int, ...]) -> Entries:
        """Entries that are moved about, or computed from one another element by element."""
        kind = node.op_type if standard(node) else ""
        if kind in ("Cast", "Identity"):
            return given[0]
        if kind in ("Unsqueeze", "Squeeze", "Reshape"):
            return given[0].reshape(shape)
        if kind == "Concat":
            return np.concatenate(given, axis=node.attributes["axis"].value)
        if kind == "Gather":
            axis = node.attributes["axis"].value if "axis" in node.attributes else 0
            return _array(given[0].take(np.asarray(self._numbers(node, 1)).reshape(given[1].shape), axis))
        if kind == "Slice":
            return given[0][self._cut(node, given[0].ndim)]
        spread: list[Any] = [np.broadcast_to(g, shape) for g in given]
        out = np.empty(shape, dtype=object)
        for at in np.ndindex(shape):
            out[at] = Entry(frozenset().union(*(s[at].reads for s in spread)))
        return out

    def _numbers(self, node: ir.Node, k: int) -> tuple[int, ...]:
        value = node.inputs[k]
        numbers = known(value, self.seen) if value is not None else None
        if numbers is None or None in numbers:
            raise ValueError
        return numbers

    def _cut(self, node: ir.Node, rank: int) -> tuple[slice, ...]:
        if "starts" in node.attributes:
            starts, ends = node.attributes["starts"].value, node.attributes["ends"].value
            axes = node.attributes["axes"].value if "axes" in node.attributes else range(len(starts))
            steps = [1] * len(starts)
        else:
            starts, ends = self._numbers(node, 1), self._numbers(node, 2)
            axes = self._numbers(node, 3) if len(node.inputs) > 3 and node.inputs[3] else range(len(starts))
            steps = list(self._numbers(node, 4)) if len(node.inputs) > 4 and node.inputs[4] else [1] * len(starts)
        cut = [slice(None)] * rank
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
            cut[axis] = slice(start, end, step)
        return tuple(cut)


def _filled(shape: tuple[int, ...], entry: Entry) -> Entries:
    out = np.empty(shape, dtype=object)
    out.fill(entry)
    return out


def _array(taken: Any) -> Entries:
    """``take`` of one element gives the element."""
    if isinstance(taken, np.ndarray):
        return taken
    return _filled((), taken)


def as_numpy(tensor: ir.TensorProtocol) -> Array:
    """A tensor as numpy, floating point numbers below 32 bits widened to float32, small integers to int64: squares
    fit."""
    array: Array = tensor.numpy()
    if tensor.dtype.is_floating_point() and tensor.dtype.bitwidth < 32:
        return array.astype(np.float32)
    return array.astype(np.int64) if tensor.dtype.is_integer() and tensor.dtype.bitwidth < 32 else array

"""Lifts an onnx_ir Model to the thin graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from ...coupling.relate import relate
from ...errors import ModelError
from ...ir.graph import Graph, Op, Value
from ..boundary import DRAWN
from .control_flow import branches, graphs_of, key, subgraphs
from .inputs import dtype_name
from .literal_tracking import Follower, Written
from .loops import body_of, is_loop
from .node import RANDOM, Call, Reader, Reading, Unreadable, constant_tensor, plain_attributes, standard
from .ops import MICROSOFT, ONNX
from .ops_attention import ATTENTION, MICROSOFT_ATTENTION
from .ops_fused import FUSED, OTHERS
from .ops_quantised import MICROSOFT_QUANTISED, QUANTISED
from .reindex import attributes
from .shape_probe import Seen
from .size_flow import Flow, known, operands, slots

_TABLES: dict[str, dict[str, Reader]] = {
    "": {**ONNX, **QUANTISED, **ATTENTION, **OTHERS},
    "com.microsoft": {**MICROSOFT, **MICROSOFT_QUANTISED, **MICROSOFT_ATTENTION, **FUSED},
}


def lift(model: ir.Model, flow: Flow, seen: Seen) -> tuple[Graph, dict[tuple[str, int], Written]]:
    """The thin graph with its axes related, and its literals by op name and input.

    Raises ShapeError and ModelError.
    """
    reader = _Reader(model, flow, seen)
    graph = relate(reader.graph())
    return graph, Follower(graph, reader.nodes, flow, seen).follow()


class _Reader:
    def __init__(self, model: ir.Model, flow: Flow, seen: Seen) -> None:
        self.model, self.flow, self.seen = model, flow, seen
        self.values: dict[ir.Value, Value] = {}
        self.nodes: dict[str, ir.Node] = {}  # by the name of the op made of it
        versions = model.graph.opset_imports
        self.version = versions.get("", versions.get("ai.onnx", 1))

    def graph(self) -> Graph:
        weights = {str(v.name): self._value(v) for v in self._parameters()}
        inputs = [self._value(v) for v in self.model.graph.inputs if str(v.name) not in weights]
        readings = [self._begin(node) if begins else self._read(node) for node, begins in self.flow.order]
        wanted = self._wanted(readings)
        ops = [
            op
            for (node, begins), reading in zip(self.flow.order, readings, strict=True)
            for op in (self._begins(node, reading) if begins else self._ops(node, reading, wanted))
        ]
        outputs = [self._value(v) for v in self.model.graph.outputs]
        used = {id(value) for op in ops for value in op.inputs} | {id(value) for value in outputs}
        literal = {id(self.values.get(v)) for node in self.flow.nodes for v in _literals(node)}
        kept = {n: v for n, v in weights.items() if id(v) in used or ("float" in v.dtype and id(v) not in literal)}
        self._check(ops, kept)
        return Graph(ops, inputs, outputs, kept)

    def _parameters(self) -> Iterator[ir.Value]:
        for graph in graphs_of(self.model.graph):
            yield from graph.initializers.values()
        for node in self.flow.nodes:
            yield from (value for value in self.flow.stored(node) if not value.is_initializer())
            if standard(node) and node.op_type == "Constant" and constant_tensor(node.outputs[0]) is not None:
                yield node.outputs[0]

    def _value(self, value: ir.Value) -> Value:
        if value not in self.values:
            name, constant = str(value.name), value in self.flow.constant
            tensor = constant_tensor(value) if constant else None
            shape = self.seen.shapes.get(name) if tensor is None else tuple(tensor.shape.numpy())
            dtype = tensor.dtype if tensor is not None else value.dtype
            spelled = self.seen.dtypes.get(name, "float32") if dtype is None else dtype_name(dtype)
            self.values[value] = Value(name, shape, spelled, constant)
        return self.values[value]

    # ---- ops -------------------------------------------------------------------------------------

    def _operands(self, node: ir.Node, literal: frozenset[int]) -> list[ir.Value | None]:
        return [None if k in literal else value for k, value in enumerate(operands(node))]

    def _read(self, node: ir.Node) -> Reading:
        """Kind, operands and attributes; for an unknown op its own name and all it reads, for an unknown
        use of one the reason."""
        if self.flow.opened(node):
            return self._end(node) if is_loop(node) else self._choice(node)
        if subgraphs(node):
            values = [*node.inputs, *self.flow.taken_in(node)]
            why = {"why": self.flow.closed[key(node)]}
            return "opaque", [None if v is None else self._value(v) for v in values], why
        marked = attributes(node)
        if marked is not None:
            assert node.inputs[0] is not None
            return "reindex", [self._value(node.inputs[0])], marked
        read = _TABLES.get("" if standard(node) else node.domain, {}).get(node.op_type)
        name = node.op_type if standard(node) else f"{node.domain}.{node.op_type}"
        attrs = plain_attributes(node)  # a plug-in's rule may know more of an unknown op
        if read is not None and self.flow.literal(node):
            operands = self._operands(node, slots(node))
            literals = [known(v, self.seen) if k in slots(node) and v else None for k, v in enumerate(node.inputs)]
            try:
                return read(
                    Call(
                        node,
                        self.version,
                        tuple(None if v is None else self._value(v) for v in operands),
                        tuple(self._value(v) if v.name else None for v in node.outputs),
                        tuple(literals),
                    )
                )
            except Unreadable as error:
                if error.args:
                    name, attrs = "opaque", {"why": error.args[0]}
        if standard(node) and node.op_type in RANDOM:
            name, attrs = "opaque", {"why": DRAWN, "draws": True}
        return name, [None if v is None else self._value(v) for v in node.inputs], attrs

    def _choice(self, node: ir.Node) -> Reading:
        """An ``If``: (condition, what one branch gives ..., what the other gives ...)."""
        used = [k for k, value in enumerate(node.outputs) if value.name]
        made = [[self._value(branch.outputs[k]) for k in used] for branch in branches(node)]
        values = [self._value(value) for value in node.inputs if value is not None]
        values += [value for given in made for value in given]
        ranks = [[None if value.shape is None else len(value.shape) for value in given] for given in made]
        if ranks[0] != ranks[1] or None in ranks[0]:
            return "opaque", [*values], {"why": "its branches give tensors of different rank"}
        return "if", [*values], {}

    def _begin(self, node: ir.Node) -> Reading:
        """A loop that begins: what it is given."""
        body = body_of(node)
        given = [*body.given, *(state[0] for state in body.states), *(read[0] for read in body.read)]
        attrs = {"controls": len(body.controls), "axes": [axis for _, axis, _ in body.read]}
        return "loop_enter", [None if value is None else self._value(value) for value in given], attrs

    def _begins(self, node: ir.Node, reading: Reading) -> Iterator[Op]:
        """No op where nothing goes in."""
        kind, operands, attrs = reading
        made = tuple(self._value(value) for value in body_of(node).graph.inputs)
        if made:
            yield self._op(node, Op(made[0].name, kind, tuple(operands), made, attrs, node.name or key(node)))

    def _end(self, node: ir.Node) -> Reading:
        """A loop: what an iteration is given, what it hands on."""
        body = body_of(node)
        again = [state[1] for state in body.states]
        controls = len(body.graph.outputs) - len(body.states) - len(body.written)
        values = [*body.graph.outputs[:controls], *again, *body.graph.outputs[controls:]]
        attrs = {
            "controls": controls,
            "states": len(again),
            "axes": [axis for _, axis, _ in body.written],
            "outputs": [k for k, value in enumerate(node.outputs) if value.name],
        }
        return "loop_exit", [self._value(value) for value in values], attrs

    def _wanted(self, readings: Sequence[Reading]) -> set[str]:
        """The values that flow into something: the other constants and sizes are left out."""
        wanted = {str(value.name) for value in self.model.graph.outputs}
        for (node, _), (kind, read, _) in zip(reversed(self.flow.order), reversed(readings), strict=True):
            if any(v in self.flow.sized for v in node.outputs) and kind != "size":
                continue
            if not all(v in self.flow.constant for v in node.outputs) or any(v.name in wanted for v in node.outputs):
                sized = kind == "size" and node.inputs[0] in self.flow.sized
                wanted |= {value.name for value in read if value is not None and not sized}
        return wanted

    def _ops(self, node: ir.Node, reading: Reading, wanted: set[str]) -> Iterator[Op]:
        kind, operands, attrs = reading
        outputs = [value for value in node.outputs if value.name]
        sized = any(value in self.flow.sized for value in outputs)
        origin = node.name or str(outputs[0].name)
        used = [value for value in outputs if value.name in wanted]
        if standard(node) and node.op_type == "Constant" and constant_tensor(node.outputs[0]) is not None:
            return
        if kind == "size" and not used:
            if node.inputs[0] not in self.flow.sized:
                yield self._op(node, Op(str(outputs[0].name), kind, tuple(operands), (), {}, origin))
        elif sized:
            if used:
                made = tuple(self._value(value) for value in outputs)
                yield self._op(node, Op(str(outputs[0].name), "create", (), made, {}, origin))
        elif used or not all(value in self.flow.constant for value in outputs):
            last = max(k for k, value in enumerate(node.outputs) if value.name) + 1
            made = tuple(self._value(value) for value in node.outputs[:last] if value.name)
            if kind == "fill":
                made[0].constant = False  # what weights read of it is data
            yield self._op(node, Op(str(outputs[0].name), kind, tuple(operands), made, attrs, origin))

    def _op(self, node: ir.Node, op: Op) -> Op:
        self.nodes[op.name] = node
        return op

    def _check(self, ops: list[Op], parameters: dict[str, Value]) -> None:
        for value in (*parameters.values(), *(v for op in ops for v in (*op.inputs, *op.outputs) if v is not None)):
            if value.shape is not None and 0 in value.shape:
                shape = ", ".join(map(str, value.shape))
                raise ModelError(f"`{value.name}` has shape ({shape}): an axis of size zero")


def _literals(node: ir.Node) -> list[ir.Value]:
    """The literals that a node is given."""
    return [value for k, value in enumerate(node.inputs) if value is not None and k in slots(node)]

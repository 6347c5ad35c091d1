"""The ONNX host: the user's own onnx_ir Model, run by ONNX Runtime."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime

from ...axes.dim import Size
from ...axes.index import Indices
from ...errors import GraphpruneError, ModelError, ShapeError
from ...ir.gc_paused import paused
from ...ir.graph import Graph, Op, Piece, Site, Value
from ...ir.host import Array, Batch, Call
from ...ir.large import Room, are_large
from ..boundary import refusing
from ..example import Given, given
from ..narrowed import Narrowed, narrowed
from . import edit, lanes
from .choices import look, opened, take_known
from .control_flow import Closed, flat, graphs_of
from .factor import split
from .file import CHANGED, check_external, external, from_proto, read, write
from .float32_reference import halves, widened
from .inputs import bfloat16_values, dtype_name, feed, holes, some
from .inserting import Inserter
from .lift import lift
from .literal_tracking import Written
from .literals import Literals, pin
from .node import constant_tensor
from .reindex import build, insert
from .run import Session
from .shape_probe import Seen
from .size_flow import Flow, as_numpy
from .zero_points import dequantised, is_quantiser, stored_zero


class OnnxHost:
    """See ir.Host. ``example``: arrays or sizes, of all inputs or some, as ``inputs.given`` takes them.

    Names are the file's: a value's is its ONNX name, an op's is that of its first output.
    Parameters are the initializers and Constant nodes. What is quantised is read as the numbers that it
    stands for. ONNX Runtime runs next to nothing in bfloat16 on a CPU: such a model is run in float32.
    """

    kind = "onnx"
    suffix = ".onnx"
    native_target = "onnx"
    trainable = False
    proof_dtype = "float32"
    tolerance = 1e-5

    def __init__(self, model: ir.Model | onnx.ModelProto, example: Any = None) -> None:
        if isinstance(model, onnx.ModelProto):
            model = from_proto(model, model.graph.name or "model")
            check_external(model, str(model.graph.name or "model"))
        self._closed: Closed | None = None  # once that is known
        changed: tuple[str, ...] = model.meta.get(CHANGED, ())
        model, self.notes = opened(model)
        self.notes += changed
        self.model: ir.Model = edit.untied(model)
        self._starts: Sequence[Given] = ({} if example is None else given(holes(self.model), example),)
        with refusing("its conditions cannot be computed"):
            self.notes += take_known(self.model, self._starts[0])
        self._beside = any(True for _ in external(model))  # the source has external data: so has the result
        large = are_large(tensor.nbytes for tensor in external(model))
        self._room: Room | None = Room() if large else None  # for what is made of weights that are large
        self._edited = False
        self._exact = False
        self._nodes: dict[str, ir.Node] | None = None
        self._narrowed: list[Narrowed] = []
        self._known: dict[tuple[str, int], Written] = {}  # the literals, by op name and input
        self._forget()

    def _forget(self) -> None:
        """What was learnt by running no longer holds."""
        self._seen: Seen | None = None
        self._example: list[Array] | None = None
        self._session: Session | None = None
        self._watched: tuple[tuple[tuple[str, ...], tuple[str, ...]], Session] | None = None
        self._widened: ir.Model | None = None
        self._stored: set[str] | None = None  # names of weights

    def _runnable(self) -> ir.Model:
        """The model, or its copy in float32 where it is in bfloat16."""
        if self._widened is None:
            self._widened = widened(self.model) if ir.DataType.BFLOAT16 in halves(self.model) else self.model
        return self._widened

    def _flat(self) -> ir.Model:
        """The same with the branches that are looked into computed side by side."""
        if self._closed is None:
            self._look()
        return flat(self._runnable(), self._closed or {})

    # ---- making one ------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, example: Any = None) -> OnnxHost:
        """Read an ONNX file. Raises ModelError for anything that is not a whole one, and for
        external data that is missing or outside the file's folder."""
        return cls(read(Path(path)), example)

    def own(self) -> None:
        """See ir.Host.own. Tensors of an ONNX model are replaced, never written to: nothing to do."""

    def copy(self, dtype: str | None = None) -> OnnxHost:
        """See ir.Host.copy. Raises GraphpruneError for any ``dtype`` but float32: ONNX Runtime has no
        float64 convolutions. A float32 copy computes without the rounding of half precision and of
        quantised activations: what it computes can be compared to 1e-5."""
        if dtype not in (None, "float32"):
            raise GraphpruneError(f"an ONNX model cannot be run in {dtype}", "compare in float32, with 1e-5 to spare")
        wide = dtype is not None and (halves(self.model) or _quantises(self.model))
        host = OnnxHost(widened(self.model) if wide else self.model.clone())
        host._edited, host._beside, host._exact = self._edited, self._beside, bool(wide) or self._exact
        host._room = self._room
        host._starts, host._closed, host.notes = self._starts, self._closed, self.notes
        host._narrowed = list(self._narrowed)
        if not wide:
            host._known, host._example = dict(self._known), self._example
            host._seen, host._session = self._seen, self._session
        return host

    # ---- reading ---------------------------------------------------------------------------------

    def lift(self) -> Graph:
        with refusing("the model cannot be read"), paused():
            seen = self._look()
            graph, self._known = lift(self.model, Flow(self.model, self._closed or {}), seen)
        return graph

    def _look(self) -> Seen:
        """Run the model to see its shapes, once. Raises ModelError where the user's own model does
        not run, ShapeError where an edited one does not."""
        if self._seen is None:
            try:
                found = look(self.model, self._runnable, self._starts, self._closed)
            except ShapeError as error:
                if self._edited:
                    raise
                raise ModelError(error.message, error.hint) from error
            self._forget()  # what was known of the model before a branch took its place
            self._seen, self._closed, self._nodes = found.seen, found.closed, None
            self.notes += found.notes
            self._example = list(found.feed.values())
            self._starts = (found.feed,)  # what is made of it runs at the same sizes
        return self._seen

    def parameter(self, name: str) -> Array:
        """See ir.Host.parameter. A quantised tensor: what it stands for, in float64."""
        quantised = dequantised(self._constant(name))
        if quantised is None:
            return as_numpy(self._tensor(name))
        scale, zero = quantised
        numbers: Array = (self._tensor(name).numpy().astype(np.float64) - zero) * scale
        return numbers

    def _tensor(self, name: str) -> ir.TensorProtocol:
        tensor = constant_tensor(self._constant(name))
        assert tensor is not None, name
        return tensor

    def _constant(self, name: str) -> ir.Value:
        if name in self.model.graph.initializers:  # where nearly all are: to look for subgraphs takes a while
            return self.model.graph.initializers[name]
        for graph in graphs_of(self.model.graph):
            if name in graph.initializers:
                return graph.initializers[name]
        node = self._by_output().get(name)
        if node is None or constant_tensor(node.outputs[0]) is None:
            raise ModelError(f"no parameter `{name}`")
        return node.outputs[0]

    def _by_output(self) -> dict[str, ir.Node]:
        if self._nodes is None:
            nodes = (node for graph in graphs_of(self.model.graph) for node in graph)
            self._nodes = {str(value.name): node for node in nodes for value in node.outputs if value.name}
        return self._nodes

    def _node(self, op: Op) -> ir.Node:
        node = self._by_output().get(op.name)
        if node is None:
            raise ModelError(f"{op.where}: not in the model any more")
        return node

    # ---- edits -----------------------------------------------------------------------------------

    def set_parameter(self, name: str, value: Array) -> None:
        """See ir.Host.set_parameter. Floats are rounded to what a quantised tensor can stand for."""
        array, held = np.asarray(value), self._constant(name)
        quantised = dequantised(held) if np.issubdtype(array.dtype, np.floating) else None
        if quantised is not None:
            scale, zero = quantised
            limits = ir.DataType(self._tensor(name).dtype)
            array = np.clip(np.rint(array / scale) + zero, limits.min, limits.max)
        self._change()
        edit.set_tensor(held, self._put_away(np.asarray(array, self._tensor(name).dtype.numpy(), order="C")))

    def _put_away(self, array: Array) -> Array:
        """An array where it is to be: in memory, or a copy in a file."""
        return array if self._room is None else self._room.put(array)

    def take(self, name: str, axis: int, keep: Indices) -> None:
        self.set_parameter(name, np.take(self._tensor(name).numpy(), keep, axis))

    def zero(self, name: str, axis: int, drop: Indices) -> None:
        """See ir.Host.zero. In a quantised tensor its zero point stands for zero; scales and zero points
        themselves stay."""
        held = self._constant(name)
        if is_quantiser(held):
            return
        array, zero = self._tensor(name).numpy().copy(), stored_zero(held)
        at = (slice(None),) * axis + (drop,)
        array[at] = 0 if zero is None else np.broadcast_to(zero, array.shape)[at]
        self.set_parameter(name, array)

    def exclude(self, op: str, axis: int, drop: Indices) -> None:
        node = self._by_output().get(op)
        if node is None:
            raise ModelError(f"no op `{op}` in the model", "is it the same model?")
        x = next(one for one in self.lift().ops if one.name == op).inputs[0]
        assert x is not None and x.shape is not None
        size = x.shape[axis]
        assert isinstance(size, int)
        self._change()
        edit.exclude(self.model.graph, node, op, size, len(x.dims) - axis - 1, drop)
        self._nodes = None

    def narrow(self, name: str, axis: int, keep: Indices) -> None:
        self._change()
        names = [hole.name for hole in holes(self.model)]
        for value in (*self.model.graph.inputs, *self.model.graph.outputs):
            if value.name == name and value.shape is not None and isinstance(size := value.shape[axis], int):
                value.shape = ir.Shape([len(keep) if k == axis else n for k, n in enumerate(value.shape)])
                if name in names:
                    cut = Narrowed(names.index(name), axis, size, keep)
                    self._narrowed.append(cut)
                    self._starts = [
                        {**start, name: cut.start(start[name])} if name in start else start for start in self._starts
                    ]

    def set_literal(self, op: Op, name: str, value: Any) -> None:
        self._change()
        known = {k: written for (owner, k), written in self._known.items() if owner == op.name}
        Literals(self.model.graph, self._node(op), op, known, self._version()).set(name, value)

    def add_bias(self, op: Op, bias: Array) -> None:
        self._change()
        edit.add_bias(self.model.graph, self._node(op), op, bias)
        self._nodes = None

    def factor(self, ops: Sequence[Op], inner: Array, outers: Sequence[Array]) -> None:
        self._change()
        split(self.model.graph, [self._node(op) for op in ops], ops, inner, outers)
        self._nodes = None

    def to_rms_norm(self, op: Op, keeps_bias: bool) -> None:
        """See ir.Host.to_rms_norm. Before opset 23 ONNX has none: it is ONNX Runtime's own then."""
        self._change()
        edit.to_rms_norm(self.model.graph, self._node(op), op, self._version() >= 23, keeps_bias)
        self._nodes = None

    def to_mean_square(self, op: Op) -> None:
        """See ir.Host.to_mean_square: ONNX has no op that takes a variance alone."""
        raise ModelError(f"{op.where} takes no variance")

    def untie(self, op: Op, operand: int) -> None:
        self._change()
        edit.untie(self.model.graph, self._node(op), operand)
        self._nodes = None

    def insert_linear(self, op: Op, operand: int, weight: Array, beside: str) -> None:
        self._change()
        edit.insert_linear(self.model.graph, self._node(op), operand, weight, beside)
        self._nodes = None

    def insert(self, before: Op | None, kind: str, inputs: Sequence[str], **attrs: Any) -> str:
        if any(self._value(name).dtype is None for name in inputs):
            self._type_values()
        self._change()
        anchor = self._node(before) if before is not None else None
        values, name = [self._value(name) for name in inputs], f"{before.name}_before" if before else "behind"
        known = [value.dtype for value in values]
        floats = [dtype for dtype in known if dtype is not None and dtype.is_floating_point()]
        dtype = next(iter((*floats, *known[:1])), None) or ir.DataType.FLOAT
        make = Inserter(self.model.graph, anchor, name, dtype, self._version())
        made = make(kind, values, attrs)
        self._nodes = None
        return str(made.name)

    def _type_values(self) -> None:
        """Write down the element types of what nodes make, which the file does not say."""
        types = {dtype_name(kind): kind for kind in ir.DataType}
        for name, dtype in self._look().dtypes.items():
            if name in self._by_output() and (value := self._value(name)).dtype is None and dtype in types:
                value.type = ir.TensorType(types[dtype])

    def connect(self, op: Op, operand: int, value: str) -> None:
        self._change()
        node, old = self._node(op), op.inputs[operand] if operand < len(op.inputs) else None
        there = [
            k for k, held in enumerate(node.inputs) if held is not None and old is not None and held.name == old.name
        ]
        for k in there or [operand]:
            edit.set_input(node, k, self._value(value))

    def connect_output(self, number: int, value: str) -> None:
        self._change()
        edit.take_over(self.model.graph, self.model.graph, self.model.graph.outputs[number], self._value(value))
        self._nodes = None

    def _value(self, name: str) -> ir.Value:
        """A value by name."""
        for held in (*self.model.graph.inputs, *self.model.graph.initializers.values()):
            if held.name == name:
                return held
        return next(out for out in self._by_output()[name].outputs if out.name == name)

    def insert_reindex(self, site: Site) -> None:
        self._change()
        node = self._by_output().get(site.op)
        if node is None:
            raise ModelError(f"no op `{site.op}` in the model", "is it the same model?")
        insert(self.model.graph, node, site)
        self._nodes = None

    def set_reindex(self, op: Op, pieces: Sequence[Piece]) -> None:
        self._change()
        found = []
        for piece in pieces:
            value = self._node(piece.op).inputs[piece.operand]
            assert value is not None
            found.append((value, piece.at, piece.size))
        build(self.model.graph, self._node(op), found, len(op.outputs[0].dims), self._version())
        self._nodes = None

    def _version(self) -> int:
        versions = self.model.graph.opset_imports
        return versions.get("", versions.get("ai.onnx", 1))

    def take_single(self, op: Op, at: Sequence[int]) -> None:
        self._change()
        lanes.take_single(self.model.graph, self._node(op), op, at, self._version())
        self._nodes = None

    def join(self, op: Op, operands: Sequence[int]) -> None:
        self._change()
        lanes.join(self.model.graph, self._node(op), operands)
        self._nodes = None

    def remove(self, op: Op, stays: int = 0) -> None:
        self._change()
        edit.remove(self.model.graph, self._node(op), stays)
        self._nodes = None

    def _change(self) -> None:
        """Before an edit: what was learnt by running, and the shapes recorded in the file, go."""
        for (name, k), written in self._known.items():
            if written.pinned and name in self._by_output():
                self._known[name, k] = pin(self.model.graph, self._by_output()[name], k, name, written)
        if not self._edited:
            edit.forget_shapes(self.model)
        self._edited = True
        self._forget()

    # ---- running ---------------------------------------------------------------------------------

    def undecided(self) -> Sequence[Value]:
        wanted = holes(self.model)
        known = all(hole.name in start for start in self._starts for hole in wanted)
        return () if known else wanted

    def suppose(self, samples: Batch) -> None:
        """See ir.Host.suppose. Of as many samples as the model is bound to, else of two or, where it takes no two,
        of one."""
        (start,), wanted = self._starts, holes(self.model)
        supposed = [given(wanted, some(self.model, samples, count)) for count in (2, 1)]
        self._starts = [{**one, **start} for one in supposed]
        self._forget()

    def special_tokens(self) -> tuple[Sequence[int], int | None]:
        """See ir.Host.special_tokens: a file says nothing of them."""
        return (), None

    def tokens_within(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens

    def example(self) -> list[Array]:
        if self._example is None:
            self._look()
        assert self._example is not None
        return [
            bfloat16_values(array) if hole.dtype == "bfloat16" else _wide(array)
            for hole, array in zip(holes(self.model), self._example, strict=True)
        ]

    def call_arguments(self, batch: Batch) -> Call:
        return tuple(batch), {}

    def as_given(self) -> list[Array] | None:
        return None  # the file is what is read

    def run(self, batch: Batch) -> list[Array]:
        fed = feed(self._runnable(), narrowed(batch, self._narrowed))
        if self._session is None:
            model = self._flat() if self._exact else self._runnable()  # the rounding in a branch goes as well
            self._session = self._running(lambda: Session(model, exact=self._exact))
        session = self._session
        return [_wide(np.asarray(array)) for array in self._running(lambda: session.run(fed))]

    def watch(self, batch: Batch, names: Sequence[str], known: Mapping[str, Array] | None = None) -> dict[str, Array]:
        fed = ChainMap(known or {}, feed(self._runnable(), narrowed(batch, self._narrowed)))  # type: ignore[arg-type]  # nothing is written
        if self._stored is None:
            self._stored = {name for graph in graphs_of(self.model.graph) for name in graph.initializers}
        stored = self._stored
        made = [name for name in names if name not in fed and name not in stored]
        seen: dict[str, Array] = {}
        if made:
            session = self._watching(tuple(made), tuple(sorted(known or {})))
            seen = dict(zip(session.outputs, self._running(lambda: session.run(fed)), strict=True))
        fixed = {name: self.parameter(name) for name in names if name in stored}
        found = ChainMap(seen, ChainMap(fed, fixed))
        return {name: _wide(np.asarray(found[name])) for name in names}

    def _watching(self, made: tuple[str, ...], known: tuple[str, ...]) -> Session:
        """A session for some values, the last one again where it is asked for once more."""
        key, session = self._watched or (None, None)
        if session is None or key != (made, known):
            model = self._flat()
            fed = known if known or model is not self._runnable() else None
            session = self._running(lambda: Session(model, made, exact=self._exact, known=fed))
            self._watched = (made, known), session
        return session

    def _running(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except ShapeError as error:
            if self._edited:
                raise
            raise ModelError(error.message, error.hint) from error

    def gradients(
        self, batch: Batch, loss: Callable[..., Any], rest: Batch, probe: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        raise GraphpruneError(
            "an ONNX model has no gradients", "score{by=obs} or {by=wifv} with data alone, or load the torch module"
        )

    def sizes(self) -> Mapping[str, int]:
        return self._look().sizes

    def shapes(self) -> dict[str, tuple[Size, ...]]:
        return {name: shape for name, shape in self._look().shapes.items() if shape is not None}

    # ---- writing ---------------------------------------------------------------------------------

    def save(self, path: Path, *, replace: bool = True, about: Mapping[str, str] = {}) -> None:
        """See ir.Host.save. Weights go into ``<name>.data`` beside the file where the source had
        external data, or where they take more than 1.5 GB. Raises OutputError, leaving nothing."""
        write(self.model, Path(path).absolute(), self._beside, replace, about)

    def deployed(self, path: Path) -> onnxruntime.InferenceSession:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def save_onnx(self, path: Path, *, about: Mapping[str, str] = {}) -> None:
        self.save(path, about=about)


def _quantises(model: ir.Model) -> bool:
    return any(node.op_type == "QuantizeLinear" for node in model.graph)


def _wide(array: Array) -> Array:
    return array.astype(np.float32) if array.dtype == np.float16 else array

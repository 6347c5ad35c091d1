"""The torch host: a torch.fx GraphModule that torch.export made from the user's module."""

from __future__ import annotations

import json
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.graph_module import _assign_attr, _get_attr
from torch.utils import _pytree as pytree

from ...axes.dim import Size
from ...axes.index import Indices
from ...coupling.relate import relate
from ...errors import ModelError, OutputError, first_line
from ...ir.atomic import followed, stage, system_error, unwritable
from ...ir.gc_paused import paused
from ...ir.graph import Graph, Op, Piece, Site, Value
from ...ir.host import Array, Batch, Call
from ...ir.large import Room
from ..boundary import refusing
from ..example import given
from ..narrowed import Narrowed, narrowed
from . import lanes
from .baked import bake, note
from .casting import as_read, cast_graph, wider
from .conditions import both_run, choices
from .edit import LITERALS, added_to, arguments, narrow_to_slice, pointwise, set_argument, stored
from .export import call_of, check_loaded, evaluated, modes, retrace, trace, unwrapped, without_cache
from .factor import after, before, transposed, weight_of
from .functional import Unsupported, functionalise
from .gradients import differentiate
from .initial_states import follow_inputs
from .inserting import Inserter, respell
from .lift import Reader, draws
from .network import find, network
from .open_sizes import open_sizes
from .placed import gathered
from .pretrained import Pretrained
from .regions import write_out
from .reindex import build, insert
from .run import infer_shapes, to_numpy
from .run import outputs as drawn_outputs
from .run import watch as watch_values
from .state import kept, refuse_unkept, written_buffers
from .to_onnx import write_onnx
from .written import written


class TorchHost:
    """See ir.Host. ``example``: the flat list of inputs the model was exported with."""

    kind = "torch"
    suffix = ".pt2"
    native_target = "torch"
    trainable = True
    proof_dtype = "float64"
    tolerance = 1e-12

    def __init__(self, model: fx.GraphModule, example: Sequence[Any]) -> None:
        self._module = model
        self.notes: tuple[str, ...] = ()
        self.pretrained: Pretrained | None = None  # of a folder of transformers
        self.module: torch.nn.Module | None = None  # the user's own, that it was traced from
        self.baked: Mapping[str, tuple[str, ...]] = {}  # see baked.bake
        self._example = list(example)
        self._narrowed: list[Narrowed] = []
        self._sizes: Mapping[str, int] | None = None
        self._stale = False  # the graph was edited since its code was made
        self._respell = self._shifted = False  # and what open sizes are made of: anywhere, since an op was put in
        self._borrowed: set[int] = set()  # tensors shared with the host this is a copy of
        self.room: Room | None = None  # for what is made of weights that are large
        self._floats: torch.dtype | None = None  # what weights that are large are cast to where they are read

    @property
    def model(self) -> fx.GraphModule:
        if self._stale:
            self._module.recompile()
            self._stale = False
        return self._module

    # ---- making one ------------------------------------------------------------------------------

    @classmethod
    def export(cls, module: torch.nn.Module, inputs: Any, dynamic_shapes: Any = None) -> TorchHost:
        """Trace ``module`` in eval mode with torch.export. ``dynamic_shapes`` as torch.export takes
        it; None lets the batch axis vary where the model allows. Names are those of the module inside
        torch.compile and DistributedDataParallel; what accelerate placed is gathered. Raises ModelError."""
        module, inputs, notes = gathered(unwrapped(module), inputs)
        check_loaded(module)
        with paused():
            host = cls.from_exported(trace(module, inputs, dynamic_shapes))
        host.module, host.notes = module, (*notes, *host.notes, *modes(module), *without_cache(module))
        return host

    @classmethod
    def from_exported(cls, exported: torch.export.ExportedProgram) -> TorchHost:
        inputs = exported.example_inputs
        if inputs is None:
            raise ModelError(
                "the exported program has no example inputs", "save it with the inputs it was exported with"
            )
        module, notes = _written_out(exported, inputs)
        example, made = pytree.tree_leaves(inputs), network(module)
        narrow_to_slice(made)
        refuse_unkept(made)
        try:
            functionalise(made, example)
        except Unsupported:  # torch's own way, in which norms and dropout no longer follow train()
            module, notes = _written_out(exported.run_decompositions({}), inputs)
            made = network(module)
        follow_inputs(made)
        host = cls(made, example)
        host.baked = bake(made)
        host.notes = (*notes, *note(host.baked), *_states(host.writes))
        return host

    @classmethod
    def load(cls, path: Path) -> TorchHost:
        """Read a ``.pt2`` file. Raises ModelError for anything that is not one, or that would have
        to be unpickled."""
        from .archive import check_archive

        check_archive(path)
        with refusing(f"{path}: not a torch.export program"), warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            return cls.from_exported(torch.export.load(file))

    def copy(self, dtype: str | None = None) -> TorchHost:
        host = TorchHost(network(self._module, code=False), self._example)
        host._stale = True
        host._narrowed, host.room, host._floats = list(self._narrowed), self.room, self._floats
        host._borrowed = {id(tensor) for _, tensor in host._named()}
        if dtype is not None:
            host._cast(getattr(torch, dtype))
        return host

    def own(self) -> None:
        clones: dict[int, torch.Tensor] = {}  # a tensor under several names stays one
        for name, tensor in self._named():
            if id(tensor) in self._borrowed:
                if id(tensor) not in clones:
                    clone = self._put_away(tensor.detach().clone() if self.room is None else tensor.detach())
                    trained = isinstance(tensor, torch.nn.Parameter)
                    clones[id(tensor)] = torch.nn.Parameter(clone, tensor.requires_grad) if trained else clone
                owner, _, leaf = name.rpartition(".")
                setattr(self._module.get_submodule(owner), leaf, clones[id(tensor)])
        self._borrowed = set()

    def _named(self) -> list[tuple[str, torch.Tensor]]:
        """Every parameter and buffer under every name it has."""
        module = self._module
        return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]

    def _cast(self, dtype: torch.dtype) -> None:
        """What is stored is cast now or, where weights are large, as it is read: then only a layer's is there."""
        if self.room is not None:
            self._floats = dtype
        for name, tensor in [*self._module.named_parameters(), *self._module.named_buffers()]:
            if (wanted := wider(tensor.dtype, dtype)) is not tensor.dtype and not self._stays(name, tensor):
                self._assign(name, tensor.detach().to(wanted))
        cast_graph(self._module, dtype)
        for node in self._module.graph.nodes:
            if node.op == "get_attr":
                value = _get_attr(self._module, node.target)
                if not isinstance(value, torch.Tensor) or self._stays(str(node.target), value):
                    continue
                if (wanted := wider(value.dtype, dtype)) is not value.dtype:
                    self._assign(node.target, value.to(wanted))  # a constant that is no buffer
        self._stale = True
        self._example = [x.to(wider(x.dtype, dtype)) if isinstance(x, torch.Tensor) else x for x in self._example]

    def _stays(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor is stored as it is, and cast as it is read."""
        large = self._floats is not None and self.room is not None and self.room.wants(tensor.nbytes)
        return large and name not in self.writes

    def _as_stored(self, new: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """What is stored in the place of a tensor: with its digits or, where more are read and would be lost, those."""
        short = new.to(like.dtype)
        if self._floats is None or torch.equal(short.to(new.dtype), new):
            return short
        return new.to(wider(like.dtype, self._floats))

    # ---- reading ---------------------------------------------------------------------------------

    def lift(self) -> Graph:
        with refusing("the model cannot be read"), paused():
            return relate(Reader(self._module).graph())

    def parameter(self, name: str) -> Array:
        return to_numpy(as_read(self._tensor(name), self._floats))

    def _tensor(self, name: str) -> torch.Tensor:
        tensor: torch.Tensor = _get_attr(self._module, name)
        return tensor

    # ---- edits -----------------------------------------------------------------------------------

    def set_parameter(self, name: str, value: Array) -> None:
        old = self._tensor(name)
        self._assign(name, self._as_stored(torch.from_numpy(np.asarray(value, order="C")), old).to(old.device))

    @cached_property
    def writes(self) -> tuple[str, ...]:
        """The buffers that the model writes into."""
        return written_buffers(self._module)

    def _assign(self, name: str, tensor: torch.Tensor) -> None:
        self._place(name, self._put_away(tensor))

    def _place(self, name: str, tensor: torch.Tensor) -> None:
        old = find(self._module, name)
        if isinstance(old, torch.nn.Parameter) or old is None:
            tensor = torch.nn.Parameter(tensor, requires_grad=old is None or old.requires_grad)
        if old is None:
            _assign_attr(tensor, self._module, name)
            return
        for same in (name, *self._ties.get(name, ())):
            owner, _, leaf = same.rpartition(".")
            setattr(self._module.get_submodule(owner), leaf, tensor)

    def _put_away(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor where it is to be: in memory, or a copy in a file."""
        made = self._filed(tensor.shape, tensor)
        return tensor if made is None else made.copy_(tensor)

    def _filed(self, shape: Sequence[int], like: torch.Tensor) -> torch.Tensor | None:
        """A tensor in a file, to be written; None where it is to be in memory."""
        size = prod(shape) * like.itemsize
        if self.room is None or not self.room.wants(size) or like.device.type != "cpu":
            return None
        return torch.frombuffer(self.room.take(size), dtype=like.dtype).view(tuple(shape))

    @cached_property
    def _ties(self) -> dict[str, list[str]]:
        """Per parameter that the graph reads, the names of the same tensor that it does not read."""
        read = {node.target for node in self._module.graph.nodes if node.op == "get_attr" and node.users}
        where = {
            name: (tensor.data_ptr(), tensor.shape, tensor.stride()) for name, tensor in self._named() if tensor.numel()
        }
        unread: dict[Any, list[str]] = {}
        for name in where.keys() - read:
            unread.setdefault(where[name], []).append(name)
        return {name: sorted(unread[where[name]]) for name in where if name in read and where[name] in unread}

    def take(self, name: str, axis: int, keep: Indices) -> None:
        tensor, at = self._tensor(name).detach(), torch.from_numpy(keep)
        made = self._filed((*tensor.shape[:axis], len(keep), *tensor.shape[axis + 1 :]), tensor)
        self._place(name, torch.index_select(tensor, axis, at.to(tensor.device), out=made))

    def zero(self, name: str, axis: int, drop: Indices) -> None:
        tensor = self._tensor(name).detach().clone()
        self._assign(name, tensor.index_fill(axis, torch.from_numpy(drop).to(tensor.device), 0))

    def exclude(self, op: str, axis: int, drop: Indices) -> None:
        node = self._find_node(op)
        x = Reader(self._module).operands(node)[0]
        with self._module.graph.inserting_before(node):
            places = self._constant(f"{op}_excluded", torch.from_numpy(drop).to(x.meta["val"].device))
            made = self._module.graph.call_function(
                torch.ops.aten.index_fill.int_Scalar, (x, axis, places, float("-inf"))
            )
        made.meta["val"] = x.meta["val"]
        node.replace_input_with(x, made)
        self._stale = True

    def narrow(self, name: str, axis: int, keep: Indices) -> None:
        """See ir.Host.narrow. An output is as wide as what makes it."""
        holes = [node for node in self._module.graph.nodes if node.op == "placeholder"]
        found = next((k for k, node in enumerate(holes) if node.name == name), None)
        if found is None:
            return
        whole = self._example[found]
        tensors = [k for k, x in enumerate(self._example) if isinstance(x, torch.Tensor)]
        self._narrowed.append(Narrowed(tensors.index(found), axis, whole.shape[axis], keep))
        self._example[found] = whole.index_select(axis, torch.from_numpy(keep).to(whole.device))
        old = holes[found].meta["val"]
        holes[found].meta["val"] = old.new_empty([len(keep) if k == axis else n for k, n in enumerate(old.shape)])

    def set_literal(self, op: Op, name: str, value: Any) -> None:
        node = self._node(op)
        setter = LITERALS.get((op.kind, name))
        if setter is None:
            raise ModelError(f"{op.where}: no way to set its `{name}`")
        setter(node, value)
        self._stale = True

    def add_bias(self, op: Op, bias: Array) -> None:
        node = self._node(op)
        named = arguments(node)
        old, added = named.get("bias"), torch.from_numpy(np.asarray(bias, np.float64))
        for own, times in added_to(node):
            whole = self._tensor(str(own.target)).detach()
            if whole.shape[-1:] == added.shape and self._uses(own.target) == 1:
                self._assign(str(own.target), self._as_stored(whole.double() + added.to(whole.device) / times, whole))
                return
        weight = stored(next(named[name] for name in ("weight", "other", "mat2") if name in named))
        with self._module.graph.inserting_before(node):
            new = self._new_parameter(str(weight.target), "bias", added)
            if old is not None:  # shared with another layer, or computed
                new = pointwise(self._module.graph, torch.ops.aten.add.Tensor, new, old)
        if "bias" in named:
            set_argument(node, "bias", new)
        else:  # a product without one, or that adds what others read too
            with self._module.graph.inserting_after(node):
                total = pointwise(self._module.graph, torch.ops.aten.add.Tensor, node, new)
            node.replace_all_uses_with(total, lambda user: user is not total)
        self._stale = True

    def _uses(self, target: Any) -> int:
        """How many ops read a parameter."""
        holders = (node for node in self._module.graph.nodes if node.op == "get_attr" and node.target == target)
        return sum(len(node.users) for node in holders)

    def _new_parameter(self, beside: str, name: str, value: torch.Tensor) -> fx.Node:
        """A parameter in the module, and of the dtype and device, of the parameter ``beside``."""
        like, owner = self._tensor(beside), beside.rpartition(".")[0]
        base = f"{owner}.{name}" if owner else name
        names = (base, *(f"{base}_{k}" for k in range(1, 1000)))
        free = next(name for name in names if find(self._module, name) is None)
        self._assign(free, self._as_stored(value, like).to(like.device))
        node: fx.Node = self._module.graph.create_node("get_attr", free)
        node.meta["val"] = self._tensor(free)
        return node

    def factor(self, ops: Sequence[Op], inner: Array, outers: Sequence[Array]) -> None:
        nodes = [self._node(op) for op in ops]
        weights = [stored(weight_of(node)) for node in nodes]
        leaf = str(weights[0].target).rpartition(".")[2]
        name = "rank" if leaf == "weight" else f"{leaf}_rank"
        with self._module.graph.inserting_before(nodes[0]):
            made = self._new_parameter(str(weights[0].target), name, torch.from_numpy(inner))
        kernels = {node: tuple(weight_of(node).meta["val"].shape[2:]) for node in nodes}
        new = before(nodes[0], made)
        for node, weight, outer in zip(nodes, weights, outers, strict=True):
            self.set_parameter(str(weight.target), outer.T if transposed(node) else outer)
            weight.meta["val"] = self._tensor(str(weight.target))  # which says where a padding of "same" lies
            after(node, new, inner.shape[2:], kernels[node])
        self._stale = True

    def to_rms_norm(self, op: Op, keeps_bias: bool) -> None:
        node, aten = self._node(op), torch.ops.aten
        given = arguments(node)
        node.target = aten.rms_norm.default
        node.args, node.kwargs = (given["input"], given["normalized_shape"], given["weight"], given["eps"]), {}
        if keeps_bias and given["bias"] is not None:
            with self._module.graph.inserting_after(node):
                total = pointwise(self._module.graph, aten.add.Tensor, node, given["bias"])
            node.replace_all_uses_with(total, lambda user: user is not total)
        elif given["bias"] is not None and not given["bias"].users:
            self._sweep(given["bias"])
        self._stale = True

    def to_mean_square(self, op: Op) -> None:
        node, aten = self._node(op), torch.ops.aten
        given, axes = arguments(node), [int(axis) for axis in op.attrs["axes"]]
        value = next((user for user in node.users if user.target is operator.getitem), node)
        with self._module.graph.inserting_before(node):
            squares = pointwise(self._module.graph, aten.square.default, given["self"])
        with self._module.graph.inserting_after(node):
            mean = self._module.graph.call_function(aten.mean.dim, (squares, axes, op.attrs["keepdim"]))
        mean.meta.update(value.meta)
        value.replace_all_uses_with(mean)
        self._sweep(value)
        self._stale = True

    def untie(self, op: Op, operand: int) -> None:
        node = self._node(op)
        tied = Reader(self._module).operands(node)[operand]
        with self._module.graph.inserting_before(node):
            name = str(tied.target)
            own = self._new_parameter(name, f"{name.rpartition('.')[2]}_untied", self._tensor(name).detach().clone())
        node.replace_input_with(tied, own)
        self._stale = True

    def insert_linear(self, op: Op, operand: int, weight: Array, beside: str) -> None:
        node = self._node(op)
        read = Reader(self._module).operands(node)[operand]
        with self._module.graph.inserting_before(node):
            made = self._new_parameter(beside, "shortcut", torch.from_numpy(weight))
            new = pointwise(self._module.graph, torch.ops.aten.linear.default, read, made)
        node.replace_input_with(read, new)
        self._stale = True

    def insert(self, before: Op | None, kind: str, inputs: Sequence[str], **attrs: Any) -> str:
        values = self._values()
        anchor = self._node(before) if before is not None else self._module.graph.output_node()
        if self._shifted:
            respell(self._module, anchor, self._floats)
            self._shifted = False
        make = Inserter(self._module, anchor, self._constant)
        self._stale = True
        return make(kind, [values[name] for name in inputs], attrs).name

    def connect(self, op: Op, operand: int, value: str) -> None:
        node, new = self._node(op), self._values()[value]
        old = Reader(self._module).operands(node)[operand]
        if old is None:
            set_argument(node, "attn_mask", new)
        else:
            node.replace_input_with(old, new)
        self._stale = self._respell = self._shifted = True

    def connect_output(self, number: int, value: str) -> None:
        node = self._module.graph.output_node()
        node.replace_input_with(node.all_input_nodes[number], self._values()[value])
        self._stale = True

    def _values(self) -> dict[str, fx.Node]:
        """The nodes that make values, by the names of these."""
        nodes = self._module.graph.nodes
        parts = {
            f"{node.args[0]}#{node.args[1]}" if node.args[1] else str(node.args[0]): node
            for node in nodes
            if node.target is operator.getitem
        }
        return {**{str(node.target) if node.op == "get_attr" else node.name: node for node in nodes}, **parts}

    def insert_reindex(self, site: Site) -> None:
        node = self._find_node(site.op)
        insert(self._module.graph, node, Reader(self._module).operands(node)[site.operand], site)
        self._stale = True

    def set_reindex(self, op: Op, pieces: Sequence[Piece]) -> None:
        reader = Reader(self._module)
        nodes = [reader.operands(self._node(piece.op))[piece.operand] for piece in pieces]
        build(
            self._node(op),
            [(node, piece.at, piece.size) for node, piece in zip(nodes, pieces, strict=True)],
            self._constant,
        )
        self._stale = True

    def _constant(self, name: str, value: torch.Tensor) -> fx.Node:
        """A buffer of the module."""
        free = next(n for n in (name, *(f"{name}_{k}" for k in range(1, 10000))) if find(self._module, n) is None)
        self._module.register_buffer(free, value)
        node: fx.Node = self._module.graph.create_node("get_attr", free)
        node.meta["val"] = value
        return node

    def take_single(self, op: Op, at: Sequence[int]) -> None:
        lanes.take_single(self._node(op), at)
        self._stale = True

    def join(self, op: Op, operands: Sequence[int]) -> None:
        for node in lanes.join(self._node(op), operands):
            if not node.users:
                self._sweep(node)
        self._stale = True

    def remove(self, op: Op, stays: int = 0) -> None:
        node = self._node(op)
        source = Reader(self._module).operands(node)[stays]
        for user in list(node.users):
            if user.target is operator.getitem:  # an op with several outputs, of which the first is used
                user.replace_all_uses_with(source)
                self._module.graph.erase_node(user)
        node.replace_all_uses_with(source)
        self._sweep(node)
        self._stale = True

    def _sweep(self, node: fx.Node) -> None:
        """Drop a node that nobody reads, and what only it was for; the inputs of the model stay."""
        graph, todo = self._module.graph, [node]
        while todo:
            node = todo.pop()
            sources = node.all_input_nodes
            if node.op == "get_attr" and self._uses(node.target) == 0:
                for name in (str(node.target), *self._ties.get(str(node.target), ())):
                    owner, _, leaf = name.rpartition(".")
                    delattr(self._module.get_submodule(owner), leaf)
            graph.erase_node(node)
            for source in sources:
                if source.op in ("call_function", "get_attr") and all(map(_asserts, source.users)):
                    for user in list(source.users):
                        _erase(user)
                    todo.append(source)

    def _node(self, op: Op) -> fx.Node:
        return self._find_node(op.name)

    def _find_node(self, name: str) -> fx.Node:
        found: fx.Node | None = next((node for node in self._module.graph.nodes if node.name == name), None)
        if found is None:
            raise ModelError(f"no op `{name}` in the model", "is it the same model?")
        return found

    # ---- running ---------------------------------------------------------------------------------

    def resize(self, example: Any) -> None:
        """Take other example inputs than those it was traced on: see hosts.example.given; of sizes alone more of the
        same data is made. Raises DataError where they do not fit."""
        inputs, arrays = self.lift().inputs, self.example()
        known = given(inputs, example)
        for k, value in enumerate(inputs):
            item = known.get(value.name, arrays[k].shape)
            if isinstance(item, tuple):
                for axis, size in enumerate(item):
                    arrays[k] = arrays[k].take(np.arange(size) % arrays[k].shape[axis], axis)
            else:
                arrays[k] = item
        self._example, self._sizes = self.inputs(arrays), None
        self.run(arrays)

    def undecided(self) -> Sequence[Value]:
        return ()  # it was traced on its example

    def suppose(self, samples: Batch) -> None:
        """See ir.Host.suppose: nothing is undecided."""

    def special_tokens(self) -> tuple[Sequence[int], int | None]:
        return self.pretrained.special_tokens if self.pretrained is not None else ((), None)

    def tokens_within(self, tokens: Sequence[int]) -> Sequence[int]:
        return self.pretrained.tokens_within(tokens) if self.pretrained is not None else tokens

    def example(self) -> list[Array]:
        return [to_numpy(x) for x in self._example if isinstance(x, torch.Tensor)]

    def inputs(self, batch: Batch) -> list[Any]:
        """The flat inputs of the model with copies of ``batch`` in place: a model may write into its inputs."""
        arrays = iter(narrowed(batch, self._narrowed))
        return [
            torch.from_numpy(np.array(next(arrays), order="C")).to(x.device, x.dtype)
            if isinstance(x, torch.Tensor)
            else x
            for x in self._example
        ]

    def run(self, batch: Batch) -> list[Array]:
        with torch.no_grad(), kept(self._module, self.writes), refusing("the model cannot be run"):
            if self._floats is not None or any(map(draws, self._module.graph.nodes)):
                return drawn_outputs(self._module, self.inputs(batch), self._floats)
            args, kwargs = self.call_arguments(batch)
            out = self.model(*args, **kwargs)
        return [to_numpy(leaf) for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]

    def as_given(self) -> list[Array] | None:
        module = self.module
        if module is None or self.baked or self.writes:  # which a call would leave changed
            return None
        now, then = (dict([*one.named_parameters(), *one.named_buffers()]) for one in (module, self._module))
        if any(now[name].data_ptr() != then[name].data_ptr() for name in now.keys() & then.keys()):
            return None  # it has other weights since
        args, kwargs = self.call_arguments(self.example())
        try:
            with torch.no_grad(), evaluated(module), torch.random.fork_rng(devices=[]):  # what draws leaves no trace
                out = module(*args, **kwargs)
        except Exception:  # it was changed since
            return None
        return [to_numpy(leaf) for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)]

    def watch(self, batch: Batch, names: Sequence[str], known: Mapping[str, Array] | None = None) -> dict[str, Array]:
        with torch.no_grad(), kept(self._module, self.writes), refusing("the model cannot be run"):
            return watch_values(self._module, lambda: self.inputs(batch), names, known or {}, self._floats)

    def gradients(
        self, batch: Batch, loss: Callable[..., Any], rest: Batch, probe: Mapping[str, Array] | None = None
    ) -> dict[str, Array]:
        seen = "; ".join(f"{array.dtype} from {array.min()} to {array.max()}" for array in rest if array.size)
        fit = f"do the labels fit it? They are {seen}; cross_entropy takes int64 from 0 to one less than the classes"
        with kept(self._module, self.writes), refusing("the loss cannot be differentiated", fit):
            labels = [torch.from_numpy(np.ascontiguousarray(array)) for array in rest]
            return differentiate(self.model, *self.call_arguments(batch), lambda output: loss(output, *labels), probe)

    def call_arguments(self, batch: Batch) -> Call:
        return call_of(self.model, self.inputs(batch))

    def sizes(self) -> Mapping[str, int]:
        if self._sizes is None:
            with refusing("the model cannot be run"):
                self._sizes = open_sizes(self._module, self._example, self._floats)
        return self._sizes

    def shapes(self) -> dict[str, tuple[Size, ...]]:
        self._sizes = None
        if self._respell:
            with refusing("shapes of the model cannot be inferred"):
                respell(self._module, None, self._floats)
            self._respell = self._shifted = False
        self._stale |= infer_shapes(self._module, self._example, self._floats)
        return {value.name: value.shape for value in Reader(self._module).graph().values() if value.shape is not None}

    # ---- writing ---------------------------------------------------------------------------------

    def exported(self, static: bool = False) -> torch.export.ExportedProgram:
        """The model as an ExportedProgram, dynamic where it was dynamic; ``static``: at the example's shapes."""
        return retrace(self.model, self._example, static)

    def save(self, path: Path, *, replace: bool = True, about: Mapping[str, str] = {}) -> None:
        """See ir.Host.save; ``about`` is in the archive as ``extra/about``, JSON."""
        extra = {"about": json.dumps(about, indent=1)} if about else None
        with warnings.catch_warnings(), stage(followed(path)) as place:
            warnings.simplefilter("ignore")
            try:
                with written(place.new / place.path.name) as file:
                    torch.export.save(_without_addresses(self.exported()), file, extra_files=extra)
                place.put_model(replace)
            except OSError as error:
                raise unwritable(path, error) from error
            except RuntimeError as error:  # torch's own writer
                if (refused := system_error(error)) is not None:
                    raise unwritable(path, refused) from error
                raise OutputError(f"{path} cannot be written ({first_line(error)})") from error

    def deployed(self, path: Path) -> fx.GraphModule:
        return TorchHost.load(path).model

    def save_onnx(self, path: Path, *, about: Mapping[str, str] = {}) -> None:
        if self.writes:
            raise ModelError(
                f"ONNX has no place for `{self.writes[0]}`, which forward writes into: the file would compute what the "
                "first call does",
                "make it an input and an output of forward, or keep the network itself, torch.save(program.model)",
            )
        write_onnx(self.exported(), path, about)


def _written_out(exported: torch.export.ExportedProgram, inputs: Any) -> tuple[fx.GraphModule, list[str]]:
    """What was exported without regions; branches stay where both do not run on the example."""
    for branches in (True, False):
        module: fx.GraphModule = exported.module(check_guards=False)
        notes = write_out(module, branches)
        if not branches or not choices(module.graph) or both_run(module, pytree.tree_leaves(inputs)):
            break
    return module, notes


def _without_addresses(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Without what torch notes of where nodes came from: it has addresses of memory, other ones in every run."""
    for part in exported.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop("from_node", None)
    return exported


def _states(names: Sequence[str]) -> tuple[str, ...]:
    some = ", ".join(f"`{name}`" for name in names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return (f"forward writes into {some}: every run here begins with what that holds now",) if names else ()


def _asserts(node: fx.Node) -> bool:
    """Whether a node only checks what it reads, or a size of it, which does not keep that alive."""
    if node.op != "call_function" or "_assert" in str(node.target):
        return node.op == "call_function"
    number = not isinstance(node.meta.get("val"), (torch.Tensor, tuple, list))
    return (number or node.target is operator.getitem) and all(map(_asserts, node.users))


def _erase(node: fx.Node) -> None:
    """Drop a node and all that reads it."""
    for user in list(node.users):
        _erase(user)
    node.graph.erase_node(node)

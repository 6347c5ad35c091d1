"""Ops that write into a view, made ops that return what they would have written.

In an exported graph ``a[:, :8].relu_()`` is an op that nobody reads, and what reads ``a`` afterwards still
reads the op that made ``a``: one name for two values. Here each value gets its own: the written piece is put
back into its place by a concatenation, and later readers read that. Graphs where nothing is read after it was
written to by another name stay as they are; so do all other ops, with the modes that ``train()`` sets.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from .edit import arguments

_ATEN = torch.ops.aten
_SAME = frozenset(("alias", "detach", "dropout", "feature_dropout", "contiguous", "to", "lift_fresh", "clone"))
_TURNED = frozenset(("transpose", "swapaxes", "permute", "t", "numpy_T", "mT"))
_RESHAPED = frozenset(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as"))
_SPLIT = frozenset(("split", "split_with_sizes", "chunk"))
_RENAMED = frozenset(("detach_", "squeeze_", "unsqueeze_", "t_", "transpose_", "swapaxes_"))  # write no element

Path = tuple[fx.Node, ...]
"""The views that lead from the op that made a tensor to a part of it."""


class Unsupported(Exception):
    """A view or a write that cannot be put in other words here."""


def functionalise(model: fx.GraphModule, example: Sequence[Any]) -> None:
    """Rewrite the graph of ``model`` so that the value of a name never changes. Raises Unsupported, after
    which the graph is not to be used."""
    if not any(map(_suspect, model.graph.nodes)):
        return
    stale = _stale(model, example)
    for members in stale:
        _Storage(model.graph, members).rewrite()
    if stale:
        model.graph.lint()
        model.recompile()


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2] if node.op == "call_function" and schema is not None else ""


def written_into(node: fx.Node) -> fx.Node | None:
    """What the op writes into."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable or _name(node) in _RENAMED:
        return None
    named = arguments(node)
    writes = [named[a.name] for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return writes[0] if writes and isinstance(writes[0], fx.Node) else None


def _suspect(node: fx.Node) -> bool:
    """Whether what an op writes into may have a second name: cheap, and true too often."""
    written = written_into(node)
    if written is None:
        return False
    if len(written.users) > 1:
        return True
    if written_into(written) is not None:
        return _suspect(written)
    schema = getattr(written.target, "_schema", None)
    if written.op != "call_function":
        return False
    return schema is None or _name(written) in _SAME or any(r.alias_info is not None for r in schema.returns)


def _stale(model: fx.GraphModule, example: Sequence[Any]) -> list[list[fx.Node]]:
    """Per storage that is written to under one name and read under another afterwards, the nodes that
    are tensors in it, in order."""
    try:
        kept = _Kept(model, FakeTensorMode())
        kept.read(example)
    except Exception:  # torch raises many kinds where a size depends on data; then the example is run
        kept = _Kept(model, None)
        kept.read(example)
    members: dict[int, list[fx.Node]] = {}
    for node in model.graph.nodes:
        if node in kept.storages:
            members.setdefault(kept.storages[node], []).append(node)
    place = {node: k for k, node in enumerate(model.graph.nodes)}
    found = []
    for nodes in members.values():
        writes = [place[node] for node in nodes if written_into(node) in nodes]
        if any(place[a] < write < place[user] for write in writes for a in nodes for user in a.users):
            found.append(nodes)
    return found


class _Kept(fx.Interpreter):
    """A run, with a mode on fake tensors, that says which nodes share storage."""

    def __init__(self, model: fx.GraphModule, mode: FakeTensorMode | None) -> None:
        super().__init__(model)
        self.mode = mode
        self.stored: dict[str, Any] = {}
        self.storages: dict[fx.Node, int] = {}
        self.alive: list[Any] = []

    def read(self, example: Sequence[Any]) -> None:
        with torch.no_grad():
            self.run(*map(self._own, example), enable_io_processing=False)

    def _own(self, value: Any) -> Any:
        """As a fake tensor or a copy: nobody's tensors are written to."""
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone() if self.mode is None else self.mode.from_tensor(value, static_shapes=True)

    def run_node(self, n: fx.Node) -> Any:
        with self.mode or nullcontext():
            value = super().run_node(n)
        if isinstance(value, torch.Tensor) and n.op != "output":
            self.alive.append(value)
            self.storages[n] = value.untyped_storage()._cdata
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in self.stored:
            self.stored[target] = self._own(super().get_attr(target, args, kwargs))
        return self.stored[target]


class _Storage:
    """The tensors in one storage, and what is in each part of it at the point that is being looked at."""

    def __init__(self, graph: fx.Graph, members: Sequence[fx.Node]) -> None:
        self.graph, self.members = graph, members
        self.paths: dict[fx.Node, Path] = {members[0]: ()}
        self.version = 0
        self.now: dict[Path, tuple[int, fx.Node]] = {(): (0, members[0])}

    def rewrite(self) -> None:
        root, last = self.members[0], None
        for node in list(self.graph.nodes):
            if node is root:
                continue
            written = written_into(node)
            for used in node.all_input_nodes:
                if used in self.paths:
                    with self.graph.inserting_before(node):
                        node.replace_input_with(used, self._value(self.paths[used]))
            if written in self.paths:
                self.paths[node] = self.paths[written]
                self._write(node, self.paths[written])
            elif node in self.members:
                self._enter(node)
            last = node
        if self.version and root.op != "call_function" and last is not None:  # the caller's own tensor
            with self.graph.inserting_before(last):
                self._call(_ATEN.copy_.default, (root, self._value(())))
        for node in reversed(self.graph.nodes):
            if node in self.paths and not node.users and node is not root:
                self.graph.erase_node(node)

    def _enter(self, node: fx.Node) -> None:
        """A view that the graph has: made of what is there now."""
        parent = self._parent(node)
        near = [path for path, (version, found) in self.now.items() if found is parent and version == self.version]
        before = self.paths.get(parent, near[0] if near else None)
        if before is None:
            raise Unsupported(f"{node} shares storage in an unknown way")
        path = before if self._whole(node) else (*before, node)
        self.paths[node] = path
        self.now.setdefault(path, (self.version, node))
        if self.now[path][0] != self.version:
            self.now[path] = (self.version, node)

    @staticmethod
    def _parent(node: fx.Node) -> fx.Node:
        parent = node.args[0]
        assert isinstance(parent, fx.Node)
        if node.target is operator.getitem:
            return parent.all_input_nodes[0]
        return parent

    @staticmethod
    def _whole(node: fx.Node) -> bool:
        """Whether a view is all of what it is a view of."""
        if _name(node) == "slice":
            named = arguments(node)
            start, end, step = named["start"], named["end"], named["step"]
            return start in (None, 0) and step == 1 and (end is None or (isinstance(end, int) and end >= 2**62))
        return _name(node) in _SAME

    def _value(self, path: Path) -> fx.Node:
        """The node that is what is in a part now; where that was written to, a view made anew."""
        if path in self.now and self.now[path][0] == self.version:
            return self.now[path][1]
        parent, view = self._value(path[:-1]), path[-1]
        if view.target is operator.getitem:
            several = view.args[0]
            assert isinstance(several, fx.Node)
            made = self._call(several.target, (parent, *several.args[1:]), several.kwargs)
            node = self._call(operator.getitem, (made, view.args[1]))
        else:
            node = self._call(view.target, (parent, *view.args[1:]), view.kwargs)
        self.now[path] = (self.version, node)
        return node

    def _write(self, node: fx.Node, path: Path) -> None:
        old = node.args[0]
        assert isinstance(old, fx.Node)
        with self.graph.inserting_before(node):
            new = self._result(node, old)
            around = [self._value(path[:k]) for k in range(len(path))]
            self.version += 1
            self.now[path] = (self.version, new)
            for k in reversed(range(len(path))):
                new = self._put(path[k], around[k], new)
                self.now[path[:k]] = (self.version, new)

    def _result(self, node: fx.Node, old: fx.Node) -> fx.Node:
        """What an op writes."""
        name, val = _name(node), old.meta["val"]
        if name == "copy_" or (name == "fill_" and isinstance(node.args[1], fx.Node)):
            made = node.args[1]
            assert isinstance(made, fx.Node)
            if tuple(made.meta["val"].shape) != tuple(val.shape):
                made = self._call(_ATEN.expand_as.default, (made, old))
        elif name == "fill_":
            made = self._call(_ATEN.full_like.default, (old, node.args[1]))
        elif name == "zero_":
            made = self._call(_ATEN.zeros_like.default, (old,))
        else:
            packet = getattr(_ATEN, name[:-1], None)
            target = getattr(packet, node.target._overloadname, None)  # type: ignore[union-attr]
            if target is None or not name.endswith("_"):
                raise Unsupported(f"{node}: {node.target} has no form that returns what it writes")
            made = self._call(target, node.args, node.kwargs, like=node)
        if made.meta["val"].dtype != val.dtype:
            made = self._call(_ATEN.to.dtype, (made, val.dtype))
        if tuple(made.meta["val"].shape) != tuple(val.shape):
            raise Unsupported(f"{node} changes the shape of what it writes into")
        return made

    def _put(self, view: fx.Node, whole: fx.Node, piece: fx.Node) -> fx.Node:
        """``whole`` with ``piece`` in the place that the view shows of it."""
        name, rank = _name(view), whole.meta["val"].ndim
        if view.target is operator.getitem:
            return self._put_one_of(view, whole, piece)
        named = arguments(view) if name else {}
        if name in ("slice", "narrow"):
            dim, start = named["dim"] % rank, named["start"] or 0
            end = named["start"] + named["length"] if name == "narrow" else named["end"]
            size = whole.meta["val"].shape[dim]
            if named.get("step", 1) != 1 or not all(isinstance(n, int) for n in (start, size, end)):
                return self._call(_ATEN.slice_scatter.default, (whole, piece, dim, start, end, named.get("step", 1)))
            start, end, _ = slice(start, end).indices(int(size))
            return self._between(whole, piece, dim, start, end)
        if name == "select" and isinstance(named["index"], int):
            return self._put_at(whole, piece, named["dim"] % rank, named["index"])
        if name in _TURNED:
            order = list(range(rank))
            if name == "permute":
                order = [n % rank for n in named["dims"]]
            elif rank > 1:
                keys = [n for n in ("dim0", "dim1", "axis0", "axis1") if n in named]
                a, b = (named[key] for key in keys) if keys else (-2, -1)
                order[a], order[b] = order[b], order[a]
            back = sorted(range(rank), key=order.__getitem__)
            return self._call(_ATEN.permute.default, (piece, back))
        if name in _RESHAPED:
            return self._call(_ATEN.reshape_as.default, (piece, whole)) if rank else piece
        raise Unsupported(f"{view}: what is written into {view.target} cannot be put back")

    def _put_one_of(self, view: fx.Node, whole: fx.Node, piece: fx.Node) -> fx.Node:
        several, number = view.args
        assert isinstance(several, fx.Node) and isinstance(number, int)
        dim = arguments(several)["dim"] % whole.meta["val"].ndim
        if _name(several) == "unbind":
            return self._put_at(whole, piece, dim, number)
        if _name(several) not in _SPLIT:
            raise Unsupported(f"{several}: what is written into {several.target} cannot be put back")
        sizes = [val.shape[dim] for val in several.meta["val"]]
        if not all(isinstance(n, int) for n in sizes):
            raise Unsupported(f"{several}: pieces of open size")
        ends = list(accumulate(map(int, sizes)))
        return self._between(whole, piece, dim, ends[number] - int(sizes[number]), ends[number])

    def _put_at(self, whole: fx.Node, piece: fx.Node, dim: int, index: int) -> fx.Node:
        size = whole.meta["val"].shape[dim]
        if not isinstance(size, int):
            return self._call(_ATEN.select_scatter.default, (whole, piece, dim, index))
        at = index % size
        return self._between(whole, self._call(_ATEN.unsqueeze.default, (piece, dim)), dim, at, at + 1)

    def _between(self, whole: fx.Node, piece: fx.Node, dim: int, start: int, end: int) -> fx.Node:
        """``piece`` with what is before and behind it of ``whole``."""
        size = int(whole.meta["val"].shape[dim])
        parts = [piece]
        if start > 0:
            parts.insert(0, self._call(_ATEN.slice.Tensor, (whole, dim, 0, start)))
        if end < size:
            parts.append(self._call(_ATEN.slice.Tensor, (whole, dim, end, size)))
        return self._call(_ATEN.cat.default, (parts, dim)) if len(parts) > 1 else piece

    def _call(
        self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, like: fx.Node | None = None
    ) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        like = like or next(n for n in node.all_input_nodes)
        node.meta.update({key: like.meta[key] for key in ("nn_module_stack", "stack_trace") if key in like.meta})
        vals = fx.node.map_arg((args, kwargs or {}), lambda n: n.meta["val"])
        found = [v for n in node.all_input_nodes for v in (n.meta["val"],) if hasattr(v, "fake_mode")]
        mode = found[0].fake_mode if found else FakeTensorMode(allow_non_fake_inputs=True)
        with torch.no_grad(), mode:
            node.meta["val"] = vals[0][0] if _name(node) == "copy_" else target(*vals[0], **vals[1])
        return node

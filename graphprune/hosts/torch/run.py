"""Running an fx graph: reading intermediate values, and inferring shapes on fake tensors."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx.graph_module import _get_attr
from torch.utils import _pytree as pytree

from ...errors import ShapeError, first_line
from ...ir.host import Array
from .casting import as_read
from .lift import draws, origin
from .open_sizes import given_sizes


def to_numpy(tensor: torch.Tensor) -> Array:
    """On the host and in a dtype numpy has: floating point numbers of two bytes and of one are widened."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.is_floating_point() and tensor.itemsize < 4 else tensor).numpy()


def watch(
    model: fx.GraphModule,
    inputs: Callable[[], Sequence[Any]],
    names: Iterable[str],
    known: Mapping[str, Array],
    floats: torch.dtype | None = None,
) -> dict[str, Array]:
    """Values by name. Only what they need is run; ``known`` values are taken as they are. ``floats``: what stored
    floating point numbers are cast to where they are read, a tensor at a time."""
    seen = {name: known[name] for name in names if name in known}
    missing = set(names) - known.keys()
    if not missing:
        return seen
    nodes = {node.name: node for node in model.graph.nodes}
    makers = _makers(nodes, known)
    needed, read = _needed(nodes, missing, makers)
    env = {node: _value(node, makers[node], known) for node in read}
    holes = [node for node in nodes.values() if node.op == "placeholder"]
    given = dict(zip(holes, inputs(), strict=True)) if not needed.isdisjoint(holes) else {}
    order = [node for node in nodes.values() if node in needed]
    last_use = {value: node for node in order for value in node.all_input_nodes}
    last = {node for node, value in env.items() if isinstance(value, torch.Tensor) and _turned(value)}
    for node in order:
        if node.op == "get_attr":
            if node.name in missing:
                seen[node.name] = to_numpy(as_read(_get_attr(model, str(node.target)), floats))
            continue  # read where it is used: what is cast would be held from here on
        env[node] = value = given[node] if node in given else _result(model, node, env, last, floats)
        several = isinstance(value, (tuple, list))
        for k, part in enumerate(value if several else (value,)):  # named as torch_lift names them
            name = f"{node.name}#{k}" if k else node.name
            if name in missing:
                seen[name] = to_numpy(part)
        for used in (*node.all_input_nodes, node):
            if last_use.get(used, node) is node:
                env.pop(used, None)
    return seen


def outputs(model: fx.GraphModule, inputs: Sequence[Any], floats: torch.dtype | None = None) -> list[Array]:
    """The tensors that a model returns, node by node: for models that draw random numbers, see ``_drawing``, and for
    those whose weights are cast where they are read, see ``watch``."""
    returned = pytree.tree_leaves(next(node for node in model.graph.nodes if node.op == "output").args)
    names = [arg.name for arg in returned if isinstance(arg, fx.Node) and isinstance(arg.meta.get("val"), torch.Tensor)]
    seen = watch(model, lambda: inputs, names, {}, floats)
    return [seen[name] for name in names]


@contextmanager
def _drawing(node: fx.Node) -> Iterator[None]:
    """Draws depend on the node alone, so that two models that differ elsewhere, or two runs of which one needs
    less, draw the same; the user's own generator stays where it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(node.name.encode()))
        yield


LAYOUTS_ALIKE = frozenset(
    {
        torch.ops.aten.batch_norm.default,
        torch.ops.aten.relu.default,
        torch.ops.aten.relu_.default,
        torch.ops.aten.relu6.default,
        torch.ops.aten.hardtanh.default,
        torch.ops.aten.hardtanh_.default,
        torch.ops.aten.silu.default,
        torch.ops.aten.silu_.default,
        torch.ops.aten.sigmoid.default,
        torch.ops.aten.add.Tensor,
        torch.ops.aten.add_.Tensor,
        torch.ops.aten.mul.Tensor,
        torch.ops.aten.cat.default,
        torch.ops.aten.max_pool2d.default,
        torch.ops.aten.avg_pool2d.default,
        torch.ops.aten.adaptive_avg_pool2d.default,
    }
)
"""Ops that give the same numbers, and as fast, however what they read lies in memory."""


def _has_channels_last(node: fx.Node, last: Container[fx.Node]) -> bool:
    """Whether a result lies in memory with its channels last: convolutions of images on a CPU are faster so (of odd
    widths and of groups by far), and so is whoever reads the channels of a pixel. ``last``: which of what it reads do.
    Any op that is not known to treat all layouts alike, such as a view, reads them as they were."""
    return _convolves(node) or (node.target in LAYOUTS_ALIKE and any(arg in last for arg in node.all_input_nodes))


def _convolves(node: fx.Node) -> bool:
    val = node.meta.get("val")
    return (
        node.target is torch.ops.aten.conv2d.default
        and isinstance(val, torch.Tensor)
        and (val.ndim, val.dtype, val.device.type) == (4, torch.float32, "cpu")
    )


def _result(
    model: fx.GraphModule, node: fx.Node, env: Mapping[fx.Node, Any], last: set[fx.Node], floats: torch.dtype | None
) -> Any:
    """``last``: the nodes whose results have channels last, to which it is added."""
    if _has_channels_last(node, last):
        last.add(node)

    def read(arg: fx.Node) -> Any:
        value = as_read(_get_attr(model, str(arg.target)), floats) if arg.op == "get_attr" else env[arg]
        if node not in last:
            return value.contiguous() if arg in last else value
        turned = arg is node.args[0] and _convolves(node)
        return value.contiguous(memory_format=torch.channels_last) if turned else value

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
    called: Any = node.target if callable(node.target) else _get_attr(model, node.target)
    with _drawing(node) if draws(node) else nullcontext():
        return called(*args, **kwargs)


def _makers(nodes: Mapping[str, fx.Node], known: Mapping[str, Array]) -> dict[fx.Node, list[str]]:
    """The nodes of which a result is known, with the names of all of their results."""
    given: dict[fx.Node, list[str]] = {}
    for name in {name.partition("#")[0] for name in known}:
        node = nodes.get(name)
        if node is not None and node.op == "call_function":
            val: Any = node.meta.get("val")
            count = 1 if isinstance(val, torch.Tensor) else len(val)
            given[node] = [f"{node.name}#{k}" if k else node.name for k in range(count)]
    return given


def _value(node: fx.Node, names: Sequence[str], known: Mapping[str, Array]) -> Any:
    """A node's known result; of several, only those that are known."""
    val: Any = node.meta.get("val")
    if isinstance(val, torch.Tensor):
        return _tensor(known[node.name], val)
    return tuple(_tensor(known[n], v) if n in known else None for n, v in zip(names, val, strict=True))


def _turned(tensor: torch.Tensor) -> bool:
    return tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _tensor(array: Array, like: torch.Tensor) -> torch.Tensor:
    last = array.ndim == 4 and array.transpose(0, 2, 3, 1).flags.c_contiguous  # as it was seen
    return torch.from_numpy(np.require(array, None, ["W"] if last else ["C", "W"])).to(like.device, like.dtype)


def _needed(
    nodes: Mapping[str, fx.Node], names: Iterable[str], given: Mapping[fx.Node, Any]
) -> tuple[set[fx.Node], list[fx.Node]]:
    """The nodes to run, and those of ``given`` that they read."""
    wanted = {name.partition("#")[0] for name in names}
    needed: set[fx.Node] = set()
    read: dict[fx.Node, None] = {}
    stack = [nodes[name] for name in wanted if name in nodes]
    while stack:
        node = stack.pop()
        if node in given:
            read[node] = None
        elif node not in needed:
            needed.add(node)
            stack += node.all_input_nodes
    return needed, list(read)


def infer_shapes(model: fx.GraphModule, example: Sequence[Any], floats: torch.dtype | None = None) -> bool:
    """Run the graph on fake tensors of the example's sizes and refresh the shape of every node; where sizes depend
    on data, on the example itself. Returns whether the graph had to change for it: views of what lies otherwise in
    memory than it did (attention has kernels of different layouts) copy. ``floats``: see ``watch``. Raises
    ShapeError."""
    try:
        return _Shapes(model, example, FakeTensorMode(), floats).infer()
    except _Unknown:
        with torch.random.fork_rng(devices=[]):
            return _Shapes(model, example, None, floats).infer()


class _Unknown(Exception):
    """A size depends on data, which fake tensors do not have."""


class _Shapes(fx.Interpreter):
    """See ``infer_shapes``. Sizes that were dynamic stay dynamic: no edit changes what they depend on."""

    def __init__(
        self,
        model: fx.GraphModule,
        example: Sequence[Any],
        mode: FakeTensorMode | None,
        floats: torch.dtype | None,
    ) -> None:
        super().__init__(model)
        self.mode, self.floats = mode, floats
        self.copies = False
        self._fakes: dict[Any, Any] = {}
        self._symbols = {size.node.expr: number for size, number in given_sizes(model, example)}
        self.inputs = [self._own(x) for x in example]

    def _own(self, value: Any) -> Any:
        """As a fake tensor, or a copy: a model may write into its inputs."""
        if not isinstance(value, torch.Tensor):
            return value
        return value.detach().clone() if self.mode is None else self.mode.from_tensor(value, static_shapes=True)

    def infer(self) -> bool:
        with torch.no_grad():
            self.run(*self.inputs, enable_io_processing=False)
        return self.copies

    def run_node(self, n: fx.Node) -> Any:
        try:
            with self.mode or nullcontext():
                value = self._run(n)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise _Unknown from error
        except Exception as error:
            if self.mode is not None and isinstance(n.target, HigherOrderOperator):  # branches and loops
                raise _Unknown from error
            raise ShapeError(f"{origin(n)} ({n.target}): shapes disagree after the cut: {first_line(error)}") from error
        if n.op == "call_function" and "val" in n.meta:
            old, spec = pytree.tree_flatten(n.meta["val"])  # a list, where a saved program was read: not value's tuple
            new = pytree.tree_leaves(value)
            n.meta["val"] = pytree.tree_unflatten(map(partial(_resized, self._symbols), old, new), spec)
        return value

    def _run(self, n: fx.Node) -> Any:
        try:
            return super().run_node(n)
        except (RuntimeError, ValueError):
            if n.target is not torch.ops.aten.view.default:
                raise
            n.target, self.copies = torch.ops.aten.reshape.default, True
            return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        if self.mode is None or not isinstance(value, torch.Tensor):
            return as_read(self._own(value), self.floats)
        key = value.shape, value.stride(), value.dtype, value.device  # those that are alike have one fake
        if key not in self._fakes:
            self._fakes[key] = as_read(self._own(value), self.floats)
        return self._fakes[key]

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A BatchNorm, which torch takes apart into a dozen ops to see its shape, gives what it is given."""
        if self.mode is None or target is not torch.ops.aten.batch_norm.default:
            return super().call_function(target, args, kwargs)
        x, *stored = args[:5]
        wrong = next((one for one in stored if one is not None and one.shape != x.shape[1:2]), None)
        if wrong is not None:
            raise RuntimeError(f"a BatchNorm of {x.shape[1]} channels with {len(wrong)} numbers")
        return torch.empty_like(x)


def _resized(symbols: Mapping[Any, int], old: Any, new: Any) -> Any:
    """The old fake tensor with the new sizes."""
    if not isinstance(old, torch.Tensor) or not isinstance(new, torch.Tensor):
        return old
    sizes = [_size(symbols, o, n) for o, n in zip(old.shape, new.shape, strict=True)]
    if list(old.shape) == sizes:
        return old
    return old.new_empty(sizes)


def _size(symbols: Mapping[Any, int], old: Any, new: Any) -> Any:
    """A size that is dynamic stays so, times what was cut of it where channels are folded into it (12 channels times
    samples). ``symbols``: what those of the inputs' sizes are."""
    if str(old).isdigit():  # 6 may be a SymInt
        return new
    was = old.node.expr.subs(symbols)
    return old * int(new) // int(was) if was.is_Integer and was and int(was) != new else old

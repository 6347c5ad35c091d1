"""The compiled network as the user gets it: a GraphModule that trains."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.fx.graph_module import _assign_attr, _copy_attr

from .conditions import folded, inside, keep
from .pickled import mode_flag, reduced


class Network(fx.GraphModule):
    """The compiled network: the user's parameter names, BatchNorm and dropout that follow
    ``train()`` and ``eval()`` although torch.export had fixed their mode, and both branches of a ``cond`` in its graph,
    of which its code runs the chosen one."""

    @contextmanager
    def as_run(self) -> Iterator[None]:
        """Within, the graph is what the code is made of."""
        whole = self._graph
        self._graph, bodies = folded(whole)
        keep(self, bodies)
        try:
            yield
        finally:
            self._graph = whole

    def recompile(self) -> Any:
        with self.as_run():
            return super().recompile()

    def train(self, mode: bool = True) -> Network:
        changed = False
        for node in self.graph.nodes:
            flag = mode_flag(node) if not inside(node) else None  # no branch may write into statistics
            if flag is not None and len(node.args) > flag and node.args[flag] is not mode:
                node.update_arg(flag, mode)
                changed = True
        if changed:
            self.recompile()
        return super().train(mode)

    def __reduce__(self) -> tuple[Any, ...]:
        return reduced(network(self), self.training)


def network(module: fx.GraphModule, code: bool = True) -> Network:
    """A Network of its own graph (and graphs of branches) that shares the tensors of ``module``, the unused ones too;
    what is saved of it is what was saved of that. ``code``: whether it can be called before ``recompile``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about how it copies its own pytree specs
        graph = copy.deepcopy(module.graph)
        made = Network(module, graph if code else fx.Graph(), "Network")
        if not code:
            made._graph, graph.owning_module = graph, made
            for node in graph.nodes:
                if node.op == "get_attr":
                    _copy_attr(module, made, str(node.target))
        _own_bodies(made)
    for name, tensor in [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]:
        if find(made, name) is None:
            _assign_attr(tensor, made, name)
    saved = module.state_dict(keep_vars=True)
    for path, part in made.named_modules():
        part.training = False
        lead = f"{path}." if path else ""
        part._non_persistent_buffers_set = {name for name in part._buffers if lead + name not in saved}
    return made


def _own_bodies(module: fx.GraphModule) -> None:
    """Copies of the graphs that a graph calls (branches, bodies of loops), for no other network to have them."""
    for node in module.graph.nodes:
        if node.op == "get_attr" and isinstance(body := find(module, str(node.target)), fx.GraphModule):
            own = fx.GraphModule(body, copy.deepcopy(body.graph))
            _own_bodies(own)
            owner, _, leaf = str(node.target).rpartition(".")
            setattr(module.get_submodule(owner), leaf, own)


def find(model: torch.nn.Module, name: str) -> Any:
    """An attribute by dotted name, or None."""
    found: Any = model
    for part in name.split("."):
        found = getattr(found, part, None)
    return found

"""``torch.cond``: both of its branches in the one graph that is read and edited, and a branch again in the code.

In the graph a ``choose`` takes what both branches make and hands on one of them (``write_out`` of regions.py makes
it so). In the code that a network runs, what is there for one side of a ``choose`` alone is a branch of ``cond``
again, and only the chosen branch is computed (``folded``).
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph_module import _get_attr

COND = torch.ops.higher_order.cond
_INSIDE = "graphprune_inside"
"""Marks what a branch computes."""


def choose(condition: Any, then: Sequence[Any], other: Sequence[Any]) -> tuple[Any, ...]:
    """What ``cond`` returns, of what both of its branches do; in a form that can be traced."""
    if isinstance(condition, torch.Tensor):
        return tuple(torch.where(condition, a, b) for a, b in zip(then, other, strict=True))
    return tuple(then if condition else other)


def choices(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.target is choose]


def mark(node: fx.Node) -> None:
    node.meta[_INSIDE] = True


def inside(node: fx.Node) -> bool:
    """Whether a node was made by a branch."""
    return _INSIDE in node.meta


def can_open(body: fx.GraphModule) -> bool:
    """Whether all that a branch does is to compute: it runs no graph, checks nothing, and writes into nothing."""
    return all(_computes(body, node) for node in body.graph.nodes)


def _computes(body: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return isinstance(_get_attr(body, str(node.target)), torch.Tensor)
    if node.op != "call_function" or node.target is choose or node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return getattr(node.target, "__module__", None) in ("_operator", "math")  # of sizes
    return bool(schema.name.startswith("aten::")) and not schema.is_mutable and bool(node.users)


def both_run(model: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether both branches of every ``choose`` run on the same inputs."""
    own = [x.detach().clone() if isinstance(x, torch.Tensor) else x for x in inputs]
    try:
        with torch.no_grad(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            fx.Interpreter(copy.deepcopy(model)).run(*own, enable_io_processing=False)
    except Exception:  # torch raises whatever an op that is not meant for these inputs raises
        return False
    return True


def folded(graph: fx.Graph) -> tuple[fx.Graph, dict[str, fx.GraphModule]]:
    """The graph with a ``cond`` in the place of every ``choose``, and the graphs of its branches by the names of the
    attributes that they are read from. A graph without a ``choose`` is returned as it is."""
    bodies: dict[str, fx.GraphModule] = {}
    if not choices(graph):
        return graph, bodies
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about how it copies its own pytree specs
        graph = copy.deepcopy(graph)
    for node in reversed(choices(graph)):
        if node not in graph.nodes:  # it was in a branch
            continue
        sides = [_only_for(node, k) for k in (1, 2)]
        operands = list(dict.fromkeys(value for side in sides for value in _read(node, *side)))
        names = [f"{node.name}_{label}" for label in ("then", "otherwise")]
        bodies.update(zip(names, [_body(*side, operands) for side in sides], strict=True))
        with graph.inserting_before(node):
            branches = [graph.create_node("get_attr", name) for name in names]
            cond = graph.call_function(COND, (node.args[0], *branches, tuple(operands)))
        cond.meta = dict(node.meta)
        node.replace_all_uses_with(cond)
        graph.erase_node(node)
        for one in (one for side in sides for one in reversed(side[0])):
            graph.erase_node(one)
    return graph, bodies


_Side = tuple[list[fx.Node], Sequence[Any]]
"""What a branch computes, in order, and what it returns of it."""


def _only_for(chosen: fx.Node, side: int) -> _Side:
    """What is computed for one side of a ``choose`` alone, from what its branch made."""
    returned: Any = chosen.args[side]
    found: dict[fx.Node, None] = {}
    nodes = list(chosen.graph.nodes)
    made = _made_inside(nodes)
    for node in reversed(nodes[: nodes.index(chosen)]):
        users = [user for user in node.users if user not in found]
        here = node in returned and node not in chosen.args[3 - side]  # type: ignore[operator]
        if node in made and node.users and (not users or (users == [chosen] and here)):
            found[node] = None
    return list(reversed(found)), returned


def _made_inside(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """What branches made, and what was made of that since; not what is made of a result of ``cond``."""
    found: set[fx.Node] = set()
    for node in nodes:
        since = node.op == "call_function" and node.target is not choose
        if inside(node) or (since and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def _read(chosen: fx.Node, nodes: Sequence[fx.Node], returned: Sequence[Any]) -> Iterator[fx.Node]:
    """What a branch is given."""
    own = set(nodes)
    for value in (*(value for node in nodes for value in node.all_input_nodes), *returned):
        if isinstance(value, fx.Node) and value not in own:
            yield value


def _body(nodes: Sequence[fx.Node], returned: Sequence[Any], operands: Sequence[fx.Node]) -> fx.GraphModule:
    graph = fx.Graph()
    made: dict[fx.Node, fx.Node] = {}
    for operand in operands:
        made[operand] = graph.placeholder(operand.name)
        made[operand].meta = dict(operand.meta)
    given = set(made.values())
    for node in nodes:
        made[node] = graph.node_copy(node, made.__getitem__)
    results: list[Any] = []
    for value in fx.node.map_arg(list(returned), made.__getitem__):
        alias = value in given or value in results  # which no branch may return
        results.append(graph.call_function(torch.ops.aten.clone.default, (value,)) if alias else value)
    graph.output(tuple(results))
    graph, bodies = folded(graph)
    root = nn.Module()
    keep(root, bodies)
    return fx.GraphModule(root, graph)


def keep(module: nn.Module, bodies: Mapping[str, fx.GraphModule]) -> None:
    """Give a module the graphs of its branches."""
    for name, body in bodies.items():
        module._modules[name] = body

"""``If``, ``Loop`` and ``Scan``: their subgraphs as part of the whole.

The thin graph is flat. So that it sees what is in the branches of an ``If``, a copy of the model is run in which
both are computed and the ``If`` chooses (``flat``), and one iteration of what a ``Loop`` or ``Scan`` computes again
and again (``loops``); the nodes that are read and edited stay in their subgraphs. An ``If`` whose condition is known
has its branch written in its place for good (``take``). What is ``closed`` is only listed, with a reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import onnx_ir as ir

from ...ir.host import Array
from .loops import is_loop, unroll, why_shut
from .node import standard

BRANCHES = ("then_branch", "else_branch")


def is_if(node: ir.Node) -> bool:
    return node.op_type == "If" and standard(node)


def branches(node: ir.Node) -> tuple[ir.Graph, ir.Graph]:
    """What an ``If`` computes where its condition holds, and where it does not."""
    return node.attributes[BRANCHES[0]].as_graph(), node.attributes[BRANCHES[1]].as_graph()


def subgraphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node holds, not those within them."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def key(node: ir.Node) -> str:
    """What a node is known by in copies of its model."""
    return next(str(value.name) for value in node.outputs if value.name)


Closed = Mapping[str, str]
"""The nodes, by key, whose subgraphs are not looked into, and why."""


def opens(node: ir.Node, closed: Closed) -> bool:
    """Whether the subgraphs of a node are looked into."""
    return (is_if(node) or is_loop(node)) and key(node) not in closed


def walk(graph: ir.Graph, closed: Closed) -> Iterator[tuple[ir.Node, bool]]:
    """Every node of a graph in order, those in subgraphs before what holds them but in ``closed`` ones; and whether
    it is a loop that begins, for a loop comes twice."""
    for node in graph:
        if opens(node, closed):
            if is_loop(node):
                yield node, True
            for inner in subgraphs(node):
                yield from walk(inner, closed)
        yield node, False


def nodes_of(graph: ir.Graph, closed: Closed = MappingProxyType({})) -> Iterator[ir.Node]:
    """Every node of a graph in order, those in subgraphs before what holds them; not of ``closed`` ones."""
    return (node for node, begins in walk(graph, closed) if not begins)


def graphs_of(graph: ir.Graph) -> list[ir.Graph]:
    """A graph and all within it."""
    return [graph, *graph.subgraphs()]


def within(node: ir.Node) -> list[ir.Value]:
    """The initializers and Constant nodes' outputs of a node's subgraphs."""
    found: list[ir.Value] = []
    for graph in subgraphs(node):
        for inner in graphs_of(graph):
            found += inner.initializers.values()
            found += [part.outputs[0] for part in inner if part.op_type == "Constant" and standard(part)]
    return found


def name_apart(model: ir.Model) -> None:
    """Give values and nodes of subgraphs names that nothing else has (in place): branches may use the same, and a
    branch that of a value behind its ``If``."""
    inner = [graph for graph in graphs_of(model.graph) if graph is not model.graph]
    if not inner:
        return
    values, nodes = _names(model.graph)
    for graph in inner:
        for value in [*graph.inputs, *graph.initializers.values(), *(out for node in graph for out in node.outputs)]:
            if value.name:
                fresh = _fresh(value.name, values)
                if value.name != fresh:
                    value.const_value = _copied(value.const_value)  # whose name goes with the value's
                    value.name = fresh
        for node in graph:
            if node.name:
                node.name = _fresh(node.name, nodes)


def _copied(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """A tensor that shares its data, but not its name, with the caller's model."""
    if isinstance(tensor, ir.ExternalTensor):
        at = (tensor.location, tensor.offset, tensor.length, tensor.dtype)
        return ir.ExternalTensor(*at, shape=tensor.shape, name=tensor.name or "", base_dir=tensor.base_dir)
    return None if tensor is None else ir.Tensor(tensor.numpy(), tensor.dtype, name=tensor.name)


def _names(graph: ir.Graph) -> tuple[set[str], set[str]]:
    values = {str(value.name) for value in [*graph.inputs, *graph.initializers.values()]}
    values |= {str(value.name) for node in graph for value in node.outputs}
    return values, {str(node.name) for node in graph}


def _fresh(name: str, taken: set[str]) -> str:
    found = next(n for n in (name, *(f"{name}_{k}" for k in range(1, len(taken) + 2))) if n not in taken)
    taken.add(found)
    return found


# ---- known conditions ------------------------------------------------------------------------------


def known_conditions(model: ir.Model, given: Mapping[str, Array]) -> dict[str, frozenset[str]]:
    """Every ``If`` whose condition is computed from constants and ``given`` inputs alone: its key, and which of these
    inputs it is computed from."""
    inputs = {value: str(value.name) for value in model.graph.inputs}  # some with a default
    constants = {value for graph in graphs_of(model.graph) for value in graph.initializers.values()} - set(inputs)
    sources: dict[ir.Value, frozenset[str] | None] = {value: frozenset[str]() for value in constants}
    sources |= {value: frozenset({name}) if name in given else None for value, name in inputs.items()}
    found: dict[str, frozenset[str]] = {}
    for node in nodes_of(model.graph):
        read = [sources.get(value) for value in node.inputs if value is not None]
        known = None not in read and not subgraphs(node) and (bool(read) or node.op_type == "Constant")
        from_ = frozenset[str]().union(*(names for names in read if names is not None)) if known else None
        sources.update(dict.fromkeys(node.outputs, from_))
        if is_if(node) and node.inputs[0] is not None:
            names = sources.get(node.inputs[0])
            if names is not None:
                found[key(node)] = names
    return found


def deciding_inputs(model: ir.Model, node: ir.Node) -> list[str]:
    """The inputs of the model that a condition is computed from."""
    found: dict[str, None] = {}
    stack, seen = [value for value in node.inputs[:1] if value is not None], set[ir.Value]()
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        maker = value.producer()
        if maker is not None:
            stack += [part for part in maker.inputs if part is not None]
        elif value in model.graph.inputs and not value.is_initializer():
            found[str(value.name)] = None
    return list(found)


def take(model: ir.Model, choices: Mapping[str, bool]) -> None:
    """Write in the place of each ``If`` (by key) the branch that its condition chooses (in place)."""
    for node in [node for node in nodes_of(model.graph) if is_if(node) and key(node) in choices]:
        place = node.graph
        assert isinstance(place, ir.Graph)
        chosen = branches(node)[0 if choices[key(node)] else 1]
        made = list(chosen.outputs)
        chosen.outputs.clear()
        _move(chosen, node)
        for out, value in zip(list(node.outputs), made, strict=True):
            _stand_in(place, node, out, value)
        place.remove(node, safe=True)


def _stand_in(place: ir.Graph, node: ir.Node, out: ir.Value, made: ir.Value) -> None:
    """Who read an output of an ``If`` reads what its branch makes; an output of the graph keeps its name."""
    if out.is_graph_output():
        name, out.name = out.name, f"{out.name}:chosen"
        identity = ir.Node("", "Identity", [made], num_outputs=1, name=f"{name}_taken")
        identity.outputs[0].name, identity.outputs[0].type, identity.outputs[0].shape = name, out.type, out.shape
        place.insert_before(node, identity)
        made = identity.outputs[0]
        for k, value in enumerate(place.outputs):
            if value is out:
                place.outputs[k] = made
    for reader, k in list(out.uses()):
        reader.replace_input_with(k, made)


def _move(branch: ir.Graph, node: ir.Node) -> None:
    """The nodes and weights of a branch into the graph of its ``If``, before it."""
    place = node.graph
    assert isinstance(place, ir.Graph)
    for value in list(branch.initializers.values()):
        branch.initializers.pop(str(value.name))
        place.register_initializer(value)
    for part in list(branch):
        branch.remove(part)
        place.insert_before(node, part)


def flat(model: ir.Model, closed: Closed = MappingProxyType({})) -> ir.Model:
    """A copy in which both branches of every ``If`` that is not ``closed`` are computed, of which it hands on one, and
    one iteration of every such loop."""
    if not any(opens(node, closed) for node in nodes_of(model.graph, closed)):
        return model
    copy = model.clone()
    for node in [node for node in nodes_of(copy.graph, closed) if opens(node, closed)]:
        if is_loop(node):
            unroll(node)
            continue
        for label, branch in zip(BRANCHES, branches(node), strict=True):
            _move(branch, node)
            for k, made in enumerate(list(branch.outputs)):
                name = f"{key(node)}:{label}:{k}"
                identity = ir.Node("", "Identity", [made], num_outputs=1, name=name)
                identity.outputs[0].name = name
                branch.append(identity)
                branch.outputs[k] = identity.outputs[0]
    return copy


def shut(model: ir.Model) -> Closed:
    """The loops that cannot be looked into, whatever they run on."""
    version = model.graph.opset_imports.get("", 1)
    found = {key(node): why_shut(node, version) for node in nodes_of(model.graph) if is_loop(node)}
    return {name: why for name, why in found.items() if why is not None}


def why_not_run(model: ir.Model, node: ir.Node) -> str:
    """Why what is in the subgraphs of a node that do not run beside it stays as it is."""
    if is_loop(node):
        return f"it is computed in the body of a `{node.op_type}`, of which no iteration runs by itself"
    inputs = [name for name in deciding_inputs(model, node) if name]
    hint = f"; a value of `{inputs[0]}` (--input {inputs[0]}=VALUE) takes one" if len(inputs) == 1 else ""
    return f"its branches cannot both be run on one input{hint}"

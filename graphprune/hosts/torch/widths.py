"""What is left of every layer of the user's own class, as data that people read: see rebuild.py."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from ...errors import ModelError
from ...ir.graph import Graph, Op
from ...ir.program import Program
from .configuration import Configuration, Keeps, networks, of_network
from .own_configuration import as_cut

VERSION = 1


def _linear(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    return {"in_features": weight[1], "out_features": weight[0]}


def _conv(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    groups = op.attrs["groups"]
    return {"in_channels": weight[1] * groups, "out_channels": weight[0], "groups": groups}


def _conv_transpose(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    groups = op.attrs["groups"]
    return {"in_channels": weight[0], "out_channels": weight[1] * groups, "groups": groups}


def _norm(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    return {"num_features": weight[0]}


def _group_norm(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    return {"num_channels": weight[0], "num_groups": op.attrs["groups"]}


def _layer_norm(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    return {"normalized_shape": list(weight)}


def _rms_norm(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    return {"normalized_shape": list(weight), **({"eps": op.attrs["eps"]} if "eps" in op.attrs else {})}


def _prelu(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    return {"num_parameters": weight[0]}


def _embedding(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    return {"num_embeddings": weight[0], "embedding_dim": weight[1]}


def _recurrent(op: Op, weight: Sequence[int]) -> dict[str, Any]:
    sizes = {"input_size": weight[1], "hidden_size": weight[0] // op.attrs["gates"]}
    if op.attrs.get("projected"):
        seen = op.inputs[2 + op.attrs["states"]]  # the recurrent weight reads the projected state
        assert seen is not None and seen.shape is not None
        sizes["proj_size"] = int(seen.shape[1])
    return sizes


_SIZES: Mapping[str, tuple[Sequence[int], Callable[[Op, Sequence[int]], dict[str, Any]]]] = {
    "linear": ((1,), _linear),
    "conv": ((1,), _conv),
    "conv_transpose": ((1,), _conv_transpose),
    "batch_norm": ((1, 3), _norm),
    "instance_norm": ((1, 3), _norm),
    "group_norm": ((1,), _group_norm),
    "layer_norm": ((1,), _layer_norm),
    "rms_norm": ((1,), _rms_norm),
    "prelu": ((1,), _prelu),
    "gather": ((0,), _embedding),
    "gather_bags": ((0,), _embedding),
    "recurrent_layers": ((2, 3), _recurrent),
    "recurrent_cell": ((2, 3), _recurrent),
}
"""Per kind of op, what torch's layer of it knows of its sizes beside its tensors, by the shape of its weight: the
first stored one of some operands."""


def all_tokens(program: Program) -> None:
    """Raises ModelError where tokens are dropped or renumbered, which no class of the user's does."""
    edit = next((edit for edit in program.plan.edits if edit.drops), None)
    if edit is not None:
        does = "reads tokens by a table" if edit.kind == "vocabulary" else "drops tokens between blocks"
        raise ModelError(f"`{edit.by}` {does}, which the module's own class has no place for", "take the GraphModule")


def untied(program: Program) -> dict[str, str]:
    """Under which names a class that ties them no more has its tensors, where an embedding that the class of the user
    ties to its head has a weight of its own now: by what they are called here."""
    made: Any = getattr(program.origin, "pretrained", None)
    given = dict(program.origin.model.named_parameters(remove_duplicate=False))
    before, found = {op.name: op for op in program.origin.lift().ops}, dict[str, str]()
    for op in program.graph.ops if made is not None else ():
        table = op.inputs[0] if op.kind == "gather" else None
        if table is None or table.name not in program.graph.parameters or table.name in given or op.name not in before:
            continue
        old = before[op.name].inputs[0].name  # type: ignore[union-attr]
        if old not in given:  # a table that the class computes
            continue
        layers = {
            name: made.model.get_submodule(name.rpartition(".")[0]) for name in given if given[name] is given[old]
        }
        for name in layers:
            found[table.name if isinstance(layers[name], torch.nn.Embedding) else old] = name
    return found


def widths(program: Program, untied: Container[str] = ()) -> dict[str, Any]:
    """``tensors``: per name the shape it was made with and has now (of what no checkpoint holds, also which positions
    to ``keep``); ``layers``: the sizes to set, by module; ``eps``: the attribute to change, by its value, of modules
    that write a norm out; ``identity``: modules that do nothing any more; ``baked``: weights that the class
    computes by a parametrization (weight_norm), and that are plain here. Names are those of the user's class, but for
    those that are ``untied``, see there, which another one is to have.

    Raises ModelError where the network has something that the class has no place for.
    """
    all_tokens(program)
    before, after = _tensors(program.origin.model), _tensors(program.model)
    after = {name: shape for name, shape in after.items() if name in before or name not in untied}
    _check(program, before, after)
    saved = program.model.state_dict()
    stored = {name for name, one in _before(program).get("tensors", {}).items() if "keep" in one}
    changed: dict[str, Any] = {}
    for name, shape in after.items():
        if shape != before.get(name):
            changed[name] = {"was": before.get(name), "is": shape}
            if name not in saved or name in stored:
                changed[name]["keep"] = kept(program, name)
    gone = {name.rpartition(".")[0] for name in before.keys() - after.keys()}
    read = {value.name for op in program.graph.ops for value in op.inputs if value is not None}
    for owner in gone:
        if not owner or any(name.startswith(f"{owner}.") for name in read):
            raise _unfit(f"a part of `{owner}` is gone")
    layers = dict(_layers(program.graph, {name.rpartition(".")[0] for name in changed}))
    for prefix, own in _configured(program, before) if changed else ():
        sizes = {name: tuple(after.get(prefix + name, was)) for name, was in own.sizes.items()}
        now = as_cut(own, keeps(program, own.sizes, prefix), program.model, prefix)
        for path, attribute, value in now.numbers(sizes, own):  # what is no layer of torch's keeps numbers too
            layers.setdefault(prefix + path, {}).setdefault(attribute, value)
    eps = dict(_eps(program.origin.lift(), program.graph))
    found = {"version": VERSION, "tensors": changed, "layers": layers, "eps": eps, "identity": sorted(gone)}
    return {**found, "baked": sorted(getattr(program.origin, "baked", ()))}


def _configured(program: Program, before: Mapping[str, Any]) -> Iterator[tuple[str, Configuration]]:
    """Of the networks of the transformers library in it: what their tensors' names begin with, and the class that was
    traced."""
    if made := getattr(program.origin, "pretrained", None):
        yield "", made.configuration
    elif (given := getattr(program.origin, "module", None)) is not None:
        for prefix, network in networks(given):
            own = of_network(network)
            if own is not None and all(before.get(prefix + name) == list(shape) for name, shape in own.sizes.items()):
                yield prefix, own


def of_the_whole(program: Program, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``widths`` found, from the library's class on: the network of a folder may have had widths before."""
    before: Any = _before(program)
    if not before:
        return found
    eps = {path: {**one, "was": before["eps"].get(path, one)["was"]} for path, one in found["eps"].items()}
    layers = {path: {**before["layers"].get(path, {}), **sizes} for path, sizes in found["layers"].items()}
    tensors = {name: _followed(before["tensors"].get(name), one) for name, one in found["tensors"].items()}
    changed = {"tensors": tensors, "layers": layers, "eps": eps}
    once = {what: sorted({*before[what], *found[what]}) for what in ("identity", "baked")}
    return {**found, **{what: {**before[what], **now} for what, now in changed.items()}, **once}


def _before(program: Program) -> Mapping[str, Any]:
    """The widths that the network of a folder had, see own_class."""
    made: Any = getattr(program.origin, "pretrained", None)
    return (made.widths if made is not None else None) or {}


def _followed(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """Of a tensor that was cut before, both cuts as one."""
    if old is None:
        return dict(new)
    both = {"was": old["was"], "is": new["is"]}
    if "keep" in new:
        first, then = old["keep"], new["keep"]
        both["keep"] = {**first, **then, **{axis: [first[axis][k] for k in then[axis]] for axis in first.keys() & then}}
    return both


def keeps(program: Program, names: Iterable[str], prefix: str = "") -> Keeps:
    """See ``kept``, of each tensor; ``prefix``: what goes before its name in the program."""
    return {name: kept(program, prefix + name) for name in names}


def kept(program: Program, name: str) -> dict[str, list[int]]:
    """Per axis which positions of the class's own tensor are left, over all that was compiled in turn."""
    left: dict[str, list[int]] = {}
    for parameters in (*program.earlier, program.plan.parameters):
        for axis, one in parameters.get(name, {}).items():
            left[axis] = [left[axis][k] for k in one["keep"]] if axis in left else list(one["keep"])
    return left


def _eps(before: Graph, after: Graph) -> Iterator[tuple[str, dict[str, float]]]:
    """Of the norms that the class writes out."""
    was, now = ({op.name: float(op.attrs.get("plus", 0)) for op in graph.ops} for graph in (before, after))
    for norm in after.norms:
        if norm.eps and was[norm.eps] != now[norm.eps]:
            yield norm.weight.rpartition(".")[0], {"was": was[norm.eps], "is": now[norm.eps]}


def _tensors(model: fx.GraphModule) -> dict[str, list[int]]:
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: list(tensor.shape) for name, tensor in named}


def _check(program: Program, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    known = {op.name for op in program.origin.lift().ops}
    for op in program.graph.ops:
        if op.name not in known:
            raise _unfit(f"{op.where} is new")
    for name in after.keys() - before.keys():
        if name.rpartition(".")[2] != "bias":
            raise _unfit(f"`{name}` is new")


def _unfit(what: str) -> ModelError:
    return ModelError(
        f"the class that the network was traced from has no place for what was made of it: {what}",
        "keep the network itself, torch.save(program.model)",
    )


def _layers(graph: Graph, changed: set[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Of the layers whose tensors changed."""
    for op in graph.ops:
        places, sizes = _SIZES.get(op.kind, ((), _linear))
        stored = [v for k in places if k < len(op.inputs) and (v := op.inputs[k]) is not None]
        weight = next((value for value in stored if value.name in graph.parameters), None)
        path = weight.name.rpartition(".")[0] if weight is not None else ""
        if weight is not None and weight.shape and path in changed:
            yield path, sizes(op, [int(size) for size in weight.shape])

"""The vocabulary of a language model: the embedding that numbers of an input are looked up in, and the head with an
output for each token."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from ..errors import ModelError
from ..ir.graph import Graph, Op, Value
from ..ops.traits import traits
from .norms import CASTS

_MOVES = ("reshape", "transpose", "slice", "select", "expand")
"""Ops after which numbers of tokens are still that."""


@dataclass(frozen=True)
class Head:
    """A layer that makes a number for each token, and the axes of tensors that hold one of its outputs each."""

    op: Op
    axes: tuple[tuple[str, int], ...]

    @property
    def out(self) -> Value:
        return self.op.outputs[0]


@dataclass(frozen=True)
class Vocabulary:
    """``lookups``: the ops that read the ``embedding``, a parameter of ``size`` rows, by numbers of tokens; ``inputs``:
    which inputs of the model, by number, are such numbers."""

    embedding: str
    size: int
    lookups: tuple[Op, ...]
    inputs: tuple[int, ...]
    heads: tuple[Head, ...]

    @property
    def axes(self) -> tuple[tuple[str, int], ...]:
        """Every axis of a tensor with a position for each token, once."""
        return tuple(dict.fromkeys([(self.embedding, 0), *(axis for head in self.heads for axis in head.axes)]))


def vocabulary(graph: Graph, embedding: str = "") -> Vocabulary:
    """The embedding of that name, or the largest that numbers of an input are looked up in, with all that has an
    output for each of its rows: the layers that share its tensor, or else the one with as many outputs of the model.

    Raises ModelError where there is none, or something reads its tensors in another way.
    """
    found: dict[str, list[Op]] = {}
    for op in graph.ops:
        weight = _looked_up(graph, op)
        if weight is not None:
            found.setdefault(weight.name, []).append(op)
    known = {name: ops for name, ops in found.items() if list(roots(graph, ops))}
    sizes = {name: int(graph.parameters[name].shape[0]) for name in known}  # type: ignore[index]
    if embedding and embedding not in known:
        raise ModelError(f"no embedding `{embedding}` is read by numbers of an input", _those(sizes))
    if not known:
        raise ModelError("no embedding is read by numbers of an input", "a vocabulary is trimmed once")
    name = embedding or max(sizes, key=lambda one: sizes[one])
    if not embedding and list(sizes.values()).count(sizes[name]) > 1:
        raise ModelError(f"several embeddings have {sizes[name]} rows", f"{_those(sizes)}: say which, embedding=NAME")
    made = Vocabulary(
        name, sizes[name], tuple(known[name]), tuple(roots(graph, known[name])), _heads(graph, name, sizes[name])
    )
    _check(graph, made)
    return made


def _those(sizes: Mapping[str, int]) -> str:
    return "those that are: " + ", ".join(f"{name} ({size} rows)" for name, size in sizes.items()) if sizes else ""


def _looked_up(graph: Graph, op: Op) -> Value | None:
    """The parameter whose rows an op looks up, if that is what it does."""
    weight, ids = (*op.inputs, None, None)[:2]
    if op.kind != "gather" or op.attrs["axis"] != 0 or weight is None or ids is None or ids.constant:
        return None
    return weight if weight.name in graph.parameters and len(weight.dims) == 2 and "float" in weight.dtype else None


def roots(graph: Graph, lookups: Sequence[Op]) -> Iterator[int]:
    """The inputs of the model, by number, that lookups read as they are."""
    found = dict[int, None]()
    for op in lookups:
        value = op.inputs[1]
        while value is not None and (maker := graph.maker(value)) is not None:
            moves = maker.kind in _MOVES or (maker.kind == "pointwise" and maker.attrs.get("function") in CASTS)
            value = maker.inputs[0] if moves else None
        if value is not None and value in graph.inputs and value.dtype.startswith(("int", "uint")):
            found[graph.inputs.index(value)] = None
    yield from found


def _heads(graph: Graph, embedding: str, size: int) -> tuple[Head, ...]:
    tied, others = list[Head](), list[Head]()
    for op in graph.ops:
        out = op.outputs[0] if op.outputs else None
        if not traits(op).contracts or op.kind == "conv" or out is None or not out.dims or out.dims[-1].size != size:
            continue
        relation, last = graph.relations[op.name], len(out.dims) - 1
        name = next((name for name, at in relation.outputs.items() if (0, last) in at), None)
        places = relation.inputs[name] if name is not None else ()
        axes = [_stored(graph, value, axis) for k, axis in places if (value := op.inputs[k]) is not None]
        if axes and None not in axes:
            head = Head(op, tuple(axis for axis in axes if axis is not None))
            (tied if (embedding, 0) in head.axes else others).append(head)
    if tied:
        return tuple(tied)
    told = _told(graph, {head.op for head in others}, size)
    others = [head for head in others if head.op in told]
    if len(others) > 1:
        names = ", ".join(head.op.where for head in others)
        raise ModelError(f"several layers have an output for each of the {size} rows of `{embedding}`: {names}")
    return tuple(others)


def _told(graph: Graph, among: Set[Op], size: int) -> set[Op]:
    """Those of which outputs of the model are made position by position, along a last axis of that size."""
    todo, found = [value for value in graph.outputs if _wide(value, size)], set[Op]()
    seen = set(todo)
    while todo:
        maker = graph.maker(todo.pop())
        if maker is None:
            continue
        if maker in among:
            found.add(maker)
        else:
            read = {value for value in maker.inputs if value is not None and _wide(value, size)} - seen
            seen |= read
            todo += read
    return found


def _wide(value: Value, size: int) -> bool:
    return bool(value.dims) and value.dims[-1].size == size and not value.constant


def _stored(graph: Graph, value: Value, axis: int) -> tuple[str, int] | None:
    """The parameter that a constant is, or a transpose of it, and which of its axes this is."""
    while value.name not in graph.parameters:
        maker = graph.maker(value)
        if maker is None or maker.inputs[0] is None:
            return None
        if maker.kind == "transpose":
            axis = maker.attrs["perm"][axis]
        elif maker.kind != "pointwise" or maker.attrs.get("function") not in CASTS:
            return None
        value = maker.inputs[0]
    return value.name, axis


def _check(graph: Graph, made: Vocabulary) -> None:
    """Raises ModelError where something else reads the tensors."""
    own, known = {name for name, _ in made.axes}, {*made.lookups, *(head.op for head in made.heads)}
    held = {value: name for name, value in graph.parameters.items() if name in own}  # and what is computed of it
    for op in graph.ops:
        read = next((held[value] for value in op.inputs if value in held), "")
        if read and op not in known:
            if not all(out.constant for out in op.outputs):
                hint = "only a vocabulary that lookups and a linear head read can be trimmed"
                raise ModelError(f"{op.where} reads `{read}`, which has a row for each token", hint)
            held |= dict.fromkeys(op.outputs, read)

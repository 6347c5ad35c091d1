"""What a module holds beside what its traced graph reads: layers that only `train()`, another method or an
optional input runs, buffers of training, copies of weights. A cut cannot know how they follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError, nearest
from ..ir.graph import Graph


def refuse_unread(module: nn.Module, graph: Graph, cut: Mapping[int, str], allowed: Sequence[str]) -> None:
    """Raise ModelError for every tensor of ``module`` that no op of ``graph`` reads and that has an axis as
    wide as one that is cut (``cut``: the widths, and for each a parameter that has it): nobody knows whether it
    must be cut along. ``allowed``: names, with wildcards, of those that the user answers for.
    """
    unread = dict(_unread(module, graph))
    for pattern in allowed:
        if not any(fnmatchcase(name, pattern) for name in unread):
            raise ModelError(
                f"allow_unread: `{pattern}` is no tensor that the traced graph leaves unread", nearest(pattern, unread)
            )
    found = [
        (name, size, width)
        for name, tensor in unread.items()
        if not any(fnmatchcase(name, pattern) for pattern in allowed)
        for size, width in _shared(tensor.shape, cut)
    ]
    if found:
        names = list(dict.fromkeys(name for name, _, _ in found))
        shown = ", ".join(f"`{name}` {tuple(unread[name].shape)}" for name in names[:5])
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        _, size, width = found[0]
        times = _relation(size, width)
        raise ModelError(
            f"{type(module).__name__} cannot be cut in place: the forward that was traced does not read {shown}{more}, "
            f"and {size} is {times}the width of `{cut[width]}`, which is cut",
            "trace a forward that uses them, freeze that width, train the GraphModule (`program.model`), "
            "or say allow_unread=[names] where they need no cut",
        )


NARROW = 8
"""Multiples of a width below this one say nothing: nearly every size is one."""


SHUFFLES = (4, 9, 16)
"""So many channels become the pixels of one."""


def _shared(shape: Sequence[int], cut: Mapping[int, str]) -> Iterator[tuple[int, int]]:
    """The sizes of a shape that are a cut width, or (flattened channels) a multiple of one; and that width. What a
    layer reads may be the sum of several (a concatenation) or a part of one (shuffled pixels)."""
    for axis, size in enumerate(shape):
        widths = [width for width in cut if size == width or (width >= NARROW and size and size % width == 0)]
        if not widths and axis == 1:
            pixels = SHUFFLES if len(shape) == 4 and size > 1 else ()
            widths = [width for width in cut if _sum(size - width, cut) or width in [size * k for k in pixels]]
        if widths:
            yield size, max(widths)


def _sum(rest: int, cut: Mapping[int, str]) -> bool:
    """Whether cut widths, of ``NARROW`` and more, add up to it."""
    wide = [width for width in cut if width >= NARROW]
    sums = {0}
    for _ in range(max(rest, 0) // min(wide, default=rest + 1)):
        sums |= {total + width for total in sums for width in wide if total + width <= rest}
    return rest > 0 and rest in sums


def _relation(size: int, width: int) -> str:
    if size == width:
        return ""
    if size % width == 0:
        return f"{size // width} times "
    return "a part of " if size < width else "a sum with "


def tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer, a tied one under each of its names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _unread(module: nn.Module, graph: Graph) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and other tensors of the module, each once, that no op of the graph reads."""
    read = {value.name for op in graph.ops for value in op.inputs if value is not None}
    registered = tensors(module)
    seen = {id(tensor) for name, tensor in registered if name in read}
    for name, tensor in (*registered, *_loose(module)):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _loose(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Tensors that layers hold as plain attributes, alone or in lists and dictionaries."""
    for name, layer in module.named_modules():
        for key, value in vars(layer).items():
            if not key.startswith("_"):
                for place, tensor in _within(value):
                    yield f"{name}.{key}{place}".removeprefix("."), tensor


def _within(value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield "", value
    elif isinstance(value, nn.Module):  # kept out of the tree on purpose: an average of weights, a teacher
        yield from ((f".{name}", tensor) for name, tensor in value.state_dict(keep_vars=True).items())
    elif isinstance(value, (list, tuple)):
        for k, item in enumerate(value):
            yield from ((f"[{k}]{place}", tensor) for place, tensor in _within(item))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ((f"[{key!r}]{place}", tensor) for place, tensor in _within(item))


@torch.no_grad()
def training_error(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """What the forward raises in training mode, run on a copy without hooks; None where it runs, or where the
    module cannot be copied."""
    try:
        copy = deepcopy(module)
    except Exception:  # the user's own attributes may refuse
        return None
    for layer in copy.modules():
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            hooks.clear()
    with torch.random.fork_rng(devices=[]):
        try:
            copy.train()(*args, **kwargs)
        except Exception as error:  # the user's forward may raise anything
            return f"{type(error).__name__}: {error}"
    return None

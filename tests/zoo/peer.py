"""Torch-Pruning on the same architecture: does it run, and does the result compute what its masked form does?

It is used as its documentation says for an unknown network: half of every layer's channels by the L2
norm, layers that make the output left alone. Groups with a LayerNorm, GroupNorm or RMSNorm are left
alone too, because no cut across one equals its mask. The history of what was cut gives the mask: in
a copy of the network, every slice of a linear layer, convolution or BatchNorm that was cut is zero,
biases with it (a grouped convolution's inputs have none of their own: what makes them is zero). Both
are run in float64.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from graphprune.pipeline.compare import relative

from .catalogue import Architecture

Indices = np.ndarray[Any, Any]
Axis = tuple[str, bool]  # a layer's name, and whether its input channels are meant

EXACT = 1e-9
DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def measure(architecture: Architecture) -> dict[str, Any]:
    """``outcome`` ok, wrong, crash or nothing (was cut); ``detail``; ``left``: the share of parameters that
    remains."""
    module, inputs = architecture.build()
    module, inputs = module.double(), tuple(x.double() if x.is_floating_point() else x for x in inputs)
    original = copy.deepcopy(module)
    before = _outputs(original, inputs)
    try:
        alive = cut(module, inputs)
        after = _outputs(module, inputs)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return {"outcome": "crash", "detail": f"{type(error).__name__}: {lines[0][:120]}"}
    left = _count(module) / _count(original)
    if left == 1:
        return {"outcome": "nothing", "detail": "nothing was cut", "left": left}
    if [y.shape for y in before] != [y.shape for y in after]:
        return {"outcome": "wrong", "detail": "output shape", "left": left}
    expected = _outputs(mask(original, alive), inputs)
    furthest = max(relative(a, b) for a, b in zip(expected, after, strict=True))
    moved = max(relative(a, b) for a, b in zip(before, after, strict=True))
    return {"outcome": "ok" if furthest <= EXACT else "wrong", "error": furthest, "moved": moved, "left": left}


def cut(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> dict[Axis, Indices]:
    """Prune ``module`` in place; which of the original positions are alive, for every axis that was cut."""
    import torch_pruning as tp

    names = {part: name for name, part in module.named_modules()}
    pruner = tp.pruner.BasePruner(
        module,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=list(_makers_of_the_output(module, inputs)),
    )
    alive: dict[Axis, Indices] = {}
    for group in pruner.step(interactive=True):
        if any(_normalises(dependency) for dependency, _ in group):
            continue
        for dependency, indices in group:
            part = dependency.target.module
            reads = pruner.DG.is_in_channel_pruning_fn(dependency.handler)
            if isinstance(part, BATCH_NORM) or (
                isinstance(part, DENSE) and (getattr(part, "groups", 1) == 1 or not reads)
            ):
                axis = (names[part], reads and isinstance(part, DENSE))
                alive[axis] = np.delete(alive.get(axis, np.arange(_width(part, axis[1]))), indices)
        group.prune()
    return alive


def mask(module: nn.Module, alive: dict[Axis, Indices]) -> nn.Module:
    """A copy in which what is not alive is zero."""
    masked = copy.deepcopy(module)
    with torch.no_grad():
        for (name, reads), kept in alive.items():
            part: Any = masked.get_submodule(name)
            gone = torch.from_numpy(np.setdiff1d(np.arange(_width(part, reads)), kept))
            turned = isinstance(part, (nn.ConvTranspose1d, nn.ConvTranspose2d))
            if part.weight is not None:
                part.weight.index_fill_(int(reads != turned), gone, 0)
            if not reads and part.bias is not None:
                part.bias.index_fill_(0, gone, 0)
    return masked


def _width(part: Any, reads: bool) -> int:
    if isinstance(part, BATCH_NORM):
        return int(part.num_features)
    if isinstance(part, nn.Linear):
        return part.in_features if reads else part.out_features
    return int(part.in_channels if reads else part.out_channels)


def _normalises(dependency: Any) -> bool:
    target = dependency.target
    kind, name = type(target.module).__name__, str(target.name)
    if isinstance(target.module, nn.Parameter):
        return "norm" in name.lower() or "ln" in name.lower()
    return "Norm" in kind and "BatchNorm" not in kind


def _makers_of_the_output(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> Iterator[nn.Module]:
    """The layers whose output channels are those of an output, as graphprune sees them."""
    import graphprune as gp
    from graphprune.axes.dim import leaves

    from .measure import dense

    graph = gp.load(copy.deepcopy(module), inputs).graph
    parts = dict(module.named_modules())
    last = {leaf for value in graph.outputs for dim in value.dims for leaf in leaves(dim)}
    for name in dense(graph):
        owner = parts.get(name.rpartition(".")[0])
        if owner is not None and last & set(leaves(graph.parameters[name].dims[0])):
            yield owner


def _outputs(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> list[np.ndarray[Any, Any]]:
    with torch.no_grad():
        result = module(*inputs)
    return [y.numpy() for y in (result if isinstance(result, tuple) else (result,))]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

"""Modules that accelerate has placed: on several devices, in memory apart, or on the disk (``device_map``)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

MOVED = "accelerate has the weights on several devices or apart from the module: they are read to the CPU"


def gathered(module: nn.Module, inputs: Any) -> tuple[nn.Module, Any, tuple[str, ...]]:
    """What computes the same without accelerate, on the same tensors: weights that stand on the meta device are read
    from where its hooks have them. All is on the CPU then, inputs too, and a note says so, where the module is not on
    one device. The module itself is left as it is, and is what is returned where it has no hooks."""
    hooks = {id(hook): None for part in module.modules() for hook in _hooks(part)}
    if not hooks:
        return module, inputs, ()
    away = dict(_away(module))
    tensors = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    moved = bool(away) or len({tensor.device for tensor in tensors.values()}) > 1
    memo: dict[int, Any] = dict(hooks)
    for key, tensor in tensors.items():
        memo[key] = _like(tensor, away.get(key, tensor), moved)
    made = copy.deepcopy(module, memo)
    for part in made.modules():
        _unhook(part)
    if not moved:
        return made, inputs, ()
    return made, pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, inputs), (MOVED,)


def _hooks(part: nn.Module) -> Iterator[Any]:
    hook = getattr(part, "_hf_hook", None)
    if hook is not None:
        yield hook
        yield from getattr(hook, "hooks", ())


def _away(module: nn.Module) -> Iterator[tuple[int, torch.Tensor]]:
    """The values of tensors on the meta device, by what stands for them."""
    for part in module.modules():
        for hook in _hooks(part):
            weights: Mapping[str, torch.Tensor] | None = getattr(hook, "weights_map", None)
            deep = bool(getattr(hook, "place_submodules", False))
            for name, tensor in chain(part.named_parameters(recurse=deep), part.named_buffers(recurse=deep)):
                if weights is not None and tensor.is_meta and name in weights:
                    yield id(tensor), weights[name]


def _like(tensor: torch.Tensor, value: torch.Tensor, moved: bool) -> torch.Tensor:
    if value is tensor and (not moved or tensor.is_meta or tensor.device.type == "cpu"):
        return tensor
    there = value.detach().to("cpu", tensor.dtype)
    return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there


def _unhook(part: nn.Module) -> None:
    """A forward as it was, and what accelerate put in the place of ``to`` and its kin, which is for the other module,
    left out."""
    own = vars(part)
    own.pop("_hf_hook", None)
    if (before := own.pop("_old_forward", None)) is not None:
        own.pop("forward", None)
        if getattr(before, "__func__", before) is not type(part).forward:
            part.forward = before
    for name in [name for name, value in own.items() if hasattr(value, "__wrapped__") and hasattr(type(part), name)]:
        del own[name]

"""Your own class at the widths of a compiled network, in plain torch: nothing is needed but widths.json.

    model = rebuild(YourClass(), "the folder of widths.json")
    model.load_state_dict(torch.load("weights.pt"))  # or a checkpoint of what was trained since

What ``forward`` has written in it (``x.view(2, 64)``) is for you to change.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNormLoadStateDictPreHook

M = TypeVar("M", bound=nn.Module)


def rebuild(model: M, folder: str | Path = ".") -> M:
    """``model``, its tensors and layers changed as ``folder/widths.json`` says; their values are yet to be loaded."""
    return resized(model, json.loads((Path(folder) / "widths.json").read_text(encoding="utf-8")))


def resized(model: M, widths: Any) -> M:
    """The same from what is in the file."""
    for name in widths.get("baked", ()):
        _bake(model, name)
    new: dict[int, torch.Tensor] = {}
    for name, tensor in widths["tensors"].items():
        path, _, leaf = name.rpartition(".")
        layer = model.get_submodule(path)
        old = getattr(layer, leaf)
        if old is None:  # a bias that the layer did not have
            setattr(layer, leaf, nn.Parameter(layer.weight.detach().new_empty(tensor["is"])))  # type: ignore[operator]
            continue
        if id(old) not in new:  # a tensor under two names stays one
            made = old.detach().new_empty(tensor["is"])
            if "keep" in tensor:  # values that no checkpoint has
                made = old.detach()
                for axis, kept in tensor["keep"].items():
                    made = made.index_select(int(axis), torch.tensor(kept, device=made.device))
            new[id(old)] = nn.Parameter(made, old.requires_grad) if isinstance(old, nn.Parameter) else made
        setattr(layer, leaf, new[id(old)])
    for path, sizes in widths["layers"].items():
        layer = model.get_submodule(path)
        for size, value in sizes.items():
            if hasattr(layer, size):  # torch's layers remember their sizes, your own may not
                setattr(layer, size, tuple(value) if isinstance(value, list) else value)
    for path, eps in widths.get("eps", {}).items():  # a norm of your own: whatever its attribute is called
        layer = model.get_submodule(path)
        mine = [name for name, value in vars(layer).items() if type(value) is float and value == eps["was"]]
        if len(mine) != 1:
            where = f"`{path or type(model).__name__}`"
            raise ValueError(f"{where} has no attribute that is its eps, {eps['was']:g}: it is to be {eps['is']:g}")
        setattr(layer, mine[0], eps["is"])
    for path in widths["identity"]:  # a norm that went into the layer before it
        model.set_submodule(path, nn.Identity())
    return model


def stored(model: M, widths: Any) -> M:
    """The same, whose state dict also has the values that no checkpoint holds, cut as they are: a library that makes
    them anew would make them whole."""
    for name, tensor in widths["tensors"].items():
        path, _, leaf = name.rpartition(".")
        if "keep" in tensor:
            model.get_submodule(path)._non_persistent_buffers_set.discard(leaf)
    return model


def _bake(model: nn.Module, name: str) -> None:
    """Make a weight plain that ``weight_norm`` and its kin compute at every call."""
    path, _, leaf = name.rpartition(".")
    layer = model.get_submodule(path)
    if parametrize.is_parametrized(layer, leaf):
        kind = type(layer)  # that of its copies too, and torch takes the weight off it
        own = {key: value for key, value in vars(kind).items() if key not in ("__dict__", "__weakref__")}
        layer.__class__ = type(kind.__name__, kind.__bases__, own)
        parametrize.remove_parametrizations(layer, leaf)
    for remove in (remove_weight_norm, remove_spectral_norm):  # torch's older hooks
        with suppress(ValueError):  # it is none of that kind
            remove(layer, leaf)
    hooks = layer._load_state_dict_pre_hooks
    for key, hook in list(hooks.items()):  # which torch leaves there, and which asks for what is gone
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del hooks[key]

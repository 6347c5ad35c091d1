"""Gradients and Hessian products of a loss with respect to a model's parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...ir.host import Array
from .run import to_numpy


def differentiate(
    model: torch.nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    loss: Callable[[Any], Any],
    probe: Mapping[str, Array] | None,
) -> dict[str, Array]:
    """See ir.Host.gradients. Parameters that the loss does not depend on have zero gradients."""
    own = {name: p for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}
    asked = {name: p.requires_grad for name, p in own.items()}
    try:
        for parameter in own.values():
            parameter.requires_grad_(True)
        with torch.enable_grad():
            value = loss(model(*args, **kwargs))
            first = torch.autograd.grad(value, list(own.values()), create_graph=probe is not None, allow_unused=True)
            if probe is None:
                return {name: _array(g, p) for (name, p), g in zip(own.items(), first, strict=True)}
            vectors = {name: torch.from_numpy(np.asarray(v)).to(own[name]) for name, v in probe.items()}
            dot = torch.zeros((), dtype=value.dtype, device=value.device)
            for name, gradient in zip(own, first, strict=True):
                if gradient is not None and name in vectors:
                    dot = dot + (gradient * vectors[name]).sum()
            second = torch.autograd.grad(dot, [own[name] for name in vectors], allow_unused=True)
    finally:
        for name, parameter in own.items():
            parameter.requires_grad_(asked[name])
    return {
        name: _array(None if h is None else h * v, own[name])
        for (name, v), h in zip(vectors.items(), second, strict=True)
    }


def _array(value: torch.Tensor | None, like: torch.Tensor) -> Array:
    return np.zeros(like.shape) if value is None else to_numpy(value)

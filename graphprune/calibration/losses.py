"""Losses by name: those of torch.nn.functional, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import DataError, nearest, shown

LOSSES = {
    "cross_entropy": "cross_entropy",
    "nll": "nll_loss",
    "bce": "binary_cross_entropy_with_logits",
    "mse": "mse_loss",
    "l1": "l1_loss",
    "smooth_l1": "smooth_l1_loss",
}
LABELS = ("labels", "label", "targets", "target", "y")
"""What the arrays of a file are called that are no inputs but what a loss compares with."""


def loss_of(name: str, imported: Callable[[str], Callable[..., Any]]) -> Callable[..., Any]:
    """The loss that ``cross_entropy`` or ``package.module:function`` means. Raises DataError."""
    if ":" in name:
        return imported(name)
    known = {**LOSSES, **{torchs: torchs for torchs in LOSSES.values()}}
    if name not in known:
        raise DataError(f"unknown loss `{shown(name)}`", f"{nearest(name, LOSSES)} Or package.module:function")
    import torch

    found: Callable[..., Any] = getattr(torch.nn.functional, known[name])
    return found


def labels_of(names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Those of the names of a file's arrays that are labels."""
    return [name for name in names if name in LABELS and name not in inputs]

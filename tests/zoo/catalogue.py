"""What an architecture is here, and the catalogue that vision.py, language.py and others.py fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Inputs = Callable[[], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Architecture:
    """A small network with random weights.

    ``inputs`` gives the forward's keyword arguments, ``fixed`` those that are no tensors.
    ``outputs`` are the fields of the result that are kept, in order; empty: the result is a tensor.
    """

    name: str
    family: str
    make: Callable[[], nn.Module]
    inputs: Inputs
    outputs: tuple[str, ...]
    fixed: Mapping[str, Any]

    def build(self, seed: int = 0) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
        """The network in evaluation mode, every parameter and buffer random, and its inputs."""
        torch.manual_seed(seed)
        inputs = dict(self.inputs())
        network = Wrapped(randomise(self.make(), seed), tuple(inputs), self.outputs, self.fixed)
        return network.eval(), tuple(inputs.values())


CATALOGUE: dict[str, Architecture] = {}


def architecture(
    name: str, family: str, make: Callable[[], nn.Module], inputs: Inputs, *outputs: str, **fixed: Any
) -> None:
    """Enter one. Without ``outputs`` the logits are kept."""
    assert name not in CATALOGUE, name
    CATALOGUE[name] = Architecture(name, family, make, inputs, outputs or ("logits",), fixed)


class Wrapped(nn.Module):
    """A network that takes its tensors by position and returns tensors alone."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], outputs: tuple[str, ...], fixed: Mapping[str, Any]):
        super().__init__()
        self.model, self.names, self.outputs, self.fixed = model, names, outputs, dict(fixed)

    def forward(self, *tensors: torch.Tensor) -> Any:
        result = self.model(**dict(zip(self.names, tensors, strict=True)), **self.fixed)
        if isinstance(result, torch.Tensor):
            return result
        picked = tuple(getattr(result, name) for name in self.outputs)
        return picked[0] if len(picked) == 1 else picked


def randomise(module: nn.Module, seed: int) -> nn.Module:
    """Every parameter and buffer random, none zero, at a scale where signals neither die nor explode:
    weights 1/sqrt(fan in), scales near one, shifts small, variances positive."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
                continue  # counters, index tables and masks of -inf
            noise = torch.randn(tensor.shape, generator=rng, dtype=tensor.dtype)
            leaf = name.rpartition(".")[2]
            if leaf in ("running_var", "inv_freq", "original_inv_freq", "embed_scale"):
                tensor.copy_(noise.abs().clamp(max=2) / 2 + 0.5)
            elif tensor.ndim > 1:
                tensor.copy_(noise * tensor[0].numel() ** -0.5)
            elif leaf == "weight" or leaf.startswith(("gamma", "lambda", "scale")):
                tensor.copy_(1 + 0.3 * noise)
            else:
                tensor.copy_(0.3 * noise)
    return module


def images(size: int = 32, batch: int = 2, name: str = "pixel_values", channels: int = 3) -> Inputs:
    return lambda: {name: torch.randn(batch, channels, size, size)}


def tokens(length: int = 7, batch: int = 2, vocabulary: int = 50, *, mask: bool = False) -> Inputs:
    """Token numbers from 3 on (the first few often mean padding)."""

    def make() -> dict[str, torch.Tensor]:
        made = {"input_ids": torch.randint(3, vocabulary, (batch, length))}
        return {**made, "attention_mask": torch.ones(batch, length, dtype=torch.int64)} if mask else made

    return make


def pair(length: int = 7, batch: int = 2, vocabulary: int = 50) -> Inputs:
    return lambda: {
        "input_ids": torch.randint(3, vocabulary, (batch, length)),
        "decoder_input_ids": torch.randint(3, vocabulary, (batch, length - 2)),
    }


def waves(length: int = 1600, batch: int = 2) -> Inputs:
    return lambda: {"input_values": torch.randn(batch, length)}

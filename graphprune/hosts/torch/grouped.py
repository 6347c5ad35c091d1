"""Rows times one of several weights each, in any precision: torch's own op is of bfloat16 alone."""

from __future__ import annotations

import torch


@torch.library.custom_op("graphprune::grouped_mm", mutates_args=())
def grouped_mm(input: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    """``input`` (rows, inputs), sorted by weight; ``weight`` (weights, inputs, outputs); ``offs`` (weights): the row
    at which those of each end. Rows behind the last are zero. Returns (rows, outputs)."""
    made, start = input.new_zeros(len(input), weight.shape[2]), 0
    for one, end in zip(weight, offs.tolist(), strict=True):
        made[start:end], start = input[start:end] @ one, end
    return made


@grouped_mm.register_fake
def _(input: torch.Tensor, weight: torch.Tensor, offs: torch.Tensor) -> torch.Tensor:
    return input.new_empty(input.shape[0], weight.shape[2])

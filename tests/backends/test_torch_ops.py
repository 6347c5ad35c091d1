"""Ops of torch that TVM's frontend reads as something else, or not at all, compute what torch does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.backends.tvm.target import Tvm

pytest.importorskip("tvm")

Ops = Mapping[str, Callable[[torch.Tensor], torch.Tensor]]


class Each(nn.Module):
    """Every one of some functions, of the same tensor."""

    def __init__(self, ops: Ops) -> None:
        super().__init__()
        self.ops = ops

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(op(x) for op in self.ops.values())


def chosen(x: torch.Tensor) -> torch.Tensor:
    """An index a row, computed."""
    return (x[..., 0] > 0).sum(1) % x.shape[1]


INDICES: Ops = {
    "the last": lambda x: x[:, -1],
    "the last but one": lambda x: x[:, :, -2],
    "a list": lambda x: x[:, torch.tensor([0, 3, -1])],
    "pairs": lambda x: x[torch.tensor([0, -1]), torch.tensor([-1, 2])],
    "pairs behind an axis": lambda x: x[:, torch.tensor([0, 1]), torch.tensor([2, -3])],
    "pairs around an axis": lambda x: x[torch.tensor([0, 1]), :, torch.tensor([2, -3])],
    "a grid": lambda x: x[:, torch.tensor([0, 1])[:, None], torch.arange(6)],
    "computed": lambda x: x[torch.arange(2), chosen(x)],
    "computed, from the last": lambda x: x[torch.arange(2), -1 - chosen(x)],
}
FACTORS: Ops = {
    "add": lambda x: torch.add(x, x * x, alpha=2),
    "sub": lambda x: torch.sub(x, x * x, alpha=3),
    "rsub": lambda x: torch.rsub(x, 1, alpha=2),
    "1 - x": lambda x: 1 - x,
    "selu": nn.functional.selu,
    "elu": lambda x: nn.functional.elu(x, 0.5),
    "celu": lambda x: nn.functional.celu(x, 0.7),
}
UNKNOWN: Ops = {
    "amax": lambda x: torch.amax(x, (1, 2)),
    "amin": lambda x: torch.amin(x, -1, True),
    "all of it": lambda x: torch.amax(x),
    "logsumexp": lambda x: torch.logsumexp(x, 1),
    "prod": lambda x: torch.prod(x, 1),
    "exp2": torch.exp2,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "var and mean": lambda x: torch.stack(torch.var_mean(x, 1)),
    "std and mean": lambda x: torch.std_mean(x, 2, correction=0)[0],
    "kthvalue": lambda x: torch.kthvalue(x, 2, dim=1)[0],
    "kthvalue, its axis kept": lambda x: torch.kthvalue(x, 3, keepdim=True)[0],
    "index_copy": lambda x: x.index_copy(1, torch.tensor([5, 1]), 2 * x[:, :2]),
    "index_copy, from the last axis": lambda x: x.index_copy(-1, torch.tensor([4, 0]), 2 * x[..., :2]),
    "windows of an axis": lambda x: x.unfold(1, 3, 2).unfold(-2, 2, 1).amax(-1),
}
LOOPS: Ops = {
    "scatter": lambda x: torch.scatter(x, 1, torch.zeros(2, 1, 6, dtype=torch.int64), x[:, 1:2]),
    "bucketize": lambda x: torch.bucketize(x, torch.tensor([0.1, 0.5])).float(),
    "a product with weights beside them": lambda x: x @ torch.ones(6, 16),
}


def grid(x: torch.Tensor, scale: float, **how: Any) -> torch.Tensor:
    """Seen at other places."""
    turned = torch.tensor([[0.9, 0.3, 0.1], [-0.2, 0.8, 0.0]]).repeat(len(x), 1, 1) * scale
    places = nn.functional.affine_grid(turned, [len(x), 1, 3, 5], align_corners=False)
    return nn.functional.grid_sample(x, places, align_corners=False, **how)


def overlapping(x: torch.Tensor, **how: Any) -> torch.Tensor:
    return nn.functional.fold(nn.functional.unfold(x, (3, 2), **how), x.shape[-2:], (3, 2), **how)


PLANES: Ops = {
    "windows": lambda x: nn.functional.unfold(x, 3, padding=1),
    "windows, added": lambda x: overlapping(x, padding=1, stride=2),
    "windows with gaps, added": lambda x: overlapping(x, dilation=2, stride=(1, 3)),
    "adaptive max pool, and where": lambda x: torch.add(
        *nn.functional.adaptive_max_pool2d(x, (2, 3), return_indices=True)
    ),
    "a grid": lambda x: grid(x, 1.4),
    "a grid, the nearest": lambda x: grid(x, 1.4, mode="nearest", padding_mode="border"),
}


CASES: dict[str, tuple[Ops, tuple[int, ...]]] = {
    "indices": (INDICES, (2, 7, 6)),
    "factors": (FACTORS, (2, 7, 6)),
    "unknown": (UNKNOWN, (2, 7, 6)),
    "loops": (LOOPS, (2, 7, 6)),
    "planes": (PLANES, (2, 3, 7, 5)),
}


@pytest.mark.parametrize(("ops", "sizes"), CASES.values(), ids=CASES)
def test_it_computes_what_torch_does(ops: Ops, sizes: tuple[int, ...]) -> None:
    x = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    program = gp.load(Each(ops), x)
    batch = program.host.example()
    got = Tvm().run(program, batch)
    for name, ours, theirs in zip(ops, got, program.host.run(batch), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=name)


def test_indices_out_of_bounds_read_nothing_else() -> None:
    """torch refuses them; what compiled code takes lies within the table."""
    program = gp.load(nn.Embedding(5, 3).eval(), torch.tensor([[0, 4]]))
    table = program.host.parameter("weight")
    (got,) = Tvm().run(program, [np.array([[2, 10**6]])])
    np.testing.assert_array_equal(got, table[[[2, 4]]])

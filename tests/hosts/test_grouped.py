"""Rows times one of several weights each, against each row by itself."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graphprune.hosts.torch.grouped import grouped_mm


def test_every_row_is_multiplied_by_its_weight() -> None:
    """One weight has no rows, and some rows no weight."""
    x, weight = torch.randn(9, 4, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    made = grouped_mm(x, weight, torch.tensor([3, 3, 7], dtype=torch.int32))
    want = [x[k] @ weight[0 if k < 3 else 2] if k < 7 else torch.zeros(5, dtype=torch.float64) for k in range(9)]
    torch.testing.assert_close(made, torch.stack(want), rtol=1e-14, atol=1e-14)
    with FakeTensorMode():
        fakes = torch.empty(9, 4), torch.empty(3, 4, 5), torch.empty(3, dtype=torch.int32)
        assert grouped_mm(*fakes).shape == (9, 5)

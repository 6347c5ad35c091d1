"""When the proof has nothing to compare."""

from __future__ import annotations

import pytest
import torch

import graphprune as gp
from graphprune.errors import VerificationError


def test_outputs_that_are_finite_nowhere_prove_nothing():
    class Undefined(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

        def forward(self, x):
            return torch.log(-1 - self.h(self.a(x).relu()).abs())

    program = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(Undefined(), torch.randn(2, 4)))
    with pytest.raises(VerificationError, match="not finite on the example"):
        gp.verify(program)

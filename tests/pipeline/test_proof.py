"""When the proof has nothing to compare."""

from __future__ import annotations

import pytest
import torch

import graphprune as gp
from graphprune.errors import VerificationError
from graphprune.report.page import verified


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


@pytest.mark.parametrize(("bias", "shut"), [(-100.0, True), (1.0, False)])
def test_outputs_that_do_not_depend_on_the_inputs_are_named(bias, shut):
    """Whatever is cut of a network whose last ReLU is shut, it gives zeros."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.ReLU())
    torch.nn.init.constant_(module[2].bias, bias)
    report = gp.compile(module, torch.randn(2, 4), channels=0.5, measure=False).report
    assert bool(report["verification"]["unmoved"]) is shut
    assert ("did not depend on the inputs tried" in verified(report)) is shut

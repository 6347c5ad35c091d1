"""When the proof has nothing to compare."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import VerificationError
from graphprune.pipeline.verify import _equal
from graphprune.report.page import verified


def test_outputs_that_are_finite_nowhere_prove_nothing():
    class Undefined(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.h = torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)

        def forward(self, x):
            return torch.log(-1 - self.h(self.a(x).relu()).abs())

    program = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(Undefined(), torch.randn(2, 4)))
    with pytest.raises(VerificationError, match="the model itself gives numbers that are not finite on the example"):
        gp.verify(program)


def test_weights_are_compared_to_the_last_number_without_copies_of_them():
    a, b = np.full((3000, 3000), 0.5, np.float32), np.full((3000, 3000), 0.5)
    a[7, 7] = b[7, 7] = np.nan
    tracemalloc.start()
    assert _equal(a, b)
    assert tracemalloc.get_traced_memory()[1] < b.nbytes
    tracemalloc.stop()
    b[-1, -1] = np.nextafter(0.5, 1)
    assert not _equal(a, b) and not _equal(a, a[:-1]) and not _equal(a, a.T[:, ::-1])
    assert _equal(np.array(3), np.array(3)) and not _equal(np.array(3), np.array(4))


@pytest.mark.parametrize(("bias", "shut"), [(-100.0, True), (1.0, False)])
def test_outputs_that_do_not_depend_on_the_inputs_are_named(bias, shut):
    """Whatever is cut of a network whose last ReLU is shut, it gives zeros."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3), torch.nn.ReLU())
    torch.nn.init.constant_(module[2].bias, bias)
    report = gp.compile(module, torch.randn(2, 4), channels=0.5, measure=False).report
    assert bool(report["verification"]["unmoved"]) is shut
    assert ("did not depend on the inputs tried" in verified(report)) is shut


class Otherwise(nn.Module):
    """Twice as much while it is traced."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x):
        return self.body(x) * (2 if torch.compiler.is_exporting() else 1)


def half(module):
    return gp.run("group,score,mask{channels=0.5x},propagate", gp.load(module, (torch.randn(3, 6),)))


def test_a_module_that_computes_something_else_while_it_is_traced_is_not_proven():
    with pytest.raises(VerificationError, match="differs from the module by 1 relative"):
        gp.verify(half(Otherwise()))


def test_what_was_read_is_the_module_and_its_weights_as_they_are_now():
    module = Otherwise().body
    cut = half(module)
    assert "as read = as given" in [check.what for check in gp.verify(cut)]
    module[0].weight = nn.Parameter(torch.randn(8, 6))  # it is another module now
    assert "as read = as given" not in [check.what for check in gp.verify(cut)]

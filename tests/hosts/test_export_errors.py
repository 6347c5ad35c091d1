"""What cannot be traced is one error, at the user's own line, that says what to change; nothing is printed."""

from __future__ import annotations

import logging
import sys

import numpy as np
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.errors import ModelError


def branch(net, x):
    return x if net.a(x).sum() > 0 else -x


def number(net, x):
    n = int(x.abs().sum().item())
    return x[:n]


def array(net, x):
    return net.a(torch.from_numpy(np.abs(x.numpy())))


def narrow(net, x):
    return net.a(x[:, :3])


def checks(net, x):
    normal = torch.distributions.Normal(net.a(x), 1.0, validate_args=True)
    return normal.log_prob(x)


def backward(net, x):
    net.a(x).sum().backward()
    return x


def own(net, x):
    raise ValueError("only squares")


CASES = {
    branch: ("return x if net.a(x).sum() > 0 else -x", "Could not guard on data-dependent expression", "torch.cond"),
    number: ("n = int(x.abs().sum().item())", "data-dependent", "torch._check"),
    array: ("return net.a(torch.from_numpy(np.abs(x.numpy())))", "numpy", "write it in torch ops"),
    narrow: ("return net.a(x[:, :3])", "[s77, 3] X [4, 4]", "other sizes than the module takes"),
    checks: (
        "normal = torch.distributions.Normal(net.a(x), 1.0, validate_args=True)",
        "data-dependent",
        "validate_args=False",
    ),
    backward: ("net.a(x).sum().backward()", "does not require grad", "leave gradients out of forward"),
    own: ('raise ValueError("only squares")', "only squares", "run the module on the example"),
}


class Net(nn.Module):
    def __init__(self, inside):
        super().__init__()
        self.a, self.inside = nn.Linear(4, 4), inside

    def forward(self, x):
        return self.inside(self, x)


@pytest.mark.parametrize("inside", CASES, ids=lambda f: f.__name__)
def test_an_error_names_the_line_and_what_to_change(inside, capfd):
    source, said, hint = CASES[inside]
    with pytest.raises(ModelError) as error:
        gp.load(Net(inside), torch.randn(2, 4))
    line = inside.__code__.co_firstlineno
    assert f"Net: torch.export could not trace it at {__file__}:{line + 1}, in {inside.__name__}: `{source}`" in str(
        error.value
    )
    assert said in error.value.message and hint in error.value.hint
    assert len(error.value.message.splitlines()) == 1 and "unhinted" not in error.value.message
    assert capfd.readouterr().err == ""


def test_inputs_of_another_number_are_said_to_be_so():
    with pytest.raises(ModelError, match="missing a required argument") as error:
        gp.load(nn.Bilinear(4, 4, 3), torch.randn(2, 4))
    assert "the example inputs are not what forward takes" in error.value.hint


def test_what_the_module_itself_prints_is_printed_and_logging_is_as_it_was(capfd):
    def loud(net, x):
        print("to stderr", file=sys.stderr)
        return net.a(x)

    gp.load(Net(loud), torch.randn(2, 4))
    assert "to stderr" in capfd.readouterr().err
    assert logging.root.manager.disable == 0

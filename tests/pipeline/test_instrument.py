"""Instruments: told of every pass, in order, with what it made."""

from __future__ import annotations

import nets
import pytest

import graphprune as gp
from graphprune.errors import BudgetError
from graphprune.ir.facts import Groups


class Heard:
    def __init__(self):
        self.before_, self.after_ = [], []

    def before(self, step, program):
        self.before_.append((step.text(), len(program.history), program))

    def after(self, step, program, seconds):
        self.after_.append((step.text(), seconds == program.history[-1].seconds, program))


def test_an_instrument_sees_every_pass_and_what_it_made():
    heard, program = Heard(), nets.program("MLP")
    done = gp.run("group,score,mask{channels=0.5x},propagate", program, instruments=[heard])
    texts = ["group", "score", "mask{channels=0.5x}", "propagate"]
    assert [(text, passed) for text, passed, _ in heard.before_] == list(zip(texts, range(4), strict=True))
    assert [(text, same) for text, same, _ in heard.after_] == [(text, True) for text in texts]
    assert heard.before_[0][2] is program and heard.after_[0][2].knows(Groups)
    assert heard.after_[-1][2].graph.text() == done.graph.text()


def test_of_a_pass_that_raises_only_before_is_called():
    heard = Heard()
    with pytest.raises(BudgetError):
        gp.run("group,score,mask{macs=0.01x floor=0.9}", nets.program("MLP"), instruments=[heard])
    assert (len(heard.before_), len(heard.after_)) == (3, 2)

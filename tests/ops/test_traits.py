"""One record a kind, and what plug-ins add to them."""

from __future__ import annotations

import pytest

from graphprune.ir.graph import Op
from graphprune.ops import rules
from graphprune.ops.rules import RULES, rule, table
from graphprune.ops.traits import PLAIN, TRAITS, Traits, traits


def test_every_rule_has_a_record_and_every_record_a_rule():
    assert set(TRAITS) == set(RULES)


def test_what_computes_says_what_it_multiplies():
    """A kind that is keyed by its arithmetic has MACs, and one that has MACs is keyed by them."""
    assert {kind for kind, record in TRAITS.items() if record.computes} == {
        kind for kind, record in TRAITS.items() if record.products is not None
    }


def test_a_kind_without_a_record_is_a_stream_that_zeros_do_not_pass():
    assert traits(Op("op", "my::op", (), ())) is PLAIN
    assert (PLAIN.latency, PLAIN.zeros, PLAIN.computes) == ("stream", "unknown", False)


class _Entry:
    name = value = "theirs"

    def __init__(self, load):
        self.load = load


@pytest.fixture
def plugin(monkeypatch):
    """Enters what a plug-in's module would, and takes it back."""
    ours, records = dict(RULES), dict(TRAITS)

    def load(enter):
        monkeypatch.setattr(rules, "entry_points", lambda group: [_Entry(enter)])
        table.cache_clear()
        return table()

    yield load
    for known, before in ((RULES, ours), (TRAITS, records)):
        known.clear()
        known.update(before)
    table.cache_clear()


def test_a_plug_in_gives_traits_with_its_rule_and_cannot_replace_ours(plugin):
    def enter():
        rule("theirs", axes="n c -> n c", traits=Traits(zeros="first", elementwise=True))
        rule("plain", axes="n c -> n c")
        rule("linear", axes="a -> a", traits=Traits(latency="free"))

    linear = TRAITS["linear"]
    assert {"theirs", "plain"} <= set(plugin(enter))
    assert traits(Op("op", "theirs", (), ())).elementwise
    assert traits(Op("op", "plain", (), ())) is PLAIN
    assert TRAITS["linear"] is linear

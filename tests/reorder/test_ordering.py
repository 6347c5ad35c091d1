"""Orders in which subsets are runs: against brute force, and on families with known answers."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest

from graphprune.reorder.channel_order import Reader, Row, arrange
from graphprune.reorder.pq_tree import reduce, universal

BLOCK = "block"


def readers(*sets, costs=None):
    costs = costs or [1.0] * len(sets)
    return [
        Reader(f"r{k}", (Row(BLOCK, frozenset(map(int, one))),), cost)
        for k, (one, cost) in enumerate(zip(sets, costs, strict=True))
    ]


def is_run(order, channels, end=""):
    places = sorted(order.index(channel) for channel in channels)
    together = places == list(range(places[0], places[0] + len(places)))
    return together and (not end or (places[0] == 0 if end == "first" else places[-1] == len(order) - 1))


def check(ordering, blocks, asked):
    """Every block keeps its channels, and what is said to be served is."""
    assert {name: sorted(order) for name, order in ordering.order.items()} == {
        name: sorted(channels) for name, channels in blocks.items()
    }
    holds = {
        reader.name: all(is_run(ordering.order[row.block], row.channels, row.end) for row in reader.rows)
        for reader in asked
    }
    assert all(holds[name] for name in ordering.served)
    return sum(reader.cost for reader in asked if not holds[reader.name])


def one_block(n, asked):
    blocks = {BLOCK: range(n)}
    ordering = arrange(blocks, asked)
    return check(ordering, blocks, asked), ordering


# ---- the tree ------------------------------------------------------------------------------------------


def test_a_tree_has_an_order_just_when_there_is_one():
    """All families of up to four subsets of five elements that a seed gives, against all 120 orders."""
    rng = np.random.default_rng(0)
    orders = list(itertools.permutations(range(5)))
    possible = 0
    for _ in range(500):
        sets = [set(np.flatnonzero(rng.random(5) < 0.5)) for _ in range(rng.integers(1, 5))]
        sets = [one for one in sets if one]
        wanted = any(all(is_run(order, one) for one in sets) for order in orders)
        tree = universal(5)
        for one in sets:
            tree = tree and reduce(tree, sum(1 << int(k) for k in one))
        assert (tree is not None) is wanted
        if tree:
            possible += 1
            assert all(is_run(tree.frontier(), one) for one in sets)
    assert 100 < possible < 500


# ---- what must hold --------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [3, 4, 6, 8])
def test_interval_families_need_no_copy(k):
    rng = np.random.default_rng(k)
    for _ in range(1000):
        hidden = rng.permutation(64)
        bounds = np.sort(rng.integers(0, 65, (k, 2)), 1)
        sets = [hidden[a:b] for a, b in bounds if b > a]
        paid, ordering = one_block(64, readers(*sets))
        assert paid == 0 and ordering.exact and len(ordering.served) == len(sets)


def test_the_cost_is_that_of_brute_force():
    rng = np.random.default_rng(1)
    places = {n: np.array(list(itertools.permutations(range(n)))) for n in range(1, 8)}
    for _ in range(1000):
        n, k = int(rng.integers(3, 8)), int(rng.integers(2, 5))
        sets = [s for s in (np.flatnonzero(rng.random(n) < 0.55) for _ in range(k)) if len(s)]
        costs = [float(c) for c in rng.integers(1, 9, len(sets))]
        where = places[n]  # where[p, c]: the place of channel c in order p
        paid = sum(
            cost * (where[:, s].max(1) - where[:, s].min(1) + 1 != len(s)) for s, cost in zip(sets, costs, strict=True)
        )
        found, ordering = one_block(n, readers(*sets, costs=costs))
        assert ordering.exact
        assert found == (paid.min() if len(sets) else 0)


def test_the_three_sets_that_a_path_search_misses():
    assert one_block(4, readers({0, 2}, {0, 1, 3}, {0, 2, 3}))[0] == 0


def test_two_sets_always_fit_and_three_with_pairwise_regions_never():
    rng = np.random.default_rng(2)
    for _ in range(100):
        a, b, c = (np.flatnonzero(rng.random(64) < 0.7) for _ in range(3))
        assert one_block(64, readers(a, b))[0] == 0
        pairs = [set(a) & set(b) - set(c), set(a) & set(c) - set(b), set(b) & set(c) - set(a)]
        paid = one_block(64, readers(a, b, c, costs=[3.0, 1.0, 2.0]))[0]
        assert paid == 1.0 or not all(pairs)


def test_a_concat_read_in_both_orders_needs_no_copy():
    """cat(a, b) wants the end of a next to the beginning of b, cat(b, a) the reverse."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        kept = {}
        for name in ("a", "b"):
            one, two = rng.random(32) < 0.6, rng.random(32) < 0.6
            one[:2], two[:2] = [True, False], [False, True]
            kept[name] = frozenset(map(int, np.flatnonzero(one))), frozenset(map(int, np.flatnonzero(two)))
        blocks = {name: sorted(first | second) for name, (first, second) in kept.items()}
        asked = [
            Reader("ab", (Row("a", kept["a"][0], "last"), Row("b", kept["b"][0], "first")), 1.0),
            Reader("ba", (Row("b", kept["b"][1], "last"), Row("a", kept["a"][1], "first")), 1.0),
        ]
        assert check(arrange(blocks, asked), blocks, asked) == 0


def ladder(count):
    """Readers in two rails, each sharing channels with its neighbours along the rail and across."""
    sets = [{3 * count + k} for k in range(count)]
    for number, (k, m) in enumerate([(k, k + 2) for k in range(count - 2)] + [(k, k + 1) for k in range(0, count, 2)]):
        for at in (k, m):
            if at < count:
                sets[at].add(number)
    return sets


@pytest.mark.parametrize("count", [9, 13, 33, 60])
def test_ladders_are_ordered_as_well_as_they_can_be(count):
    """Of four readers in a square of the ladder, each of which shares channels with two of the others, no order
    serves all: three of every four is the most, and it is reached even where the search is cut short."""
    sets = ladder(count)
    paid, ordering = one_block(4 * count, readers(*sets))
    assert paid == count - len(ordering.served)
    assert len(ordering.served) == 3 * (count // 4) + count % 4


def test_chains_are_ordered_without_copies_however_long():
    sets = [range(2 * k, 2 * k + 4) for k in range(60)]
    assert one_block(124, readers(*sets))[0] == 0


def test_the_costliest_reader_is_served_first():
    sets = [{0, 1}, {1, 2}, {0, 2}]
    for dear in range(3):
        paid, ordering = one_block(3, readers(*sets, costs=[10.0 if k == dear else 1.0 for k in range(3)]))
        assert paid == 1.0 and f"r{dear}" in ordering.served


def test_a_reader_across_blocks_is_served_whole_or_not_at_all():
    blocks = {"a": range(4), "b": range(4)}
    asked = [
        Reader("both", (Row("a", frozenset({0, 1}), "last"), Row("b", frozenset({2}), "first")), 2.0),
        Reader("other", (Row("b", frozenset({1, 3}), "last"),), 3.0),
        Reader("last", (Row("b", frozenset({0, 3}), "last"),), 1.0),
    ]
    ordering = arrange(blocks, asked)
    assert check(ordering, blocks, asked) == 1.0
    assert ordering.served == {"both", "other"}


def test_channels_that_nobody_tells_apart_stay_in_order():
    assert arrange({BLOCK: [5, 3, 1]}, []).order[BLOCK] == (5, 3, 1)
    assert arrange({BLOCK: []}, []).order[BLOCK] == ()


def test_the_answer_does_not_depend_on_the_hash_seed():
    program = (
        "import numpy as np\nfrom graphprune.reorder.channel_order import Reader, Row, arrange\n"
        "rng = np.random.default_rng(3)\n"
        "sets = [frozenset(map(int, np.flatnonzero(rng.random(40) < 0.6))) for _ in range(7)]\n"
        "asked = [Reader(f'r{k}', (Row('x', s), Row('y', s, 'last')), 1.0 + k) for k, s in enumerate(sets)]\n"
        "print(arrange({'x': range(40), 'y': range(40)}, asked).order)"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(answers) == 1

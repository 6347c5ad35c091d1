"""Termination and cost: large graphs and adversarial axes end, within bounds that any machine keeps."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import limits
import numpy as np
import pytest

from graphprune.axes.dim import LEAF, Dim, count, find, freeze, leaves, mix, product, same, total
from graphprune.axes.index import Index, coordinates, shares

ROOT = Path(__file__).parents[2]
DEEP = 5000


def measured(shapes: str, *ops: int, cpu_s: float) -> list[str]:
    """What ``tests.fuzz.big`` prints: one line a graph. In a process of its own, which can be stopped."""
    command = [sys.executable, "-m", "tests.fuzz.big", shapes, *map(str, ops)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return limits.run(command, cpu_s, cwd=ROOT, env=env).stdout.splitlines()


def test_every_shape_of_graph_is_compiled():
    """A thousand ops each; a hang would be far beyond the bound."""
    lines = measured("chain,residual,crossed,views,nested,misaligned,dense", 600, cpu_s=300)
    assert [line.split()[0] for line in lines] == "chain residual crossed views nested misaligned dense".split()
    assert all("propagate" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("shape", "chain residual crossed views nested misaligned".split())
def test_ten_thousand_ops_are_compiled(shape):
    """About 10 s of one core; the bound allows for a slow one."""
    (line,) = measured(shape, 10000, cpu_s=300)
    assert "propagate" in line


# ---- axes --------------------------------------------------------------------------------------------


def sums(depth: int, first: int = 1) -> tuple[Dim, Dim]:
    """A concat in a concat in a concat, and its first part."""
    inner = axis = Dim(first)
    for _ in range(depth):
        axis = total([axis, Dim(1)])
    return axis, inner


def test_concats_of_concats_are_no_recursion():
    axis, inner = sums(DEEP, first=4)
    assert axis.size == DEEP + 4
    assert len(list(leaves(axis))) == DEEP + 1
    assert repr(axis) == f"(4 + {' + '.join(['1'] * DEEP)})"
    index = Index({inner: np.array([2, 0])})
    assert index.touches(axis)
    np.testing.assert_array_equal(index(axis), [2, 0, *range(4, DEEP + 4)])
    assert count(axis, lambda leaf: 3) == 3 * (DEEP + 1)
    np.testing.assert_array_equal(coordinates(axis, inner), [0, 1, 2, 3, *[-1] * DEEP])
    assert len(shares(axis)) == DEEP + 1


def test_two_nests_become_one_axis():
    """The one nested from the left, the other from the right: all their parts are the same."""
    left, first = sums(DEEP)
    right = Dim(1)
    for _ in range(DEEP):
        right = total([Dim(1), right])
    same(left, right, "test")
    assert [find(leaf) for leaf in leaves(left)] == [find(leaf) for leaf in leaves(right)]
    freeze(right, "because")
    mix(right, "a norm")
    assert first.frozen == "because"
    assert first.mixed == "a norm"


def test_products_of_products_are_no_recursion():
    """Factors of one vanish, so a product is as deep as its size has factors: the rest are sums within."""
    axis, inner = sums(DEEP, first=2)
    heads, other = Dim(3), Dim(3 * (DEEP + 2))
    same(other, product([heads, axis]), "test")
    assert len(Index({inner: np.array([1])})(other)) == 3 * (DEEP + 1)


def test_a_split_of_a_deep_concat_is_related():
    axis, _ = sums(DEEP)
    halves = [Dim((DEEP + 1) // 2), Dim(DEEP + 1 - (DEEP + 1) // 2)]
    same(axis, total(halves), "test")
    assert len(list(leaves(halves[0]))) == halves[0].size


@pytest.mark.parametrize("seed", range(5))
def test_misaligned_boundaries_make_no_more_leaves_than_positions(seed):
    """Concats cut where they were not joined, again and again, refine an axis at most to its positions."""
    rng = np.random.default_rng(seed)
    whole = 360
    axis = Dim(whole)
    for _ in range(300):
        if rng.random() < 0.5:
            cut = int(rng.integers(1, whole))
            same(axis, total([Dim(cut), Dim(whole - cut)]), "cut")
        else:
            factor = int(rng.choice([2, 3, 4, 5, 6, 8, 9, 10, 12]))
            same(axis, product([Dim(factor), Dim(whole // factor)]), "view")
    found = list(leaves(axis))
    assert len(found) <= whole
    assert all(leaf.kind == LEAF for leaf in found)
    np.testing.assert_array_equal(Index({})(axis), np.arange(whole))


@pytest.mark.parametrize("sizes", [(6, 35), (10, 21), (15, 14), (42, 5), (7, 30)])
def test_views_that_hardly_factor_end(sizes):
    """210 as products that share some factors and not others, after one another."""
    axis = Dim(210)
    for _ in range(50):
        for a, b in ((6, 35), sizes, (35, 6), sizes[::-1]):
            same(axis, product([Dim(a), Dim(b)]), "view")
    assert len(list(leaves(axis))) <= 4  # 2, 3, 5 and 7

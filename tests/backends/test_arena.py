"""Tensors that live at different times in one block of memory."""

from __future__ import annotations

from itertools import combinations, permutations

from hypothesis import given
from hypothesis import strategies as st

from graphprune.backends.edge.arena import Life, extent, offsets, peak

SPANS = st.tuples(st.integers(1, 40), st.integers(0, 8), st.integers(0, 8))
LIVES = st.lists(SPANS.map(lambda one: Life(64 * one[0], min(one[1:]), max(one[1:]))), max_size=12)


@given(LIVES)
def test_what_is_alive_together_does_not_overlap_and_the_block_is_no_larger_than_all(lives):
    at = offsets(lives)
    for (a, x), (b, y) in combinations(zip(lives, at, strict=True), 2):
        assert not a.meets(b) or x + a.size <= y or y + b.size <= x
    assert all(start >= 0 and start % 64 == 0 for start in at)
    assert peak(lives) <= extent(lives, at) <= sum(life.size for life in lives)


@given(LIVES.filter(lambda lives: len(lives) <= 4))
def test_of_few_it_is_near_the_best_order(lives):
    """The best over all orders of laying them down, each as low as it can be."""

    def laid(order):
        at = {}
        for k in order:
            taken = sorted((at[j], at[j] + lives[j].size) for j in at if lives[j].meets(lives[k]))
            start = 0
            for low, high in taken:
                if low - start >= lives[k].size:
                    break
                start = max(start, high)
            at[k] = start
        return extent(lives, [at[k] for k in range(len(lives))])

    best = min(map(laid, permutations(range(len(lives)))))
    assert extent(lives, offsets(lives)) <= 1.5 * best


def test_a_tensor_that_is_alive_throughout_leaves_no_hole_between_others():
    """The largest first would take 3264."""
    lives = [Life(768, 0, 1), Life(768, 1, 1), Life(1024, 1, 1), Life(1728, 0, 0)]
    assert extent(lives, offsets(lives)) == peak(lives) == 2560


def test_a_chain_takes_its_two_largest_neighbours():
    sizes = [64, 256, 128, 512, 64]
    lives = [Life(size, k, k + 1) for k, size in enumerate(sizes)]
    assert extent(lives, offsets(lives)) == peak(lives) == 640

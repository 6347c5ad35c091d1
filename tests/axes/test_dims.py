"""The axis algebra against brute force: labels of positions, moved about by numpy."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.axes import dim as dims
from graphprune.axes.dim import Dim, find, freeze, leaves, mix, product, same, total
from graphprune.axes.index import Index, coordinates
from graphprune.errors import ShapeError

# ---- brute force -------------------------------------------------------------------------------------


def positions(dim):
    """For every position of an axis: which leaves it is made of, and where in each."""
    dim = find(dim)
    if dim.kind == dims.LEAF:
        return [((dim, k),) if dim.size > 1 else () for k in range(dim.size)]
    if dim.kind == dims.SUM:
        return [label for kid in dim.kids for label in positions(kid)]
    out = [()]
    for kid in dim.kids:
        out = [high + low for high in out for low in positions(kid)]
    return out


def taken(dim, keep):
    """The surviving positions, through numpy's own reshaping and concatenation."""
    dim = find(dim)
    whole = np.arange(dim.size)
    if dim.kind == dims.LEAF:
        return whole[keep.get(dim, whole)]
    sizes = [find(kid).size for kid in dim.kids]
    parts = [taken(kid, keep) for kid in dim.kids]
    if dim.kind == dims.PRODUCT:
        return whole.reshape(sizes)[np.ix_(*parts)].ravel()
    return np.concatenate(
        [piece[part] for piece, part in zip(np.split(whole, np.cumsum(sizes)[:-1]), parts, strict=True)]
    )


def consistent(dim):
    """Sizes add and multiply up, everywhere."""
    dim = find(dim)
    if dim.kind != dims.LEAF:
        sizes = [consistent(kid) for kid in dim.kids]
        assert dim.size == (np.prod(sizes) if dim.kind == dims.PRODUCT else sum(sizes))
    return dim.size


# ---- random axes -------------------------------------------------------------------------------------


@st.composite
def trees(draw, size=None, depth=3, pool=None):
    """A random axis of a given size; with ``pool``, leaves may occur more than once."""
    size = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 9, 10, 12, 18, 24, 30])) if size is None else size
    kind = draw(st.sampled_from(["leaf", "product", "sum"])) if depth and size > 1 else "leaf"
    if kind == "product":
        step = draw(st.sampled_from([n for n in range(1, size + 1) if size % n == 0]))
        if step not in (1, size):
            parts = [draw(trees(size // step, depth - 1, pool)), draw(trees(step, depth - 1, pool))]
            return product(parts)
    if kind == "sum":
        cut = draw(st.integers(1, size - 1))
        return total([draw(trees(cut, depth - 1, pool)), draw(trees(size - cut, depth - 1, pool))])
    if pool is not None and size in pool and draw(st.booleans()):
        return draw(st.sampled_from(pool[size]))
    leaf = Dim(size)
    if pool is not None:
        pool.setdefault(size, []).append(leaf)
    return leaf


@st.composite
def keeps(draw, axes, only_free=True):
    """An ordered selection of every leaf that is not frozen."""
    keep = {}
    for leaf in dict.fromkeys(leaf for axis in axes for leaf in leaves(axis)):
        if leaf.frozen is None or not only_free:
            order = draw(st.permutations(range(leaf.size)))
            keep[leaf] = np.array(order[: draw(st.integers(1, leaf.size))], dtype=np.intp)
    return keep


# ---- index and coordinates ---------------------------------------------------------------------------


@given(st.data())
def test_index_is_numpy_indexing(data):
    axis = data.draw(trees(pool={}))
    keep = data.draw(keeps([axis]))
    got = Index(keep)(axis)
    np.testing.assert_array_equal(got, taken(axis, keep))
    assert Index(keep).length(axis) == len(got)
    assert Index(keep).touches(axis)
    assert not Index({}).touches(axis)
    np.testing.assert_array_equal(Index({})(axis), np.arange(axis.size))


@given(st.data())
def test_index_follows_labels(data):
    """Cutting every leaf and then listing positions is listing positions and then cutting."""
    axis = data.draw(trees(pool={}))
    keep = data.draw(keeps([axis]))
    labels = positions(axis)
    survivors = [labels[k] for k in Index(keep)(axis)]
    assert all(place in keep[leaf] for label in survivors for leaf, place in label if leaf in keep)
    lost = [label for k, label in enumerate(labels) if k not in set(Index(keep)(axis).tolist())]
    assert all(any(place not in keep[leaf] for leaf, place in label) for label in lost)


@given(st.data())
def test_coordinates_are_where_the_label_says(data):
    axis = data.draw(trees())  # every leaf once: no diagonals
    for leaf in leaves(axis):
        if leaf.size > 1:
            want = [dict(label).get(leaf, -1) for label in positions(axis)]
            np.testing.assert_array_equal(coordinates(axis, leaf), want)


@given(st.data())
def test_count_is_the_size_when_all_stay(data):
    axis = data.draw(trees(pool={}))
    assert dims.count(axis, lambda leaf: leaf.size) == find(axis).size


# ---- same --------------------------------------------------------------------------------------------


@given(st.data())
def test_same_axes_are_cut_alike(data):
    """Whatever may still be cut is cut at the same positions of both; nothing is lost."""
    a = data.draw(trees())
    b = data.draw(trees(size=find(a).size))
    sizes = find(a).size, find(b).size
    same(a, b, "here")
    assert (consistent(a), consistent(b)) == sizes
    keep = data.draw(keeps([a, b]))
    index = Index(keep)
    np.testing.assert_array_equal(index(a), index(b))


@given(st.data())
def test_same_holds_for_many_axes_that_share_leaves(data):
    pool: dict[int, list[Dim]] = {}
    first = data.draw(trees(pool=pool))
    size = find(first).size
    axes = [first, *(data.draw(trees(size=size, pool=pool)) for _ in range(3))]
    for k in range(3):
        same(axes[k], axes[k + 1], f"step {k}")
    assert [consistent(axis) for axis in axes] == [size] * 4
    index = Index(data.draw(keeps(axes)))
    for axis in axes[1:]:
        np.testing.assert_array_equal(index(axes[0]), index(axis))


@given(st.data())
def test_same_is_idempotent(data):
    a = data.draw(trees())
    b = data.draw(trees(size=find(a).size))
    same(a, b, "here")
    before = [positions(axis) for axis in (a, b)]
    same(a, b, "here")
    same(b, a, "here")
    assert [positions(axis) for axis in (a, b)] == before


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_sums_identify_exactly_what_brute_force_identifies(sizes, random):
    """cat(parts) and cat(the same parts in another order): connected components of positions."""
    parts = [Dim(n) for n in sizes]
    order = random.sample(range(len(parts)), len(parts))
    names = [(k, place) for k, n in enumerate(sizes) for place in range(n)]
    others = [(k, place) for k in order for place in range(sizes[k])]
    component = {name: number for number, name in enumerate(names)}
    for name, other in zip(names, others, strict=True):
        old, new = component[name], component[other]
        component = {key: new if value == old else value for key, value in component.items()}
    same(total(parts), total([parts[k] for k in order]), "here")
    label_of = {(k, place): label for k, part in enumerate(parts) for place, label in enumerate(positions(part))}
    single = count()
    numbers: dict[object, int] = {}
    got = {
        name: numbers.setdefault(label or find_single(parts, name), next(single)) for name, label in label_of.items()
    }
    assert partition(got) == partition(component)


def find_single(parts, name):
    """A position that is a leaf of size one by itself: which leaf."""
    k, place = name
    offset = 0
    for part in dims._terms([parts[k]]):
        if place < offset + part.size:
            return id(part)
        offset += part.size
    raise AssertionError


def partition(classes):
    out: dict[int, set[object]] = {}
    for name, number in classes.items():
        out.setdefault(number, set()).add(name)
    return {frozenset(members) for members in out.values()}


@given(st.lists(st.sampled_from([2, 3, 5]), min_size=1, max_size=4), st.data())
def test_views_with_a_common_refinement_freeze_nothing(primes, data):
    def grouped():
        cuts = data.draw(st.lists(st.booleans(), min_size=len(primes), max_size=len(primes)))
        sizes = [1]
        for prime, cut in zip(primes, cuts, strict=True):
            sizes = [*sizes, prime] if cut else [*sizes[:-1], sizes[-1] * prime]
        return product([Dim(n) for n in sizes])

    a, b = grouped(), grouped()
    same(a, b, "here")
    assert not any(leaf.frozen for axis in (a, b) for leaf in leaves(axis))
    assert [id(leaf) for leaf in leaves(a)] == [id(leaf) for leaf in leaves(b)]


def test_views_without_one_are_frozen_with_a_reason():
    a, b = product([Dim(2), Dim(3)]), product([Dim(3), Dim(2)])
    same(a, b, "net.view (reshape)")
    assert {leaf.frozen for axis in (a, b) for leaf in leaves(axis)} == {"net.view (reshape): the view does not factor"}


def test_unequal_sizes_are_an_error_that_says_where_and_which():
    with pytest.raises(ShapeError, match=r"^conv1 \(conv\): axes of size 6 and 4 must be equal$"):
        same(Dim(6), Dim(4), "conv1 (conv)")
    with pytest.raises(ShapeError, match="size 6 and 4"):
        same(product([Dim(2), Dim(3)]), total([Dim(3), Dim(1)]), "x")


def test_dynamic_sizes_are_frozen_and_match_nothing_else():
    a, b = Dim("s0"), Dim("s1")
    same(a, b, "add")
    assert a.frozen == "dynamic size s0" and b.frozen == "dynamic size s1"
    four = Dim(4)
    same(Dim("s2"), four, "add")
    assert four.frozen == "dynamic size s2" or four.frozen == "dynamic size 4"


def test_one_dynamic_axis_spelt_in_factors():
    a = product([Dim("s0"), Dim(4)])
    b = Dim("4*s0")
    same(a, b, "view")
    assert find(a) is find(b)
    assert [leaf.size for leaf in leaves(b)] == ["s0", 4]


def test_the_first_reason_is_kept_and_goes_with_the_leaf():
    a, b = Dim(6), Dim(6)
    freeze(a, "first")
    freeze(a, "second")
    mix(b, "norm")
    same(a, b, "add")
    assert (b.frozen, b.mixed) == ("first", "norm")
    same(b, product([Dim(2), Dim(3)]), "view")
    assert {leaf.frozen for leaf in leaves(a)} == {"first"}
    assert {leaf.mixed for leaf in leaves(a)} == {"norm"}


def test_reasons_go_both_ways_between_structures():
    a = product([Dim(2), Dim(3)])
    b = Dim(6)
    freeze(b, "output")
    same(a, b, "add")
    assert [leaf.frozen for leaf in leaves(a)] == ["output", "output"]
    high = next(leaves(a))
    assert find(a).kids[0] is high


def test_factors_of_one_vanish_and_single_parts_are_themselves():
    x = Dim(5)
    assert product([Dim(1), x, Dim(1)]) is x
    assert total([x]) is x
    assert product([Dim(1)]).size == 1
    assert repr(total([product([Dim(2), Dim(3)]), x])) == "((2 * 3) + 5)"

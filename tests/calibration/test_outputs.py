"""How far outputs are from what they were, of every kind of output."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.calibration.outputs import distortion, divergence
from graphprune.errors import ModelError

RNG = np.random.default_rng(0)
A, B = RNG.standard_normal((2, 6, 4))


def of(before: object, after: object, by: object = distortion) -> float:
    """Of one output in two batches."""
    parts = ([{"y": part} for part in np.array_split(np.asarray(one), 2)] for one in (before, after))
    return by(*parts)


def test_floats_are_by_their_variance_and_whole_numbers_by_what_is_another() -> None:
    assert of(A, B) == pytest.approx(((A - B) ** 2).mean() / A.var(0).mean())
    assert of(A + 1j * B, A + 2j * B) == pytest.approx((B**2).mean() / (A.var(0).mean() + B.var(0).mean()))
    assert of([1, 2, 3, 4], [1, 2, 3, 5]) == 0.25 and of([True, False], [True, True]) == 0.5


def test_places_that_are_not_finite_count_as_zero() -> None:
    masked, other = (np.where(np.arange(4) > 2, -np.inf, one) for one in (A, B))
    zeroed = [np.where(np.arange(4) > 2, 0, one) for one in (A, B)]
    assert of(masked, other) == pytest.approx(of(*zeroed))
    assert of(masked, other, divergence) == pytest.approx(of(A[:, :3], B[:, :3], divergence))


def test_scalars_and_batches_of_different_length_are_whole() -> None:
    scalars = [{"y": np.float32(k)} for k in range(4)], [{"y": np.float32(k + 1)} for k in range(4)]
    assert distortion(*scalars) == pytest.approx(1 / np.var(range(4)))
    before, after = ([{"y": one[:2, :3]}, {"y": one[2:]}] for one in (A, B))
    both = [np.concatenate([batch["y"].ravel() for batch in one]) for one in (before, after)]
    assert distortion(before, after) == pytest.approx(((both[0] - both[1]) ** 2).mean() / both[0].var())
    assert distortion(before, [before[0], {"y": A[2:, :3]}]) == 1.0, "another shape"


@pytest.mark.parametrize("what", [np.arange(6), np.array(["x"] * 6), np.ones(6, np.complex64)])
def test_of_whole_numbers_there_is_no_divergence(what: np.ndarray) -> None:
    with pytest.raises(ModelError, match="a divergence is of logits"):
        of(what, what, divergence)

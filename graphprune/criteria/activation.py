"""Criteria from what calibration data makes the channels do: wifv, ifv, wifn, wanda, variance, aap, active."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..axes.dim import leaves
from ..calibration.moments import Moments, moments
from ..coupling.contractions import Contraction, contractions
from ..ir.host import Array
from .magnitude import l2
from .scoring import ScoresByGroup, Scoring, criterion

PerInput = Callable[[Moments, Array], Array]
"""From the moments of each input channel and the (groups, outputs, inputs, taps) weight that reads it."""


def _by_reader(scoring: Scoring, of: PerInput) -> ScoresByGroup:
    """Groups that no conv or linear reads get their L2 norms, brought to the same mean by ``normalize``."""
    program = scoring.program
    mine = {group.dim for group in scoring.groups}
    found = [read for read in contractions(program.graph) if any(leaf in mine for leaf in leaves(read.dim))]
    stats = moments(program.host, found, program.data)
    scored = ((read.dim, _of(scoring, read, stats[read.value.name, read.axis], of)) for read in found)
    return scoring.per_value(scored, l2(scoring))


def _of(scoring: Scoring, read: Contraction, stats: Moments, of: PerInput) -> Array:
    return of(stats, read.matrix(scoring.program.host))


@criterion("wifv", data=True)
def wifv(scoring: Scoring) -> ScoresByGroup:
    """Weighted input feature variance (FLAP, An et al. 2024).

    Section 3.2: the variance of a reader's input channel times the squared norm of the weights that read it, over
    calibration data."""
    return _by_reader(scoring, lambda x, weight: x.variance * np.square(weight).sum((1, 3)).ravel())


@criterion("ifv", data=True)
def ifv(scoring: Scoring) -> ScoresByGroup:
    """Input feature variance (FLAP, the variant without weights)."""
    return _by_reader(scoring, lambda x, weight: x.variance)


@criterion("wifn", data=True)
def wifn(scoring: Scoring) -> ScoresByGroup:
    """Weighted input feature norm (FLAP): mean |W| times rms(x); Wanda's score summed over outputs."""
    return _by_reader(
        scoring, lambda x, weight: np.sqrt(x.variance + x.mean**2) * np.abs(weight).mean(1).sum(-1).ravel()
    )


@criterion("wanda", data=True)
def wanda(scoring: Scoring) -> ScoresByGroup:
    """Wanda for channels (Sun et al. 2024, structured): E[x^2] times the squared norm of what reads it."""
    return _by_reader(scoring, lambda x, weight: (x.variance + x.mean**2) * np.square(weight).sum((1, 3)).ravel())


@criterion("variance", data=True)
def variance(scoring: Scoring) -> ScoresByGroup:
    """Activation variance (VBP).

    That of each hidden unit where it is read, so after its activation. As ``ifv``, but each place where a channel is
    read counts the same however large its activations are."""
    return _by_reader(scoring, lambda x, weight: x.variance / (x.variance.mean() or 1.0))


@criterion("aap", data=True)
def aap(scoring: Scoring) -> ScoresByGroup:
    """Attention-map activation: the mean |activation| where it is read.

    The spatial mean of the batch-mean |activation| where it is read (after
    a ReLU the activation itself)."""
    return _by_reader(scoring, lambda x, weight: x.magnitude)


@criterion("active", data=True)
def active(scoring: Scoring) -> ScoresByGroup:
    """How often it is not zero where it is read (one minus APoZ, Hu et al. 2016).

    The share of samples and places at which a channel is not zero where it is read (one minus APoZ, Hu et al.
    2016): zero for a channel that the data never wakes, which only `dead` knows to be dead for every input."""
    return _by_reader(scoring, lambda x, weight: x.active)

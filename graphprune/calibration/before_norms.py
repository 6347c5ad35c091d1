"""What layer norms have to be given so that they make what is wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..ir.graph import Op
from ..ir.host import Array, Host


def preimage(wanted: Array, norms: Sequence[Op], host: Host) -> Array:
    """What the first of ``norms``, one after the other, has to be given, up to scale and mean, so that the last makes a
    multiple of ``wanted`` along the last axis. Of zero mean and unit variance.

    With n of zero mean and unit variance a norm makes gamma n + beta; that is a multiple a of ``wanted`` for
    n = a wanted / gamma - beta / gamma, and a is such that the variance of n is one [derived]."""
    for norm in reversed(norms):
        gamma, beta = weights(norm, host)
        v, w = _centred(wanted / gamma), _centred(np.broadcast_to(-beta / gamma, wanted.shape))
        square, both, rest = (np.mean(one, -1, keepdims=True) for one in (v * v, v * w, w * w))
        room = np.maximum(both**2 + square * (1 - rest), 0)
        wanted = (np.sqrt(room) - both) / np.where(square > 0, square, 1) * v + w
    deviation = wanted.std(-1, keepdims=True)
    made: Array = _centred(wanted) / np.where(deviation > 0, deviation, 1)
    return made


def weights(norm: Op, host: Host) -> tuple[Array, Array]:
    """gamma and beta, float64."""
    gamma, beta = (
        host.parameter(value.name).astype(np.float64) if value is not None else other
        for value, other in zip((*norm.inputs[1:3], None, None)[:2], (np.ones(1), np.zeros(1)), strict=True)
    )
    return gamma, beta


def _centred(x: Array) -> Array:
    made: Array = x - x.mean(-1, keepdims=True)
    return made

"""The affine map that a BatchNorm is in eval mode."""

from __future__ import annotations

import numpy as np

from ..ir.graph import Op
from ..ir.host import Array, Host


def affine(norm: Op, host: Host) -> tuple[Array, Array]:
    """What a BatchNorm in eval mode computes: y -> scale * y + shift, per channel, float64."""
    gamma, beta, mean, variance = (
        None if value is None else host.parameter(value.name).astype(np.float64) for value in norm.inputs[1:5]
    )
    assert mean is not None and variance is not None
    scale: Array = (1.0 if gamma is None else gamma) / np.sqrt(variance + norm.attrs["eps"])
    return scale, (0.0 if beta is None else beta) - mean * scale

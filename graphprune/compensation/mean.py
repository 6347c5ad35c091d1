"""Mean to bias: each bias takes over what the removed channels contributed on average."""

from __future__ import annotations

import numpy as np

from ..calibration.moments import moments
from ..coupling.contractions import Contraction, contractions
from ..coupling.groups import everything
from ..ir.facts import Keep
from ..ir.host import Array, Host
from ..ir.program import Program
from ..pipeline.correction import Addition, Correct, addition
from ..pipeline.edits import original
from .no_worse import no_worse


def means(program: Program, keep: Keep) -> tuple[Correct, str]:
    """Biases gain the mean of what went.

    bias += W[:, P] @ E[x_P], P the removed input channels, E over the calibration data in the model as
    it was given (FLAP, An et al. 2024, section 3.4; VBP). The mean of every reader's output is then what
    it was: exactly for linear layers and 1x1 convolutions; a larger kernel does not see the borders as
    often as the rest, which the mean over the whole input leaves out. No more of it is used than helps, see
    no_worse."""
    source = original(program)
    graph = source.lift()
    groups = everything(graph)
    index, blank = keep.index(groups), keep.blank
    counting = {name: kept[~np.isin(kept, blank.get(name, []))] for name, kept in keep.keep.items()}
    reading = Keep(counting).index(groups)
    left = {op.name for op in program.graph.ops}  # a branch may be gone
    found = [
        read
        for read in contractions(graph)
        if read.op.name in left and index.touches(read.dim) and read.op.attrs.get("beta", 1)
    ]
    stats = moments(source, found, program.data, index)
    bias = dict[str, Addition]()
    for read in found:
        gone = stats[read.value.name, read.axis].mean.copy()
        gone[reading(read.dim)] = 0
        change = _lost(source, read, gone)
        out = read.op.outputs[0]
        kept = index(out.dims[read.out_axis])
        if np.any(change):
            bias[read.op.name] = addition(change[kept], kept, len(change))
    return no_worse(program, Correct(bias=bias))


def _lost(host: Host, read: Contraction, mean: Array) -> Array:
    """What inputs of that mean give at the outputs."""
    weight = read.matrix(host).sum(-1)  # groups, outputs, inputs
    lost: Array = np.einsum("goi,gi->go", weight, mean.reshape(weight.shape[0], -1)).ravel()
    return lost

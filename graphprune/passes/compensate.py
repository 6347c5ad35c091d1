"""compensate: make up for what was cut, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dims import Index
from ..errors import RecipeError
from ..facts import Keep
from ..grouping import find_groups
from ..ir import Array, Host, Program
from ..pipeline import Pass, original
from ..reads import Read, moments, reads


@dataclass(frozen=True)
class Compensate(Pass):
    """Add to each bias what the removed channels contributed on average (needs data)."""

    name = "compensate"
    rewrites = True

    def wants_data(self) -> bool:
        return True

    def run(self, program: Program) -> Program:
        """bias += W[:, P] @ E[x_P], P the removed input channels, E over the calibration data in the
        model as it was given (FLAP, An et al. 2024, section 3.4; VBP). The mean of every reader's
        output is then what it was: exactly for linear layers and 1x1 convolutions; a larger kernel does
        not see the borders as often as the rest, which the mean over the whole input leaves out.

        Raises RecipeError before `propagate`, after `fold`, and after more than one cut.
        """
        steps = program.plan.get("steps", ())
        cuts = [step for step in steps if "keep" in step]
        others = [step for step in steps if "keep" not in step and "reindex" not in step]
        if len(cuts) != 1 or others:
            raise RecipeError(
                f"`compensate` follows one `propagate`, here {len(cuts)} cuts and {len(others)} other edits were made",
                "put it right after `propagate`, and `fold` after it",
            )
        source = original(program)
        graph = source.lift()
        groups = find_groups(graph, normalised=True)
        keep = {name: np.asarray(kept, dtype=np.intp) for name, kept in cuts[0]["keep"].items()}
        index = Keep(keep).index(groups)
        counting = {name: kept[~np.isin(kept, cuts[0].get("blank", {}).get(name, []))] for name, kept in keep.items()}
        reading = Keep(counting).index(groups)
        found = [read for read in reads(graph) if index.touches(read.dim)]
        stats = moments(source, found, program.data)
        host = program.host.copy()
        bias: dict[str, Any] = {}
        for read in found:
            change = _lost(source, read, stats[read.value.name, read.axis].mean, reading)
            kept = _outputs(read, index)
            if np.any(change):
                host.add_bias(read.op, change[kept])
                bias[read.op.name] = {"add": change[kept].tolist(), "at": kept.tolist(), "of": len(change)}
        return program.rewrite(host, {"bias": bias})


def _lost(host: Host, read: Read, mean: Array, index: Index) -> Array:
    """What the removed inputs of one reader add to its outputs on average."""
    gone = mean.copy()
    gone[index(read.dim)] = 0
    weight = read.matrix(host).sum(-1)  # groups, outputs, inputs
    lost: Array = np.einsum("goi,gi->go", weight, gone.reshape(weight.shape[0], -1)).ravel()
    return lost


def _outputs(read: Read, index: Index) -> Array:
    """The outputs of the reader that survive."""
    out = read.op.outputs[0]
    axis = read.axis if read.op.kind == "conv" else len(out.dims) - 1
    return index(out.dims[axis])

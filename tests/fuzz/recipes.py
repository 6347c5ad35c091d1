"""What passes promise, on a random network: one recipe each, drawn with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np

import graphprune as gp
from graphprune.calibration.batches import batches
from graphprune.errors import ShapeError, VerificationError
from graphprune.ir.program import Program

from .network import Network, data
from .reference import Broken, Masked, Outputs, agree

SAMPLES = 13  # of calibration data: the last batch is short
SAME = ("group,dead,propagate", "fold", "group,dead,propagate,fold")
"""These change nothing that is computed, for any input."""

CUTS = (
    "group,score{by=l2},mask{channels=0.5x},propagate",
    "group,score{by=lamp},mask{params=0.6x allocate=lamp},propagate",
    "group,score{by=l1},mask{macs=0.5x allocate=knapsack},propagate",
    "group,score{by=fpgm},mask{memory=0.8x},propagate",
    "group,score{by=wanda},mask{macs=0.6x allocate=greedy},propagate",
    "group,score{by=obs},mask{channels=0.6x allocate=global},propagate",
    "group,score{by=active},mask{channels=0.5x allocate=rd},propagate",
    "group,score{by=l2},mask{channels=0.5x unconstrained=readers},reorder,propagate",
    "group,score{by=variance},mask{macs=0.7x unconstrained=readers},reorder,propagate",
)
"""What these make computes what the user's own network does with zeros in what reads a channel that goes."""

OPENS = ("factor", "rms", "rms,rotate")
"""These change nothing that is computed; of what they open half can go."""

FITS = ("lsq", "mean")
"""What these correct is never further from the original than the cut alone, on its calibration data."""


def check_recipe(net: Network, program: Program, masked: Masked) -> Counter[str]:
    """Raises Broken for a broken promise, and whatever graphprune raised where it is no refusal."""
    rng = np.random.default_rng([net.seed, 99])
    samples = data(net, 2, batch=SAMPLES)
    found = [np.asarray(x, like.dtype) for x, like in zip(samples, program.host.example(), strict=True)]
    try:
        program = replace(program, data=batches(found if len(found) > 1 else found[0], program.graph.inputs))
        return rng.choice([_same, _cut, _cut, _fit, _open])(net, program, masked, rng)
    except (ShapeError, VerificationError):
        raise
    except gp.GraphpruneError as refusal:
        return Counter({f"recipes refused with a {type(refusal).__name__}": 1})


def _same(net: Network, program: Program, masked: Masked, rng: Any) -> Counter[str]:
    host, recipe = _sleepy(program, rng), str(rng.choice(SAME))
    asleep = Program(host=host, source=host, seed=net.seed)
    done = gp.run(recipe, asleep)
    gp.verify(done)
    for scale in (1, 64):
        batch = [np.asarray(x * scale if x.dtype.kind == "f" else x, x.dtype) for x in host.example()]
        agree(net, host.run(batch), done.host.run(batch), host, f"{host.kind}: {recipe} changes what is computed")
    return Counter({"recipes that change nothing": 1, "of them with something dead": _smaller(asleep, done)})


def _sleepy(program: Program, rng: Any) -> Any:
    """The network with zeros and large numbers in some channels of its weights, so that some of it is dead."""
    host = program.host.copy()
    for name in program.graph.parameters:
        weight = np.array(host.parameter(name))
        if weight.dtype.kind != "f" or not weight.ndim or name.endswith("running_var") or rng.random() < 0.4:
            continue
        axis = int(rng.integers(weight.ndim))
        at = (slice(None),) * axis + (rng.random(weight.shape[axis]) < 0.4,)
        weight[at] = rng.choice([0, 0, -3, 3])
        host.set_parameter(name, weight)
    return host


def _smaller(before: Program, after: Program) -> int:
    old, new = before.graph.parameters, after.graph.parameters
    return int(any(new[name].shape != old[name].shape for name in old.keys() & new.keys()))


def _cut(net: Network, program: Program, masked: Masked, rng: Any) -> Counter[str]:
    recipe = str(rng.choice(CUTS))
    done = gp.run(recipe, program)
    gp.verify(done)
    what = f"{program.host.kind}: {recipe}: pruned is not masked"
    agree(net, masked(done.plan["parameters"], data(net)), done.host.run(done.host.example()), program.host, what)
    return Counter({"recipes that cut": 1})


def _open(net: Network, program: Program, masked: Masked, rng: Any) -> Counter[str]:
    recipe, host = str(rng.choice(OPENS)), program.host
    opened = gp.run(recipe, program)
    what = f"{host.kind}: {recipe} changes what is computed"
    agree(net, host.run(host.example()), opened.host.run(host.example()), host, what)
    gp.verify(gp.run("group,score,mask{channels=0.5x},propagate", opened))
    return Counter({"recipes that open dims": 1})


def _fit(net: Network, program: Program, masked: Masked, rng: Any) -> Counter[str]:
    by, score = rng.choice(FITS), rng.choice(["l1", "l2", "random"])
    cut = gp.run(f"group,score{{by={score}}},mask{{channels=0.5x}},propagate", program)
    done = gp.run(f"compensate{{by={by}}}", cut)
    gp.verify(done)
    plain, fitted = (_error(one, program) for one in (cut, done))
    if not fitted <= plain * (1 + 1e-6) + 1e-12:
        raise Broken(f"{program.host.kind}: {by}: error {fitted:.3g}, the cut alone {plain:.3g}{net!r}")
    return Counter({"recipes that compensate": 1})


def _error(one: Program, original: Program) -> float:
    """Squares of the error as a share of the original's, the mean over outputs, on the calibration data."""
    made, want = (_all(p, original.data) for p in (one, original))
    shares = [float(np.square(a - b).sum() / (np.square(b).sum() or 1.0)) for a, b in zip(made, want, strict=True)]
    return float(np.mean(shares))


def _all(program: Program, given: Any) -> Outputs:
    runs = [program.host.run(batch) for batch in given]
    return [np.concatenate([np.asarray(x, np.float64).ravel() for x in outs]) for outs in zip(*runs, strict=True)]

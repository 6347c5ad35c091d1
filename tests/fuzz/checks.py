"""What must hold of every network: the law, the oracle, and what recipes promise, on both hosts."""

from __future__ import annotations

import copy
from collections import Counter
from functools import partial

import numpy as np

from graphprune.coupling.groups import find_groups
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.facts import Groups, Keep
from graphprune.ir.host import Host
from graphprune.ir.program import Program
from graphprune.passes.propagate import Propagate
from graphprune.pipeline import verify as proof
from graphprune.pipeline.run import run_pass

from .law import law
from .network import Module, Network, data, to_onnx
from .recipes import check_recipe
from .reference import (
    EXACT,
    Masked,
    agree,
    distance,
    export,
    float32,
    masked_file,
    masked_module,
    run_module,
)


def check(net: Network, *, onnx_too: bool, masks: int = 2) -> Counter[str]:
    """Everything that must hold of one network. Returns counts of what was checked; raises Broken,
    or whatever graphprune raised."""
    module = Module(net).eval()
    outputs = run_module(module, data(net))
    if not all(np.isfinite(out).all() and np.abs(out).max(initial=0) < 1e6 for out in outputs):
        return Counter({"networks that overflow, left out": 1})
    host = export(net, module)
    tally = Counter({"networks": 1, f"batch of {net.batch}": 1, "with a second open size": int(net.opens)})
    agree(net, outputs, host.run(host.example()), host, "torch.export computes what the module does")
    tally += _check(net, host, partial(masked_module, module), masks)
    if onnx_too:
        tally += check_onnx(net, masks)
    return tally


def check_onnx(net: Network, masks: int = 2) -> Counter[str]:
    proto = to_onnx(net)
    host = OnnxHost(copy.deepcopy(proto), float32(data(net)))
    return Counter({"networks in ONNX": 1}) + _check(net, host, partial(masked_file, proto), masks)


def _check(net: Network, host: Host, masked: Masked, masks: int) -> Counter[str]:
    program = Program(host=host, source=host, seed=net.seed)
    tally = law(net, program)
    for number in range(masks):
        tally += _oracle(net, program, number, masked)
    return tally + check_recipe(net, program, masked)


# ---- the oracle --------------------------------------------------------------------------------------


def _oracle(net: Network, program: Program, number: int, masked: Masked) -> Counter[str]:
    """A random mask, in a random order of what is kept: the cut network computes what the masked one
    does. The mask is put on the user's own model, outside of everything that graphprune read."""
    host, kind = program.host, program.host.kind
    groups = find_groups(program.graph)
    if not groups.groups:
        return Counter()
    keep = _random_keep(groups, np.random.default_rng([net.seed, number]))
    pruned = run_pass(Propagate(), program.learn(groups).learn(keep))
    cut = pruned.host.run(pruned.host.example())
    kept = {name: k.tolist() for name, k in keep.keep.items()}
    plan = pruned.plan["parameters"]
    agree(net, masked(plan, data(net)), cut, host, f"{kind}: pruned is not masked, keep={kept}")
    tally = Counter({"masks": 1, "channels cut": sum(g.size - len(keep.keep[g.name]) for g in groups)})
    if number:
        return tally
    proof.verify(pruned, batches=1)
    return tally + _at_other_sizes(net, host, pruned, masked)


def _at_other_sizes(net: Network, host: Host, pruned: Program, masked: Masked) -> Counter[str]:
    """As above, of another batch and length, where the network as it was read is right there."""
    batch = data(net, 1, batch=net.batch % 8 + 1, length=net.length % 4 + 3)
    given = [np.asarray(x, like.dtype) for x, like in zip(batch, host.example(), strict=True)]
    try:
        read = host.run(given)
    except Exception:
        return Counter({"read as of one size": 1})  # torch.export made a number of what was open, or the file has one
    plain = masked({}, batch)
    if [x.shape for x in read] != [x.shape for x in plain] or distance(plain, read) > EXACT[host.kind]:
        return Counter({"read as of one size": 1})
    what = f"{host.kind}: pruned is not masked at other sizes, {[x.shape for x in batch]}"
    agree(net, masked(pruned.plan["parameters"], batch), pruned.host.run(given), host, what)
    return Counter({"checked at other sizes": 1})


def _random_keep(groups: Groups, rng: np.random.Generator) -> Keep:
    """Any subset of every group in any order; some whole, some down to one channel."""
    sizes = {g: int(rng.choice([1, g.size, rng.integers(1, g.size + 1), rng.integers(1, g.size + 1)])) for g in groups}
    keep = {g.name: rng.permutation(g.size)[:n] for g, n in sizes.items()}
    return Keep({name: np.sort(kept) if rng.random() < 0.5 else kept for name, kept in keep.items()})

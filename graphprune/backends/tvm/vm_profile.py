"""What kernels take inside a network, as TVM's virtual machine sees them come and go.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable
from math import prod
from typing import Any

from ...cost.static import evaluate
from ...ir.graph import Graph
from ...ir.host import Host
from ...ops.traits import traits
from ..measure import settled

RUNS = 17  # the first two are warm-up
_KERNELS = re.compile(r"conv\d|matmul|dense|einsum")
_BOTH = re.compile(r"conv2d_separable_(\d+)_")  # a depthwise convolution is part of the kernel (separable.py)
_PARTS = ("winograd_read", "winograd_multiply")  # of the convolution whose result comes next (winograd.py)

Times = list[tuple[str, int, list[float]]]
"""Every call of a kernel in the order in which they run: its name, how many numbers it writes, ms of each run."""


def kernel_times(machine: Any, run: Callable[[], object]) -> Times:
    """``run`` calls into ``machine``, a relax.VirtualMachine."""
    runs: list[Times] = []
    began = 0.0

    def watch(_: Any, name: str, before: bool, __: Any, *operands: Any) -> int:
        nonlocal began
        now = time.perf_counter()
        if before:
            began = time.perf_counter()
        elif hasattr(operands[-1] if operands else None, "shape"):
            runs[-1].append((name, prod(operands[-1].shape), [(now - began) * 1e3]))
        return 0  # go on as usual

    machine.set_instrument(watch)
    try:
        for _ in range(RUNS):
            runs.append([])
            run()
    finally:
        machine.set_instrument(lambda *_: 0)
    return [(name, size, [one[k][2][0] for one in runs[2:]]) for k, (name, size, _) in enumerate(runs[0])]


def by_op(graph: Graph, host: Host, times: Times) -> dict[str, float]:
    """Milliseconds of every convolution and product, whatever was fused to it. Kernels do not say what they came
    from: those that write as many numbers come in the graph's order, if they are as many as the ops. A depthwise
    convolution that is computed within the pointwise one behind it has no time of its own."""
    heads, kernels, sizes = _by_size(), _by_size(), host.sizes()
    for op in graph.ops:
        if traits(op).latency in ("conv", "product") and not op.outputs[0].constant:
            heads[prod(evaluate(n, sizes) for n in op.outputs[0].shape or ())].append(op.name)
    parts = 0.0
    for name, size, own in times:
        ms = settled(own, 1, "").median_ms
        if name.startswith(_PARTS):
            parts += ms
        elif "winograd_back" in name:
            kernels[size].append(parts + ms)
            parts = 0.0
        elif _KERNELS.search(name):
            if both := _BOTH.search(name):
                kernels[int(both[1])].append(None)
            kernels[size].append(ms)
    return {
        op: ms
        for size, ops in heads.items()
        if len(ops) == len(kernels[size])
        for op, ms in zip(ops, kernels[size], strict=True)
        if ms is not None
    }


def _by_size() -> defaultdict[int, list[Any]]:
    return defaultdict(list)

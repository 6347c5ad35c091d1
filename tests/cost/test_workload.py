"""How ops are keyed in a table of latencies."""

from __future__ import annotations

from math import prod

import nets
import pytest

from graphprune.cost import static as costs
from graphprune.cost.latency.workload import works


@pytest.mark.parametrize("name", ["Einsum", "Packed", "GroupedQuery"])
def test_products_are_keyed_by_what_they_multiply(name):
    """Einsum and attention are arithmetic, never streams of memory."""
    program = nets.program(name)
    graph, host = program.graph, program.host
    keyed = {}
    for work in works(graph, host):
        if work.family.kind == "product":
            keyed[work.op] = keyed.get(work.op, 0) + prod(work.widths({}, host.sizes())[:2]) * work.family.sizes[0]
    batch = host.example()[0].shape[0]
    assert sum(keyed.values()) == costs.macs(graph, host)() * batch
    assert set(keyed) >= {op.name for op in graph.ops if op.kind in ("einsum", "attention", "linear", "matmul")}

"""The units that a budget may be in: what `mask`, the Python interface and the command line take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..ir.facts import Groups
    from ..ir.graph import Graph, Rank
    from ..ir.host import Host
    from .static import Cost


@dataclass(frozen=True)
class Unit:
    """Something of which a budget says what remains."""

    name: str
    of: str
    example: str = "0.5x"
    counted: bool = True  # from the graph alone, see ``cost``; else measured on a target


UNITS: Mapping[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit("channels", "the channels of each group"),
        Unit("params", "the parameters", "0.5x|200k"),
        Unit("size", "the bytes of the weights", "0.5x|200kB"),
        Unit("macs", "the multiply-accumulates", "0.5x|1.5G"),
        Unit("memory", "the peak activation memory", "0.5x|3MB"),
        Unit("latency", "the latency, measured on the first target", "0.6x|12ms", counted=False),
    )
}


def cost(unit: str, graph: Graph, host: Host, groups: Groups, ranks: Sequence[Rank] = ()) -> Cost:
    """What a choice of channels and branches costs in a unit that is counted. ``ranks``: of the layers that may be
    whole or factored, whichever is less."""
    from . import static  # late: the command line reads UNITS alone

    if unit == "channels":
        return static.Cost("channels", tuple((group.dim,) for group in groups), {})
    if unit == "memory":  # of a branch that goes, what lives beside it is no less
        return static.memory(graph, host)
    return {"params": static.params, "size": static.size, "macs": static.macs}[unit](
        graph, host, static.gates(graph, groups), ranks
    )

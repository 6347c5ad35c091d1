"""What of a model can be pruned, on one screen: what `inspect` prints, and as plain data for scripts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ..cost import static as costs
from ..ir.facts import Groups
from ..ir.program import Program
from .units import COLUMNS, count, shortened

ROWS = 30
"""Groups that a screen has room for."""
REASONS = 8
"""Of what is frozen."""
NAMES = 3
"""Of a reason."""

Overview = Mapping[str, Any]


def overview(program: Program, groups: Groups) -> Overview:
    """Plain data: the model's parameters and MACs, every group with its channels, its axes and what of both would go
    with all of it, every frozen dim with its reason."""
    counted = {
        "params": costs.params(program.graph, program.host),
        "macs": costs.macs(program.graph, program.host),
    }
    whole = {unit: cost() for unit, cost in counted.items()}
    return {
        **{unit: round(value) for unit, value in whole.items()},
        "groups": [
            {
                "name": group.name,
                "channels": group.size,
                **{unit: round(whole[unit] - cost({group.dim: 0})) for unit, cost in counted.items()},
                "members": [{"parameter": m.parameter, "axis": m.axis, "role": m.role} for m in group.members],
            }
            for group in groups
        ],
        "frozen": [{"name": dim.name, "size": dim.size, "reason": dim.reason} for dim in groups.frozen],
    }


def screen(found: Overview) -> str:
    """The overview as text, ``COLUMNS`` wide: the groups that most MACs depend on, in the network's order, and the
    reasons for what is frozen."""
    groups, frozen = found["groups"], found["frozen"]
    channels = sum(group["channels"] for group in groups)
    lines = [
        f"{count(found['params'])} parameters, {count(found['macs'])} MACs a sample. "
        f"{_many(len(groups), 'group')}, {channels:,} channels that can be pruned" + (":" if groups else ".")
    ]
    if groups:
        heaviest = sorted(groups, key=lambda group: (-group["macs"], -group["params"]))[:ROWS]
        shown = [group for group in groups if any(group is one for one in heaviest)]
        rows: list[tuple[str, ...]] = [("group", "channels", "parameters", "", "MACs", "")]
        rows += [_row(group, found) for group in shown]
        widths = [max(len(row[k]) for row in rows) for k in range(6)]
        name = min(widths[0], COLUMNS - sum(widths[1:]) - 10)
        lines += ["", *(_line(row, name, widths[1:]) for row in rows)]
        if len(groups) > len(shown):
            lines.append(f"... and {len(groups) - len(shown)} that less depends on (--all shows them)")
        lines += ["", "Shares: of the whole, what all channels of the group are part of; they overlap."]
    lines += ["", f"{len(frozen)} frozen{':' if frozen else ''}"]
    reasons: dict[str, list[str]] = defaultdict(list)
    for dim in frozen:
        reasons[dim["reason"]].append(dim["name"])
    often = sorted(reasons.items(), key=lambda item: -len(item[1]))
    lines += [f"  {_names(names)}: {reason}" for reason, names in often[:REASONS]]
    if len(often) > REASONS:
        lines.append(f"  ... and {_many(len(often) - REASONS, 'other reason')} (--all shows them)")
    return "\n".join(lines)


def _row(group: Mapping[str, Any], whole: Overview) -> tuple[str, ...]:
    shares = (f"{group[unit] / whole[unit]:.1%}" if whole[unit] else "-" for unit in ("params", "macs"))
    params, macs = shares
    return group["name"], f"{group['channels']:,}", count(group["params"]), params, count(group["macs"]), macs


def _line(row: Sequence[str], name: int, widths: Sequence[int]) -> str:
    cells = "  ".join(f"{cell:>{width}}" for cell, width in zip(row[1:], widths, strict=True))
    return f"{shortened(row[0], name):<{name}}  {cells}".rstrip()


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
    return f"{', '.join(names[:NAMES])}{more}"


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

"""The part of the report on readers that choose their own channels: who selects, how, and what moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .units import duration, size

HOW = {
    "all": "takes all there is",
    "view": "one run, in place",
    "load": "loads them by index",
    "gather": "gathers",
    "widen": "one run, gaps multiplied by zero",
    "constrain": "all there is, the rest multiplied by zero",
    "sink": "into its own concatenation",
    "pad": "adds one run to the sum",
    "scatter": "scatters into the sum",
}
SIDES = {
    "ours": "this order and choice",
    "upscale": "UPSCALE's order",
    "naive": "a gather each",
    "constrained": "every reader takes all that is kept",
}


def segments(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Each segment as rows for a table, those that move most in the naive export first."""
    ordered = sorted(found, key=lambda one: -one["naive"]["moved_bytes"])
    return [
        {
            "name": one["name"],
            "exact": one["exact"],
            "takers": [_taker(taker) for taker in one["takers"]],
            "sides": [_side(label, one[side]) for side, label in SIDES.items() if side in one],
        }
        for one in ordered
    ]


def _taker(taker: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "origin": taker["origin"],
        "how": HOW[taker["how"]],
        "count": f"{taker['count']} of {taker['of']}",
        "moved": size(taker["moved_bytes"]) if taker["moved_bytes"] else "nothing",
        "us": duration(taker["us"] / 1e3),
    }


def _side(label: str, one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "label": label,
        "copies": one["copies"],
        "moved": size(one["moved_bytes"]) if one["moved_bytes"] else "nothing",
        "us": duration((one["us"] + one["concat_us"]) / 1e3),
    }


def picture(found: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The block that most readers choose from, before and after: a row per reader, a column per channel,
    as runs (start and length in percent)."""
    blocks = [(one, block) for one in found for block in one["blocks"] if len(block["order"]) > 1]
    if not blocks:
        return None
    segment, block = max(blocks, key=lambda pair: (len(_rows(*pair)), len(pair[1]["order"])))
    name, after = block["name"], block["order"]
    rows = _rows(segment, block)
    return {
        "name": name,
        "channels": len(after),
        "rows": [
            {
                "origin": taker["origin"],
                "how": HOW[taker["how"]],
                "run": taker["how"] in ("all", "view", "load", "pad"),
                "before": _runs(sorted(after), set(taker["takes"][name])),
                "after": _runs(after, set(taker["takes"][name])),
            }
            for taker in rows
        ],
    }


def _rows(segment: Mapping[str, Any], block: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [taker for taker in segment["takers"] if taker["takes"].get(block["name"])]


def _runs(order: Sequence[int], takes: set[int]) -> list[tuple[float, float]]:
    """Where a reader's channels stand, as (start, length) in percent of the block."""
    out: list[list[int]] = []
    for k, channel in enumerate(order):
        if channel in takes:
            if out and sum(out[-1]) == k:
                out[-1][1] += 1
            else:
                out.append([k, 1])
    return [(round(100 * start / len(order), 3), round(100 * length / len(order), 3)) for start, length in out]

"""ATen ops that read or write positions by number, by a mask, or in order of their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .reading import Args, Reading, Table, rank_of

INDEXING: Table = {}


def _enter(names: str, read: Callable[[Args], Reading]) -> None:
    """Also the forms of the ops that write in place."""
    for name in names.split():
        op, dot, overload = name.partition(".")
        INDEXING[name] = INDEXING[f"{op}_{dot}{overload}"] = read


def _starts(indices: list[Any]) -> list[int]:
    """The first axis that each index picks from: a mask takes as many as it has."""
    starts, axis = [], 0
    for one in indices:
        if one is not None:
            starts.append(axis)
        axis += rank_of(one) if one is not None and one.meta["val"].dtype == torch.bool else 1
    return starts


def _index(a: Args) -> Reading:
    ids = [one for one in a["indices"] if one is not None]
    return "index", [a["self"], *ids], {"axes": _starts(a["indices"])}


def _index_put(a: Args) -> Reading:
    ids = [one for one in a["indices"] if one is not None]
    return "index_put", [a["self"], a["values"], *ids], {"axes": _starts(a["indices"])}


def _put_along(source: str) -> Callable[[Args], Reading]:
    return lambda a: ("put_along", [a["self"], a.get("index"), a.get(source)], {"axis": a["dim"]})


def _diagonal(a: Args) -> Reading:
    return "diagonal", [a["self"]], {"axes": [a["dim1"], a["dim2"]]}


def _masked_scatter(a: Args) -> Reading:
    """Axes along which a mask is broadcast, or was expanded (they have no stride)."""
    mask, rows = a["mask"].meta["val"], 0
    while rows < mask.ndim and (mask.stride()[-1 - rows] == 0 or mask.shape[-1 - rows] == 1):
        rows += 1
    return "masked_scatter", [a["self"], a["mask"], a["source"]], {"rows": rows}


def _topk(a: Args) -> Reading:
    """The best along an axis; the worst are a matter of all positions."""
    if not a["largest"] or not isinstance(a["k"], int):
        return "along", [a["self"]], {"axes": [a["dim"]]}
    return "topk", [a["self"]], {"axis": a["dim"], "best": a["k"]}


def _best(a: Args) -> Reading:
    """The largest along an axis, or of all."""
    if a.get("dim") is None:
        return "reduce", [a["self"]], {"axes": [], "keepdim": a.get("keepdim", False)}
    return "topk", [a["self"]], {"axis": a["dim"], "best": 1, "keepdim": a["keepdim"]}


def _histogram(a: Args) -> Reading:
    """Of numbers from 0 on, each in a bin of its own, where the bounds say so."""
    exact = a["min"] == 0 and a["max"] == a["bins"] - 1
    return "count", [a["self"]], {"bins": a["bins"], "exact": exact}


def _chosen(kind: str) -> Callable[[Args], Reading]:
    """Any op of tensors whose result is as long as data says."""
    return lambda a: (kind, [v for v in a.values() if hasattr(getattr(v, "meta", {}).get("val"), "ndim")], {})


_enter("index_select", lambda a: ("gather", [a["self"], a["index"]], {"axis": a["dim"]}))
_enter("gather", lambda a: ("take_along", [a["self"], a["index"]], {"axis": a["dim"]}))
_enter(
    "embedding_bag",
    lambda a: ("gather_bags", [a["weight"], a["indices"], a["offsets"], a["per_sample_weights"]], {}),
)
_enter("embedding", lambda a: ("gather", [a["weight"], a["indices"]], {"axis": 0}))
_enter("index", _index)
_enter("index_put _index_put_impl", _index_put)
_enter(
    "scatter scatter_add scatter_reduce",
    lambda a: ("scatter", [a["self"], a["index"], *([a["src"]] if "src" in a else [])], {"axis": a["dim"]}),
)
_enter("index_add index_copy index_reduce", _put_along("source"))
_enter("index_fill", _put_along("source"))
_enter("slice_scatter select_scatter", _put_along("src"))
_enter("diagonal diagonal_copy", _diagonal)
_enter("diagonal_scatter", lambda a: ("put_diagonal", [a["self"], a["src"]], {"axes": [a["dim1"], a["dim2"]]}))
_enter("masked_scatter", _masked_scatter)
_enter("masked_select", _chosen("masked_select"))
_enter("nonzero argwhere nonzero_numpy nonzero_static where.default", _chosen("nonzero"))
_enter("_unique2 _unique unique_dim unique_consecutive bincount", _chosen("unique"))
_enter("topk", _topk)
_enter("argmax max.dim", _best)
_enter("sort", lambda a: ("sort", [a["self"]], {"axes": [a["dim"]]}))
_enter("histc", _histogram)
_enter(
    "one_hot",
    lambda a: ("one_hot", [a["self"]], {"axis": -1}) if a["num_classes"] > 0 else ("unique", [a["self"]], {}),
)

"""A smaller width of heads, said by a configuration: its field, and what a class makes of that besides shapes.

Scores are divided by the root of the width, and angles of rotary positions follow from it. So queries are multiplied by
the root of the new width over the old one, and a configuration lists the angles where those that are left are not those
of the new width.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping
from math import inf, isclose, nextafter, sqrt
from typing import Any

import torch

from ...errors import ModelError
from .configuration import Configuration, Keeps, Path, fields_of, floats, value_of

HEAD = ("head_dim", "d_kv")
QUERIES = ("q_norm", "q_proj", "q")
"""What queries come from: the first that a layer has is the last that they go through."""
STATIC = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose angles do not go by the length of a sample."""
ANGLES = "inv_freq"

Tables = Mapping[str, torch.Tensor]
"""Buffers that hold the angles a network has, by name."""


def at_width(configuration: Configuration, keeps: Keeps, tables: Tables) -> Configuration:
    """The class at the width that its heads have now and, where a configuration can say it, with these angles; other
    fields as they were. The same one where no width changed. Raises ModelError where heads have several."""
    config, cut = copy.deepcopy(configuration.config), False
    for path, width in _widths(configuration, keeps):
        cut = True
        part = value_of(config, path[:-1])
        setattr(part, path[-1], width)
        for name, table in tables.items():
            _say_angles(part, name, table, width, configuration)
    return Configuration(configuration.kind, config) if cut else configuration


def scaled(state: Mapping[str, torch.Tensor], before: Configuration, after: Configuration) -> dict[str, torch.Tensor]:
    """Weights with which the class ``after`` computes scores as large as ``before`` does at other widths of heads,
    wherever its layers hold their scale."""
    was, now, new = floats(before.made), floats(after.made), dict(state)
    widths = [(value_of(before.config, path), value_of(after.config, path)) for path in fields_of(after.config, HEAD)]
    for layer in was:
        ratios = [min(a, b) / max(a, b) for a, b in zip(was[layer], now[layer], strict=True) if a != b]
        query = next((f"{layer}.{name}" for name in QUERIES if f"{layer}.{name}.weight" in state), None)
        for root in {sqrt(now / was) for was, now in widths if any(isclose(one, sqrt(now / was)) for one in ratios)}:
            for name in (f"{query}.weight", f"{query}.bias"):
                if name in state:
                    new[name] = (state[name].double() * root).to(state[name].dtype)
    return new


def tables(module: torch.nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    """The angles that a network holds under names that begin with ``prefix``, by what follows it."""
    own = ((name.removeprefix(prefix), table) for name, table in module.named_buffers() if name.startswith(prefix))
    leaves = ((name, name.rpartition(".")[2], table) for name, table in own)
    return {name: table for name, leaf, table in leaves if leaf.endswith(ANGLES) and "original" not in leaf}


def same_angles(one: Tables, other: Tables) -> bool:
    """But for their last digits."""
    return all(_near(one[name], other[name]) for name in one.keys() & other.keys())


def _widths(configuration: Configuration, keeps: Keeps) -> Iterator[tuple[Path, int]]:
    """Per field the width that all heads have now, where that is another one."""
    for path in fields_of(configuration.config, HEAD):
        was = value_of(configuration.config, path)
        found: dict[int, str] = {}
        for name, axis in sorted(configuration.moved(path)):
            left = keeps.get(name, {}).get(str(axis), range(configuration.sizes[name][axis]))
            for width in Counter(place // was for place in left).values():  # of each head that is left
                found.setdefault(width, name)
        if len(found) > 1:
            each = ", ".join(f"{width} in `{name}`" for width, name in sorted(found.items()))
            raise ModelError(
                f"heads have several widths, {each}, and a configuration of {configuration.kind.__name__} has one, "
                f"`{path[-1]}`",
                "keep as many channels of values as of queries and keys, in all layers; heads of a folder that "
                "modeling_pruned.py makes narrower stay as they are",
            )
        if found and was not in found:
            yield path, next(iter(found))


def _say_angles(part: Any, name: str, table: torch.Tensor, width: int, before: Configuration) -> None:
    """In ``part`` of a configuration, what makes a class compute this table: the share of a head that has positions
    and, where that is not enough, a list of factors (LongRoPE, Ding et al. 2024, section 3), alike for all lengths."""
    owner, _, leaf = name.rpartition(".")
    kind = leaf.removesuffix(ANGLES).rstrip("_")  # of layers, where they differ
    rope = getattr(part, "rope_parameters", None) or {}
    rope = rope.get(kind) if kind else rope
    if not isinstance(rope, dict) or rope.get("rope_type") not in STATIC:
        return
    turned = 2 * len(table)
    if turned != width or "partial_rotary_factor" in rope:
        share = turned / width
        share = share if int(width * share) == turned else nextafter(share, inf)
        rope["partial_rotary_factor"] = share
        if hasattr(part, "partial_rotary_factor"):
            part.partial_rotary_factor = share
    base = rope["rope_theta"] ** (torch.arange(0, turned, 2).float() / turned)
    if rope["rope_type"] == "default" and _near(1 / base, table):
        return
    factors = _factors(base, table.float()).tolist()
    scaling = getattr(
        before.made.get_submodule(owner), f"{kind}_attention_scaling" if kind else "attention_scaling", 1.0
    )
    kept = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
    rope.clear()
    rope |= {**kept, "rope_type": "longrope", "short_factor": factors, "long_factor": factors, "factor": 1.0}
    rope |= {"attention_factor": float(scaling), "original_max_position_embeddings": part.max_position_embeddings}


def _factors(base: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Those with which ``1 / (factor * base)`` comes closest to the table, in float32 as the library computes it."""
    first = (1 / (table.double() * base.double())).float()
    tries = [first]
    for way in (-torch.inf, torch.inf):
        near = first
        for _ in range(3):
            near = torch.nextafter(near, torch.tensor(way))
            tries.append(near)
    each = torch.stack(tries)
    return each.gather(0, (1 / (each * base) - table).abs().argmin(0, keepdim=True))[0]


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Of float32, but for its last digits."""
    return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=5e-7, atol=0)

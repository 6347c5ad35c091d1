"""The channels of a program's groups, seen in the parameters of the user's own module.

A group's channel i is a slice of every member: of a conv's output axis, of a norm's scale, of the
columns of the next layer that read it, through views (products) and concats (sums) alike. Here those
slices are found once, as index vectors; norms, masks and inner products over them are then a few tensor
operations for a parameter axis, whatever the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..axes.index import Indices, shares
from ..errors import ModelError, RecipeError, nearest
from ..hosts.torch.export import unwrapped
from ..ir.facts import Group, Groups
from ..ir.program import Program
from .positions import Positions, wide

ROLES = {"writers": ("writer", "carrier"), "readers": ("reader",), "all": ("writer", "carrier", "reader")}
"""What ``over`` may say. A norm's scale and a bias make the channel, so they count as writers."""


@dataclass(frozen=True, eq=False)
class Part:
    """One axis of one parameter. ``layers``: (positions, channels) pairs; within one of them no position
    occurs twice, so a concat has one and a product of axes has one for each factor."""

    name: str
    parameter: nn.Parameter
    axis: int
    layers: tuple[tuple[Tensor, Tensor], ...]
    _moved: dict[torch.device, tuple[tuple[Tensor, Tensor], ...]] = field(default_factory=dict)

    def places(self, device: torch.device) -> tuple[tuple[Tensor, Tensor], ...]:
        if device not in self._moved:
            self._moved[device] = tuple((at.to(device), channel.to(device)) for at, channel in self.layers)
        return self._moved[device]

    def sums(self, tensor: Tensor) -> Tensor:
        """Per position of the axis, the sum of ``tensor`` over all other axes."""
        return tensor.sum([k for k in range(tensor.ndim) if k != self.axis]) if tensor.ndim > 1 else tensor

    def spread(self, channels: Tensor) -> Tensor:
        """One factor per position of the axis, shaped to multiply the parameter."""
        size = self.parameter.shape[self.axis]
        out = torch.ones(size, dtype=channels.dtype, device=channels.device)
        for at, channel in self.places(channels.device):
            out = out.index_put((at,), out[at] * channels[channel])
        return out.reshape([-1 if k == self.axis else 1 for k in range(self.parameter.ndim)])


class Channels(Positions):
    """All channels of all groups as one vector, group after group.

    ``over``: whether a channel's slices are those of what makes it (``writers``: weights, biases and
    norms), of what reads it (``readers``; below RMS norms what writes it too, as the proof zeroes that), or
    ``all``; a group that has none of the wanted kind to train takes those it has. A tensor under several
    names counts once. Raises ModelError where the module does not fit the program.
    """

    def __init__(self, program: Program, module: nn.Module, over: str = "writers") -> None:
        if over not in ROLES:
            raise RecipeError(f"`over` cannot be `{over}`", nearest(over, ROLES))
        groups: tuple[Group, ...] = program.fact(Groups).channels.groups
        super().__init__(groups, unwrapped(module), torch.device("cpu"))
        self.starts = dict(zip(self.names, np.cumsum([0, *(g.size for g in self.groups)]).tolist(), strict=False))
        self.parts = tuple(self._parts(program, over))
        if not self.parts:
            raise ModelError(
                f"{type(self.module).__name__} trains none of the parameters of the program's groups",
                "give the module that the program was loaded from, with parameters that require gradients",
            )
        self.device = self.parts[0].parameter.device

    # ---- finding them ----------------------------------------------------------------------------

    def _parts(self, program: Program, over: str) -> Iterator[Part]:
        live = parameters(program, self.module)
        wanted = {
            (group.name, member.parameter, member.axis)
            for group in self.groups
            for member in _chosen(group, live, ROLES[over])
        }
        by_leaf = {group.dim: group.name for group in self.groups}
        seen: set[tuple[int, int]] = set()
        for name, parameter in live.items():
            for axis, dim in enumerate(program.graph.parameters[name].dims):
                found = [
                    (at, index + self.starts[group])
                    for leaf, (at, index) in (shares(dim) if isinstance(dim.size, int) else {}).items()
                    if (group := by_leaf.get(leaf, "")) and (group, name, axis) in wanted
                ]
                if found and (id(parameter), axis) not in seen:
                    seen.add((id(parameter), axis))
                    yield Part(name, parameter, axis, tuple(_layers(found)))

    # ---- using them ------------------------------------------------------------------------------

    def tensors(self) -> dict[str, nn.Parameter]:
        """The parameters that have slices, each once."""
        return {part.name: part.parameter for part in self.parts}

    def fold(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Per channel, the sum of the entries of its slices in ``tensors`` (shaped like the parameters)."""
        kind = torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors.values()) else torch.float32
        out = torch.zeros(self.total, dtype=kind, device=self.device)
        for part in self.parts:
            sums = part.sums(tensors[part.name].to(kind))
            for at, channel in part.places(sums.device):
                out = out.index_add(0, channel, sums[at])
        return out

    def norms(self, tensors: Mapping[str, Tensor] | None = None) -> Tensor:
        """Per channel, the L2 norm over its slices; differentiable, with gradient zero at zero."""
        with torch.autocast(self.device.type, enabled=False):
            chosen = self.tensors() if tensors is None else tensors
            squares = self.fold({name: squared(tensor) for name, tensor in chosen.items()})
            tiny = torch.finfo(squares.dtype).tiny
            return squares.clamp_min(tiny).sqrt() * (squares > tiny)

    def numel(self) -> Tensor:
        """Per channel, how many numbers its slices have."""
        return self.fold({name: torch.ones_like(p, dtype=torch.float32) for name, p in self.tensors().items()})

    def mask(self, channels: Tensor) -> dict[str, Tensor]:
        """Per parameter, the product of its channels' factors, shaped to multiply it."""
        out: dict[str, Tensor] = {}
        for part in self.parts:
            factor = part.spread(channels)
            out[part.name] = out[part.name] * factor if part.name in out else factor
        return out


def parameters(program: Program, module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the program reads and the module trains, by name. Raises ModelError where the
    module lacks one, or has it in another shape."""
    module = unwrapped(module)
    live = dict(module.named_parameters(remove_duplicate=False))
    lacking = next((name for name, _ in program.model.named_parameters() if name not in live), None)
    if lacking is not None:
        raise ModelError(
            f"{type(module).__name__} has no parameter `{lacking}`, which the program reads",
            "give the module that the program was loaded from",
        )
    out = {}
    for name, value in program.graph.parameters.items():
        if name in live and live[name].requires_grad:
            if tuple(live[name].shape) != value.shape:
                raise ModelError(
                    f"`{name}` is {_by(live[name].shape)} in the module and {_by(value.shape or ())} in the program",
                    "load the program from this module, before it is sharded",
                )
            out[name] = live[name]
    return out


def _by(shape: Any) -> str:
    return "x".join(map(str, shape)) or "a number"


def _chosen(group: Group, live: Mapping[str, nn.Parameter], roles: tuple[str, ...]) -> list[Any]:
    trained = [member for member in group.members if member.parameter in live]
    return [one for one in trained if one.role in roles or (one.zeroed and "reader" in roles)] or trained


def _layers(found: list[tuple[Indices, Indices]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pack (positions, channels) pairs into few of which none names a position twice."""
    packed: list[list[tuple[Indices, Indices]]] = []
    taken: list[set[int]] = []
    for at, channel in found:
        places = set(at.tolist())
        free = next((k for k, used in enumerate(taken) if not used & places), len(taken))
        if free == len(taken):
            packed.append([])
            taken.append(set())
        packed[free].append((at, channel))
        taken[free] |= places
    for pairs in packed:
        yield tuple(torch.from_numpy(np.concatenate(side)) for side in zip(*pairs, strict=True))  # type: ignore[misc]


def squared(tensor: Tensor) -> Tensor:
    """|x|^2 of every entry, real for complex ones too."""
    return tensor.abs().square() if tensor.is_complex() else wide(tensor).square()

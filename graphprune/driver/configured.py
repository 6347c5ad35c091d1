"""Networks of the transformers library: what their configurations can say of widths, and the folder that says it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..allocation.problem import tied
from ..cost.static import length_of
from ..coupling.groups import find_groups
from ..errors import ModelError
from ..ir.facts import Group, Scores
from ..ir.program import Program

if TYPE_CHECKING:
    from ..hosts.torch.configuration import Configuration
    from ..hosts.torch.pretrained import Pretrained

import numpy as np


def pretrained(program: Program) -> Pretrained | None:
    """What the network was read from, if that was a folder of the library."""
    found: Pretrained | None = getattr(program.source, "pretrained", None)
    return found


def unsaid(program: Program) -> tuple[str, ...]:
    """The names of the groups that a configuration has no field for: each class of like layers cut by one channel is
    no network of the class."""
    from ..hosts.torch.configuration import Configuration

    made = pretrained(program)
    assert made is not None
    configuration = Configuration(type(made.model), made.model.config)
    groups = find_groups(program.graph)
    nothing = Scores("", {group.name: np.zeros(group.size) for group in groups})
    chosen, _, alike = tied(groups, nothing)
    names = _names(made.model, program)
    left = []
    for first in chosen:
        same = (first, *alike.get(first.name, ()))
        if configuration.saying(_cut(program, configuration, names, same)) is None:
            left += [group.name for group in same]
    return tuple(left)


def _names(model: Any, program: Program) -> dict[str, str]:
    """Of every tensor of the class what the program calls it: tied ones have one name there."""
    known = {tensor.data_ptr(): name for name, tensor in model.state_dict().items() if name in program.graph.parameters}
    return {name: known.get(tensor.data_ptr(), name) for name, tensor in model.state_dict().items()}


def _cut(
    program: Program, configuration: Configuration, names: Mapping[str, str], groups: tuple[Group, ...]
) -> dict[str, tuple[int, ...]]:
    """The shapes when each of the groups has lost one channel."""
    kept, sizes = {group.dim: group.size - 1 for group in groups}, program.host.sizes()
    wanted = dict(configuration.sizes)
    for name in wanted:
        value = program.graph.parameters.get(names.get(name, name))
        if value is not None:
            wanted[name] = tuple(int(length_of(dim, kept, sizes)) for dim in value.dims)
    return wanted


def write_pretrained(folder: Path, program: Program) -> str | None:
    """Write what ``from_pretrained`` reads: configuration, weights in safetensors, and what lay beside them. Returns
    why nothing was written where no configuration says the widths. Raises ModelError where the class, made from that
    configuration, does not compute what the program computes."""
    from ..hosts.torch.configuration import Configuration, told
    from ..hosts.torch.pretrained import made_from
    from ..hosts.torch.widths import widths
    from ..train.inplace import compare
    from .rebuilding import weights

    made = pretrained(program)
    assert made is not None
    try:
        state = weights(program, widths(program))
    except ModelError as error:
        return error.message
    kind = type(made.model)
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items()}
    configuration = Configuration(kind, made.model.config)
    if new := wanted.keys() - configuration.sizes.keys():
        return f"{kind.__name__} has no `{min(new)}`; `compensate{{bias=false}}` adds none"
    ours = {name: wanted.get(name, shape) for name, shape in configuration.sizes.items()}
    found = configuration.saying(ours)
    if found is None:
        return f"no configuration of {kind.__name__} has these widths"
    full = made_from(kind, told(found, made.model), state, made.model.dtype)
    compare(full, program.source, program, "made from its configuration")
    full.save_pretrained(folder)
    made.carry(folder)
    return None

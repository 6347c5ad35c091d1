"""Groups of experts that a token's are chosen among first (DeepSeek-V3): as many go from each, or some go whole."""

from __future__ import annotations

import copy

from ...errors import ModelError
from .configuration import EXPERTS, Configuration, Keeps, fields_of, value_of

GROUPS = ("n_group",)


def in_groups(configuration: Configuration, keeps: Keeps) -> Configuration:
    """The class with as many groups of experts as are left of what was kept: no shape tells whether some went whole.
    The same one where none did. Raises ModelError where layers have several counts."""
    for path in fields_of(configuration.config, GROUPS):
        was, found = value_of(configuration.config, path), dict[int, str]()
        experts = fields_of(value_of(configuration.config, path[:-1]), EXPERTS)
        moved = {axis for field in experts for axis in configuration.moves.get((*path[:-1], *field), ())}
        for name, axis in sorted(moved):
            size = configuration.sizes[name][axis]
            left = keeps.get(name, {}).get(str(axis), range(size))
            found.setdefault(len({place // (size // was) for place in left}), name)
        if len(found) > 1:
            each = ", ".join(f"{count} in `{name}`" for count, name in sorted(found.items()))
            raise ModelError(
                f"groups of experts went whole, {each} are left, and a configuration of "
                f"{configuration.kind.__name__} has one number, `{path[-1]}`",
                "keep as many groups in all layers (mask{alike=layers}), or all of them: `inspect` lists them",
            )
        if found and was not in found:
            config = copy.deepcopy(configuration.config)
            setattr(value_of(config, path[:-1]), path[-1], next(iter(found)))
            return Configuration(configuration.kind, config)
    return configuration

"""Groups of experts that a token's are chosen among first (DeepSeek-V3): as many go from each, or some go whole."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from ...errors import ModelError
from .configuration import EXPERTS, Configuration, Keeps, Path, fields_of, value_of

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
            return _with(configuration, path, next(iter(found)))
    return configuration


def as_counted(configuration: Configuration, module: torch.nn.Module) -> Configuration:
    """The class with as many groups of experts as the layers of ``module`` say, where widths.json has set
    that already. The same one where they say what it does."""
    for path in fields_of(configuration.config, GROUPS):
        was = value_of(configuration.config, path)
        other = _with(configuration, path, 2 * was).made
        said = {getattr(module.get_submodule(layer), name) for layer, name in _differing(configuration.made, other)}
        if len(said) == 1 and was not in said:
            return _with(configuration, path, said.pop())
    return configuration


def _with(configuration: Configuration, path: Path, count: int) -> Configuration:
    config = copy.deepcopy(configuration.config)
    setattr(value_of(config, path[:-1]), path[-1], count)
    return Configuration(configuration.kind, config)


def _differing(one: torch.nn.Module, other: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """The numbers of layers, by path and name, that are not the same."""
    for path, layer in one.named_modules():
        then = vars(other.get_submodule(path))
        yield from ((path, name) for name, value in vars(layer).items() if type(value) is int and then[name] != value)

"""The configuration of a network of the transformers library that was cut in place, or rebuilt at new widths."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...errors import ModelError
from .configuration import FIELDS, Configuration, Keeps, floats, of_network, parts_of, shapes, value_of
from .expert_groups import GROUPS, as_counted, in_groups
from .head_width import at_width, tables


def as_cut(own: Configuration, keeps: Keeps, module: Any, prefix: str = "") -> Configuration:
    """The class as what was kept leaves it, but for the widths that its tensors tell: counts of groups of experts, and
    widths of heads with the angles that ``module`` holds, under names that begin with ``prefix``. The same one where
    there is no more to say. Raises ModelError, see in_groups and at_width."""
    return at_width(in_groups(own, keeps), keeps, tables(module, prefix))


def configure(module: Any, keeps: Keeps) -> Iterator[tuple[Any, str, Any]]:
    """Give a network of the library that was cut a configuration of its widths, and its layers the numbers that they
    keep of it; yields what was changed: whose, its name, and the value before. Where no configuration says the widths,
    or its class would divide scores by the root of another width, saving it is refused from there on. Raises
    ModelError, see as_cut."""
    own, wanted, found = of_network(module), shapes(module), None
    if own is not None:
        configuration = as_cut(own, keeps, module)
        if configuration is own:
            configuration = as_counted(own, module)
        found = configuration.saying(wanted) if floats(configuration.made) == floats(own.made) else None
    if found is None:
        yield module, "save_pretrained", type(module).save_pretrained
        module.save_pretrained = Refused(type(module).__name__)
    for part in parts_of(found) if found is not None else ():
        config, said = value_of(module.config, part), value_of(found, part)
        for name in (*FIELDS, *GROUPS, "head_dim"):  # a head's width no longer follows from the others
            if hasattr(said, name) and getattr(config, name, None) != getattr(said, name):
                yield config, name, getattr(config, name, None)
                setattr(config, name, getattr(said, name))
    told = own is not None and (found is not None or any(keeps.values()))  # else widths.json has told the layers
    for path, name, value in configuration.numbers(wanted, own) if told else ():
        layer = module.get_submodule(path)
        if getattr(layer, name, value) != value:
            yield layer, name, getattr(layer, name)
            setattr(layer, name, value)


@dataclass(frozen=True)
class Refused:
    """In the place of ``save_pretrained``."""

    kind: str

    def __call__(self, *args: Any, **options: Any) -> None:
        raise ModelError(
            f"no configuration of {self.kind} has the widths that this network was cut to: its folder would not load",
            "gp.compile(model, ..., alike=True) cuts what one says; or save its state_dict",
        )

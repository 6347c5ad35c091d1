"""Widths that a configuration of the transformers library can say: which, and the configuration that says them."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import combinations, product
from math import inf, nextafter
from typing import Any

import torch

Shapes = Mapping[str, tuple[int, ...]]
Axis = tuple[str, int]
"""A tensor's name, and which of its axes."""
Path = tuple[str, ...]
Keeps = Mapping[str, Mapping[str, Sequence[int]]]
"""Of tensors that were cut, by axis, the positions that are left."""

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
WIDTHS = (
    *("intermediate_size", "ffn_dim", "n_inner", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"),
    *("ffn_hidden_size", "intermediate_dim", "moe_intermediate_size", "shared_expert_intermediate_size"),
    *EXPERTS,
    "vocab_size",
)
RATIOS = ("mlp_ratio",)
HEADS = (
    *("num_attention_heads", "num_key_value_heads", "num_heads", "num_kv_heads", "n_head", "n_heads"),
    *("encoder_attention_heads", "decoder_attention_heads"),
)
"""What may be said of what is chosen here: widths within a block, and tokens. Those of the stream and of a head are in
scales and tables of angles too, which a configuration derives from them."""
FIELDS = (*WIDTHS, *RATIOS, *HEADS)
STREAM = ("hidden_size",)
EPS = ("rms_norm_eps", "layer_norm_epsilon", "norm_eps")
"""Of norms that a configuration gives one eps."""
DEPTHS = (
    *("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"),
    *("num_decoder_layers", "depth"),
)
"""Counts of blocks."""
MOST = 6
"""Fields that may change together."""


class Configuration:
    """The widths of a class, field by field: found by making it, without weights, with each field changed."""

    def __init__(self, kind: type, config: Any, fields: Sequence[str] = FIELDS) -> None:
        self.kind, self.config = kind, explicit(config)
        self.made = _made(kind, self.config)
        self.sizes = shapes(self.made)
        self.blocks = tuple(_blocks(self.made))
        self.moves: dict[Path, frozenset[Axis]] = {}  # the axes that follow a field
        self._said: dict[tuple[frozenset[tuple[Axis, Fraction]], str], Any] = {}
        for path in fields_of(self.config, fields):
            if found := self.moved(path):
                self.moves[path] = found

    def having(self, **values: Any) -> Configuration | None:
        """The class with other values, or None where the library has none."""
        made = self._with({(name,): value for name, value in values.items()})
        return Configuration(self.kind, made[0]) if made is not None else None

    def moved(self, path: Path) -> frozenset[Axis]:
        """The axes that follow a field."""
        made = self._with({path: 2 * value_of(self.config, path)})
        if made is None or made[1].keys() != self.sizes.keys():
            return frozenset()
        return frozenset(_differing(self.sizes, made[1]))

    def _with(self, values: Mapping[Path, Any]) -> tuple[Any, Shapes] | None:
        """The configuration with other values, and the shapes that it makes; None where the library has none."""
        try:
            config = copy.deepcopy(self.config)
            for path, value in values.items():
                setattr(value_of(config, path[:-1]), path[-1], value)
            return config, shapes(_made(self.kind, config))
        except Exception:  # the library refuses a configuration in any way it likes
            return None

    def saying(self, wanted: Shapes, under: str = "") -> Any:
        """The configuration with which the class has these shapes (of what is ``under`` one of its blocks alone), or
        None where there is none."""
        ratios = self._ratios(wanted, under)
        key = (frozenset(ratios.items()), under)
        if key not in self._said:
            self._said[key] = self._saying(wanted, ratios, under) if ratios else self.config
        return self._said[key]

    def said(self, wanted: Shapes, under: str) -> Shapes:
        """These shapes, but for what no field can say, which is as it was."""
        able = self._able(self._ratios(wanted, under), under)
        axes = {axis for path in able for axis in self.moves[path]}
        return {
            name: tuple(wanted[name][k] if (name, k) in axes else size for k, size in enumerate(shape))
            for name, shape in self.sizes.items()
        }

    def _ratios(self, wanted: Shapes, under: str) -> dict[Axis, Fraction]:
        """Of what was, per axis that changed."""
        return {
            (name, axis): Fraction(wanted[name][axis], self.sizes[name][axis])
            for name, axis in _differing(self.sizes, wanted)
            if name.startswith(under)
        }

    def _able(self, ratios: Mapping[Axis, Fraction], under: str) -> dict[Path, int | float]:
        """The fields whose axes all changed alike, and what they would come to."""
        able: dict[Path, int | float] = {}
        for path, axes in self.moves.items():
            found = {ratios.get(axis) for axis in axes if axis[0].startswith(under)}
            value = value_of(self.config, path)
            if len(found) == 1 and (ratio := found.pop()) is not None:
                new = Fraction(value) * ratio
                if path[-1] in RATIOS:
                    able[path] = nextafter(float(new), inf)  # the width is what it comes to, rounded down
                elif new.denominator == 1:
                    able[path] = int(new)
        return able

    def _saying(self, wanted: Shapes, ratios: Mapping[Axis, Fraction], under: str) -> Any:
        able = self._able(ratios, under)
        for count in range(1, min(len(able), MOST) + 1):
            for paths in combinations(able, count):
                made = self._with({path: able[path] for path in paths})
                if made is not None and _under(made[1], under) == _under(wanted, under):
                    return made[0]
        return None

    def narrower(self, wanted: Shapes, eps: Mapping[str, Mapping[str, float]]) -> Any:
        """The configuration with which the class has these shapes, its hidden size among them, and its norms these
        ``eps`` (see widths.widths), or None where there is none. What else the class derives of a hidden size (the
        scale of an embedding) and what else reads that eps (norms of queries) must stay as it was: so all numbers that
        its layers hold are compared."""
        config = copy.deepcopy(Configuration(self.kind, self.config, (*FIELDS, *STREAM)).saying(wanted))
        if config is None:
            return None
        for path in fields_of(config, EPS):
            now = {one["is"] for one in eps.values() if one["was"] == value_of(config, path)}
            if len(now) == 1:
                setattr(value_of(config, path[:-1]), path[-1], now.pop())
        was, made = floats(self.made), floats(_made(self.kind, config))
        for layer, one in eps.items():
            was[layer] = [one["is"] if value == one["was"] else value for value in was.get(layer, [])]
        return config if made == was else None

    def without(self, gone: Collection[str]) -> tuple[Any, dict[str, str]] | None:
        """The configuration of the class without some of its ``blocks``, and under which names it has the tensors that
        stay; None where there is none. What it lists for each block (kinds of attention) goes with the block."""
        lists: dict[str, list[str]] = {}
        for block in self.blocks:
            lists.setdefault(block.removesuffix(".").rpartition(".")[0], []).append(block)
        kept = {path: [k for k, block in enumerate(blocks) if block not in gone] for path, blocks in lists.items()}
        moved = {lists[path][old]: f"{path}.{new}." for path, left in kept.items() for new, old in enumerate(left)}
        names: dict[str, str] = {}
        for name in self.sizes:
            block = next((one for one in self.blocks if name.startswith(one)), "")
            if block not in gone:
                names[name] = moved.get(block, "") + name.removeprefix(block)
        wanted = {new: self.sizes[old] for old, new in names.items()}
        fields = list(fields_of(self.config, DEPTHS))
        able = [
            [kept[p] for p, blocks in lists.items() if len(blocks) == value_of(self.config, path)] for path in fields
        ]
        for lefts in product(*([None, *lefts] for lefts in able)):
            values: dict[Path, Any] = {}
            for path, left in zip(fields, lefts, strict=True):
                values |= self._shortened(path, left) if left is not None else {}
            made = self._with(values)
            if made is not None and made[1] == wanted:
                return made[0], names
        return None

    def _shortened(self, path: Path, left: Sequence[int]) -> dict[Path, Any]:
        """What says that of as many blocks as a field counts these are left."""
        part, count = value_of(self.config, path[:-1]), value_of(self.config, path)
        listed = {name: value for name, value in vars(part).items() if isinstance(value, list) and len(value) == count}
        of_blocks = {(*path[:-1], name): [value[k] for k in left] for name, value in listed.items()}
        return {**of_blocks, path: len(left)}

    def says(self, wanted: Shapes, alike: bool) -> bool:
        """Whether the class can have these shapes: all by one configuration, or where its blocks need not be ``alike``
        each by one of its own."""
        whole = self.saying(wanted) is not None
        if whole or alike:
            return whole
        changed = {name for name, _ in _differing(self.sizes, wanted)}
        touched = {block for block in self.blocks if any(name.startswith(block) for name in changed)}
        inside = all(name.startswith(tuple(touched)) for name in changed)
        return inside and all(self.saying(wanted, block) is not None for block in touched)

    def numbers(self, wanted: Shapes, before: Configuration | None = None) -> Iterator[tuple[str, str, int]]:
        """What the layers of a class of these shapes keep of its configuration, such as counts of heads, where it is
        not what they were made with, ``before``: layer, attribute, value. Blocks that differ have each a configuration
        of their own, which may say but a part of it."""
        before = before or self
        whole = self.saying(wanted)
        for part in self.blocks if whole is None else ("",):
            found = self.saying(wanted, part)
            if found is None and part:
                found = self.saying(self.said(wanted, part), part)
            if found is None or found is before.config:
                continue
            for path, layer in _made(self.kind, found).named_modules():
                if f"{path}.".startswith(part):
                    own = vars(before.made.get_submodule(path))
                    for name, value in vars(layer).items():
                        if isinstance(value, int) and name != "training" and own.get(name, value) != value:
                            yield path, name, value


def is_pretrained(model: Any) -> bool:
    """Whether it is a network of the library."""
    return any(part.__module__.startswith("transformers.") for part in type(model).__mro__) and hasattr(model, "config")


def networks(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The networks of the library that it is or, of a class around them (adapters, a trainer's), has in it, and what
    the names of their tensors begin with there; a network's own parts have its configuration."""
    if is_pretrained(module):
        yield prefix, module
    else:
        for name, part in module.named_children():
            yield from networks(part, f"{prefix}{name}.")


def of_network(network: Any) -> Configuration | None:
    """The class of a network of the library; None where its configuration is not all that it was made from."""
    try:
        own = Configuration(type(network), network.config)
    except Exception:  # a class of somebody's own takes what else it likes
        return None
    return own if own.sizes.keys() == shapes(network).keys() else None


def _made(kind: type, config: Any) -> torch.nn.Module:
    """The class without weights. Raises what the class raises."""
    with torch.device("meta"):
        made: torch.nn.Module = kind(config)
        return made


def floats(module: torch.nn.Module) -> dict[str, list[float]]:
    """The numbers that each layer holds."""
    return {path: [one for one in vars(layer).values() if type(one) is float] for path, layer in module.named_modules()}


def valid(config: Any) -> bool:
    """Whether the library takes a configuration: some ask for hidden sizes that are multiples of the heads."""
    try:
        getattr(config, "validate", lambda: None)()
    except Exception:  # the library refuses a configuration in any way it likes
        return False
    return True


def shapes(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Of all tensors that it saves."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _blocks(module: torch.nn.Module) -> Iterator[str]:
    """What the names in each block begin with: the parts of the outermost lists."""
    lists = [path for path, part in module.named_modules() if isinstance(part, torch.nn.ModuleList)]
    for path in lists:
        if not any(path.startswith(f"{other}.") for other in lists):
            yield from (f"{path}.{name}." for name, _ in module.get_submodule(path).named_children())


def _under(sizes: Shapes, prefix: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in sizes.items() if name.startswith(prefix)}


def explicit(config: Any) -> Any:
    """A copy in which widths that follow from others are written down, where the class reads them."""
    config = copy.deepcopy(config)
    for part in parts_of(config):
        one = value_of(config, part)
        heads, stream = getattr(one, "num_attention_heads", None), getattr(one, "hidden_size", None)
        if isinstance(heads, int) and isinstance(stream, int) and getattr(one, "head_dim", None) is None:
            one.head_dim = stream // max(heads, 1)
        if getattr(one, "n_inner", 0) is None:
            one.n_inner = 4 * one.n_embd
    return config


def parts_of(config: Any) -> Iterator[Path]:
    yield ()
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield (name,)


def fields_of(config: Any, names: Sequence[str]) -> Iterator[Path]:
    for part in parts_of(config):
        one = value_of(config, part)
        for name in names:
            value = getattr(one, name, None)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                yield (*part, name)


def value_of(config: Any, path: Path) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def _differing(one: Shapes, other: Shapes) -> Iterator[tuple[str, int]]:
    for name, shape in one.items():
        for axis, (a, b) in enumerate(zip(shape, other[name], strict=True)):
            if a != b:
                yield name, axis


def told(config: Any, kind: type) -> Any:
    """A configuration with what else the model's own says: what it was saved with, and generates with."""
    config = copy.deepcopy(config)
    config.architectures = [kind.__name__]
    return config

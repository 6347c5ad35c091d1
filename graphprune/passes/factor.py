"""factor: layers as two each, whose rank can be pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

from ..calibration.curvature import summed
from ..calibration.least_squares import Covariance
from ..calibration.low_rank import factored, lost_apart, orders
from ..coupling.contractions import Contraction, contractions
from ..coupling.factors import Factors, Within
from ..errors import ModelError, RecipeError, nearest
from ..ir.graph import Graph, Value
from ..ir.large import Room, are_large
from ..ir.program import Program
from ..pipeline.base import Pass
from ..pipeline.factoring import Factor as Factoring
from ..pipeline.factoring import kept_whole

BASES = ("weights", "data")
ORDERS = ("least", "kernel", "point", "separable")
SHARES = ("least", "all", "none")
NAMED = 3
"""How many layers that stay whole a note names."""


@dataclass(frozen=True)
class Factor(Pass):
    """Make two layers of one, W = U V by singular values, so that its rank is a group: exact until a rank goes."""

    name = "factor"
    rewrites = True
    opens = True

    layers: str = "*"  # names of weights, as groups have them, `*` allowed, separated by `|`
    by: str = "weights"  # whose singular values: the weights', or with data those of what they make of it
    orders: str = "least"  # convolutions: kernel (k x k, then 1 x 1), point (1 x 1, then k x k), separable (k x 1, then
    # 1 x k), or what loses least at half the parameters
    share: str = "least"  # one first layer for all that read the same (queries, keys, values): all, none, or likewise

    def __post_init__(self) -> None:
        for option, choices in (("by", BASES), ("orders", ORDERS), ("share", SHARES)):
            if (value := getattr(self, option)) not in choices:
                raise RecipeError(f"`factor`: `{option}` cannot be `{value}`", nearest(value, choices))

    def wants_data(self) -> bool:
        return self.by == "data"

    def run(self, program: Program) -> Program:
        """See calibration.low_rank.factored. Raises ModelError where no layer can be factored."""
        found, stay = list[Contraction](), list[str]()
        for layer in contractions(program.graph):
            name = _name(layer, program.graph)
            if not any(fnmatch(name, pattern) for pattern in self.layers.split("|")):
                continue
            reason = kept_whole(layer, program.graph)
            if reason is None:
                found.append(layer)
            else:
                stay.append(f"{name} ({reason})")
        if not found:
            raise ModelError(
                f"no layer can be factored by layers={self.layers}" + "".join(f"\n    {one}" for one in stay[:5]),
                "see `graphprune inspect` for the names of weights",
            )
        made = self._made(found, program)
        done = Factoring(made).apply(program)
        rest = f" and {len(stay) - NAMED} more" if len(stay) > NAMED else ""
        return done.note(f"`factor` leaves whole: {', '.join(stay[:NAMED])}{rest}") if stay else done

    def _made(self, found: list[Contraction], program: Program) -> dict[str, Factors]:
        """By data one segment of the network after the other: see calibration.curvature.summed."""
        parts: Iterable[tuple[list[Contraction], dict[str, Covariance]]] = [(found, {})]
        if self.by == "data":
            parts = summed(found, program.graph, program.host, program.data, program.seed, precise=True)
        sizes = (8 * layer.groups * layer.inputs * layer.outputs for layer in found)
        room, made, total = Room() if are_large(sizes) else None, dict[str, Factors](), len(_alike(found))
        for part, sums in parts:
            for layers in _alike(part):
                program.progress("singular values", len(made), total)
                each = self._factored(layers, program, sums)
                made |= each if room is None else {name: one.put(room) for name, one in each.items()}
            sums.clear()  # before those of the next segment
        return {layer.op.name: made[layer.op.name] for layer in found if layer.op.name in made}

    def _factored(
        self, layers: list[Contraction], program: Program, sums: Mapping[str, Covariance]
    ) -> dict[str, Factors]:
        """Of layers that read the same, each by itself, or all together where less is lost so."""
        apart = dict[str, tuple[Factors, tuple[int, ...]]]()
        first = layers[0].op.name
        if len(layers) == 1 or self.share != "all":
            for layer in layers:
                one, _ = factored([layer], program.host, sums.get(layer.op.name), self._orders(layer))
                apart[layer.op.name] = one, layer.weight_shape[:2]
        if len(layers) > 1 and self.share != "none":
            together, lost = factored(layers, program.host, sums.get(first), [()])
            if self.share == "all" or lost < lost_apart(apart):
                return {first: together}
        return {name: one for name, (one, _) in apart.items()}

    def _orders(self, layer: Contraction) -> list[Within]:
        """Those that are asked for; the kernel first where the layer has no other."""
        found = orders(layer)
        wanted = {
            "kernel": [one for one in found if all(one)],
            "point": [one for one in found if not any(one)],
            "separable": [one for one in found if any(one) and not all(one)],
        }
        return found if self.orders == "least" else wanted[self.orders] or found[:1]


def _name(layer: Contraction, graph: Graph) -> str:
    weight = layer.op.inputs[1]
    assert weight is not None
    return (graph.stored(weight) or weight).name.removesuffix(".weight")


def _alike(found: list[Contraction]) -> list[list[Contraction]]:
    """Layers by what they read: convolutions, whose windows differ, and kinds of ops by themselves."""
    alike: dict[tuple[Value, str], list[Contraction]] = {}
    for layer in found:
        key = (layer.out, "conv") if layer.op.kind == "conv" else (layer.value, layer.op.kind)
        alike.setdefault(key, []).append(layer)
    return list(alike.values())

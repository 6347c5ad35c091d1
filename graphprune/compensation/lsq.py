"""Least squares: every layer after a cut is fitted anew to what the original network computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..axes.dim import Dim
from ..axes.index import Indices
from ..calibration.activations import Walk
from ..calibration.batches import fewer, sample_axes, samples
from ..calibration.before_norms import preimage
from ..calibration.least_squares import NormalEquations, draw, rows_wanted
from ..cost.static import evaluate
from ..coupling.affine import affine
from ..coupling.branches import Gap, gaps
from ..coupling.contractions import Contraction, contractions, counted
from ..coupling.groups import everything
from ..ir.facts import Keep
from ..ir.graph import Graph, Op, Value
from ..ir.host import Array, Batch, Host, as_stored
from ..ir.large import Room, are_large, give_back
from ..ir.program import Program
from ..pipeline.bypass import Bypass
from ..pipeline.correction import Addition, Correct, addition
from ..pipeline.edits import original
from .no_worse import Pairs, errors, no_worse

ROUNDS = 1
"""Further rounds of a fit behind a ReLU. More come a little closer: see docs/benchmarks.md."""
HELD_BYTES = 1 << 26
"""Rows that take no more are held for the further rounds, others drawn again."""
VALUE_BYTES = 1 << 27
"""Of a value of a large network, what is made at once."""
DAMP = 0.01
"""How strongly a weight is pulled to what it was, in mean variances of the layer's inputs."""


def least_squares(program: Program, keep: Keep, biases: bool = True) -> tuple[Correct, str]:
    """Every layer after the cut fitted to the original network by least squares.

    New weights by parameter name, and what to add to biases by op name.

    Layer by layer in order of execution, min |W x' + b - t|^2 + DAMP |W - W0|^2 over calibration
    positions: x' is what the layer reads in the pruned network, its earlier layers already fitted, so
    that errors do not pile up; t is what the *original* network computes (He et al., Channel Pruning,
    2017, section 3.2; Tyr-the-Pruner; K-prune). Before a residual sum t is the original sum less the
    other branch as it is now, so that a block also repairs what the blocks before it left (He et al.
    2017, "multi-branch"). Before a ReLU, what it makes zero anyway need not be met: where t is negative
    the target becomes min(what the layer gives, 0), and the fit is repeated (Zhang et al., Accelerating
    very deep networks, 2016, solve the same by splitting variables; alternating is ours, as is the pull
    towards the present weight instead of zero).

    Where branches went, the layer that ends in the sum before them is fitted to the sum behind them: the linear map
    that stands for a removed span (ReplaceMe, Shopkhoev et al. 2025, equation 4, T = argmin |M T + Y - L|), in the
    weight of the layer that made M, which it would be folded into, fitted from what that layer reads.

    A layer whose weight cannot be fitted on its own (shared with another, or scaled by its op) gets a bias
    that brings its mean outputs back, no more. Of all that no more is used than helps, see no_worse. Without ``biases``
    a layer that has none gets none: its weight alone is fitted.
    """
    fit = _Fit(program, keep, biases)
    todo = fit.todo()
    data = fit.data()
    given = Walk(fit.source, fit.whole, data, edited=False)
    with given as theirs, Walk(fit.host, fit.graph, data) as mine:
        for number, layer in enumerate(todo):
            program.progress("least squares", number, len(todo))
            if layer.own:
                fit.layer(layer, theirs, mine)
            elif fit.shifts(layer):
                fit.shift(layer, theirs, mine)
            if fit.room is not None:
                give_back()
        known = errors(*fit.outputs(theirs, mine, program.host))
    return no_worse(program, Correct(fit.weights, fit.biases), known)


@dataclass(frozen=True)
class Target:
    """What a layer should give: ``value`` of the original, less ``other`` of the pruned network, both
    before the BatchNorm y -> scale * y + shift that lies between."""

    value: Value
    other: Value | None = None
    scale: Array | float = 1.0
    shift: Array | float = 0.0
    rectified: bool = False
    gap: Gap | None = None


class _Fit:
    def __init__(self, program: Program, keep: Keep, biases: bool) -> None:
        self.add = biases
        self.source = original(program)
        self.graph, self.whole = program.graph, self.source.lift()
        self.index = keep.index(everything(self.whole))
        self.host = program.host.copy()
        self.place = {op.name: k for k, op in enumerate(self.graph.ops)}
        self.whole_place = {op.name: k for k, op in enumerate(self.whole.ops)}
        self.weights: dict[str, Array] = {}
        large = are_large(8 * prod(map(int, value.shape or ())) for value in self.graph.parameters.values())
        self.room = Room() if large else None  # where they are, if not in memory
        self.biases: dict[str, Addition] = {}
        self.seed, self.given = program.seed, program.data
        gone = [branch for edit in program.plan.of(Bypass) for branch in edit.branches]
        self.gaps = {gap.before.name: gap for gap in gaps(self.whole, gone)}

    def data(self) -> Sequence[Batch]:
        """What is calibrated on. Of a large network in batches of which no value takes more than VALUE_BYTES, by what
        values take of the example's bytes."""
        if self.room is None or not self.given:
            return self.given
        sizes = self.source.sizes()
        largest = max(prod(evaluate(n, sizes) for n in value.shape or ()) for value in self.whole.values())
        share = 4 * largest / max(sum(array.nbytes for array in self.source.example()), 1)
        axes = sample_axes(self.given, self.whole.inputs)
        sample = sum(array.nbytes for array in self.given[0]) / samples(self.given[0], axes)
        return fewer(self.given, self.whole.inputs, max(int(VALUE_BYTES / max(share * sample, 1)), 1))

    def todo(self) -> list[Contraction]:
        """The layers whose input is not what it was in the original, in order of execution."""
        changed: set[str] = set()
        for op in self.graph.ops:
            before = self.whole.ops[self.whole_place[op.name]] if op.name in self.whole_place else None
            cut = before is None or any(map(self.index.touches, _contracted(before, self.whole)))
            cut = cut or (bool(self.gaps) and _read(op) != _read(before))
            if cut or any(value is not None and value.name in changed for value in op.inputs):
                changed |= {out.name for out in op.outputs}
        rows = counted(self.graph)
        return [
            layer
            for layer in contractions(self.graph)
            if layer.op.name in self.whole_place
            and layer.op.attrs.get("beta", 1)
            and layer.out.name not in rows
            and (layer.out.name in changed or (layer.own and self._target(layer).gap is not None))
        ]

    def layer(self, layer: Contraction, theirs: Walk, mine: Walk) -> None:
        target = self._target(layer)
        sums = NormalEquations(layer.groups, layer.inputs, layer.outputs, self.room)
        rounds, held = ROUNDS if target.rectified else 0, list[tuple[Array, Array, Array]]()
        hold = rounds and rows_wanted(layer.inputs) * 8 * layer.groups * layer.inputs <= HELD_BYTES
        for x, offset, z in self._rows(layer, target, theirs, mine):
            sums.add(x, (z - offset) / target.scale)
            if hold:
                held.append((x, offset, z))
        del x, offset, z  # the last batch: logits of a vocabulary are many
        sums.check(layer.op.where)
        weight, bias = sums.solve(self._start(layer), DAMP, self.shifts(layer))
        for _ in range(rounds):
            sums.aim(_rectified(held or self._rows(layer, target, theirs, mine), target, weight, bias))
            weight, bias = sums.solve(self._start(layer), DAMP, self.shifts(layer))
        del sums  # before the weight is laid out as it was
        self._set(layer, self._kept(target.value, layer.out_axis), weight, bias)

    def _start(self, layer: Contraction) -> Array:
        if self.room is None:
            return layer.flat_matrix(self.host)
        read = layer.flat_matrix(self.host, None)
        start = self.room.empty(read.shape, np.dtype(np.float64))
        start[...] = read
        return start

    def shifts(self, layer: Contraction) -> bool:
        """Whether its outputs may be shifted."""
        return self.add or layer.has_bias(self.graph)

    def shift(self, read: Contraction, theirs: Walk, mine: Walk) -> None:
        """Bring the mean of every output back to the original's."""
        out, axis = read.op.outputs[0], read.out_axis
        whole = self._original(out)
        kept = self._kept(whole, axis)
        original = theirs.at(self.whole_place[read.op.name], [whole.name])
        pruned = mine.at(self.place[read.op.name], [out.name])
        change, rows = np.zeros(len(kept)), 0
        for there, here in zip(original, pruned, strict=True):
            gap = self.index.cut(there[whole.name], whole.dims) - here[out.name].astype(np.float64)
            gap = np.moveaxis(gap, axis, -1).reshape(-1, len(kept))
            change, rows = change + gap.sum(0), rows + len(gap)
        change /= max(rows, 1)
        assert whole.shape is not None
        self.biases[read.op.name] = addition(change, kept, int(whole.shape[axis]))
        self.host.add_bias(read.op, change)

    def outputs(self, theirs: Walk, mine: Walk, alone: Host) -> tuple[Pairs, Pairs]:
        """Per batch what the original gives, with what the cut gives as it is fitted, and with what it gives ``alone``:
        the walks end there, so that neither network is run once more."""
        graphs = self.whole, self.host.lift()
        names, fitted = ([value.name for value in graph.outputs if not value.constant] for graph in graphs)

        def original() -> Iterator[list[Array]]:
            return ([there[name] for name in names] for there in theirs.at(len(self.whole.ops), names))

        ours = ([here[name] for name in fitted] for here in mine.at(len(self.graph.ops), fitted))
        return zip(original(), ours, strict=True), zip(original(), map(alone.run, mine.batches), strict=True)

    def _rows(
        self, layer: Contraction, target: Target, theirs: Walk, mine: Walk
    ) -> Iterator[tuple[Array, Array, Array]]:
        """Per batch: what the layer reads, and where scale * y + offset should come to z, y what is fitted of it."""
        wanted = [layer.value.name, *([target.other.name] if target.other else [])]
        rng = np.random.default_rng([self.seed, self.place[layer.op.name]])
        read = [target.value.name, *([target.gap.before.name] if target.gap else [])]
        original = theirs.at(self.whole_place[layer.op.name], read)
        kept = self._kept(target.value, layer.out_axis)
        shift = target.shift if self.shifts(layer) else target.shift + target.scale * layer.bias(self.host)
        for there, here in zip(original, mine.at(self.place[layer.op.name], wanted), strict=True):
            x = here[layer.value.name]
            y = self.index.cut(there[target.value.name], target.value.dims, but=layer.out_axis)
            at = draw(rng, layer.positions(x), -(-rows_wanted(layer.inputs) // len(mine.batches)))
            z = layer.targets(y, at)[:, kept]
            z = z.astype(_precision(z), copy=False)
            if target.gap is not None and target.gap.norms:  # their scale and mean are those that were there
                was = layer.targets(there[target.gap.before.name], at)[:, kept].astype(np.float64)
                z = preimage(z.astype(np.float64), target.gap.norms, self.host)
                z = was.std(-1, keepdims=True) * z + was.mean(-1, keepdims=True)
            other = layer.targets(here[target.other.name], at) if target.other is not None else 0.0
            yield layer.rows(x, at), np.asarray(other + shift, z.dtype), z

    def _set(self, layer: Contraction, kept: Indices, weight: Array, bias: Array) -> None:
        name, shape = layer.weight, layer.weight_shape
        self.host.set_parameter(name, layer.tensor(weight.astype(self.host.parameter(name).dtype), shape))
        new = as_stored(self.host.parameter(name), self.graph.parameters[name].dtype)  # with the model's digits
        self.weights[name] = new if self.room is None else self.room.put(new)
        if not self.shifts(layer):
            return
        change = bias - layer.bias(self.host)
        whole = self._original(layer.out).shape
        assert whole is not None
        self.biases[layer.op.name] = addition(change, kept, int(whole[layer.out_axis]))
        self.host.add_bias(layer.op, change)

    def _kept(self, value: Value, axis: int) -> Indices:
        dim: Dim = value.dims[axis]
        return self.index(dim)

    def _target(self, layer: Contraction) -> Target:
        """The residual sum that the layer ends in, if nothing but a BatchNorm lies between."""
        op, value = self.graph.only_user(layer.out), layer.out
        scale: Array | float = 1.0
        shift: Array | float = 0.0
        if op is not None and op.kind == "batch_norm" and op.name in self.whole_place and layer.out_axis == 1:
            precision = _precision(self.host.parameter(layer.weight))
            scale, shift = (one.astype(precision) for one in affine(op, self.host))
            if np.abs(scale).min() < 1e-3 * np.abs(scale).max():
                return Target(self._original(layer.out))
            value, op = op.outputs[0], self.graph.only_user(op.outputs[0])
        if op is not None and op.attrs.get("function") == "add" and op.name in self.whole_place:
            others = [v for v in op.inputs if v is not None and v is not value]
            if len(others) == 1 and not others[0].constant and others[0].shape == value.shape:
                maker = self.graph.maker(others[0])
                if maker is None or self.place[maker.name] < self.place[layer.op.name]:
                    total, gap = self._aim(op.outputs[0])
                    return Target(total, others[0], scale, shift, self._rectified(op.outputs[0]), gap)
        total, gap = self._aim(value)
        return Target(total, None, scale, shift, self._rectified(value), gap)

    def _rectified(self, value: Value) -> bool:
        op = self.graph.only_user(value)
        return op is not None and op.attrs.get("function") == "relu"

    def _aim(self, value: Value) -> tuple[Value, Gap | None]:
        """What of the original a value stands for: itself, or where branches behind it went what they ended in."""
        gap = self.gaps.get(value.name)
        return (self._original(value), None) if gap is None else (gap.behind, gap)

    def _original(self, value: Value) -> Value:
        op = self.graph.maker(value)
        assert op is not None, value
        k = [out.name for out in op.outputs].index(value.name)
        return self.whole.ops[self.whole_place[op.name]].outputs[k]


def _rectified(
    rows: Iterable[tuple[Array, Array, Array]], target: Target, weight: Array, bias: Array
) -> Iterator[tuple[Array, Array]]:
    """The rows with new targets: where a ReLU makes zero of z, any other that it makes zero of."""
    for x, offset, z in rows:
        made = (x.swapaxes(0, 1) @ weight.swapaxes(1, 2).astype(x.dtype)).swapaxes(0, 1).reshape(z.shape)
        made = made + bias.astype(made.dtype)
        made = target.scale * made + offset
        yield x, (np.where(z > 0, z, np.minimum(made, 0)) - offset) / target.scale


def _precision(rows: Array) -> np.dtype[Any]:
    """What rows are computed in: float32 at least. In float64 every step of it takes twice as long, for nothing: the
    sums are, see NormalEquations."""
    return np.promote_types(rows.dtype, np.float32)


def _read(op: Op | None) -> list[str]:
    """The names of the activations that an op reads."""
    return [] if op is None else [value.name for value in op.inputs if value is not None and not value.constant]


def _contracted(op: Op, graph: Graph) -> list[Dim]:
    relation = graph.relations[op.name]
    return [dim for name, dim in relation.dims.items() if name not in relation.outputs]

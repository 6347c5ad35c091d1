"""Pruned = masked, checked with onnx, numpy and ONNX Runtime alone: nothing of graphprune.

    python -m benchmarks.masked plan.json original.onnx pruned.onnx [inputs.npz]

Of what plan.json says that parameters lost, zeros are put into the original file: where a weight read the channel,
and where one wrote it (what only activations multiply with each other, as queries and keys, no weight reads).
Both files then run on the same inputs. What an output's sigmoid or softmax is of is compared too, where both files
name it: a saturated output tells nothing. Prints the largest difference, relative to the largest number, and ends with
1 where that is over 1e-5 and over ten times what the masked original differs from itself by. It is for plans that
only cut: fitted weights are in no original.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .ort_macs import Array, Feeds, random_feeds, session

ZEROED = ("reader", "writer")
TOLERANCE = 1e-5


def masked(plan: Path, original: Path) -> onnx.ModelProto:
    """The original with zeros for what was cut. Raises ValueError where the plan is of another model."""
    content, model = json.loads(plan.read_text()), onnx.load(original)
    if any(step["edit"] != "cut" for step in content["steps"]):
        raise ValueError("the plan does more than cut")
    tensors: dict[str, list[onnx.TensorProto]] = {}
    for name, tensor in _weights(model.graph):
        tensors.setdefault(name, []).append(tensor)
    for name, every in content["parameters"].items():
        axes = {axis: said for axis, said in every.items() if said["role"] in ZEROED}
        if axes and name not in tensors:
            raise ValueError(f"the plan cuts `{name}`, which is no weight of {original.name}")
        for tensor in tensors[name] if axes else ():
            array = onnx.numpy_helper.to_array(tensor).copy()
            for axis, said in axes.items():
                gone = np.setdiff1d(np.arange(array.shape[int(axis)]), said["keep"])
                array[(slice(None),) * int(axis) + (gone,)] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return model


def _weights(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Initialisers and constants by name, those of branches and of loops' bodies too."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield node.output[0], attribute.t
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _weights(attribute.g)


def relative_error(plan: Path, original: Path, pruned: Path, feeds: Feeds) -> tuple[float, float, float]:
    """Of the pruned file against the masked original, the worst of all outputs; of the masked original against itself
    without graph optimisations, what comes of rounding alone; and against the original as it is: where that is
    nothing, nothing is proven."""
    cut, zeros, before = onnx.load(pruned), masked(plan, original), onnx.load(original)
    also = sorted(_saturating(cut) & _saturating(zeros))
    found = _outputs(cut, also, narrowed(plan, pruned, feeds))
    whole, as_was = (_outputs(model, also, feeds) for model in (zeros, before))
    left = [_cut(array, own.shape, plan) for array, own in zip(whole, found, strict=True)]
    return _worst(found, left), _worst(_outputs(zeros, also, feeds, optimised=False), whole), _worst(whole, as_was)


def narrowed(plan: Path, pruned: Path, feeds: Feeds) -> Feeds:
    """What the pruned file takes of the original's inputs, where states that come back from outputs were cut too."""
    shapes = {value.name: value.shape for value in session(pruned).get_inputs()}
    return {name: _cut(array, shapes[name], plan) for name, array in feeds.items()}


def _cut(array: Array, shape: Sequence[Any], plan: Path) -> Array:
    """The positions that the plan keeps of every axis that is narrower in ``shape``. Raises ValueError where it keeps
    one thing of some weights and another of others that are as wide: then it is not known which."""
    for axis, (size, left) in enumerate(zip(array.shape, shape, strict=True)):
        if isinstance(left, int) and 0 < left < size:
            kept = {
                tuple(said["keep"])
                for every in json.loads(plan.read_text())["parameters"].values()
                for said in every.values()
                if len(said["keep"]) == left and max(said["keep"]) < size and said["role"] in ZEROED
            }
            if len(kept) != 1:
                raise ValueError(f"axis {axis} is {left} of {size} wide, for which the plan has {len(kept)} choices")
            array = array.take(next(iter(kept)), axis)
    return array


def _saturating(model: onnx.ModelProto) -> set[str]:
    """The values that a sigmoid or softmax makes the model's outputs of."""
    outputs = {value.name for value in model.graph.output}
    return {
        node.input[0]
        for node in model.graph.node
        if node.op_type in ("Sigmoid", "Softmax") and node.output[0] in outputs
    } - outputs


def _worst(found: list[Array], wanted: list[Array]) -> float:
    return max(
        float(np.abs(a - b).max(initial=0.0) / (np.abs(b).max(initial=0.0) or 1.0))
        if a.shape == b.shape and np.isfinite(a).all()
        else float("inf")
        for a, b in zip(found, wanted, strict=True)
    )


def _outputs(model: onnx.ModelProto, also: list[str], feeds: Feeds, *, optimised: bool = True) -> list[Array]:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in also)
    run = session(copy.SerializeToString(), optimised=optimised).run
    return [np.asarray(array, np.float64) for array in run(None, dict(feeds))]


def main() -> None:
    plan, original, pruned, *inputs = map(Path, sys.argv[1:])
    feeds = dict(np.load(inputs[0])) if inputs else random_feeds(original)
    error, rounding, moved = relative_error(plan, original, pruned, feeds)
    print(f"{error:.2e} (by rounding alone {rounding:.2e}; the mask moved the outputs by {moved:.2e})")
    sys.exit(error > max(TOLERANCE, 10 * rounding))


if __name__ == "__main__":
    main()

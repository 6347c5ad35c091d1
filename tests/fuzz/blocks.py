"""Steps of several ops: gates, mixers, and writes into views."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from .kinds import Drawer, Kind, Onnx, Options, Shape, Sizes, enter


def _linear(g: Onnx, x: str, weight: str, bias: str) -> str:
    return str(g("Add", g("MatMul", x, g("Transpose", weight, perm=[1, 0])), bias))


@enter
class Mixer(Kind):
    """Two linear layers along any axis (tokens, width, channels), with or without what they were given."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape)
        return None if axis is None else {"axis": axis, "mid": d.channels(), "residual": d.flag()}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        n, mid = shape[o["axis"]], o["mid"]
        return {"w1": (mid, n), "b1": (mid,), "w2": (n, mid), "b2": (n,)}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        inner = F.relu(F.linear(x.transpose(o["axis"], -1), w["w1"], w["b1"]))
        y = F.linear(inner, w["w2"], w["b2"]).transpose(o["axis"], -1)
        return x + y if o["residual"] else y

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        perm = list(range(len(shape)))
        perm[o["axis"]], perm[-1] = perm[-1], perm[o["axis"]]
        inner = g("Relu", _linear(g, g("Transpose", x, perm=perm), w["w1"], w["b1"]))
        y = g("Transpose", _linear(g, inner, w["w2"], w["b2"]), perm=perm)
        return g("Add", x, y) if o["residual"] else y


@enter
class Gate(Kind):
    """Multiplied by a function of itself that is not zero at zero; a highway lets through what the gate holds back."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape)
        if axis is None:
            return None
        return {"axis": axis, "f": d.one(["sigmoid", "hardsigmoid", "tanh", "relu"]), "highway": d.flag()}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        n = shape[o["axis"]]
        return {"weight": (n, n), "bias": (n,)}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        inner = F.linear(x.movedim(o["axis"], -1), w["weight"], w["bias"]).movedim(-1, o["axis"])
        gate = (getattr(torch, o["f"], None) or getattr(F, o["f"]))(inner)
        return x.tanh() * gate + x * (1 - gate) if o["highway"] else x * gate

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        axis, rank = o["axis"], len(shape)
        last = g("Transpose", x, perm=[*(k for k in range(rank) if k != axis), axis])
        back = [*range(axis), rank - 1, *range(axis, rank - 1)]
        inner = g("Transpose", _linear(g, last, w["weight"], w["bias"]), perm=back)
        if o["f"] == "hardsigmoid":
            gate = g("HardSigmoid", inner, alpha=1 / 6, beta=0.5)
        else:
            gate = g(o["f"].capitalize(), inner)
        if not o["highway"]:
            return g("Mul", x, gate)
        rest = g("Sub", g.const(1.0, "float32"), gate)
        return g("Add", g("Mul", g("Tanh", x), gate), g("Mul", x, rest))


@enter
class InPlace(Kind):
    """A part is overwritten through a view, of a copy or of the value itself, which other steps may have read or
    look at through views of their own. ONNX has no such thing: there the part is taken out and put back."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape)
        if axis is None:
            return None
        start = d.integer(0, shape[axis] - 1)
        return {
            "axis": axis,
            "start": start,
            "end": d.integer(start + 1, shape[axis]),
            "view": d.one(["narrow", "moved", "chained"]),
            "f": d.one(["relu", "add", "scale", "assign", "fill"]),
            "own": d.flag(),
        }

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        rest = (1,) * (len(shape) - 1 - o["axis"])
        return {"weight": (o["end"] - o["start"], *rest)} if o["f"] == "scale" else {}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        axis, start, end = o["axis"], o["start"], o["end"]
        y = x if o["own"] and 0 not in x.stride() else x.clone()  # what expand gives cannot be written to
        part = y.narrow(axis, start, end - start)
        if o["view"] == "moved":
            part = y.movedim(axis, 0)[start:end].movedim(0, axis)
        elif o["view"] == "chained":
            part = y.narrow(axis, start, y.shape[axis] - start).narrow(axis, 0, end - start)
        if o["f"] == "relu":
            part.relu_()
        elif o["f"] == "add":
            part += 0.7
        elif o["f"] == "scale":
            part.mul_(w["weight"])
        elif o["f"] == "assign":
            part[...] = part.sigmoid()
        else:
            part.fill_(0.3)
        return y

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        axis, bounds = o["axis"], [0, o["start"], o["end"], shape[o["axis"]]]
        parts = [
            g("Slice", x, g.const([a]), g.const([b]), g.const([axis])) if a < b else "" for a, b in pairwise(bounds)
        ]
        if o["f"] == "add":
            parts[1] = g("Add", parts[1], g.const(0.7, "float32"))
        elif o["f"] == "scale":
            parts[1] = g("Mul", parts[1], w["weight"])
        elif o["f"] == "fill":
            parts[1] = g("Add", g("Mul", parts[1], g.const(0.0, "float32")), g.const(0.3, "float32"))
        else:
            parts[1] = g({"relu": "Relu", "assign": "Sigmoid"}[o["f"]], parts[1])
        return g("Concat", *filter(None, parts), axis=axis)

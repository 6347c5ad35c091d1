"""Steps without weights: element by element, along axes, and moving things about."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .kinds import BATCH, LENGTH, Drawer, Kind, Onnx, Options, Shape, Sizes, divisors, enter, static
from .layers import FEWEST


@enter
class Act(Kind):
    def draw(self, d: Drawer, shape: Shape) -> Options:
        return {"f": d.one(["tanh", "relu", "sigmoid", "silu", "gelu", "leaky_relu", "hardswish", "abs", "neg", "sin"])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return (getattr(torch, o["f"], None) or getattr(F, o["f"]))(x)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        f = o["f"]
        if f == "silu":
            return g("Mul", x, g("Sigmoid", x))
        if f == "gelu":
            half = g("Mul", x, g.const(0.5, "float32"))
            bell = g("Erf", g("Div", x, g.const(2**0.5, "float32")))
            return g("Mul", half, g("Add", bell, g.const(1.0, "float32")))
        return g({"leaky_relu": "LeakyRelu", "hardswish": "HardSwish"}.get(f, f.capitalize()), x)


@enter
class Binary(Kind):
    """Of two values of one shape (maybe the same one), or where one is broadcast."""

    def draw(self, d: Drawer, shape: Shape) -> Options:
        fits = d.alike(shape)
        fits += [k for k, s in enumerate(d.shapes) if s and k not in fits and _spreads(s, shape)]
        return {"with": d.one(fits), "f": d.one(["add", "add", "mul", "sub", "maximum"])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes, y: Any) -> Any:
        return getattr(torch, o["f"])(x, y)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape, y: str) -> Any:
        return g({"maximum": "Max"}.get(o["f"], o["f"].capitalize()), x, y)


def _spreads(small: Shape, shape: Shape) -> bool:
    tail = shape[len(shape) - len(small) :]
    return len(small) <= len(shape) and all(a in (1, b) for a, b in zip(small, tail, strict=True))


@enter
class MatmulValues(Kind):
    """A product of two activations."""

    def fits(self, shape: Shape) -> bool:
        return len(shape) >= 3

    def draw(self, d: Drawer, shape: Shape) -> Options:
        return {"with": d.one(d.alike(shape)), "of": d.one(["x yT", "xT y"])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes, y: Any) -> Any:
        return (x @ y.mT if o["of"] == "x yT" else x.mT @ y) * 0.3

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape, y: str) -> Any:
        perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
        pair = (x, g("Transpose", y, perm=perm)) if o["of"] == "x yT" else (g("Transpose", x, perm=perm), y)
        return g("Mul", g("MatMul", *pair), g.const(0.3, "float32"))


@enter
class Concat(Kind):
    """In any order, along a positive or negative axis, the same value more than once."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape)
        if axis is None:
            return None
        fits = d.alike(shape, but=axis)
        more = tuple(d.one(fits) for _ in range(d.integer(1, 3)))
        return {"with": more, "axis": axis - len(shape) if d.flag() else axis, "first": d.flag()}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes, *more: Any) -> Any:
        return torch.cat([x, *more] if o["first"] else [*more, x], o["axis"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape, *more: str) -> Any:
        return g("Concat", *((x, *more) if o["first"] else (*more, x)), axis=o["axis"])


@enter
class Split(Kind):
    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape, lambda n: n > 1)
        if axis is None:
            return None
        size = shape[axis]
        cuts = sorted({d.integer(1, size - 1) for _ in range(d.integer(1, 2))})
        sizes = tuple(b - a for a, b in zip([0, *cuts], [*cuts, size], strict=True))
        even = [n for n in divisors(size) if 1 < n <= 4]
        if even and d.flag():
            sizes = (size // even[0],) * even[0]
        return {"axis": axis - len(shape) if d.flag() else axis, "sizes": sizes, "chunk": len(set(sizes)) == 1}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return x.chunk(len(o["sizes"]), o["axis"]) if o["chunk"] else x.split(list(o["sizes"]), o["axis"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("Split", x, g.const(o["sizes"]), outputs=len(o["sizes"]), axis=o["axis"])


@enter
class Slice(Kind):
    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape, lambda n: n > 1)
        if axis is None:
            return None
        start = d.integer(0, shape[axis] - 1)
        end = d.integer(start + 1, shape[axis])
        back = d.flag()  # written from the end
        return {"axis": axis, "start": start - shape[axis] if back else start, "end": end, "step": d.one([1, 1, 1, 2])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return x[(slice(None),) * o["axis"] + (slice(o["start"], o["end"], o["step"]),)]

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("Slice", x, *(g.const([o[name]]) for name in ("start", "end", "axis", "step")))


@enter
class Pad(Kind):
    """Channels (or anything else) that hold a constant."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape)
        if axis is None:
            return None
        return {"axis": axis, "by": (d.integer(0, 2), d.integer(0, 2)), "value": d.one([0.0, 0.7])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.pad(x, (0, 0) * (x.ndim - 1 - o["axis"]) + o["by"], value=o["value"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        pads = [0] * (2 * len(shape))
        pads[o["axis"]], pads[o["axis"] + len(shape)] = o["by"]
        return g("Pad", x, g.const(pads), g.const(o["value"], "float32"))


@enter
class Reshape(Kind):
    """Axes are merged, split, or merged and split anew."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        how = d.one(["split", "merge", "regroup"])
        if how == "split":
            axis = d.axis(shape, lambda n: len(divisors(n)) > 2)
            if axis is None:
                return None
            first = d.one(divisors(shape[axis])[1:-1])
            return {"to": (*shape[:axis], first, shape[axis] // first, *shape[axis + 1 :]), "computed": d.flag()}
        if len(shape) < 3:
            return None
        a = d.integer(0, len(shape) - 2)
        b = d.integer(a + 2, len(shape))
        volume = 1
        for n in shape[a:b]:
            volume *= n
        middle: tuple[int, ...] = (volume,)
        if how == "regroup" and volume % BATCH and volume % LENGTH:
            first = d.one(divisors(volume))
            middle = (first, volume // first)
        return {"to": (*shape[:a], *middle, *shape[b:]), "computed": d.flag()}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return x.reshape(size(o["to"]))

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g.reshape(x, o["to"], o["computed"])


@enter
class Transpose(Kind):
    def draw(self, d: Drawer, shape: Shape) -> Options:
        return {"perm": tuple(d.draw(_perm(len(shape))))}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return x.permute(o["perm"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("Transpose", x, perm=list(o["perm"]))


def _perm(rank: int) -> Any:
    import hypothesis.strategies as st

    return st.one_of(st.permutations(range(1, rank)).map(lambda p: [0, *p]), st.permutations(range(rank)))


@enter
class ChannelShuffle(Kind):
    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape, lambda n: len(divisors(n)) > 2)
        return None if axis is None else {"axis": axis, "groups": d.one(divisors(shape[axis])[1:-1])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        axis, shape = o["axis"], x.shape
        y = x.reshape(*shape[:axis], o["groups"], shape[axis] // o["groups"], *shape[axis + 1 :])
        return y.transpose(axis, axis + 1).reshape(shape)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        axis, groups = o["axis"], o["groups"]
        y = g.reshape(x, [*shape[:axis], groups, shape[axis] // groups, *shape[axis + 1 :]])
        perm = list(range(len(shape) + 1))
        perm[axis], perm[axis + 1] = axis + 1, axis
        return g.reshape(g("Transpose", y, perm=perm), shape)


@enter
class Expand(Kind):
    """A new axis, or copies along one."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        how = d.one(["expand", "repeat"])
        axis = d.axis(shape) if how == "repeat" else d.integer(0, len(shape))
        return None if axis is None else {"how": how, "axis": axis, "times": d.integer(2, 3)}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        axis, times = o["axis"], o["times"]
        if o["how"] == "repeat":
            return x.repeat([times if k == axis else 1 for k in range(x.ndim)])
        return x.unsqueeze(axis).expand(*x.shape[:axis], times, *x.shape[axis:])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        axis, times = o["axis"], o["times"]
        if o["how"] == "repeat":
            return g("Tile", x, g.const([times if k == axis else 1 for k in range(len(shape))]))
        sizes = [times if k == axis else 1 for k in range(len(shape) + 1)]
        return g("Expand", g("Unsqueeze", x, g.const([axis])), g.const(sizes))


@enter
class Glu(Kind):
    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape, lambda n: n % 2 == 0)
        return None if axis is None else {"axis": axis}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.glu(x, o["axis"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        half = shape[o["axis"]] // 2
        a, b = g("Split", x, g.const([half, half]), outputs=2, axis=o["axis"])
        return g("Mul", a, g("Sigmoid", b))


@enter
class Pool(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) in (3, 4) and min(shape[2:]) > 1 and all(static(shape, k) for k in range(2, len(shape)))

    def draw(self, d: Drawer, shape: Shape) -> Options:
        return {"f": d.one(["avg", "max", "up"])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        if o["f"] == "up":
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return getattr(F, f"{o['f']}_pool{x.ndim - 2}d")(x, 2)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        n = len(shape) - 2
        if o["f"] == "up":
            scales = g.const([1, 1, *[2] * n], "float32")
            how = dict(mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
            return g("Resize", x, "", scales, **how)
        return g({"avg": "AveragePool", "max": "MaxPool"}[o["f"]], x, kernel_shape=[2] * n, strides=[2] * n)


@enter
class PixelShuffle(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) == 4 and all(static(shape, k) for k in (1, 2, 3))

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        ways = [way for way, ok in (("up", shape[1] % 4 == 0), ("down", shape[2] % 2 == shape[3] % 2 == 0)) if ok]
        return {"way": d.one(ways)} if ways else None

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.pixel_shuffle(x, 2) if o["way"] == "up" else F.pixel_unshuffle(x, 2)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        if o["way"] == "up":
            return g("DepthToSpace", x, blocksize=2, mode="CRD")
        n, c, h, v = shape
        y = g.reshape(x, [n, c, h // 2, 2, v // 2, 2])
        return g.reshape(g("Transpose", y, perm=[0, 1, 3, 5, 2, 4]), [n, 4 * c, h // 2, v // 2])


@enter
class Reduce(Kind):
    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape, length=True)
        if axis is None or len(shape) < 3:
            return None
        return {"f": d.one(["mean", "sum", "amax"]), "axis": axis, "keepdim": d.flag()}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return getattr(x, o["f"])(o["axis"], keepdim=o["keepdim"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        op = {"mean": "ReduceMean", "sum": "ReduceSum", "amax": "ReduceMax"}[o["f"]]
        return g(op, x, g.const([o["axis"]]), keepdims=int(o["keepdim"]))


@enter
class Along(Kind):
    """Positions of an axis interact."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape, length=True)
        if axis is None:
            return None
        more = ["softmax", "center"] if shape[axis] >= FEWEST else []
        return {"f": d.one(["flip", "cumsum", "roll", *more]), "axis": axis}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        axis = o["axis"]
        return {
            "softmax": lambda: torch.softmax(x, axis),
            "center": lambda: x - x.mean(axis, keepdim=True),
            "flip": lambda: x.flip(axis),
            "cumsum": lambda: x.cumsum(axis),
            "roll": lambda: x.roll(1, axis),
        }[o["f"]]()

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        axis, f = o["axis"], o["f"]
        if f == "softmax":
            return g("Softmax", x, axis=axis)
        if f == "center":
            return g("Sub", x, g("ReduceMean", x, g.const([axis]), keepdims=1))
        if f == "flip":
            return g("Slice", x, g.const([-1]), g.const([-(2**62)]), g.const([axis]), g.const([-1]))
        if f == "cumsum":
            return g("CumSum", x, g.const(axis))
        if shape[axis] == 1:
            return g("Identity", x)
        last, rest = g.const([-1 if shape[axis] == LENGTH else shape[axis] - 1]), g.const([axis])
        tail = g("Slice", x, last, g.const([2**62]), rest)
        return g("Concat", tail, g("Slice", x, g.const([0]), last, rest), axis=axis)


@enter
class Pick(Kind):
    """One position, some by number, or all apart and together again."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape, lambda n: n > 1)
        if axis is None:
            return None
        f = d.one(["index_select", "stack", *(["select"] if len(shape) > 2 else [])])
        first = d.integer(0, shape[axis] - 1)  # two of one kind would be alike by mathematics
        return {"f": f, "axis": axis, "at": (first, (first + d.integer(1, shape[axis] - 1)) % shape[axis])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        axis, at = o["axis"], o["at"]
        if o["f"] == "select":
            return x.select(axis, at[0])
        if o["f"] == "index_select":
            return x.index_select(axis, torch.tensor(at, device=x.device))
        pieces = x.unbind(axis)
        return torch.stack([pieces[at[0]], pieces[at[1]]], axis)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        axis, at = o["axis"], o["at"]
        if o["f"] == "select":
            return g("Gather", x, g.const(at[0]), axis=axis)
        if o["f"] == "index_select":
            return g("Gather", x, g.const(at), axis=axis)
        parts = [g("Unsqueeze", g("Gather", x, g.const(k), axis=axis), g.const([axis])) for k in at]
        return g("Concat", *parts, axis=axis)

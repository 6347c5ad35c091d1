"""Steps with weights: convolutions, linear layers, norms, attention."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from .kinds import BATCH, Drawer, Kind, Onnx, Options, Shape, Sizes, divisors, enter, static

FEWEST = 3  # two normalised numbers are a and -a: alike as soon as they are squared, by mathematics
EPS = 0.1  # large, so that no norm magnifies rounding errors


@enter
class Conv(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) in (3, 4) and static(shape, 1)

    def draw(self, d: Drawer, shape: Shape) -> Options:
        groups = d.one(divisors(shape[1]))
        out = d.channels() if groups == 1 else groups * d.integer(1, 3)
        stride = d.one([1, 2] if min(shape[2:]) > 1 and all(static(shape, k) for k in range(2, len(shape))) else [1])
        return {"out": out, "groups": groups, "kernel": d.one([1, 3]), "stride": stride, "bias": d.flag()}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        kernel = (o["kernel"],) * (len(shape) - 2)
        w = {"weight": (o["out"], shape[1] // o["groups"], *kernel)}
        return {**w, "bias": (o["out"],)} if o["bias"] else w

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        conv = F.conv2d if x.ndim == 4 else F.conv1d
        return conv(x, w["weight"], w.get("bias"), o["stride"], o["kernel"] // 2, groups=o["groups"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        n = len(shape) - 2
        attrs = dict(strides=[o["stride"]] * n, pads=[o["kernel"] // 2] * 2 * n, group=o["groups"])
        return g("Conv", x, *w.values(), kernel_shape=[o["kernel"]] * n, **attrs)


@enter
class ConvTranspose(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) in (3, 4) and static(shape, 1) and max(shape[2:]) <= 4

    def draw(self, d: Drawer, shape: Shape) -> Options:
        groups = d.one(divisors(shape[1]))
        out = d.channels() if groups == 1 else groups * d.integer(1, 3)
        stride = d.one([1, 2] if all(static(shape, k) for k in range(2, len(shape))) else [1])
        return {"out": out, "groups": groups, "stride": stride, "bias": d.flag()}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        w = {"weight": (shape[1], o["out"] // o["groups"], *[o["stride"]] * (len(shape) - 2))}
        return {**w, "bias": (o["out"],)} if o["bias"] else w

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        conv = F.conv_transpose2d if x.ndim == 4 else F.conv_transpose1d
        return conv(x, w["weight"], w.get("bias"), o["stride"], groups=o["groups"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("ConvTranspose", x, *w.values(), strides=[o["stride"]] * (len(shape) - 2), group=o["groups"])


@enter
class Linear(Kind):
    """``form``: how the weight is computed from what is stored."""

    def fits(self, shape: Shape) -> bool:
        return static(shape, -1)

    def draw(self, d: Drawer, shape: Shape) -> Options:
        forms = ["plain", "plain", "plain", "transposed", "scaled", "halves", "tanh", "exp", "viewed"]
        return {"out": d.channels(), "bias": d.flag(), "form": d.one(forms)}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        i, out, form = shape[-1], o["out"], o["form"]
        w: dict[str, Shape] = {
            "weight": (i, out) if form == "transposed" else (out * i,) if form == "viewed" else (out, i)
        }
        if form == "halves":
            w = {"weight": (1, i), "rest": (out - 1, i)}
        if form == "scaled":
            w["scale"] = (out, 1)
        return {**w, "bias": (out,)} if o["bias"] else w

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        stored = w["weight"]
        made = {
            "plain": lambda: stored,
            "transposed": lambda: stored.t(),
            "scaled": lambda: stored * w["scale"],
            "halves": lambda: torch.cat([w["rest"], stored]),
            "tanh": lambda: stored.tanh(),
            "exp": lambda: stored.exp() * 0.3,
            "viewed": lambda: stored.view(o["out"], -1),
        }
        return F.linear(x, made[o["form"]](), w.get("bias"))

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        stored, form = w["weight"], o["form"]
        if form == "plain" and len(shape) == 2:
            return g("Gemm", x, stored, *([w["bias"]] if o["bias"] else []), transB=1)
        if form == "scaled":
            stored = g("Mul", stored, w["scale"])
        elif form == "halves":
            stored = g("Concat", w["rest"], stored, axis=0)
        elif form == "tanh":
            stored = g("Tanh", stored)
        elif form == "exp":
            stored = g("Mul", g("Exp", stored), g.const(0.3, "float32"))
        elif form == "viewed":
            stored = g("Reshape", stored, g.const([o["out"], shape[-1]]))
        y = g("MatMul", x, stored if form == "transposed" else g("Transpose", stored, perm=[1, 0]))
        return g("Add", y, w["bias"]) if o["bias"] else y


@enter
class MatmulWeight(Kind):
    """A product with a bare weight, from the left or the right."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        sides = [s for s, axis in (("right", -1), ("left", -2)) if len(shape) + axis > 0 and static(shape, axis)]
        return {"out": d.channels(), "side": d.one(sides)} if sides else None

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return {"weight": (shape[-1], o["out"]) if o["side"] == "right" else (o["out"], shape[-2])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return x @ w["weight"] if o["side"] == "right" else w["weight"] @ x

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("MatMul", *((x, w["weight"]) if o["side"] == "right" else (w["weight"], x)))


@enter
class EinsumWeight(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) == 3 and static(shape, 2) and static(shape, 1)

    def draw(self, d: Drawer, shape: Shape) -> Options:
        return {"out": d.channels(), "equation": d.one(["nlc,oc->nlo", "nlc,oc->nol", "nlc,ol->noc", "nlc,olc->no"])}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        sizes = {"o": o["out"], "l": shape[1], "c": shape[2]}
        return {"weight": tuple(sizes[c] for c in o["equation"].split(",")[1].split("->")[0])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return torch.einsum(o["equation"], x, w["weight"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("Einsum", x, w["weight"], equation=o["equation"])


@enter
class BatchNorm(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) in (2, 3, 4) and static(shape, 1)

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (shape[1],))

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.batch_norm(x, w["running_mean"], w["running_var"], w["weight"], w["bias"], eps=EPS)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("BatchNormalization", x, *w.values(), epsilon=EPS)


@enter
class LayerNorm(Kind):
    def fits(self, shape: Shape) -> bool:
        return static(shape, -1) and shape[-1] >= FEWEST

    def draw(self, d: Drawer, shape: Shape) -> Options:
        two = len(shape) > 2 and static(shape, -2)
        return {"trailing": d.one([1, 2] if two else [1]), "affine": d.flag()}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias") if o["affine"] else (), shape[-o["trailing"] :])

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.layer_norm(x, list(x.shape[-o["trailing"] :]), w.get("weight"), w.get("bias"), EPS)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        trailing = shape[-o["trailing"] :]
        scale = w.get("weight") or g.const(torch.ones(trailing).numpy(), "float32")
        return g("LayerNormalization", x, scale, *([w["bias"]] if w else []), axis=-o["trailing"], epsilon=EPS)


@enter
class RmsNorm(Kind):
    def fits(self, shape: Shape) -> bool:
        return static(shape, -1) and shape[-1] >= FEWEST

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return {"weight": shape[-1:]}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * w["weight"]

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        mean = g("ReduceMean", g("Pow", x, g.const(2.0, "float32")), g.const([-1]), keepdims=1)
        root = g("Sqrt", g("Add", mean, g.const(EPS, "float32")))
        return g("Mul", g("Div", x, root), w["weight"])


@enter
class GroupNorm(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) in (3, 4) and static(shape, 1)

    def draw(self, d: Drawer, shape: Shape) -> Options:
        inside = math.prod(shape[2:])
        return {"groups": d.one([g for g in divisors(shape[1]) if shape[1] // g * inside >= FEWEST] or [1])}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias"), (shape[1],))

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.group_norm(x, o["groups"], w["weight"], w["bias"], EPS)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        """As exporters write it before opset 21."""
        flat = g("Reshape", x, g.const([0, o["groups"], -1]))
        one, zero = g.const([1.0] * o["groups"], "float32"), g.const([0.0] * o["groups"], "float32")
        normed = g("Reshape", g("InstanceNormalization", flat, one, zero, epsilon=EPS), g("Shape", x))
        axes = g.const(list(range(1, len(shape) - 1)))
        return g("Add", g("Mul", normed, g("Unsqueeze", w["weight"], axes)), g("Unsqueeze", w["bias"], axes))


@enter
class InstanceNorm(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) in (3, 4) and static(shape, 1) and shape[0] % BATCH == 0 and math.prod(shape[2:]) >= FEWEST

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return dict.fromkeys(("weight", "bias"), (shape[1],))

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.instance_norm(x, weight=w["weight"], bias=w["bias"], eps=EPS)

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g("InstanceNormalization", x, w["weight"], w["bias"], epsilon=EPS)


@enter
class Prelu(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) > 1 and static(shape, 1)

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        return {"weight": (shape[1],)}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return F.prelu(x, w["weight"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g(
            "PRelu",
            x,
            g("Unsqueeze", w["weight"], g.const(list(range(1, len(shape) - 1)))) if len(shape) > 2 else w["weight"],
        )


@enter
class Scale(Kind):
    """A weight added or multiplied along one axis, or along all: layer scale, position embedding."""

    def draw(self, d: Drawer, shape: Shape) -> Options | None:
        axis = d.axis(shape)
        if axis is None:
            return None
        rest = all(static(shape, k) for k in range(axis, len(shape)))
        return {"axis": axis, "whole": rest and d.flag(), "by": d.one(["mul", "add", "sub"])}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        rest = shape[o["axis"] + 1 :]
        return {"weight": (shape[o["axis"]], *(rest if o["whole"] else (1,) * len(rest)))}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        return {"mul": torch.mul, "add": torch.add, "sub": torch.sub}[o["by"]](x, w["weight"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        return g(o["by"].capitalize(), x, w["weight"])


@enter
class SqueezeExcite(Kind):
    def fits(self, shape: Shape) -> bool:
        return len(shape) == 4 and static(shape, 1)

    def draw(self, d: Drawer, shape: Shape) -> Options:
        return {"mid": d.channels()}

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        c, m = shape[1], o["mid"]
        return {"w1": (m, c, 1, 1), "b1": (m,), "w2": (c, m, 1, 1), "b2": (c,)}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        squeezed = F.relu(F.conv2d(F.adaptive_avg_pool2d(x, 1), w["w1"], w["b1"]))
        return x * torch.sigmoid(F.conv2d(squeezed, w["w2"], w["b2"]))

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        squeezed = g("Relu", g("Conv", g("GlobalAveragePool", x), w["w1"], w["b1"]))
        return g("Mul", x, g("Sigmoid", g("Conv", squeezed, w["w2"], w["b2"])))


@enter
class Attention(Kind):
    """Packed or separate projections; fewer key heads than heads is GQA; SDPA or decomposed."""

    def fits(self, shape: Shape) -> bool:
        return len(shape) == 3 and static(shape, 2) and shape[0] % BATCH == 0

    def draw(self, d: Drawer, shape: Shape) -> Options:
        few = d.integer(1, 3)
        heads = few * d.integer(1, 2)
        form = d.one(["decomposed", "sdpa"])
        return {
            "heads": heads,
            "few": few,
            "width": d.integer(2, 4),
            "value": d.integer(2, 4),
            "packed": d.flag(),
            "form": form,
            "spread": d.one(["repeat_interleave", "expand", *(["native"] if form == "sdpa" else [])]),
        }

    def weights(self, shape: Shape, o: Options) -> dict[str, Shape]:
        c = shape[2]
        sizes = {"q": o["heads"] * o["width"], "k": o["few"] * o["width"], "v": o["few"] * o["value"]}
        if o["packed"]:
            made: dict[str, Shape] = {"qkv": (sum(sizes.values()), c), "qkv_bias": (sum(sizes.values()),)}
        else:
            made = {name: (size, c) for name, size in sizes.items()}
            made |= {f"{name}_bias": (size,) for name, size in sizes.items()}
        return {**made, "out": (c, o["heads"] * o["value"])}

    def torch(self, x: Any, w: Any, o: Options, size: Sizes) -> Any:
        n, length, _ = x.shape
        heads, few = o["heads"], o["few"]
        if o["packed"]:
            sizes = [heads * o["width"], few * o["width"], few * o["value"]]
            q, k, v = F.linear(x, w["qkv"], w["qkv_bias"]).split(sizes, -1)
        else:
            q, k, v = (F.linear(x, w[name], w[f"{name}_bias"]) for name in "qkv")
        q = q.view(n, length, heads, o["width"]).transpose(1, 2)
        k = k.view(n, length, few, o["width"]).transpose(1, 2)
        v = v.view(n, length, few, o["value"]).transpose(1, 2)
        if few < heads and o["spread"] == "repeat_interleave":
            k, v = (t.repeat_interleave(heads // few, 1) for t in (k, v))
        elif few < heads and o["spread"] == "expand":
            k, v = (
                t[:, :, None].expand(n, few, heads // few, length, t.shape[-1]).reshape(n, heads, length, t.shape[-1])
                for t in (k, v)
            )
        if o["form"] == "sdpa":
            native = few < heads and o["spread"] == "native"
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=native, scale=0.5)
        else:
            y = torch.softmax(q @ k.transpose(-1, -2) * 0.5, -1) @ v
        return F.linear(y.transpose(1, 2).reshape(n, length, -1), w["out"])

    def onnx(self, g: Onnx, x: str, w: Any, o: Options, shape: Shape) -> Any:
        heads, few = o["heads"], o["few"]
        sizes = {"q": heads * o["width"], "k": few * o["width"], "v": few * o["value"]}
        if o["packed"]:
            whole = g("Add", g("MatMul", x, g("Transpose", w["qkv"], perm=[1, 0])), w["qkv_bias"])
            parts = dict(zip("qkv", g("Split", whole, g.const(list(sizes.values())), outputs=3, axis=-1), strict=True))
        else:
            parts = {c: g("Add", g("MatMul", x, g("Transpose", w[c], perm=[1, 0])), w[f"{c}_bias"]) for c in "qkv"}
        count, width = {"q": heads, "k": few, "v": few}, {"q": o["width"], "k": o["width"], "v": o["value"]}
        for c in "qkv":
            part = g("Reshape", parts[c], g.const([0, -1, count[c], width[c]]))
            parts[c] = g("Transpose", part, perm=[0, 2, 3, 1] if c == "k" else [0, 2, 1, 3])
            if c != "q" and few < heads:
                tail = [width[c], -1] if c == "k" else [-1, width[c]]
                wide = g("Expand", g("Unsqueeze", parts[c], g.const([2])), g.const([1, 1, heads // few, 1, 1]))
                parts[c] = g("Reshape", wide, g.const([0, heads, *tail]))
        scores = g("Mul", g("MatMul", parts["q"], parts["k"]), g.const(0.5, "float32"))
        y = g("Transpose", g("MatMul", g("Softmax", scores, axis=-1), parts["v"]), perm=[0, 2, 1, 3])
        flat = g("Reshape", y, g.const([0, -1, heads * o["value"]]))
        return g("MatMul", flat, g("Transpose", w["out"], perm=[1, 0]))

"""Rules for ONNX ops: quantised, fused, attention, recurrent; half precision; other sizes than the example.

The law: permuting all members of a group moves nothing, leaving one out does. The oracle: the pruned
model computes what the masked one computes, in ONNX Runtime, at the sizes of the example and at others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import pytest

import graphprune as gp
from graphprune.axes.dim import leaves
from graphprune.axes.index import Index
from graphprune.cost import static as costs
from graphprune.cost.latency.workload import works
from graphprune.coupling.groups import find_groups
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.facts import Keep, Scores
from graphprune.ir.program import Program
from graphprune.passes.propagate import Propagate
from graphprune.pipeline.compare import relative
from graphprune.pipeline.replay import replay
from graphprune.pipeline.run import run_pass

TYPES = {np.dtype(np.float16): 10, np.dtype(np.float32): 1, np.dtype(np.int8): 3, np.dtype(np.uint8): 2}


@dataclass
class Net:
    """A model in ONNX's text syntax; weights are arrays, or shapes to fill with normal numbers."""

    text: str
    weights: dict[str, Any]
    sizes: list[int]  # of the groups
    inputs: str = "float[N,4,8,8] x"
    outputs: str = "y"
    opset: int = 21
    inert: set[str] = field(default_factory=set)  # members without which nothing moves, all the same
    normalised: bool = False
    legal: bool = True  # to onnx.checker; ONNX Runtime takes deprecated ops
    frozen: dict[str, str] = field(default_factory=dict)  # parameter[axis]: words of its reason

    def proto(self) -> onnx.ModelProto:
        rng = np.random.default_rng(0)
        made = ", ".join(f"float[] {name}" for name in self.outputs.split())
        model = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["" : {self.opset}, "com.microsoft" : 1]> '
            f"net ({self.inputs}) => ({made}) {{ {self.text} }}"
        )
        for name, w in self.weights.items():
            tensor = w if isinstance(w, onnx.TensorProto) else None
            if tensor is None:
                array = rng.standard_normal(w).astype(np.float32) * 0.5 if isinstance(w, tuple) else np.asarray(w)
                tensor = nh.from_array(array, name)
            tensor.name = name
            model.graph.initializer.append(tensor)
        host = OnnxHost(model)
        for value, array in zip(model.graph.output, host.run(host.example()), strict=True):
            open_sizes = [f"{value.name}_{axis}" for axis in range(array.ndim)]
            value.CopyFrom(oh.make_tensor_value_info(value.name, 1, open_sizes))
        return model


def whole(*shape: int, dtype: Any = np.int8, low: int = -9, high: int = 9) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(low, high, shape).astype(dtype)


def scales(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).uniform(0.02, 0.1, shape).astype(np.float32)


def larger(program: Program) -> list[list[np.ndarray]]:
    """The example, and one in which every open size is another."""
    example = program.host.example()
    sizes = {n for value in program.graph.inputs for n in value.shape or () if isinstance(n, str)}
    other = {n: k + 1 for k, n in enumerate(sorted(sizes))}
    grown = []
    for value, array in zip(program.graph.inputs, example, strict=True):
        for axis, n in enumerate(value.shape or ()):
            if n in other:
                array = np.take(array, np.arange(array.shape[axis] + other[n]) % array.shape[axis], axis)
        grown.append(array)
    return [example, grown] if sizes else [example]


def permuted(host: OnnxHost, program: Program, index: Index, leave_out: tuple[str, int] | None = None) -> OnnxHost:
    host = host.copy()
    for value in program.graph.parameters.values():
        for axis, dim in enumerate(value.dims):
            if index.touches(dim) and (value.name, axis) != leave_out:
                host.take(value.name, axis, index(dim))
    return host


def assert_law(program: Program, net: Net) -> None:
    exact = program.source.copy("float32")
    batch = exact.example()
    before = exact.run(batch)
    assert all(np.isfinite(array).all() for array in before)
    groups = find_groups(program.graph, normalised=net.normalised)
    reasons = {dim.name: dim.reason for dim in groups.frozen}
    assert sorted(group.size for group in groups) == sorted(net.sizes), reasons
    inert = set()
    for group in groups:
        index = Index({group.dim: np.roll(np.arange(group.size), 1)})
        assert distance(before, permuted(exact, program, index).run(batch)) <= 2e-6, group.name
        for member in group.members:
            rest = permuted(exact, program, index, (member.parameter, member.axis)).run(batch)
            if distance(before, rest) <= 1e-4:
                inert.add(str(member))
    assert inert == net.inert


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    return max(relative(x, y) for x, y in zip(a, b, strict=True))


def assert_oracle(program: Program, net: Net, tmp_path: Path) -> Program:
    """Each group alone, and all at once; proved, saved, and run at other sizes."""
    groups = find_groups(program.graph)
    exact = replace(program, source=program.source.copy("float32"))
    before = exact.source.run(exact.source.example())
    kept = [{g.name: np.arange(g.size)[:: -2 if g.size > 2 else -3]} for g in groups]
    done = program
    for keep in [*kept, {name: order for one in kept for name, order in one.items()}]:
        done = run_pass(Propagate(), program.learn(find_groups(program.graph)).learn(Keep(keep)))
        check, same = gp.verify(replace(done, source=exact.source))
        assert check.error <= 1e-5 and same.error == 0
        masked, pruned = replay(done.plan, exact.source, masked=True), replay(done.plan, exact.source)
        assert distance(before, masked.host.run(exact.source.example())) > 1e-4
        for batch in larger(program):
            assert distance(masked.host.run(batch), pruned.host.run(batch)) <= 1e-5
            assert distance(pruned.host.run(batch), done.host.run(batch)) <= 0.1  # only rounding is left out
        for name, value in program.graph.parameters.items():
            assert done.graph.parameters[name].dtype == value.dtype
    done.host.save(tmp_path / "small.onnx")
    if net.legal:
        onnx.checker.check_model(tmp_path / "small.onnx")
    again = OnnxHost.load(tmp_path / "small.onnx")
    assert distance(done.host.run(program.host.example()), again.run(program.host.example())) == 0
    return done


TAIL = " r = Relu(p) y = Conv(r, w2)"  # contracts what the case before made
SEQ = "float[N,T,6] x"

NETS: dict[str, Net] = {}
HEADS = {"wq": (6, 12), "wk": (6, 12), "wv": (6, 12), "bq": (12,), "bk": (12,), "wo": (12, 5)}
SPLIT = (
    "q4 = Reshape(qb, s) qt = Transpose<perm=[0,2,1,3]>(q4) k4 = Reshape(kb, s) kt = Transpose<perm=[0,2,3,1]>(k4)"
    "v4 = Reshape(v, s) vt = Transpose<perm=[0,2,1,3]>(v4)"
)
JOIN = "ot = Transpose<perm=[0,2,1,3]>(o) of = Reshape(ot, u) y = MatMul(of, wo)"
QKV = "q = MatMul(x, wq) qb = Add(q, bq) k = MatMul(x, wk) kb = Add(k, bk) v = MatMul(x, wv)"

STREAM = "h = MatMul(x, w) n = {}<axis=-1, epsilon=0.3>(h, g) a = MatMul(n, u) r = Relu(a) d = MatMul(r, v)"
RMS = {"w": (6, 8), "g": (8,), "u": (8, 7), "v": (7, 8), "o": (8, 5)}

NETS |= {
    "a residual stream below RMS norms that share a weight": Net(
        f"{STREAM.format('SimplifiedLayerNormalization')} s = Add(h, d)"
        "m = SimplifiedLayerNormalization<axis=-1, epsilon=0.2>(s, g) y = MatMul(m, o)",
        RMS,
        [8, 7],
        SEQ,
        legal=False,  # of ONNX Runtime
    ),
    "a residual stream below norms that are written out, with an eps that they share": Net(
        "h = MatMul(x, w) p = Pow(h, two) e = ReduceMean<axes=[-1], keepdims=1>(p) f = Add(e, eps) q = Sqrt(f)"
        "n = Div(h, q) c = Cast<to=1>(n) t = Mul(c, g) a = MatMul(t, u) r = Relu(a) d = MatMul(r, v) s = Add(h, d)"
        "p2 = Mul(s, s) e2 = ReduceMean<axes=[-1], keepdims=1>(p2) f2 = Add(eps, e2) q2 = Sqrt(f2) i2 = Reciprocal(q2)"
        "n2 = Mul(i2, s) one = Add(k, half) m = Mul(one, n2) y = MatMul(m, o)",
        {**RMS, "k": (8,), "eps": np.float32(0.3), "two": np.float32(2), "half": np.float32(0.5)},
        [8, 7],
        SEQ,
        opset=17,
    ),
    "positions by numbers of each channel's own": Net(
        "h = MatMul(x, w) t = Transpose<perm=[1,0]>(h) g = GatherND<batch_dims=1>(t, ids) b = Transpose<perm=[1,0]>(g)"
        "r = Relu(b) y = MatMul(r, v)",
        {"w": (6, 8), "ids": np.array([[[k % 3], [(k // 3) % 3]] for k in range(8)]), "v": (8, 5)},
        [8],
        "float[3,6] x",
    ),
    "a residual stream below RMSNormalization": Net(
        f"{STREAM.format('RMSNormalization')} s = Add(h, d) m = RMSNormalization<epsilon=0.2>(s, k) y = MatMul(m, o)",
        {**RMS, "k": (8,)},
        [8, 7],
        SEQ,
        opset=23,
    ),
    "decomposed attention, scaled by constants": Net(
        f"{QKV} {SPLIT} sc = Mul(qt, c) a = MatMul(sc, kt) d = Div(a, e) m = Softmax<axis=-1>(d)"
        f"o = MatMul(m, vt) {JOIN}",
        {**HEADS, "s": [0, 0, 3, 4], "u": [0, 0, 12], "c": np.float32(0.7), "e": np.float32(1.3)},
        [3, 4, 4],
        SEQ,
        inert={"bk[0]"},  # softmax does not see what is the same for all keys
    ),
    "decomposed attention, scaled by the root of a width that is read": Net(
        f"{QKV} {SPLIT} z = Shape<start=-1>(qt) zf = Cast<to=1>(z) zs = Sqrt(zf) a = MatMul(qt, kt) d = Div(a, zs)"
        f"m = Softmax<axis=-1>(d) o = MatMul(m, vt) {JOIN}",
        {**HEADS, "s": [0, 0, 3, 4], "u": [0, 0, 12]},
        [3, 4],
        SEQ,
        inert={"bk[0]"},
        frozen={"wq[1]": "computes with its size"},
    ),
    "decomposed attention, quantised": Net(
        "wqd = DequantizeLinear<axis=1>(wq, sq, zq) wkd = DequantizeLinear(wk, sk, zk) q = MatMul(x, wqd)"
        f"k = MatMul(x, wkd) v = MatMul(x, wv) qb = Identity(q) kb = Identity(k) {SPLIT}"
        "qq = QuantizeLinear(qt, as, az) qd = DequantizeLinear(qq, as, az) a = MatMul(qd, kt)"
        f"m = Softmax<axis=-1>(a) o = MatMul(m, vt) {JOIN}",
        {
            **{"wv": (6, 12), "wo": (12, 5), "s": [0, 0, 3, 4], "u": [0, 0, 12]},
            **{"wq": whole(6, 12, dtype=np.uint8, low=0, high=99), "sq": scales(12)},
            **{"zq": whole(12, dtype=np.uint8, low=20, high=60), "wk": whole(6, 12, dtype=np.uint8, low=0, high=40)},
            **{"sk": np.float32(0.03), "zk": np.uint8(17), "as": np.float32(0.05), "az": np.uint8(120)},
        },
        [3, 4, 4],
        SEQ,
    ),
    "quantised convolutions, by channel and by tensor": Net(
        "xq = QuantizeLinear(x, xs, xz) xd = DequantizeLinear(xq, xs, xz) wd = DequantizeLinear<axis=0>(w, ws, wz)"
        "bd = DequantizeLinear<axis=0>(b, bs) a = Conv(xd, wd, bd) r = Relu(a) rq = QuantizeLinear(r, rs, rz)"
        "rd = DequantizeLinear(rq, rs, rz) vd = DequantizeLinear(v, vs, vz) y = Conv(rd, vd)",
        {
            **{"xs": np.float32(0.03), "xz": np.uint8(128), "rs": np.float32(0.01), "rz": np.uint8(3)},
            **{"w": whole(6, 4, 1, 1), "ws": scales(6), "wz": whole(6), "b": whole(6, dtype=np.int32), "bs": scales(6)},
            **{"v": whole(5, 6, 1, 1, dtype=np.uint8, low=0, high=40), "vs": np.float32(0.02), "vz": np.uint8(19)},
        },
        [6],
    ),
    "quantised along the input channels, and transposed": Net(
        "wd = DequantizeLinear(w, ws, wz) wt = Transpose<perm=[1,0]>(wd) a = MatMul(x, wt) r = Relu(a)"
        "vd = DequantizeLinear<axis=0>(v, vs, vz) y = MatMul(r, vd)",
        {
            **{"w": whole(7, 6), "ws": [np.float32(0.05)], "wz": [np.int8(3)]},
            **{"v": whole(7, 5), "vs": scales(7), "vz": whole(7)},
        },
        [7],
        SEQ,
    ),
    "weights in 4 bits, in blocks": Net(
        "a = MatMul(x, w) r = Relu(a) vd = DequantizeLinear<axis=0, block_size=4>(v, vs, vz) y = MatMul(r, vd)",
        {
            "w": (6, 12),
            "v": oh.make_tensor("v", onnx.TensorProto.INT4, [12, 5], whole(12, 5, low=-8, high=8).ravel().tolist()),
            "vs": scales(3, 5),
            "vz": oh.make_tensor("vz", onnx.TensorProto.INT4, [3, 5], whole(3, 5, low=-4, high=4).ravel().tolist()),
        },
        [3],
        SEQ,
    ),
    "weights quantised on the way, as trained so": Net(
        "wq = QuantizeLinear<axis=0>(w, ws, wz) wd = DequantizeLinear<axis=0>(wq, ws, wz) a = Conv(x, wd) r = Relu(a)"
        "vq = QuantizeLinear(v, vs, vz) vd = DequantizeLinear(vq, vs, vz) y = Conv(r, vd)",
        {
            **{"w": (6, 4, 1, 1), "ws": scales(6), "wz": whole(6), "v": (5, 6, 1, 1)},
            **{"vs": np.float32(0.02), "vz": np.uint8(90)},
        },
        [6],
        inert={"wz[0]"},  # added and taken away again
    ),
    "integer convolutions": Net(
        "xq = QuantizeLinear(x, xs, xz) a = ConvInteger(xq, w, xz, wz) f = Cast<to=1>(a) m = Mul(f, s) r = Relu(m)"
        "rq = QuantizeLinear(r, rs, rz) b = ConvInteger(rq, v, rz, vz) y = Cast<to=1>(b)",
        {
            **{"xs": np.float32(0.03), "xz": np.uint8(128), "rs": np.float32(0.05), "rz": np.uint8(3)},
            **{"w": whole(6, 4, 1, 1), "wz": np.int8(2), "s": scales(6, 1, 1)},
            **{"v": whole(5, 6, 1, 1, dtype=np.uint8, low=0, high=40), "vz": np.uint8(19)},
        },
        [6],
    ),
    "integer matrix products, by column": Net(
        "xq = QuantizeLinear(x, xs, xz) a = MatMulInteger(xq, w, xz, wz) f = Cast<to=1>(a) m = Mul(f, s) r = Relu(m)"
        "rq = QuantizeLinear(r, rs, rz) q = QLinearMatMul(rq, rs, rz, v, vs, vz, rs, rz)"
        "y = DequantizeLinear(q, rs, rz)",
        {
            **{"xs": np.float32(0.03), "xz": np.uint8(128), "rs": np.float32(0.3), "rz": np.uint8(90)},
            **{"w": whole(6, 8), "wz": whole(8), "s": scales(8)},
            **{"v": whole(8, 5, low=-90, high=90), "vs": scales(5), "vz": whole(5)},
        },
        [8],
        SEQ,
    ),
    "integer convolution that quantises its result": Net(
        "xq = QuantizeLinear(x, xs, xz) a = QLinearConv<group=2>(xq, xs, xz, w, ws, wz, rs, rz, b)"
        "p = com.microsoft.QLinearLeakyRelu<alpha=0.1>(a, rs, rz, rs, rz)"
        "c = QLinearConv(p, rs, rz, v, vs, vz, rs, rz) y = DequantizeLinear(c, rs, rz)",
        {
            **{"xs": np.float32(0.03), "xz": np.uint8(128), "rs": np.float32(0.02), "rz": np.uint8(120)},
            **{"w": whole(6, 2, 1, 1), "ws": scales(6), "wz": np.zeros(6, np.int8), "b": whole(6, dtype=np.int32)},
            **{"v": whole(5, 6, 1, 1), "vs": scales(5), "vz": np.zeros(5, np.int8)},
        },
        [3],
        inert={"wz[0]"},  # all the same
    ),
    "integer Gemm and concat": Net(
        "xq = QuantizeLinear(x, xs, xz) a = QLinearConv(xq, xs, xz, w, ws, wz, rs, rz)"
        "b = QLinearConv(xq, xs, xz, v, ws2, wz2, rs, rz)"
        "c = com.microsoft.QLinearConcat<axis=1>(rs, rz, b, rs, rz, a, rs, rz)"
        "p = com.microsoft.QLinearGlobalAveragePool(c, rs, rz, ps, pz) f = Flatten(p)"
        "g = com.microsoft.QGemm<transB=1>(f, ps, pz, m, ms, mz, mb, gs, gz)"
        "y = com.microsoft.QGemm(g, gs, gz, n, ns, nz)",
        {
            **{"xs": np.float32(0.03), "xz": np.uint8(128), "rs": np.float32(0.02), "rz": np.uint8(120)},
            **{"w": whole(6, 4, 1, 1), "ws": scales(6), "wz": np.zeros(6, np.int8)},
            **{"v": whole(7, 4, 1, 1), "ws2": scales(7), "wz2": np.zeros(7, np.int8)},
            **{"ps": np.float32(0.005), "pz": np.uint8(125), "m": whole(8, 13), "ms": scales(8), "mz": whole(8)},
            **{"mb": whole(8, dtype=np.int32), "gs": np.float32(0.01), "gz": np.uint8(110)},
            **{"n": whole(8, 5), "ns": scales(5), "nz": whole(5)},
        },
        [6, 7, 8],
        inert={"wz[0]", "wz2[0]"},
    ),
    "quantised as it runs": Net(
        "a = MatMul(x, w) r = Relu(a) rq, rs, rz = DynamicQuantizeLinear(r) b = MatMulInteger(rq, v, rz, vz)"
        "f = Cast<to=1>(b) m = Mul(f, rs) y = Mul(m, vs)",
        {"w": (6, 8), "v": whole(8, 5), "vz": whole(5), "vs": scales(5)},
        [8],
        SEQ,
        normalised=True,
        frozen={"w[1]": "rq (dynamic_quantize) normalises across it"},
    ),
    "quantised as it runs, in one op": Net(
        "a = MatMul(x, w) r = Relu(a) b = com.microsoft.DynamicQuantizeMatMul(r, v, vs, vz, c) d = Relu(b)"
        "y = MatMul(d, u)",
        {"w": (6, 8), "v": whole(8, 7), "vz": whole(7), "vs": scales(7), "c": (7,), "u": (7, 5)},
        [7, 8],
        SEQ,
        normalised=True,
        frozen={"w[1]": "b (integer_matmul) normalises across it"},
    ),
}

NETS |= {
    "Attention of rank 3, grouped queries": Net(
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
        "o = Attention<q_num_heads=6, kv_num_heads=3>(q, k, v) y = MatMul(o, wo)",
        {"wq": (6, 24), "wk": (6, 12), "wv": (6, 15), "wo": (30, 5)},
        [2, 3, 4, 5],
        SEQ,
        opset=23,
    ),
    "Attention of rank 3, with a mask for every head and a scale": Net(
        "q = MatMul(x, wq) k = MatMul(x, wk) kb = Add(k, bk) v = MatMul(x, wv)"
        "o = Attention<q_num_heads=3, kv_num_heads=3, scale=0.4>(q, kb, v, mask) y = MatMul(o, wo)",
        {**HEADS, "mask": (3, 8, 8)},
        [3, 4, 4],
        "float[N,8,6] x",
        opset=23,
        inert={"bk[0]"},
    ),
    "Attention of rank 4, causal": Net(
        f"{QKV} q4 = Reshape(qb, s) qt = Transpose<perm=[0,2,1,3]>(q4) k4 = Reshape(kb, s)"
        "kt = Transpose<perm=[0,2,1,3]>(k4) v4 = Reshape(v, s) vt = Transpose<perm=[0,2,1,3]>(v4)"
        f"o = Attention<is_causal=1>(qt, kt, vt) {JOIN}",
        {**HEADS, "s": [0, 0, 3, 4], "u": [0, 0, 12]},
        [3, 4, 4],
        SEQ,
        opset=23,
        inert={"bk[0]"},
    ),
    "MultiHeadAttention": Net(
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
        "o = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v) y = MatMul(o, wo)",
        {"wq": (6, 12), "wk": (6, 12), "wv": (6, 15), "wo": (15, 5)},
        [3, 4, 5],
        SEQ,
    ),
    "MultiHeadAttention with a bias and a bias of positions": Net(
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
        "o = com.microsoft.MultiHeadAttention<num_heads=3>(q, k, v, b, , a) y = MatMul(o, wo)",
        {"wq": (6, 12), "wk": (6, 12), "wv": (6, 15), "b": (39,), "a": (1, 3, 8, 8), "wo": (15, 5)},
        [3],
        "float[N,8,6] x",
        frozen={"wq[1]": "tells its positions apart"},
    ),
    "GroupQueryAttention": Net(
        "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"
        "o, pk, pv = com.microsoft.GroupQueryAttention<num_heads=6, kv_num_heads=3>(q, k, v, , , l, t)"
        "y = MatMul(o, wo)",
        {
            **{"wq": (6, 48), "wk": (6, 24), "wv": (6, 24), "wo": (48, 5)},
            **{"l": np.full(2, 7, np.int32), "t": np.int32(8)},
        },
        [2, 3],
        "float[2,8,6] x",
    ),
    "GroupQueryAttention, packed": Net(
        "q = MatMul(x, wq) o, pk, pv = com.microsoft.GroupQueryAttention<num_heads=4, kv_num_heads=2>(q, , , , , l, t)"
        "y = MatMul(o, wo)",
        {"wq": (6, 64), "wo": (32, 5), "l": np.full(2, 7, np.int32), "t": np.int32(8)},
        [2, 2],
        "float[2,8,6] x",
    ),
    "com.microsoft Attention, with weights of its own": Net(
        "h = MatMul(x, w) r = Relu(h) o = com.microsoft.Attention<num_heads=3>(r, wqkv, b) y = MatMul(o, wo)",
        {"w": (6, 7), "wqkv": (7, 36), "b": (36,), "wo": (12, 5)},
        [3, 4, 7],
        SEQ,
        frozen={"wqkv[1]": "reduces over it"},
    ),
    "com.microsoft Attention, values of another width": Net(
        "o = com.microsoft.Attention<num_heads=3, qkv_hidden_sizes=[12,12,15]>(x, wqkv, b) y = MatMul(o, wo)",
        {"wqkv": (6, 39), "b": (39,), "wo": (15, 5)},
        [3, 5],
        SEQ,
    ),
    "rotary embeddings, both": Net(
        "q = MatMul(x, wq) qr = RotaryEmbedding<num_heads=3>(q, cos, sin, p) k = MatMul(x, wk)"
        "kr = com.microsoft.RotaryEmbedding(k, p0, cos, sin) v = MatMul(x, wv)"
        "o = Attention<q_num_heads=3, kv_num_heads=3>(qr, kr, v) y = MatMul(o, wo)",
        {
            **{"wq": (6, 12), "wk": (6, 12), "wv": (6, 15), "wo": (15, 5), "cos": (9, 2), "sin": (9, 2)},
            **{"p": np.tile(np.arange(8), (2, 1)), "p0": np.zeros(1, np.int64)},
        },
        [3, 5],
        "float[2,8,6] x",
        opset=23,
    ),
}

for _kind, _gates in (("LSTM", 4), ("GRU", 3), ("RNN", 1)):
    NETS[_kind] = Net(
        f'a = MatMul(x, w) r = Relu(a) l, h = {_kind}<hidden_size=5, direction="bidirectional">(r, W, R, B)'
        "y = MatMul(l, v)",
        {
            **{"w": (6, 7), "W": (2, _gates * 5, 7), "R": (2, _gates * 5, 5), "B": (2, 2 * _gates * 5)},
            "v": (5, 3),
        },
        [5, 7],
        "float[T,N,6] x",
    )

NETS |= {
    "LSTM with lengths, states that are given and peepholes": Net(
        "a = MatMul(x, w) r = Relu(a) m = ReduceMean<keepdims=0>(x, ax) n = Unsqueeze(m, zero) h0 = MatMul(n, wh)"
        "l, h, c = LSTM<hidden_size=5>(r, W, R, B, n8, h0, c0, P) s = Squeeze(l, one) p = MatMul(s, v)"
        "q = MatMul(h, u) y = Add(p, q)",
        {
            **{"w": (6, 7), "W": (1, 20, 7), "R": (1, 20, 5), "B": (1, 40), "P": (1, 15), "c0": (1, 2, 5)},
            **{"wh": (6, 5), "v": (5, 3), "u": (5, 3), "n8": np.array([3, 8], np.int32)},
            **{"ax": np.zeros(1, np.int64), "zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)},
        },
        [5, 7],
        "float[8,2,6] x",
    ),
    "GRU that resets after the product, of which the last state is read": Net(
        ', h = GRU<hidden_size=5, linear_before_reset=1, direction="reverse">(x, W, R, B) s = Squeeze(h, zero)'
        "y = MatMul(s, v)",
        {"W": (1, 15, 6), "R": (1, 15, 5), "B": (1, 30), "v": (5, 3), "zero": np.zeros(1, np.int64)},
        [5],
        "float[T,N,6] x",
    ),
    "LSTM of which the cells are read": Net(
        ", , c = LSTM<hidden_size=5, input_forget=1, clip=2.0>(x, W, R) y = MatMul(c, v)",
        {"W": (1, 20, 6), "R": (1, 20, 5), "v": (5, 3)},
        [5],
        "float[T,N,6] x",
    ),
    "two LSTMs of both directions that start from zeros": Net(
        "d = Shape<start=1, end=2>(x) z1 = Concat<axis=0>(four, d, five) zz = ConstantOfShape(z1)"
        "z = Slice(zz, two, four, zero)"
        'l = LSTM<hidden_size=5, direction="bidirectional">(x, W, R, B, , z, z) t = Transpose<perm=[0,2,1,3]>(l)'
        "m = Reshape(t, s) k = Shape<start=1, end=2>(m) z3 = Concat<axis=0>(two, k, four) ee = Expand(f, z3)"
        "e = Slice(ee, one, two, zero) n = LSTM<hidden_size=4>(m, U, S, C, , e, e) q = Squeeze(n, one)"
        "y = MatMul(q, v)",
        {
            **{"W": (2, 20, 6), "R": (2, 20, 5), "B": (2, 40), "U": (1, 16, 10), "S": (1, 16, 4), "C": (1, 32)},
            **{"v": (4, 3), "s": [0, 0, 10], "f": np.zeros((1, 1, 1), np.float32)},
            **{name: np.array([n]) for name, n in (("zero", 0), ("one", 1), ("two", 2), ("four", 4), ("five", 5))},
        },
        [4, 5],
        "float[T,N,6] x",
    ),
    "LSTM whose weights are made of torch's": Net(
        "Wi = Unsqueeze(wi, zero) Wh = Unsqueeze(wh, zero) b = Concat<axis=0>(bi, bh) B = Unsqueeze(b, zero)"
        "l = LSTM<hidden_size=5>(x, Wi, Wh, B) s = Squeeze(l, one) y = MatMul(s, v)",
        {
            **{"wi": (20, 6), "wh": (20, 5), "bi": (20,), "bh": (20,), "v": (5, 3)},
            **{"zero": np.zeros(1, np.int64), "one": np.ones(1, np.int64)},
        },
        [5],
        "float[T,N,6] x",
    ),
}

NETS |= {
    "fused convolution with a sum": Net(
        'a = Conv(x, w) z = Conv(x, v) b = com.microsoft.FusedConv<activation="Relu">(a, u, c, z) y = Conv(b, w2)',
        {"w": (6, 4, 1, 1), "v": (7, 4, 1, 1), "u": (7, 6, 1, 1), "c": (7,), "w2": (5, 7, 1, 1)},
        [6, 7],
    ),
    "deformable convolution": Net(
        "a = Conv(x, w) o = Conv<pads=[1, 1, 1, 1]>(x, wo) b = DeformConv<pads=[1, 1, 1, 1]>(a, u, o, c)"
        "y = Conv(b, w2)",
        {"w": (6, 4, 1, 1), "wo": (18, 4, 3, 3), "u": (7, 6, 3, 3), "c": (7,), "w2": (5, 7, 1, 1)},
        [6, 7],
        frozen={"wo[0]": "tells its positions apart"},
    ),
    "deformable convolution in groups, with a mask": Net(
        "a = Conv(x, w) o = Conv(x, wo) k = Conv(x, wm) m = Sigmoid(k)"
        "b = DeformConv<group=2, offset_group=2>(a, u, o, , m) y = Conv(b, w2)",
        {"w": (6, 4, 1, 1), "wo": (16, 4, 2, 2), "wm": (8, 4, 2, 2), "u": (8, 3, 2, 2), "w2": (5, 8, 1, 1)},
        [2, 3, 4],
        opset=22,
    ),
    "deformable convolution with offset groups": Net(
        "a = Conv(x, w) o = Conv(x, wo) b = DeformConv<offset_group=3>(a, u, o) y = Conv(b, w2)",
        {"w": (6, 4, 1, 1), "wo": (6, 4, 1, 1), "u": (7, 6, 1, 1), "w2": (5, 7, 1, 1)},
        [2, 3, 7],
    ),
    "fused matrix products": Net(
        "q = MatMul(x, wq) k = MatMul(x, wk) a = com.microsoft.FusedMatMul<transB=1, alpha=0.3>(q, k)"
        "m = Softmax<axis=-1>(a) v = MatMul(x, wv) o = MatMul(m, v) s = ReduceMean<keepdims=0>(o, ax)"
        'g = com.microsoft.FusedGemm<activation="LeakyRelu", activation_alpha=0.1, transB=1>(s, w, b) y = MatMul(g, u)',
        {
            **{"wq": (6, 4), "wk": (6, 4), "wv": (6, 7), "ax": np.array([1]), "w": (8, 7), "b": (8,), "u": (8, 3)},
        },
        [4, 7, 8],
        SEQ,
    ),
    "skip layer normalisation": Net(
        "a = MatMul(x, w) b = MatMul(x, v) n, , , s = com.microsoft.SkipLayerNormalization(a, b, g, h, c)"
        "m, , , t = com.microsoft.SkipSimplifiedLayerNormalization(n, s, f) z = Add(m, t) y = MatMul(z, u)",
        {"w": (6, 7), "v": (6, 7), "g": (7,), "h": (7,), "c": (7,), "f": (7,), "u": (7, 5)},
        [7],
        SEQ,
        normalised=True,
    ),
    "gelus": Net(
        "a = MatMul(x, w) b = com.microsoft.BiasGelu(a, c) d = MatMul(b, v) e = com.microsoft.FastGelu(d, f)"
        "g = com.microsoft.QuickGelu(e) h = com.microsoft.Gelu(g) i = Gelu(h) k = Erf(i) y = MatMul(k, u)",
        {"w": (6, 7), "c": (7,), "v": (7, 8), "f": (8,), "u": (8, 5)},
        [7, 8],
        SEQ,
    ),
    "group norm with a scale for each group": Net(
        "a = Conv(x, w) p = GroupNormalization<num_groups=4>(a, s, b)" + TAIL,
        {"w": (12, 4, 1, 1), "s": (4,), "b": (4,), "w2": (5, 12, 1, 1)},
        [4],
        opset=18,
        legal=False,
    ),
    "instance norm": Net(
        "a = Conv(x, w) p = InstanceNormalization(a, s, b)" + TAIL,
        {"w": (6, 4, 1, 1), "s": (6,), "b": (6,), "w2": (5, 6, 1, 1)},
        [6],
    ),
    "mod, and where with a condition that is broadcast": Net(
        "a = Conv(x, w) m = Mod<fmod=1>(a, k) g = Greater(b, k) p = Where(g, m, b)" + TAIL,
        {"w": (6, 4, 1, 1), "k": np.float32(0.3), "b": (6, 1, 1), "w2": (5, 6, 1, 1)},
        [6],
    ),
    "upper triangle, cumulative sum, top k, unit length: along other axes": Net(
        "a = MatMul(x, w) t = Transpose<perm=[0,2,1]>(a) s = CumSum(t, two) v, i = TopK<axis=-1>(s, k)"
        "l = LpNormalization<axis=2, p=2>(v) m = MatMul(w2, l) n = Trilu(m) y = Identity(n)",
        {"w": (6, 7), "two": np.int64(2), "k": np.array([3]), "w2": (5, 7)},
        [7],
        "float[N,8,6] x",
    ),
    "the same along the channels": Net(
        "a = MatMul(x, w) v, i = TopK<axis=-1>(a, k) b = MatMul(x, u) s = CumSum(b, two) c = MatMul(x, z)"
        "l = LpNormalization<p=2>(c) d = Concat<axis=2>(v, s, l) y = MatMul(d, w2)",
        {"w": (6, 7), "k": np.array([3]), "u": (6, 8), "two": np.int64(2), "z": (6, 9), "w2": (20, 5)},
        [7],  # the best three of those that are left
        SEQ,
        inert={"w[1]"},  # in whatever order they were
        frozen={
            "u[1]": "s (along) tells its positions apart",
            "z[1]": "l (along) tells its positions apart",
        },
    ),
    "tile and einsum": Net(
        'a = Conv(x, w) t = Tile(a, o) p = Einsum<equation="nchw,dc->ndhw">(t, v)' + TAIL,
        {"w": (3, 4, 1, 1), "o": np.array([1, 2, 1, 1]), "v": (7, 6), "w2": (5, 7, 1, 1)},
        [3, 7],
    ),
    "resize by scales, a channel scale of one": Net(
        'a = Conv(x, w) p = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(a, , s)' + TAIL,
        {"w": (6, 4, 1, 1), "s": np.float32([1, 1, 1.5, 2]), "w2": (5, 6, 1, 1)},
        [6],
        "float[N,4,H,W] x",
    ),
    "scattered and gathered entries": Net(
        "a = MatMul(x, w) s = ScatterElements<axis=2>(a, i, v) b = MatMul(x, u) g = Gather<axis=2>(b, k)"
        "d = Concat<axis=2>(s, g) y = MatMul(d, w2)",
        {
            **{"w": (6, 7), "i": np.zeros((2, 8, 1), np.int64), "v": (2, 8, 1), "u": (6, 8), "k": np.array([3, 1])},
            "w2": (9, 5),
        },
        [2],  # what is gathered, not what it is gathered from
        "float[2,8,6] x",
        frozen={
            "w[1]": "s (scatter) tells its positions apart",
            "u[1]": "tells its positions apart",
        },
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_law_and_oracle(name: str, tmp_path: Path) -> None:
    net = NETS[name]
    program = gp.load(net.proto())
    assert not [op.kind for op in program.graph.ops if op.kind[0].isupper()]
    assert_law(program, net)
    for axis, words in net.frozen.items():
        parameter, number = axis.removesuffix("]").split("[")
        reasons = [
            leaf.frozen or f"{leaf.mixed} normalises across it"
            for leaf in leaves(program.graph.parameters[parameter].dims[int(number)])
        ]
        assert any(words in reason for reason in reasons), reasons
    if find_groups(program.graph).groups:
        assert_oracle(program, net, tmp_path)


# ---- quantised tensors ---------------------------------------------------------------------------------


def quantised(name: str = "quantised convolutions, by channel and by tensor") -> OnnxHost:
    return OnnxHost(NETS[name].proto())


def stored(host: OnnxHost, name: str) -> np.ndarray:
    return host.model.graph.initializers[name].const_value.numpy()


def test_zero_is_the_zero_point_of_its_channel() -> None:
    host = quantised()
    host.zero("w", 1, np.array([0, 3]))
    point = stored(host, "wz")
    assert point.any()
    assert np.array_equal(stored(host, "w")[:, 3, 0, 0], point)
    assert not host.parameter("w")[:, [0, 3]].any() and host.parameter("w")[:, [1, 2]].any()
    host.zero("v", 1, np.array([5]))
    assert (stored(host, "v")[:, 5] == 19).all()
    host.zero("ws", 0, np.array([1]))  # a scale of nothing would be divided by
    assert stored(host, "ws").all()


def test_zero_follows_a_tensor_to_where_it_is_dequantised() -> None:
    host = quantised("quantised along the input channels, and transposed")
    host.zero("w", 0, np.array([2]))
    assert (stored(host, "w")[2] == 3).all()


def test_parameters_are_what_they_stand_for_and_can_be_set_so() -> None:
    host = quantised()
    whole_numbers, scale, point = stored(host, "w"), stored(host, "ws"), stored(host, "wz")
    numbers = (whole_numbers - point.astype(np.float64)[:, None, None, None]) * scale[:, None, None, None]
    assert np.array_equal(host.parameter("w"), numbers)
    host.set_parameter("w", host.parameter("w"))
    assert np.array_equal(stored(host, "w"), whole_numbers) and stored(host, "w").dtype == np.int8
    host.set_parameter("w", host.parameter("w") * 1000)
    assert set(np.unique(stored(host, "w"))) <= {-128, 127, *point.tolist()}
    blocks = quantised("weights in 4 bits, in blocks")
    numbers = (stored(blocks, "v").astype(float) - np.repeat(stored(blocks, "vz").astype(float), 4, 0)) * np.repeat(
        stored(blocks, "vs").astype(float), 4, 0
    )
    assert np.array_equal(blocks.parameter("v"), numbers)


def test_a_weight_that_two_read_with_different_zero_points_is_left_alone() -> None:
    net = Net(
        "a = MatMul(x, w) r = Relu(a) vd = DequantizeLinear(v, s, z) ve = DequantizeLinear(v, s, o) b = MatMul(r, vd)"
        "c = MatMul(r, ve) y = Add(b, c)",
        {"w": (6, 7), "v": whole(7, 5), "s": np.float32(0.1), "z": np.int8(3), "o": np.int8(4)},
        [],
        SEQ,
    )
    (dim,) = [d for d in find_groups(gp.load(net.proto()).graph).frozen if d.size == 7]
    assert dim.reason == "b (matmul) reads it with a weight that is not zero where vd (pointwise) gets zeros"


def test_scores_are_those_of_the_weights_and_not_of_what_stores_them() -> None:
    """The same network with plain weights: the same scores, but for the scales that are weights, too."""
    name = "quantised along the input channels, and transposed"
    program = gp.load(NETS[name].proto())
    (group,) = find_groups(program.graph)
    weights = {m.parameter: program.host.parameter(m.parameter) for m in group.members if m.parameter in "wv"}
    assert np.allclose(weights["w"], (NETS[name].weights["w"] - 3.0) * 0.05)
    assert weights["v"].shape == (7, 5) and weights["v"].dtype == np.float64


def test_small_integers_are_widened_and_weights_of_integer_ops_are_what_they_stand_for() -> None:
    host = quantised("integer convolution that quantises its result")
    assert host.parameter("wz").dtype == np.int64 and np.array_equal(host.parameter("wz"), stored(host, "wz"))
    want = stored(host, "w") * stored(host, "ws").astype(np.float64)[:, None, None, None]
    assert np.array_equal(host.parameter("w"), want)
    host = quantised("integer matrix products, by column")
    assert np.array_equal(host.parameter("w"), stored(host, "w").astype(np.float64) - stored(host, "wz"))
    scores = gp.run("group,score", gp.load(NETS["integer matrix products, by column"].proto()))
    assert all(np.isfinite(one).all() for one in scores.fact(Scores).scores.values())


def test_a_bias_is_added_to_one_that_is_quantised() -> None:
    host = quantised()
    op = next(op for op in host.lift().ops if op.name == "a")
    before = host.watch(host.example(), ["a"])["a"]
    host.add_bias(op, np.arange(6))
    after = host.watch(host.example(), ["a"])["a"]
    assert np.abs(after - before - np.arange(6).reshape(6, 1, 1)).max() < 1e-5
    assert host.parameter("b").shape == (6,) and stored(host, "b").dtype == np.int32


def test_the_exact_copy_does_not_round_the_output_either() -> None:
    net = Net(
        "a = MatMul(x, w) q = QuantizeLinear(a, s, z) y = DequantizeLinear(q, s, z)",
        {"w": (6, 7), "s": np.float32(0.1), "z": np.uint8(90)},
        [],
        SEQ,
    )
    host = OnnxHost(net.proto())
    exact = host.copy("float32")
    (y,) = exact.run(host.example())
    assert np.abs(y - host.watch(host.example(), ["a"])["a"]).max() < 1e-6
    assert np.array_equal(y, exact.watch(host.example(), ["y"])["y"])
    assert np.abs(y - host.run(host.example())[0]).max() > 1e-3


def test_the_exact_copy_rounds_nothing_and_keeps_range_and_names() -> None:
    host = quantised()
    exact = host.copy("float32")
    batch = [array * 3 for array in host.example()]
    seen, smooth = host.watch(batch, ["xd", "rd"]), exact.watch(batch, ["xd", "rd"])
    assert np.array_equal(np.unique(seen["xd"]).round(6), np.unique(seen["xd"]).round(6))
    clipped = np.clip(batch[0] / 0.03, -128, 127) * 0.03
    assert np.abs(smooth["xd"] - clipped).max() < 1e-6
    assert 1e-3 < np.abs(smooth["xd"] - seen["xd"]).max() <= 0.0151
    assert exact.lift().text() == host.lift().text()
    assert [node.op_type for node in exact.model.graph] == [node.op_type for node in host.model.graph]


def test_what_one_scale_mixes_can_be_pruned_when_asked_for() -> None:
    for name in ("quantised as it runs", "quantised as it runs, in one op"):
        program = gp.load(NETS[name].proto())
        done = gp.run("group{normalised=true},score,mask{channels=0.5x},propagate", program)
        assert [group.size for group in find_groups(done.graph, normalised=True)] == [
            group.size // 2 for group in find_groups(program.graph, normalised=True)
        ]
        assert distance(program.host.run(program.host.example()), done.host.run(program.host.example())) < 2


# ---- literals ------------------------------------------------------------------------------------------


def cut(net: Net, sizes: dict[int, int]) -> OnnxHost:
    """Every group of a size cut to another."""
    program = gp.load(net.proto())
    groups = find_groups(program.graph)
    keep = {g.name: np.arange(sizes[g.size]) for g in groups if g.size in sizes}
    host = run_pass(Propagate(), program.learn(groups).learn(Keep(keep))).host
    assert isinstance(host, OnnxHost)
    return host


def attributes(host: OnnxHost, op_type: str) -> dict[str, Any]:
    node = next(node for node in host.model.graph if node.op_type == op_type)
    return {name: attribute.value for name, attribute in node.attributes.items()}


def test_heads_are_counted_anew_and_the_scale_stays_what_it_was() -> None:
    host = cut(NETS["Attention of rank 3, grouped queries"], {3: 2, 4: 3})
    found = attributes(host, "Attention")
    assert (found["q_num_heads"], found["kv_num_heads"]) == (4, 2)
    assert found["scale"] == pytest.approx(0.5)
    assert "scale" not in attributes(cut(NETS["Attention of rank 3, grouped queries"], {5: 3}), "Attention")
    host = cut(NETS["Attention of rank 3, grouped queries"], {2: 1})
    assert attributes(host, "Attention")["q_num_heads"] == attributes(host, "Attention")["kv_num_heads"] == 3
    host = cut(NETS["com.microsoft Attention, with weights of its own"], {4: 3, 3: 2})
    assert attributes(host, "Attention")["qkv_hidden_sizes"] == (8, 8, 6)
    assert attributes(host, "Attention")["num_heads"] == 2
    host = cut(NETS["com.microsoft Attention, with weights of its own"], {3: 2})
    assert "qkv_hidden_sizes" not in attributes(host, "Attention")


def test_constants_that_scale_an_attention_stay() -> None:
    host = cut(NETS["decomposed attention, scaled by constants"], {4: 2})
    assert stored(host, "c") == np.float32(0.7) and stored(host, "e") == np.float32(1.3)
    assert host.shapes()["a"] == ("N", 3, "T", "T")


# ---- what cannot be done, and why ------------------------------------------------------------------------

REFUSED: dict[str, tuple[Net, int, str]] = {
    "keys and values kept": (
        Net(
            f"{QKV} q4 = Reshape(qb, s) qt = Transpose<perm=[0,2,1,3]>(q4) k4 = Reshape(kb, s)"
            "kt = Transpose<perm=[0,2,1,3]>(k4) v4 = Reshape(v, s) vt = Transpose<perm=[0,2,1,3]>(v4)"
            f"o, keys, values = Attention(qt, kt, vt, , k0, v0) {JOIN}",
            {**HEADS, "s": [0, 0, 3, 4], "u": [0, 0, 12]},
            [],
            "float[2,8,6] x, float[2,3,5,4] k0, float[2,3,5,4] v0",
            "y keys values",
            opset=23,
        ),
        4,
        "o: `Attention` keeps a cache of its keys and values",
    ),
    "boxes that are found": (
        Net(
            "b = MatMul(x, w) s = MatMul(x, v) t = Transpose<perm=[0,2,1]>(s) n = NonMaxSuppression(b, t, k)"
            "y = Cast<to=1>(n)",
            {"w": (6, 4), "v": (6, 7), "k": np.array([3])},
            [],
            SEQ,
        ),
        7,
        "n: `NonMaxSuppression` gives as many rows as it finds, by their place in the tensor",
    ),
    "an output that tells statistics": (
        Net(
            "a = MatMul(x, w) n, m = LayerNormalization(a, g, b) c = MatMul(n, v) y = Add(c, m)",
            {"w": (6, 7), "g": (7,), "b": (7,), "v": (7, 3)},
            [],
            SEQ,
        ),
        7,
        "n: output 1 of `LayerNormalization` is used",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_reasons(name: str) -> None:
    net, size, reason = REFUSED[name]
    groups = find_groups(gp.load(net.proto()).graph)
    assert {dim.reason for dim in groups.frozen if dim.size == size} == {reason}
    assert size not in {group.size for group in groups}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("y = com.microsoft.Attention<num_heads=2>(x, w)", "it has no bias"),
        ("y = Attention<q_num_heads=2, kv_num_heads=0>(x, x, x)", "its `kv_num_heads` is 0"),
    ],
)
def test_an_attention_that_ends_the_process_is_refused(text: str, why: str) -> None:
    net = Net(text, {"w": (6, 24)}, [], SEQ, opset=23)
    with pytest.raises(gp.GraphpruneError, match=rf"^y \(Attention\): ONNX Runtime cannot run it: {why}"):
        net.proto()


def test_what_a_branch_dequantises_is_not_rounded_in_the_proof() -> None:
    branch = oh.make_graph(
        [oh.make_node("DequantizeLinear", ["rq", "rs", "rz"], ["t"])],
        "then",
        [],
        [oh.make_tensor_value_info("t", 1, None)],
    )
    model = NETS["quantised convolutions, by channel and by tensor"].proto()
    at = next(k for k, node in enumerate(model.graph.node) if node.output[0] == "rd")
    node = oh.make_node("If", ["yes"], ["rd"], then_branch=branch, else_branch=branch)
    model.graph.node[at].CopyFrom(node)
    model.graph.input.append(oh.make_tensor_value_info("yes", 9, []))
    host = OnnxHost(model)
    exact, plain = host.copy("float32"), OnnxHost(NETS["quantised convolutions, by channel and by tensor"].proto())
    for flag in (True, False):
        batch = [host.example()[0], np.array(flag)]
        steps = exact.watch(batch, ["rd"])["rd"] / 0.01
        assert np.abs(steps - steps.round()).max() > 1e-3
        assert distance(exact.run(batch), plain.copy("float32").run(batch[:1])) <= 1e-6
        assert distance(host.run(batch), plain.run(batch[:1])) <= 1e-6
    assert [group.size for group in find_groups(host.lift()).groups] == [6]


# ---- half precision ------------------------------------------------------------------------------------


def halved(dtype: int) -> onnx.ModelProto:
    """Convolution with BatchNorm, grouped convolution, Gemm, a Constant, a Cast, an attribute that names a type."""
    net = Net(
        "a = Conv(x, w) n = BatchNormalization(a, g, b, m, v) r = Relu(n) c = Conv<group=2>(r, w2, b2) s = Sigmoid(c)"
        "k = Mul(s, half) d = Cast<to=1>(k) e = Sqrt(d) f = CastLike(e, half) p = GlobalAveragePool(f)"
        "q = Flatten(p) y = Gemm<transB=1>(q, w3, b3)",
        {
            **{"w": (6, 4, 3, 3), "g": np.linspace(0.5, 1, 6).astype(np.float32), "b": (6,), "m": (6,)},
            **{"v": np.linspace(1, 2, 6).astype(np.float32), "w2": (8, 3, 1, 1), "b2": (8,), "w3": (5, 8), "b3": (5,)},
            "half": np.float32([0.3]),
        },
        [3, 4],
        "float[N,4,H,W] x",
        opset=22,
    )
    model = net.proto()
    for tensor in model.graph.initializer:
        numbers = nh.to_array(tensor).ravel().tolist()
        tensor.CopyFrom(oh.make_tensor(tensor.name, dtype, list(tensor.dims), numbers))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = dtype
    return model


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16], ids=["float16", "bfloat16"])
def test_half_precision_is_kept_and_proved_in_float32(dtype: int, tmp_path: Path) -> None:
    program = gp.load(halved(dtype))
    assert program.host.example()[0].dtype == np.float32
    data = [program.host.example()[0]]
    program = gp.load(halved(dtype), data=data[0])
    done = gp.run("group,score{by=wifv},mask{channels=0.5x},propagate,compensate,fold", program)
    assert {value.dtype for value in done.host.model.graph.initializers.values()} == {dtype}
    exact = replace(program, source=program.source.copy("float32"))
    masked = replay(done.plan, exact.source, masked=True)
    pruned = replay(done.plan, exact.source)
    assert {int(value.dtype) for value in pruned.host.model.graph.initializers.values()} == {1}
    for batch in larger(program):
        assert distance(masked.host.run(batch), pruned.host.run(batch)) <= 1e-5
        assert distance(pruned.host.run(batch), done.host.run(batch)) <= (0.01 if dtype == 10 else 0.05)
    (check, *_) = gp.verify(replace(cut_only(program), source=exact.source))
    assert check.error <= 1e-5
    done.host.save(tmp_path / "half.onnx")
    again = OnnxHost.load(tmp_path / "half.onnx")
    assert {tensor.data_type for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer} == {dtype}
    assert distance(done.host.run(data), again.run(data)) == 0


def wide(dtype: int) -> onnx.ModelProto:
    """Wide enough for kernels to sum in another order when half of the channels are gone."""
    net = Net(
        "a = Conv(x, w) r = Gelu(a) q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z) b = Conv(d, w2)"
        "t = Gelu(b) y = Conv(t, w3)",
        {"w": (128, 32, 3, 3), "w2": (96, 128, 3, 3), "w3": (5, 96, 1, 1), "s": np.float32(0.02), "z": np.uint8(40)},
        [96, 128],
        "float[N,32,16,16] x",
    )
    model = net.proto()
    for tensor in model.graph.initializer:
        if tensor.data_type == 1 and tensor.dims:
            array = nh.to_array(tensor) * 2 / np.sqrt(np.prod(tensor.dims[1:]))
            tensor.CopyFrom(nh.from_array(array.astype(oh.tensor_dtype_to_np_dtype(dtype)), tensor.name))
        elif tensor.data_type == 1:
            tensor.CopyFrom(nh.from_array(nh.to_array(tensor).astype(oh.tensor_dtype_to_np_dtype(dtype)), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = dtype
    return model


@pytest.mark.parametrize("dtype", [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16], ids=["float32", "float16"])
def test_wide_quantised_networks_are_proved_to_the_tolerance(dtype: int) -> None:
    program = gp.load(wide(dtype))
    exact, done = program.source.copy("float32"), cut_only(program)
    masked, pruned = replay(done.plan, exact, masked=True), replay(done.plan, exact)
    batch = program.host.example()
    assert 0 < distance(masked.host.run(batch), pruned.host.run(batch)) <= 1e-5
    assert distance(masked.host.run(batch), exact.run(batch)) > 0.1
    assert distance(pruned.host.run(batch), done.host.run(batch)) < 0.1


def cut_only(program: Program) -> Program:
    return gp.run("group,score,mask{channels=0.5x},propagate", program)


def test_float16_weights_are_cut_exactly() -> None:
    program = gp.load(halved(onnx.TensorProto.FLOAT16))
    done = cut_only(program)
    kept = done.plan["parameters"]["w"]["0"]["keep"]
    assert np.array_equal(stored(done.host, "w"), stored(program.host, "w")[kept])
    assert stored(done.host, "w").dtype == np.float16


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [
        ("MultiHeadAttention", lambda s: s * 6 * (12 + 12 + 15) + s * s * (12 + 15) + s * 15 * 5),
        (
            "com.microsoft Attention, with weights of its own",
            lambda s: s * 6 * 7 + s * 7 * 36 + s * s * (12 + 12) + s * 12 * 5,
        ),
        ("fused convolution with a sum", lambda s: 8 * 8 * (4 * 6 + 4 * 7 + 6 * 7 + 7 * 5)),
        ("deformable convolution with offset groups", lambda s: 8 * 8 * (4 * 6 + 4 * 6 + 6 * 7 + 7 * 5)),
        ("fused matrix products", lambda s: s * 6 * (4 + 4 + 7) + s * s * (4 + 7) + 7 * 8 + 8 * 3),
    ],
)
def test_fused_ops_cost_what_their_products_cost(name: str, by_hand: Any) -> None:
    program = gp.load(NETS[name].proto())
    wanted = by_hand(program.host.example()[0].shape[1])
    assert costs.macs(program.graph, program.host)() == wanted
    assert priced(program) == wanted * program.host.example()[0].shape[0]


def priced(program: Program) -> int:
    """The multiply-accumulates that a latency budget knows of; kernels are 1 x 1 here."""
    total = 0
    for work in works(program.graph, program.host):
        inner, outer, _ = work.widths({}, program.host.sizes())
        sizes = work.family.sizes
        if work.family.kind != "stream":
            total += inner * outer * (sizes[0] if work.family.kind == "product" else prod((sizes[0], *sizes[2::3])))
    return total

"""The ONNX host: what it reads, what it edits, what it refuses."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper as oh
import onnx.numpy_helper as nh
import onnxruntime
import pytest
import torch
from torch import nn

import graphprune as gp
from graphprune.axes.dim import Dim, leaves
from graphprune.axes.index import Index
from graphprune.coupling.relate import literals, role
from graphprune.errors import DataError, GraphpruneError, ModelError, OutputError, ShapeError
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.ir.graph import Graph, Op

DETECTORS = Path(__file__).parents[3] / "shared" / "data" / "onnx"
RNG = np.random.default_rng(0)


# ---- making models ---------------------------------------------------------------------------------


def build(
    text: str,
    weights: dict[str, Any] | None = None,
    opset: int = 17,
    inputs: str = "float[N,4,8,8] x",
    outputs: str = "y",
) -> onnx.ModelProto:
    """A model from ONNX's text syntax; weights are given as arrays, or as shapes to fill."""
    given = {
        name: RNG.standard_normal(w).astype(np.float32) * 0.5 if isinstance(w, tuple) else np.asarray(w)
        for name, w in (weights or {}).items()
    }
    made = ", ".join(f"float[] {name}" for name in outputs.split())
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : {opset}]> net ({inputs}) => ({made}) {{ {text} }}'
    )
    model.graph.initializer.extend(nh.from_array(array, name) for name, array in given.items())
    inferred = onnx.shape_inference.infer_shapes(model).graph.output
    for value, known in zip(model.graph.output, inferred, strict=True):
        value.type.tensor_type.shape.CopyFrom(known.type.tensor_type.shape)
    return model


def exported(
    module: nn.Module, args: tuple[torch.Tensor, ...], path: Path, dynamo: bool, dynamic: bool = True
) -> OnnxHost:
    """What torch writes, with a dynamic batch, every parameter and buffer random."""
    torch.manual_seed(0)
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5 if tensor.ndim == 1 else torch.randn_like(tensor) * 0.3
    names = [f"x{k}" for k in range(len(args))]
    module.eval()
    if dynamo:
        shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in args) if dynamic else None
        torch.onnx.export(module, args, path, dynamo=True, input_names=names, dynamic_shapes=shapes, verbose=False)
    else:
        axes = {name: {0: "batch"} for name in names} if dynamic else None
        torch.onnx.export(module, args, path, dynamo=False, opset_version=17, input_names=names, dynamic_axes=axes)
    return OnnxHost.load(path)


# ---- the law ---------------------------------------------------------------------------------------


def free(graph: Graph) -> list[Dim]:
    """The leaf dims that parameters have and that may be pruned by masking."""
    dims = {id(leaf): leaf for value in graph.parameters.values() for dim in value.dims for leaf in leaves(dim)}
    return [leaf for leaf in dims.values() if not leaf.frozen and not leaf.mixed and leaf.size != 1]


def pruned(host: OnnxHost, graph: Graph, index: Index) -> OnnxHost:
    out = host.copy()
    for op in graph.ops:
        for name, value in literals(op, graph.relations[op.name], index).items():
            out.set_literal(op, name, value)
    for name, value in graph.parameters.items():
        for axis, dim in enumerate(value.dims):
            if index.touches(dim):
                out.take(name, axis, index(dim))
    return out


def masked(host: OnnxHost, graph: Graph, index: Index) -> OnnxHost:
    out = host.copy()
    for op in graph.ops:
        relation = graph.relations[op.name]
        readers = [
            name for name, dim in relation.dims.items() if index.touches(dim) and role(op, relation, name) == "reader"
        ]
        for k, axis in (at for name in readers for at in relation.inputs[name]):
            value = op.inputs[k]
            assert value is not None
            if value.constant:
                size = value.shape[axis] if value.shape else 0
                out.zero(value.name, axis, np.setdiff1d(np.arange(size), index(value.dims[axis])))
    for masker in graph.maskers:  # what writes one side of a contraction of two activations
        if index.touches(masker.dim):
            dim = graph.parameters[masker.parameter].dims[masker.axis]
            out.zero(masker.parameter, masker.axis, np.setdiff1d(np.arange(dim.size), index(dim)))
    return out


def difference(got: list[np.ndarray], want: list[np.ndarray]) -> float:
    assert all(np.isfinite(array).all() for array in (*got, *want))
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(got, want, strict=True))


def assert_law(host: OnnxHost, groups: int, tmp_path: Path) -> Graph:
    """Every free dim, pruned and permuted, computes what masking computes, at two batch sizes; the file
    that is saved does, too; and the host it was copied from is as it was."""
    graph = host.lift()
    dims = free(graph)
    assert len(dims) == groups
    batches = [host.example()]
    if all(isinstance(value.shape[0], str) for value in graph.inputs if value.shape):  # any batch goes
        batches.append([np.concatenate([x, x[:1]]) for x in host.example()])
    before = [host.run(batch) for batch in batches]
    for leaf in dims:
        assert isinstance(leaf.size, int)
        index = Index({leaf: RNG.permutation(leaf.size)[: max(1, 2 * leaf.size // 3)]})
        small, zeroed = pruned(host, graph, index), masked(host, graph, index)
        small.shapes()
        small.save(tmp_path / "small.onnx")
        onnx.checker.check_model(tmp_path / "small.onnx", full_check=True)
        again = OnnxHost.load(tmp_path / "small.onnx")
        for batch, whole in zip(batches, before, strict=True):
            want = zeroed.run(batch)
            assert difference(small.run(batch), want) <= 1e-5
            assert difference(again.run(batch), want) <= 1e-5
            assert difference(want, whole) > 1e-4
        assert [op.kind for op in small.lift().ops if op.kind != "create"] == [
            op.kind for op in graph.ops if op.kind != "create"
        ]
    for batch, whole in zip(batches, before, strict=True):
        assert difference(host.run(batch), whole) == 0
    return graph


# ---- real models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "groups"), [("version-RFB-320", 25), ("version-slim-320_simplified", 15)])
def test_detectors(name: str, groups: int, tmp_path: Path) -> None:
    path = DETECTORS / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"no detectors at {DETECTORS}")
    host = OnnxHost.load(path)
    graph = host.lift()
    assert len(free(graph)) == groups
    assert not [op for op in graph.ops if op.kind[0].isupper()]
    leaf = free(graph)[0]
    index = Index({leaf: np.arange(3, 11)})
    small, zeroed = pruned(host, graph, index), masked(host, graph, index)
    assert difference(small.run(host.example()), zeroed.run(host.example())) <= 1e-5
    small.save(tmp_path / "small.onnx")
    source, result = onnx.load(path), onnx.load(tmp_path / "small.onnx")
    onnx.checker.check_model(result, full_check=True)
    assert [node.name for node in source.graph.node] == [node.name for node in result.graph.node]
    weights = {tensor.name for tensor in source.graph.initializer}  # all of them inputs too in these files
    assert [value.name for value in result.graph.input] == [
        value.name for value in source.graph.input if value.name not in weights
    ]
    assert [(o.domain, o.version) for o in source.opset_import] == [(o.domain, o.version) for o in result.opset_import]
    assert weights == {t.name for t in result.graph.initializer}


class Residual(nn.Module):
    """Residual, depthwise, grouped and transposed convolutions, norms, concat, chunk, a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12)
        self.depth, self.point = nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.Conv2d(12, 12, 1)
        self.wide, self.grouped = nn.Conv2d(12, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.up, self.act = nn.ConvTranspose2d(20, 9, 2, stride=2), nn.PReLU(9)
        self.squeeze, self.excite = nn.Linear(9, 6), nn.Linear(6, 9)
        self.head = nn.Linear(9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.point(self.depth(x))
        a, b = self.wide(x).chunk(2, 1)
        x = torch.cat([self.grouped(torch.cat([b, a], 1)) * 0.5, x[:, 2:6]], 1)
        x = self.act(self.up(x))
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        return self.head(x.flatten(2).mean(2))


class Attention(nn.Module):
    """Packed qkv, heads by view, a class token by expand, LayerNorm, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.norm, self.qkv, self.out = nn.LayerNorm(12), nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down, self.head = nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        b, t, c = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, t, 3, 3, c // 3).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        x = x + self.down(nn.functional.gelu(self.up(x)))
        return self.head(x[:, 0])


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.filterwarnings("ignore")
def test_torch_convolutions(dynamo: bool, tmp_path: Path) -> None:
    host = exported(Residual(), (torch.randn(2, 3, 8, 8),), tmp_path / "net.onnx", dynamo)
    graph = assert_law(host, 9, tmp_path)
    assert not [op for op in graph.ops if op.kind[0].isupper()]


@pytest.mark.parametrize("dynamo", [False, True], ids=["legacy", "dynamo"])
@pytest.mark.filterwarnings("ignore")
def test_torch_attention(dynamo: bool, tmp_path: Path) -> None:
    host = exported(Attention(), (torch.randn(2, 4, 12),), tmp_path / "net.onnx", dynamo)
    graph = assert_law(host, 3 if dynamo else 2, tmp_path)
    assert not [op for op in graph.ops if op.kind[0].isupper()]
    widths = {4} if dynamo else set()  # the legacy exporter computes the scale from the width
    assert {leaf.size for leaf in free(graph)} == {3, 20} | widths  # heads, and the MLP


# ---- one graph for each thing that exporters do ------------------------------------------------------

TAIL = "r = Relu(p) y = Conv(r, w2)"  # contracts what the case before made

CASES: dict[str, tuple[Callable[[], onnx.ModelProto], list[int]]] = {
    "reshape by a constant with 0 and -1": (
        lambda: build(
            "a = Conv(x, w) h = Reshape(a, s) t = Transpose<perm=[0,2,1,3]>(h) p = Reshape(t, u)" + TAIL,
            {"w": (12, 4, 1, 1), "s": [0, 3, 4, 64], "u": [0, -1, 8, 8], "w2": (5, 12, 1, 1)},
        ),
        [3, 4],
    ),
    "two reshapes share a constant": (
        lambda: build(
            "a = Conv(x, w) b = Conv(x, v) h = Reshape(a, s) p = Relu(h) q = Reshape(b, s) k = Sigmoid(q)"
            "m = Reshape(p, u) n = Reshape(k, u) d = Conv(m, w2) e = Conv(n, w3) y = Add(d, e)",
            {
                "w": (6, 4, 1, 1),
                "v": (6, 4, 1, 1),
                "s": [-1, 6, 64],
                "u": [-1, 6, 8, 8],
                "w2": (5, 6, 1, 1),
                "w3": (5, 6, 1, 1),
            },
        ),
        [6, 6],
    ),
    "reshape by a chain of its own, patched in its Concat": (
        lambda: build(
            "a = Conv(x, w) s = Shape(a) n = Gather(s, zero) m = Unsqueeze(n, ax) c = Concat<axis=0>(m, k, rest)"
            "h = Reshape(a, c) q = Sigmoid(h) u = Concat<axis=0>(m, k12, hw) p = Reshape(q, u)" + TAIL,
            {
                "w": (12, 4, 1, 1),
                "zero": np.int64(0),
                "ax": [0],
                "k": [3],
                "rest": [4, 64],
                "k12": [12],
                "hw": [8, 8],
                "w2": (5, 12, 1, 1),
            },
        ),
        [3, 4],
    ),
    "reshape by a chain that two share, patched by a Where": (
        lambda: build(
            "a = Conv(x, w) b = Conv(x, v) s = Shape(a) m = Slice(s, i0, i1) c = Concat<axis=0>(m, k, l)"
            "h = Reshape(a, c) p = Relu(h) q = Reshape(b, c) t = Sigmoid(q)"
            "e = Transpose<perm=[0,2,1]>(p) f = Transpose<perm=[0,2,1]>(t) d = MatMul(e, w2) g = MatMul(f, w3)"
            "y = Add(d, g)",
            {
                "w": (6, 4, 1, 1),
                "v": (6, 4, 1, 1),
                "i0": [0],
                "i1": [1],
                "k": [6],
                "l": [64],
                "w2": (6, 5),
                "w3": (6, 5),
            },
        ),
        [6, 6],
    ),
    "reshape by another tensor's size that follows by itself": (
        lambda: build(
            "a = Conv(x, w) s = Shape(a) f = Flatten(a) t = Tanh(f) p = Reshape(t, s)" + TAIL,
            {"w": (6, 4, 1, 1), "w2": (5, 6, 1, 1)},
        ),
        [6],
    ),
    "legacy chunk: the bounds are computed from the size": (
        lambda: build(
            "a = Conv(x, w) s = Shape(a) c = Gather(s, one) h = Div(c, two) u = Unsqueeze(h, ax) v = Mul(u, twos)"
            "b = Slice(a, zero, u, ones) d = Slice(a, u, v, ones) e = Sigmoid(d) p = Concat<axis=1>(e, b)" + TAIL,
            {
                "w": (8, 4, 1, 1),
                "one": np.int64(1),
                "two": np.int64(2),
                "twos": [2],
                "ax": [0],
                "zero": [0],
                "ones": [1],
                "w2": (5, 8, 1, 1),
            },
        ),
        [4, 4],
    ),
    "opset 9: split and slice by attributes, softmax over all from axis 2 on": (
        lambda: build(
            "a = Conv(x, w) b, c = Split<axis=1, split=[3,5]>(a) d = Slice<axes=[1], starts=[1], ends=[9999]>(c)"
            "e = Concat<axis=1>(d, b) p = Softmax<axis=2>(e)" + TAIL,
            {"w": (8, 4, 1, 1), "w2": (5, 7, 1, 1)},
            opset=9,
            inputs="float[2,4,8,8] x",
        ),
        [3, 4],
    ),
    "opset 18: equal parts become unequal": (
        lambda: build(
            "a = Conv(x, w) b, c = Split<axis=1, num_outputs=2>(a) e = Sigmoid(c) p = Concat<axis=1>(e, b)" + TAIL,
            {"w": (8, 4, 1, 1), "w2": (5, 8, 1, 1)},
            opset=18,
        ),
        [4, 4],
    ),
    "expand by a chain": (
        lambda: build(
            "a = Conv(x, w) g = GlobalAveragePool(a) s = Shape(x) i = Gather(s, zeros) h = Gather(s, hw)"
            "c = Concat<axis=0>(i, k, h) p = Expand(g, c)" + TAIL,
            {"w": (6, 4, 1, 1), "zeros": [0], "hw": [2, 3], "k": [6], "w2": (5, 6, 1, 1)},
        ),
        [6],
    ),
    "channels padded with a constant, axes named": (
        lambda: build(
            "a = Conv(x, w) p = Pad(a, pads, value, axes)" + TAIL,
            {"w": (6, 4, 1, 1), "pads": [2, 1], "value": np.float32(0.5), "axes": [1], "w2": (5, 9, 1, 1)},
            opset=18,
        ),
        [2, 6],
    ),
    "group norm": (
        lambda: build(
            "a = Conv(x, w) p = GroupNormalization<num_groups=4>(a, s, b)" + TAIL,
            {"w": (12, 4, 1, 1), "s": (12,), "b": (12,), "w2": (5, 12, 1, 1)},
            opset=21,
        ),
        [4],
    ),
    "resize by written sizes": (
        lambda: build(
            'a = Conv(x, w) p = Resize<mode="nearest">(a, , , sizes)' + TAIL,
            {"w": (6, 4, 1, 1), "sizes": [2, 6, 16, 12], "w2": (5, 6, 1, 1)},
            inputs="float[2,4,8,8] x",
        ),
        [6],
    ),
    "resize by scales": (
        lambda: build(
            'a = Conv(x, w) p = Resize<mode="linear">(a, , scales)' + TAIL,
            {"w": (6, 4, 1, 1), "scales": np.float32([1, 1, 2, 2]), "w2": (5, 6, 1, 1)},
        ),
        [6],
    ),
    "depth to space and back, both orders": (
        lambda: build(
            'a = Conv(x, w) d = DepthToSpace<blocksize=2, mode="DCR">(a) e = Relu(d) f = SpaceToDepth<blocksize=2>(e)'
            'g = Conv(f, v) p = DepthToSpace<blocksize=2, mode="CRD">(g)' + TAIL,
            {"w": (24, 4, 1, 1), "v": (12, 24, 1, 1), "w2": (5, 3, 1, 1)},
        ),
        [6, 3],
    ),
    "weights in Constant nodes": (
        lambda: build(
            "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) k = Constant<value = float[6] {1,-2,3,4,5,6}>()"
            "b = Mul(t, k) c = Relu(b) y = MatMul(c, w2)",
            {"w": (6, 4, 1, 1), "w2": (6, 5)},
        ),
        [6],
    ),
    "gemm, transposed and scaled": (
        lambda: build(
            "g = GlobalAveragePool(x) f = Flatten(g) a = Gemm<transB=1>(f, w, b) r = Relu(a)"
            "y = Gemm<alpha=0.5, beta=2.0>(r, w2, b2)",
            {"w": (6, 4), "b": (6,), "w2": (6, 5), "b2": (1, 5)},
        ),
        [6],
    ),
    "clip to constants cast to the type of what is clipped": (
        lambda: build(
            "a = Conv(x, w) lo = CastLike(zero, a) hi = CastLike(six, a) k = Clip(a, lo, hi) l = CastLike(k, x)"
            "m = CastLike(l, l) g = GlobalAveragePool(m) f = Flatten(g) y = MatMul(f, w2)",
            {"w": (6, 4, 1, 1), "zero": np.int64(0), "six": np.int64(6), "w2": (6, 5)},
        ),
        [6],
    ),
    "einsum, max pool, cumsum, clip, where": (
        lambda: build(
            "a = Conv(x, w) m = MaxPool<kernel_shape=[2,2]>(a) c = CumSum(m, ax) k = Clip(c, lo) g = Greater(k, lo)"
            'h = Where(g, k, m) y = Einsum<equation="nchw,oc->nohw">(h, w2)',
            {"w": (6, 4, 1, 1), "ax": np.int64(2), "lo": np.float32(0.1), "w2": (5, 6)},
        ),
        [6],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_cases(case: str, tmp_path: Path) -> None:
    make, sizes = CASES[case]
    host = OnnxHost(make())
    graph = assert_law(host, len(sizes), tmp_path)
    assert sorted(leaf.size for leaf in free(graph)) == sorted(sizes)


def test_a_shared_chain_is_patched_by_a_where_and_only_where_it_is_wrong() -> None:
    host = OnnxHost(CASES["reshape by a chain that two share, patched by a Where"][0]())
    graph = host.lift()
    small = pruned(host, graph, Index({free(graph)[0]: np.arange(2)}))
    assert [node.op_type for node in small.model.graph].count("Where") == 1
    host = OnnxHost(CASES["reshape by another tensor's size that follows by itself"][0]())
    graph = host.lift()
    small = pruned(host, graph, Index({free(graph)[0]: np.arange(2)}))
    assert [node.name for node in small.model.graph] == [node.name for node in host.model.graph]
    assert set(small.model.graph.initializers) == set(host.model.graph.initializers)


# ---- what is frozen, and why -------------------------------------------------------------------------


def reasons(host: OnnxHost, name: str, axis: int) -> list[str | None]:
    return [leaf.frozen for leaf in leaves(host.lift().parameters[name].dims[axis])]


def test_a_size_used_in_arithmetic_freezes_just_the_axis_that_was_read() -> None:
    host = OnnxHost(
        build(
            "a = Conv(x, w) s = Shape(a) c = Gather(s, one) f = Cast<to=1>(c) q = Sqrt(f) d = Div(a, q)"
            "b = Conv(d, v) y = Conv(b, w2)",
            {"w": (6, 4, 1, 1), "one": np.int64(1), "v": (7, 6, 1, 1), "w2": (5, 7, 1, 1)},
        )
    )
    assert reasons(host, "w", 0) == ["q: computes with its size"]
    assert reasons(host, "v", 0) == [None]
    assert "%q: = create()" in host.lift().text()


def test_an_unknown_op_freezes_what_it_reads_and_a_subgraph_is_looked_into_and_kept(tmp_path: Path) -> None:
    then = oh.make_graph([oh.make_node("Relu", ["a"], ["t"])], "then", [], [oh.make_tensor_value_info("t", 1, None)])
    other = oh.make_graph([oh.make_node("Neg", ["a"], ["o"])], "else", [], [oh.make_tensor_value_info("o", 1, None)])
    model = build(
        "a = Conv(x, w) q = Conv(x, v) i = NonZero(q) c = Cast<to=1>(i) m = ReduceMax<keepdims=0>(c) y = Add(a, m)",
        {"w": (6, 4, 1, 1), "v": (7, 4, 1, 1), "w2": (5, 6, 1, 1)},
        inputs="float[N,4,8,8] x, bool yes",
        outputs="z",
    )
    model.graph.node.append(oh.make_node("If", ["yes"], ["b"], then_branch=then, else_branch=other))
    model.graph.node.append(oh.make_node("Mul", ["b", "y"], ["z"]))
    host = OnnxHost(model)
    assert reasons(host, "w", 0) == ["reaches the graph output"]
    assert reasons(host, "v", 0) == ["i: no rule for `NonZero`"]
    host.save(tmp_path / "kept.onnx")
    kept = onnx.load(tmp_path / "kept.onnx")
    assert {attribute.g.name for attribute in kept.graph.node[-2].attribute} == {"then", "else"}


def test_dynamic_sizes_are_named_by_what_they_follow() -> None:
    host = OnnxHost(
        build(
            "a = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w) c = Concat<axis=0>(a, a) f = Reshape(a, s)"
            "y = Identity(c) z = Identity(f)",
            {"w": (6, 4, 3, 3), "s": [0, 6, -1]},
            inputs="float[N,4,H,W] x",
            outputs="y z",
        )
    )
    shapes = host.shapes()
    assert shapes["x"] == ("N", 4, "H", "W")
    assert shapes["c"] == ("2*N", 6, "dyn1", "dyn2")
    assert shapes["f"] == ("N", 6, "dyn3")
    assert [x.shape for x in host.example()] == [(2, 4, 32, 32)]


# ---- single edits ------------------------------------------------------------------------------------


def find_op(host: OnnxHost, name: str) -> Op:
    return next(op for op in host.lift().ops if op.name == name)


BIASED = build(
    "a = Conv(x, w) t = Transpose<perm=[0,2,3,1]>(a) m = MatMul(t, u) n = Add(b, m) k = MatMul(n, v)"
    "p = ReduceMean<axes=[1,2], keepdims=0>(k) g = Gemm<beta=0.5>(p, z, c) h = Mul(g, c) y = Identity(h)",
    {"w": (6, 4, 1, 1), "u": (6, 3), "b": (3,), "v": (3, 5), "z": (5, 5), "c": (5,)},
)


@pytest.mark.parametrize("name", ["a", "m", "k", "g"])
def test_add_bias(name: str) -> None:
    """A convolution without one, a MatMul with and without an Add, a scaled Gemm whose bias is shared."""
    host = OnnxHost(BIASED)
    op, batch = find_op(host, name), host.example()
    axis = 1 if name == "a" else -1
    size = op.outputs[0].shape[axis] if op.outputs[0].shape else 0
    assert isinstance(size, int)
    bias = RNG.standard_normal(size)
    after = "n" if name == "m" else name
    edited = host.copy()
    edited.add_bias(op, bias)
    made = "k_biased" if name == "k" else after
    shape = (-1, 1, 1) if name == "a" else (-1,)
    want = host.watch(batch, [after])[after] + bias.reshape(shape)
    assert np.abs(edited.watch(batch, [made])[made] - want).max() < 1e-5
    assert difference(edited.run(batch), host.run(batch)) > 1e-4
    assert np.array_equal(host.parameter("c"), edited.parameter("c"))  # read by others, too


def test_remove_lets_readers_read_the_input_and_keeps_output_names() -> None:
    host = OnnxHost(build("a = Conv(x, w) b = Relu(a) c = Sigmoid(b) y = Identity(c)", {"w": (6, 4, 1, 1)}))
    batch = host.example()
    edited = host.copy()
    edited.remove(find_op(host, "b"))
    edited.remove(find_op(host, "y"))
    assert [node.op_type for node in edited.model.graph] == ["Conv", "Sigmoid"]
    assert [value.name for value in edited.model.graph.outputs] == ["y"]
    want = 1 / (1 + np.exp(-host.watch(batch, ["a"])["a"]))
    assert difference(edited.run(batch), [want]) < 1e-6
    assert [node.op_type for node in host.model.graph] == ["Conv", "Relu", "Sigmoid", "Identity"]


def test_removing_a_node_between_an_input_and_an_output_leaves_an_identity() -> None:
    host = OnnxHost(build("y = Relu(x)"))
    edited = host.copy()
    edited.remove(find_op(host, "y"))
    assert np.array_equal(edited.run(host.example())[0], host.example()[0])


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16"])
def test_edits_keep_the_dtype(dtype: str) -> None:
    kinds = {
        "float16": onnx.TensorProto.FLOAT16,
        "float64": onnx.TensorProto.DOUBLE,
        "bfloat16": onnx.TensorProto.BFLOAT16,
    }
    model = build(f"v = Cast<to={kinds[dtype]}>(x) a = MatMul(v, w) y = Cast<to=1>(a)", inputs="float[3,8] x")
    model.graph.initializer.append(oh.make_tensor("w", kinds[dtype], [8, 4], RNG.standard_normal(32).tolist()))
    host = OnnxHost(model)
    whole = host.parameter("w")
    assert whole.dtype == (np.float64 if dtype == "float64" else np.float32)
    host.take("w", 1, np.array([3, 1]))
    assert np.array_equal(host.parameter("w"), whole[:, [3, 1]])
    host.zero("w", 0, np.array([0, 2]))
    assert not host.parameter("w")[[0, 2]].any() and host.parameter("w")[[1, 3]].all()
    host.set_parameter("w", np.ones((8, 2)))
    tensor = host.model.graph.initializers["w"].const_value
    assert tensor is not None and tensor.dtype.value == kinds[dtype] and tensor.name == "w"


def test_recorded_shapes_do_not_go_stale(tmp_path: Path) -> None:
    model = build("a = Conv(x, w) p = Relu(a) y = Conv(p, w2)", {"w": (6, 4, 1, 1), "w2": (5, 6, 1, 1)})
    model.graph.value_info.extend([oh.make_tensor_value_info(name, 1, ["N", 6, 8, 8]) for name in ("a", "p")])
    host = OnnxHost(model)
    graph = host.lift()
    small = pruned(host, graph, Index({free(graph)[0]: np.arange(2)}))
    assert small.shapes()["a"] == ("N", 2, 8, 8)
    small.save(tmp_path / "small.onnx")
    saved = onnx.load(tmp_path / "small.onnx")
    inferred = onnx.shape_inference.infer_shapes(saved, strict_mode=True, check_type=True)
    shapes = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in inferred.graph.value_info}
    assert shapes["a"][1] == 2
    assert {info.name: info.type.tensor_type.HasField("shape") for info in host_infos(host, tmp_path)}["a"]


def host_infos(host: OnnxHost, tmp_path: Path) -> Any:
    host.save(tmp_path / "whole.onnx")
    return onnx.load(tmp_path / "whole.onnx").graph.value_info


def test_half_an_edit_is_an_error_that_names_the_node() -> None:
    host = OnnxHost(build("a = Conv(x, w) p = Relu(a) y = Conv(p, w2)", {"w": (6, 4, 1, 1), "w2": (5, 6, 1, 1)}))
    host.lift()
    host.take("w", 0, np.arange(3))
    with pytest.raises(ShapeError, match=r"^y \(Conv\): ONNX Runtime cannot run it: .*"):
        host.shapes()


def test_copies_share_weights_and_do_not_see_each_others_edits() -> None:
    host = OnnxHost(build("a = Conv(x, w) y = Relu(a)", {"w": (40, 4, 3, 3)}))
    other = host.copy()
    assert other.model.graph.initializers["w"].const_value is host.model.graph.initializers["w"].const_value
    other.zero("w", 0, np.array([0]))
    assert host.parameter("w")[0].any() and not other.parameter("w")[0].any()
    with pytest.raises(GraphpruneError, match="cannot be run in float64"):
        host.copy("float64")


# ---- files -------------------------------------------------------------------------------------------


def test_nothing_is_lost(tmp_path: Path) -> None:
    model = build("a = Conv(x, w) y = Relu(a)", {"w": (6, 4, 1, 1)})
    model.doc_string, model.producer_name, model.model_version = "about", "someone", 7
    model.metadata_props.add(key="k", value="v")
    model.graph.node[0].name, model.graph.node[0].doc_string = "first", "a node"
    model.opset_import.add(domain="com.microsoft", version=1)
    body = [oh.make_node("Relu", ["q"], ["r"])]
    model.functions.append(oh.make_function("local", "F", ["q"], ["r"], body, [oh.make_opsetid("", 17)]))
    model.opset_import.add(domain="local", version=1)
    onnx.save(model, tmp_path / "a.onnx")
    host = OnnxHost.load(tmp_path / "a.onnx")
    host.lift()
    host.zero("w", 0, np.array([], dtype=int))
    host.save(tmp_path / "b.onnx")
    saved = onnx.load(tmp_path / "b.onnx")
    assert (saved.doc_string, saved.producer_name, saved.model_version) == ("about", "someone", 7)
    assert [(p.key, p.value) for p in saved.metadata_props] == [("k", "v")]
    assert [(node.name, node.doc_string) for node in saved.graph.node] == [("first", "a node"), ("", "")]
    assert {(o.domain, o.version) for o in saved.opset_import} == {("", 17), ("com.microsoft", 1), ("local", 1)}
    assert [function.name for function in saved.functions] == ["F"]
    assert np.array_equal(nh.to_array(saved.graph.initializer[0]), nh.to_array(model.graph.initializer[0]))


def test_external_data_goes_beside_the_result(tmp_path: Path) -> None:
    model = build("a = Conv(x, w) p = Relu(a) y = Conv(p, w2)", {"w": (60, 4, 3, 3), "w2": (5, 60, 1, 1)})
    whole = OnnxHost(copy.deepcopy(model))
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    host = OnnxHost.load(tmp_path / "a.onnx")
    batch = host.example()
    assert difference(host.run(batch), whole.run(batch)) == 0
    graph = host.lift()
    small = pruned(host, graph, Index({free(graph)[0]: np.arange(20)}))
    small.save(tmp_path / "a.onnx")  # over its own source
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx", "a.onnx.data", "weights.bin"}
    onnx.checker.check_model(tmp_path / "a.onnx", full_check=True)
    assert difference(OnnxHost.load(tmp_path / "a.onnx").run(batch), small.run(batch)) == 0
    assert difference(host.run(batch), whole.run(batch)) == 0


def _external(folder: Path, location: str, **more: str) -> Path:
    model = build("y = Conv(x, w)")
    tensor = model.graph.initializer.add(
        name="w", data_type=1, dims=[6, 4, 1, 1], data_location=onnx.TensorProto.EXTERNAL
    )
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=value)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


def _linked(folder: Path) -> Path:
    (folder / "deep").mkdir()
    (folder / "secret").write_bytes(bytes(96))
    (folder / "deep" / "w.bin").symlink_to(folder / "secret")
    return _external(folder / "deep", "w.bin")


def _bytes(folder: Path, data: bytes) -> Path:
    (folder / "m.onnx").write_bytes(data)
    return folder / "m.onnx"


def _short(folder: Path) -> Path:
    (folder / "w.bin").write_bytes(bytes(90))
    return _external(folder, "w.bin")


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "no.onnx", "no such file"),
    "folder": (lambda d: d, "not a file"),
    "text": (lambda d: _bytes(d, b"hello, I am no model"), "not an ONNX"),
    "empty": (lambda d: _bytes(d, b""), "not an ONNX model, or an empty one"),
    "truncated": (lambda d: _bytes(d, BIASED.SerializeToString()[:-40]), "truncated|not an ONNX"),
    "no data": (lambda d: _external(d, "gone.bin"), "`w` should be at `gone.bin`, which is missing"),
    "short data": (_short, "ends at byte 96 of `w.bin`, which has 90"),
    "absolute": (lambda d: _external(d, "/etc/passwd"), "`/etc/passwd`, outside the model's folder"),
    "parent": (lambda d: _external(d, "../../etc/passwd"), "outside the model's folder"),
    "symlink": (_linked, "outside the model's folder"),
    "offset": (lambda d: _external(d, "w.bin", offset="-4"), "offset must be non-negative, got -4 for tensor 'w'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_files(bad: str, tmp_path: Path) -> None:
    make, message = BAD[bad]
    with pytest.raises(ModelError, match=message):
        OnnxHost.load(make(tmp_path))


def test_models_that_cannot_be_compiled() -> None:
    with pytest.raises(ModelError, match=r"input `x` has shape \(N, 0, 8\): an axis of size zero"):
        OnnxHost(build("y = Relu(x)", inputs="float[N,0,8] x")).lift()
    with pytest.raises(ModelError, match=r"`w` has shape \(0, 4, 1, 1\): an axis of size zero"):
        OnnxHost(build("y = Conv(x, w)", {"w": (0, 4, 1, 1)})).lift()
    custom = build("a = Relu(x) y = Relu(a)")
    custom.graph.node[1].op_type, custom.graph.node[1].domain, custom.graph.node[1].name = "Magic", "my.ops", "wand"
    custom.opset_import.add(domain="my.ops", version=1)
    with pytest.raises(ModelError, match=r"wand \(Magic\): ONNX Runtime cannot run it"):
        OnnxHost(custom).lift()
    with pytest.raises(ModelError, match="give example inputs"):
        OnnxHost(build("c = Reshape(x, s) y = Relu(c)", {"s": [7, 11]}, inputs="float[A,B] x")).lift()
    sparse = build("y = Relu(x)")
    sparse.graph.sparse_initializer.add()
    with pytest.raises(ModelError, match="sparse initializers cannot be carried through"):
        OnnxHost(sparse)
    held = build("w = Identity(x) y = Relu(x)")
    values = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [1.0])
    where = onnx.helper.make_tensor("at", onnx.TensorProto.INT64, [1], [3])
    constant = onnx.helper.make_node(
        "Constant", [], ["w"], sparse_value=onnx.helper.make_sparse_tensor(values, where, [8])
    )
    held.graph.node[0].CopyFrom(constant)
    with pytest.raises(ModelError, match=r"`w` \(Constant\) is a sparse tensor, which cannot be carried through"):
        OnnxHost(held)


def test_of_two_weights_by_one_name_none_is_taken() -> None:
    """ONNX Runtime takes the first, onnx_ir the last."""
    double = build("y = Conv(x, w)", {"w": (4, 3, 1, 1)})
    double.graph.initializer.add().CopyFrom(double.graph.initializer[0])
    with pytest.raises(ModelError, match="two initializers are called `w`"):
        OnnxHost(double)
    double = build("y = Relu(x)")
    double.graph.input.add().CopyFrom(double.graph.input[0])
    with pytest.raises(ModelError, match="two inputs are called `x`"):
        OnnxHost(double)


def test_text_is_no_input_of_a_network() -> None:
    text = build("y = Relu(x)")
    text.graph.input.append(onnx.helper.make_tensor_value_info("said", onnx.TensorProto.STRING, ["n"]))
    with pytest.raises(ModelError, match="input `said` is text"):
        OnnxHost(text).lift()


def test_a_default_that_a_caller_may_replace_is_said_to_be_cut() -> None:
    made = build("a = Conv(x, w) b = Relu(a) y = Conv(b, v)", {"w": (4, 4, 1, 1), "v": (2, 4, 1, 1)})
    made.graph.input.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [4, 4, 1, 1]))
    done = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(made))
    assert [note for note in done.notes if "a caller may replace: w;" in note]
    assert isinstance(done.host, OnnxHost)
    assert [list(value.shape.numpy()) for value in done.host.model.graph.inputs if value.name == "w"] == [[2, 4, 1, 1]]


def test_an_example_settles_what_the_declared_shapes_leave_open() -> None:
    model = build("c = Reshape(x, s) y = Relu(c)", {"s": [7, 11]}, inputs="float[A,B] x")
    host = OnnxHost(model, [np.ones((11, 7), np.float32)])
    assert host.lift().outputs[0].shape == (7, 11)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([], r"0 arrays for 1 inputs \(x\)"),
        ([np.zeros((2, 3, 8, 8), np.float32)], r"input `x` has shape \(N, 4, 8, 8\), the data \(2, 3, 8, 8\)"),
        ([np.zeros((2, 4, 8, 8), complex)], "input `x` is float32, the data complex128"),
    ],
)
def test_data_that_does_not_fit(batch: list[np.ndarray], message: str) -> None:
    with pytest.raises(DataError, match=message):
        OnnxHost(build("y = Relu(x)")).run(batch)


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.onnx").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        OnnxHost(build("y = Relu(x)")).save(tmp_path / "out.onnx")
    with pytest.raises(OutputError, match="cannot be written"):
        OnnxHost(build("y = Relu(x)")).save(tmp_path / "no" / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]


@pytest.mark.parametrize(("listed", "ir_version"), [(("w", "b"), 3), (("w", "b"), 4), (("b",), 4)])
def test_weights_that_are_all_inputs_become_constants(tmp_path: Path, listed: tuple[str, ...], ir_version: int) -> None:
    """As IR 3 wanted it and PyTorch wrote it; where only some are, a caller may mean to give them."""
    old, new = tmp_path / "old.onnx", tmp_path / "new.onnx"
    shapes = {"w": (4, 4, 3, 3), "b": (4,)}
    model = build("y = Conv(x, w, b)", dict(shapes), opset=9)
    model.ir_version = ir_version
    model.graph.input.extend(oh.make_tensor_value_info(name, 1, shapes[name]) for name in listed)
    onnx.save(model, old)
    OnnxHost.load(old).save(new)
    written = onnx.load(new)
    onnx.checker.check_model(written, full_check=True)
    assert written.ir_version == 4
    assert [value.name for value in written.graph.input] == ["x", *(listed if len(listed) == 1 else ())]
    x = RNG.standard_normal((2, 4, 8, 8)).astype(np.float32)
    before, after = (onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0] for path in (old, new))
    assert np.abs(before - after).max() <= 1e-6 * np.abs(before).max()


PEAK = """
import resource, sys
import numpy as np
from graphprune.hosts.onnx.host import OnnxHost
from graphprune.hosts.onnx.run import Session
session = Session(OnnxHost.load(sys.argv[1]).model, shapes=True)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
session.run({"x": np.ones((1, 3, 320, 320), np.float32)})
print((peak() - before) // 1024)
"""


@pytest.mark.skipif(not (DETECTORS / "ppocr_det_infer.onnx").exists(), reason="no text detector on this machine")
def test_shapes_are_told_without_all_tensors_being_held():
    """Together they are 170 MB."""
    command = [sys.executable, "-c", PEAK, str(DETECTORS / "ppocr_det_infer.onnx")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 80


def unordered(order):
    """A perceptron with a choice whose branches read a layer from outside, its nodes in this order."""
    rng = np.random.default_rng(0)
    weights = [("w", (6, 8)), ("v", (8, 5))]
    held = [nh.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in weights]
    floats = onnx.TensorProto.FLOAT
    branches = {
        f"{name}_branch": oh.make_graph(
            [oh.make_node(op, ["h"], [f"{name}_out"])],
            name,
            [],
            [oh.make_tensor_value_info(f"{name}_out", floats, None)],
        )
        for name, op in (("then", "Relu"), ("else", "Relu"))
    }
    nodes = {
        "h": oh.make_node("MatMul", ["x", "w"], ["h"], "h"),
        "s": oh.make_node("ReduceSum", ["x"], ["s"], "s", keepdims=0),
        "c": oh.make_node("Greater", ["s", "s"], ["c"], "c"),
        "r": oh.make_node("If", ["c"], ["r"], "r", **branches),
        "y": oh.make_node("MatMul", ["r", "v"], ["y"], "y"),
    }
    ends = [oh.make_tensor_value_info(name, floats, ["n", size]) for name, size in (("x", 6), ("y", 5))]
    graph = oh.make_graph([nodes[name] for name in order], "net", ends[:1], ends[1:], held)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=9)


def test_nodes_may_stand_in_any_order_that_has_one():
    """As some tools write them, and ONNX Runtime takes them."""
    kept = []
    for order in ("hscry", "yrcsh", "cryhs"):
        cut = gp.run("group,score,mask{channels=0.5x},propagate", gp.load(unordered(order)))
        gp.verify(cut)
        assert [node.op_type for node in cut.host.model.graph][-1] == "MatMul"
        kept.append(cut.plan["steps"][-1]["keep"])
    assert kept[0] and kept[0] == kept[1] == kept[2]


@pytest.mark.parametrize(("inputs", "said"), [(["y", "v"], "cycle"), (["nowhere", "v"], "nowhere")])
def test_nodes_that_wait_for_each_other_or_for_nothing_are_refused(inputs, said):
    model = unordered("hscry")
    model.graph.node[-1].input[:] = inputs
    with pytest.raises(ModelError, match=said):
        gp.load(model)


def test_a_gemm_without_a_bias_has_what_is_added_behind_it() -> None:
    host = OnnxHost(
        build("p = ReduceMean<axes=[2,3], keepdims=0>(x) g = Gemm(p, z) y = Add(g, c)", {"z": (4, 5), "c": (5,)})
    )
    edited, bias = host.copy(), np.arange(5.0)
    edited.add_bias(find_op(host, "g"), bias)
    assert edited.lift().parameters.keys() == host.lift().parameters.keys()
    batch = host.example()
    assert np.abs(edited.run(batch)[0] - host.run(batch)[0] - bias).max() < 1e-5

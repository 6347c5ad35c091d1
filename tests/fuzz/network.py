"""A random network: drawn, printed, and made in torch and in ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx.helper as oh
import torch
from numpy.typing import NDArray

from . import blocks, layers, moves  # noqa: F401  they enter the kinds
from .kinds import BATCH, KINDS, LENGTH, Drawer, Onnx, Options, Shape, Sizes, static

MAX_AXIS, MAX_SIZE = 48, 6000
TOKENS = 11
OFTEN = {
    "conv": 5,
    "linear": 4,
    "binary": 4,
    "concat": 3,
    "attention": 3,
    "act": 2,
    "split": 2,
    "reshape": 2,
    "batch_norm": 2,
    "in_place": 2,
    "mixer": 2,
    "gate": 2,
}


@dataclass(frozen=True)
class Step:
    """``kind`` applied to value ``on`` with the options; ``weights``: the step whose weights it uses."""

    kind: str
    on: int
    options: Options
    weights: int


@dataclass(frozen=True)
class Network:
    """Values are numbered: the inputs first, then what the steps make. An input of rank two whose
    shape is all there is to know of token ids comes as ("ids", shape). ``batch`` and ``length`` are what
    the multiples of BATCH and LENGTH among the sizes come to."""

    inputs: tuple[tuple[str, Shape], ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    seed: int
    batch: int = BATCH
    length: int = 5

    @property
    def opens(self) -> bool:
        """Whether a size is open beside the batch."""
        return any(map(_lengths, (shape for _, shape in self.inputs)))

    def __repr__(self) -> str:
        """The program, readable."""
        lines = [f"v{k} = {what}{shape}" for k, (what, shape) in enumerate(self.inputs)]
        if (self.batch, self.length) != (BATCH, 5):
            lines.insert(0, f"# {BATCH} stands for {self.batch}, {LENGTH} for {self.length}")
        made = trace(self)
        for number, (step, values) in enumerate(zip(self.steps, made.results, strict=True)):
            left = ", ".join(f"v{k}" for k in values)
            operands = ", ".join(f"v{k}" for k in (step.on, *further(step.options)))
            options = "".join(f", {k}={v!r}" for k, v in step.options.items() if k != "with")
            tied = f", weights=s{step.weights}" if step.weights != number else ""
            shapes = ", ".join(str(made.shapes[k]) for k in values)
            lines.append(f"{left} = s{number}:{step.kind}({operands}{options}{tied})  # {shapes}")
        outs = ", ".join(f"v{k}" for k in self.outputs)
        return "\n".join(["", *lines, f"return {outs}", f"# {self.plain()}"])

    def plain(self) -> str:
        """The program as Python that makes it again: what ``tests.fuzz.run --replay`` takes."""
        sizes = f", {self.batch}, {self.length}" if (self.batch, self.length) != (BATCH, 5) else ""
        return f"Network({self.inputs!r}, {self.steps!r}, {self.outputs!r}, {self.seed!r}{sizes})"


def _lengths(shape: Shape) -> list[int]:
    """The axes of an input that are open beside the batch."""
    return [axis for axis, n in enumerate(shape) if n == LENGTH]


@dataclass
class Trace:
    """The shapes of all values, and which values each step made."""

    shapes: list[Shape]
    results: list[list[int]]


def further(options: Options) -> tuple[int, ...]:
    more = options.get("with", ())
    return more if isinstance(more, tuple) else (more,)


def trace(net: Network) -> Trace:
    shapes, results = [shape for _, shape in net.inputs], []
    for step in net.steps:
        made = result_shapes(step, shapes)
        results.append(list(range(len(shapes), len(shapes) + len(made))))
        shapes += made
    return Trace(shapes, results)


def result_shapes(step: Step, shapes: list[Shape]) -> list[Shape]:
    """What torch says that comes out, worked out on tensors without data."""
    shape = shapes[step.on]
    if step.kind == "embedding":
        return [(*shape, step.options["out"])]
    kind = KINDS[step.kind]
    tensors = [torch.empty(shapes[k], device="meta") for k in (step.on, *further(step.options))]
    weights = {name: torch.empty(s, device="meta") for name, s in kind.weights(shape, step.options).items()}
    out = kind.torch(tensors[0], weights, step.options, Sizes(BATCH, LENGTH), *tensors[1:])
    return [tuple(t.shape) for t in (out if isinstance(out, (tuple, list)) else (out,))]


# ---- drawing -----------------------------------------------------------------------------------------


@st.composite
def networks(draw: Any, most: int = 8) -> Network:
    """Random networks of up to ``most`` steps before the heads."""
    inputs = draw(_inputs())
    shapes: list[Shape] = [shape for _, shape in inputs]
    steps: list[Step] = []
    for number, (what, _) in enumerate(inputs):
        if what == "ids":
            width = draw(st.sampled_from([4, 5, 6, 8]))
            _add(steps, shapes, Step("embedding", number, {"out": width}, len(steps)))
    ids = {k for k, (what, _) in enumerate(inputs) if what == "ids"}
    for number in range(len(inputs)):
        _stem(draw, steps, shapes, number, ids)
    for _ in range(draw(st.integers(1, most))):
        step = _step(draw, steps, shapes, ids)
        if step is not None:
            _add(steps, shapes, step)
    outputs = _heads(draw, steps, shapes, ids)
    batch, length = draw(st.sampled_from([7, 1, 2, 3, 4, 5, 6, 8])), draw(st.sampled_from([5, 3, 4, 6]))
    return Network(inputs, tuple(steps), outputs, draw(st.integers(0, 2**16)), batch, length)


def _inputs() -> Any:
    image = st.sampled_from([(3, 4, 4), (2, 2, 3), (4, 1, 2), (3, LENGTH, 2)]).map(lambda s: ("image", (BATCH, *s)))
    series = st.sampled_from([(4, 6), (3, 8), (5, 4), (4, LENGTH), (LENGTH, 5)]).map(lambda s: ("series", (BATCH, *s)))
    vector = st.sampled_from([(6,), (5,)]).map(lambda s: ("vector", (BATCH, *s)))
    ids = st.sampled_from([(4,), (3,), (LENGTH,)]).map(lambda s: ("ids", (BATCH, *s)))
    return st.lists(st.one_of(image, series, vector, ids), min_size=1, max_size=2).map(tuple)


def _stem(draw: Any, steps: list[Step], shapes: list[Shape], number: int, ids: set[int]) -> None:
    """Mostly, an input is read by a layer with weights: what comes straight from an input is frozen."""
    fitting = [name for name in ("linear", "conv") if number not in ids and KINDS[name].fits(shapes[number])]
    if not fitting or draw(st.integers(0, 4)) == 4:
        return
    name = draw(st.sampled_from(fitting))
    options = KINDS[name].draw(Drawer(draw, shapes), shapes[number])
    assert options is not None
    _add(steps, shapes, Step(name, number, options, len(steps)))


def _step(draw: Any, steps: list[Step], shapes: list[Shape], ids: set[int]) -> Step | None:
    values = [k for k in reversed(range(len(shapes))) if k not in ids]
    recent = values[:3]
    on = draw(st.sampled_from(recent)) if draw(st.booleans()) else draw(st.sampled_from(values))
    shape = shapes[on]
    fitting = [name for name, kind in KINDS.items() if kind.fits(shape) for _ in range(OFTEN.get(name, 1))]
    name = draw(st.sampled_from(fitting))
    d = Drawer(draw, [None if k in ids else s for k, s in enumerate(shapes)])
    twins = [k for k, step in enumerate(steps) if step.kind == name and step.weights == k and _weights_of(step, shapes)]
    options = KINDS[name].draw(d, shape)
    if options is None:
        return None
    weights = len(steps)
    mine = KINDS[name].weights(shape, options)
    same = [k for k in twins if _weights_of(steps[k], shapes) == mine]
    if same and draw(st.booleans()):
        weights = same[0]
    return Step(name, on, options, weights)


def _weights_of(step: Step, shapes: list[Shape]) -> dict[str, Shape]:
    return KINDS[step.kind].weights(shapes[step.on], step.options) if step.kind in KINDS else {}


def _add(steps: list[Step], shapes: list[Shape], step: Step) -> list[int]:
    """The values that the step makes, unless it makes too much of them."""
    made = result_shapes(step, shapes)
    if not all(map(_fits, made)):
        return []
    steps.append(step)
    shapes += made
    return list(range(len(shapes) - len(made), len(shapes)))


def _fits(shape: Shape) -> bool:
    """Small enough; one axis holds the batch, and none holds it or the length twice."""
    if len(shape) > 6 or 0 in shape or np.prod(Sizes(8, 6)(shape)) > MAX_SIZE or max(Sizes(1, 1)(shape)) > MAX_AXIS:
        return False
    return sum(n % BATCH == 0 for n in shape) == 1 and all(n % BATCH**2 and n % LENGTH**2 for n in shape)


def _heads(draw: Any, steps: list[Step], shapes: list[Shape], ids: set[int]) -> tuple[int, ...]:
    """Values that nothing reads get a head, mostly, so that what makes them can be pruned."""
    read = {k for step in steps for k in (step.on, *further(step.options))}
    loose = [k for k in reversed(range(len(shapes))) if k not in read and k not in ids]
    outputs = []
    for value in loose or [len(shapes) - 1]:
        if static(shapes[value], -1) and draw(st.integers(0, 4)) < 4:
            head = Step("linear", value, {"out": 3, "bias": True, "form": "plain"}, len(steps))
            outputs += _add(steps, shapes, head) or [value]
        elif len(shapes[value]) in (3, 4) and static(shapes[value], 1) and draw(st.booleans()):
            options = {"out": 3, "groups": 1, "kernel": 1, "stride": 1, "bias": True}
            outputs += _add(steps, shapes, Step("conv", value, options, len(steps))) or [value]
        else:
            outputs.append(value)
    if draw(st.integers(0, 5)) == 5:  # a value that is both used and given out
        outputs.append(
            draw(st.sampled_from([k for k in range(len(shapes)) if k not in ids and k >= len(ids)] or outputs))
        )
    return tuple(dict.fromkeys(outputs))


# ---- weights and data --------------------------------------------------------------------------------


def weights(net: Network) -> dict[str, NDArray[Any]]:
    """Every parameter and buffer by name, all random, none zero."""
    rng, shapes = np.random.default_rng(net.seed), trace(net).shapes
    out: dict[str, NDArray[Any]] = {}
    for number, step in enumerate(net.steps):
        if step.weights != number:
            continue
        if step.kind == "embedding":
            out[f"s{number}.weight"] = rng.standard_normal((TOKENS, step.options["out"]))
            continue
        for name, shape in KINDS[step.kind].weights(shapes[step.on], step.options).items():
            array = rng.standard_normal(shape)
            if name == "running_var":
                array = rng.random(shape) + 0.5
            elif len(shape) > 1 and max(shape[1:]) > 1:
                array /= np.prod(shape[1:]) ** 0.5
            out[f"s{number}.{name}"] = array
    return out


def data(net: Network, seed: int = 0, batch: int | None = None, length: int | None = None) -> list[NDArray[Any]]:
    """Random inputs, of the network's sizes or others."""
    rng, sizes = np.random.default_rng([net.seed, seed]), Sizes(batch or net.batch, length or net.length)
    return [
        rng.integers(0, TOKENS, sizes(shape)) if what == "ids" else rng.standard_normal(sizes(shape))
        for what, shape in net.inputs
    ]


# ---- in torch ----------------------------------------------------------------------------------------


class Module(torch.nn.Module):
    """The network as a user would have written it, in float64."""

    def __init__(self, net: Network) -> None:
        super().__init__()
        self.net = net
        for name, array in weights(net).items():
            owner, leaf = name.split(".")
            if not hasattr(self, owner):
                self.add_module(owner, torch.nn.Module())
            part = self.get_submodule(owner)
            tensor = torch.from_numpy(array)
            if leaf.startswith("running"):
                part.register_buffer(leaf, tensor)
            else:
                part.register_parameter(leaf, torch.nn.Parameter(tensor))

    def forward(self, x0: torch.Tensor, x1: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        values = [x for x in (x0, x1) if x is not None]
        lengths = [x.shape[k] for x, (_, shape) in zip(values, self.net.inputs, strict=True) for k in _lengths(shape)]
        size = Sizes(x0.shape[0], *lengths[:1])
        for step in self.net.steps:
            part = getattr(self, f"s{step.weights}", None)
            stored = {} if part is None else {**part._parameters, **part._buffers}
            if step.kind == "embedding":
                out: Any = torch.nn.functional.embedding(values[step.on], stored["weight"])
            else:
                more = [values[k] for k in further(step.options)]
                out = KINDS[step.kind].torch(values[step.on], stored, step.options, size, *more)
            values += out if isinstance(out, (tuple, list)) else [out]
        return tuple(values[k] for k in self.net.outputs)


# ---- in ONNX -----------------------------------------------------------------------------------------


def to_onnx(net: Network) -> onnx.ModelProto:
    """The network as an ONNX file of opset 18, in float32."""
    lengths = [(f"x{k}", axis) for k, (_, shape) in enumerate(net.inputs) for axis in _lengths(shape)]
    g, shapes = Onnx(length=lengths[0] if lengths else ("", 0)), trace(net).shapes
    stored = {name: g.weight(name, array) for name, array in weights(net).items()}
    values = [f"x{k}" for k in range(len(net.inputs))]
    for step in net.steps:
        mine = {n.partition(".")[2]: name for n, name in stored.items() if n.startswith(f"s{step.weights}.")}
        if step.kind == "embedding":
            out: Any = g("Gather", mine["weight"], values[step.on], axis=0)
        else:
            more = [values[k] for k in further(step.options)]
            out = KINDS[step.kind].onnx(g, values[step.on], mine, step.options, shapes[step.on], *more)
        values += out if isinstance(out, list) else [out]
    outputs = [g("Identity", values[k]) if k < len(net.inputs) else values[k] for k in net.outputs]
    inputs = [
        oh.make_tensor_value_info(
            f"x{k}",
            onnx.TensorProto.INT64 if what == "ids" else onnx.TensorProto.FLOAT,
            ["N", *("L" if n == LENGTH else n for n in shape[1:])],
        )
        for k, (what, shape) in enumerate(net.inputs)
    ]
    infos = [
        oh.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * len(shapes[k]))
        for k, name in zip(net.outputs, outputs, strict=True)
    ]
    graph = oh.make_graph(g.nodes, "fuzz", inputs, infos, g.initializers)
    return oh.make_model(graph, opset_imports=[oh.make_opsetid("", 18)], ir_version=9)

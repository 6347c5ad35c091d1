"""Large graphs, built without tracing: what lifting, grouping and cutting them costs.

``python -m tests.fuzz.big`` prints a table.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnx
import onnx.helper as oh

from .kinds import Onnx

WIDTH = 4
Made = tuple[str, int]
"""The last value and its channels."""


def _layer(g: Onnx, x: str, i: int, o: int, rng: np.random.Generator, gain: float = 1.0) -> str:
    name = f"w{len(g.initializers)}"
    g.weight(name, gain * rng.standard_normal((o, i, 1, 1)) / i**0.5)
    return str(g("Conv", x, name))


def chain(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """conv, relu, conv, relu."""
    for _ in range(ops // 2):
        x = g("Relu", _layer(g, x, WIDTH, WIDTH, rng))
    return x, WIDTH


def residual(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """A ladder of adds, one dim from the first to the last; what each adds is so small that the last is finite."""
    for _ in range(ops // 3):
        x = g("Add", x, g("Relu", _layer(g, x, WIDTH, WIDTH, rng, gain=3 / ops)))
    return x, WIDTH


def crossed(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """Every value is added to one from long ago."""
    values = [x]
    for _ in range(ops // 2):
        new = _layer(g, values[-1], WIDTH, WIDTH, rng)
        values.append(g("Add", new, values[int(rng.integers(len(values)))]))
    return values[-1], WIDTH


def views(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """Channels are split, turned about and merged, with other factors every time."""
    x = _layer(g, x, WIDTH, 24, rng)
    for k in range(ops // 4):
        factor = (2, 3, 4, 6)[k % 4]
        x = g("Reshape", x, g.const([0, factor, 24 // factor, 4, 4]))
        x = g("Reshape", g("Transpose", x, perm=[0, 2, 1, 3, 4]), g.const([0, 24, 4, 4]))
        x = _layer(g, x, 24, 24, rng) if k % 8 == 7 else g("Relu", x)
    return x, 24


def nested(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """A channel more with every concat: an axis that is a sum of sums of sums, one level an op."""
    x = _layer(g, x, WIDTH, WIDTH, rng)
    one = _layer(g, x, WIDTH, 1, rng)
    for _ in range(min(ops, 5000)):
        x = g("Concat", x, one, axis=1)
    return x, WIDTH + min(ops, 5000)


def dense(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """DenseNet: every layer reads all before it, so the axes alone are quadratic."""
    width = WIDTH
    for _ in range(ops // 3):
        new = g("Relu", _layer(g, x, width, 2, rng))
        x, width = g("Concat", x, new, axis=1), width + 2
    return x, width


def blocks(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """DenseNets of twelve layers, one behind the other."""
    for _ in range(ops // 38):
        x, width = _layer(g, x, WIDTH, WIDTH, rng), WIDTH
        for _ in range(12):
            new = g("Relu", _layer(g, x, width, 2, rng))
            x, width = g("Concat", x, new, axis=1), width + 2
        x = _layer(g, x, width, WIDTH, rng)
    return x, WIDTH


def misaligned(g: Onnx, x: str, ops: int, rng: np.random.Generator) -> Made:
    """Concats cut apart again where they were not joined."""
    a, b = _layer(g, x, WIDTH, 36, rng), _layer(g, x, WIDTH, 24, rng)
    for _ in range(ops // 2):
        whole = g("Concat", b, a, axis=1)
        at = int(rng.integers(1, 59))
        a, b = g("Split", whole, g.const([at, 60 - at]), outputs=2, axis=1)
    return str(g("Concat", a, b, axis=1)), 60


SHAPES: dict[str, Callable[[Onnx, str, int, np.random.Generator], Made]] = {
    f.__name__: f for f in (chain, residual, crossed, views, nested, blocks, dense, misaligned)
}


def build(shape: str, ops: int) -> onnx.ModelProto:
    g, rng = Onnx(), np.random.default_rng(0)
    last, channels = SHAPES[shape](g, _layer(g, "x", 3, WIDTH, rng), ops, rng)
    out = _layer(g, g("GlobalAveragePool", last), channels, 3, rng)
    infos = [oh.make_tensor_value_info(out, onnx.TensorProto.FLOAT, [1, 3, 1, 1])]
    inputs = [oh.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 3, 4, 4])]
    return oh.make_model(
        oh.make_graph(g.nodes, shape, inputs, infos, g.initializers),
        opset_imports=[oh.make_opsetid("", 17)],
        ir_version=9,
    )


def measure(shape: str, ops: int) -> dict[str, float]:
    """Seconds of processor time for each step of the compiler, all but the numeric proof."""
    import graphprune as gp
    from graphprune.ir.program import Program

    model = build(shape, ops)
    times: dict[str, float] = {"ops": len(model.graph.node)}

    def timed(what: str, call: Callable[[], Program]) -> Program:
        start = time.process_time()
        program = call()
        program.graph  # noqa: B018  lifted here, not in the next step
        times[what] = time.process_time() - start
        return program

    program = timed("load", lambda: gp.load(model))
    for step in ("group", "score", "mask{channels=0.5x}", "propagate"):
        try:
            program = timed(step.partition("{")[0], lambda: gp.run(step, program))  # noqa: B023
        except gp.GraphpruneError as error:
            print(f"  {shape}: {str(error).splitlines()[0][:100]}", file=sys.stderr)
            break
    times["all"] = sum(seconds for what, seconds in times.items() if what != "ops")
    return times


def main() -> None:
    from .run import write_section

    every = len(sys.argv) < 2
    shapes = list(SHAPES) if every else sys.argv[1].split(",")
    rows = []
    for shape in shapes:
        for ops in [int(n) for n in sys.argv[2:]] or (COUNTS if shape != "dense" else COUNTS[:3]):
            times = measure(shape, ops)
            cells = [f"{int(v):,}" if k == "ops" else f"{v:.2f}" for k, v in times.items()]
            rows.append(f"| {shape} | {' | '.join(cells)} |")
            print(f"{shape:12}", "  ".join(f"{k} {v}" for k, v in zip(times, cells, strict=True)), flush=True)
    if every:
        head = "| graph | ops | load | group | score | mask | propagate | all |\n|---|---|---|---|---|---|---|---|"
        write_section("Cost", TEXT.format("\n".join([head, *rows])))


COUNTS = (1000, 2000, 4000, 10000)
TEXT = """`python -m tests.fuzz.big`: seconds of processor time (one thread) for graphs built as ONNX, from the file's
graph to the cut network; each step reads the graph anew where the one before has changed it.

{}

Linear in ops for all but *dense*: a DenseNet's axes alone are quadratic in its layers (1,000 ops are 333 of them).
*nested* ends at 5,000 concats; *misaligned* has sixty parts on every axis; a third of its time is ONNX Runtime's."""


if __name__ == "__main__":
    main()

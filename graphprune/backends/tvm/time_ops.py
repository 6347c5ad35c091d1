"""What single ops take as code of TVM: one kernel each, compiled together, timed in turns, here or on a device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...cost.latency.table import Point
from ...errors import TargetError
from ...ir.facts import Latency
from ..measure import settled
from ..onnxruntime.time_ops import geometry, shapes
from .lower import fixed, last_line, scheduled_loops, toolchain
from .winograd import GROWTH, filtered

ROUNDS = 9  # samples of every op
COLD = {"repeat": 3, "f_preproc": "cache_flush_cpu_non_first_arg"}
"""A sample is a median of so many calls, weights and result out of the caches, as the rest of a network leaves them."""
WARM = {"repeat": 1, "min_repeat_ms": 3}
"""A sample is as many calls as last so long."""
BATCH_POINTS = 40  # compiled together

Load = Callable[[Any], tuple[Any, Any]]
"""From a built module to the same as it runs on a device, and that device."""


@dataclass(frozen=True)
class Kernel:
    """One call of a fused op: its function's name, and shapes of what it reads and writes."""

    name: str
    shapes: tuple[tuple[int, ...], ...]


_BUILDING = threading.Lock()
"""TVM builds one thing at a time: its builders know of one another."""


def time_ops(
    points: Sequence[Point],
    threads: int,
    target: str,
    code: Any,
    load: Load,
    *,
    scheduled: bool = True,
    growth: float = GROWTH,
) -> Iterator[dict[Point, Latency]]:
    """The latency of each op, a batch at a time. ``code``: the TVM target. Raises TargetError where an op
    cannot be compiled."""
    tvm = toolchain()
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    for start in range(0, len(points), BATCH_POINTS):
        batch = points[start : start + BATCH_POINTS]
        functions: dict[str, Any] = {}
        try:
            with _BUILDING, tvm.transform.PassContext(opt_level=3, config={"tirx.disable_assert": True}):
                names = [_kernels(point, k, code, functions, scheduled, growth) for k, point in enumerate(batch)]
                # Weights are packed when the network is compiled: here they come as the kernels read them.
                loops = RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(tvm.IRModule(functions))
                built = tvm.tirx.build(loops, target=code)
        except TargetError:
            raise
        except Exception as error:  # TVM's passes share no base class for what they raise
            raise TargetError(f"target `{target}`: cannot compile an op alone: {last_line(error)}") from error
        kernels = [[Kernel(name, _shapes(loops[name])) for name in own] for own in names]
        module, device = load(built)
        samples = _time(module, device, kernels, threads)
        yield {point: settled(samples[k], threads, target) for k, point in enumerate(batch)}


def _kernels(
    point: Point, number: int, code: Any, functions: dict[str, Any], scheduled: bool, growth: float
) -> list[str]:
    """The kernels of one op in order, entered into ``functions`` under names of its own."""
    from tvm import ir, tirx

    module = scheduled_loops(filtered(_module(point), growth), code, False)
    module = fixed(module, code) if scheduled else module
    names = {}
    for name, function in module.functions_items():
        if isinstance(function, tirx.PrimFunc):
            names[name.name_hint] = f"op{number}_{name.name_hint}"
            functions[names[name.name_hint]] = function.with_attr("global_symbol", names[name.name_hint])
    found = []
    for block in module["main"].body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, ir.Call) and binding.value.op.name == "relax.call_tir":
                found.append(names[binding.value.args[0].name_hint])
    return found


def _shapes(function: Any) -> tuple[tuple[int, ...], ...]:
    from tvm.s_tir.meta_schedule.arg_info import ArgInfo

    return tuple(tuple(int(size) for size in info.shape) for info in ArgInfo.from_prim_func(function))


def _module(point: Point) -> Any:
    """One op, channels last, with a ReLU behind it as networks have it."""
    import numpy as np
    from tvm import relax

    family, _ = point
    x_shape, w_shape, _ = shapes(point)
    builder = relax.BlockBuilder()

    def weights(shape: Sequence[int]) -> Any:
        return relax.const(np.zeros(list(shape), np.float32))

    def hole(name: str, shape: Sequence[int]) -> Any:
        return relax.Var(name, relax.TensorType(list(shape), "float32"))

    if family.kind == "stream":
        holes = [hole("x", x_shape)]
        made = relax.op.sigmoid(holes[0])
    elif family.kind == "product" or len(x_shape) > 4:
        if family.kind != "product":  # a convolution of three axes, as the product it is
            rows, inner = _volume(point)
            x_shape, w_shape = [rows, inner], [inner, w_shape[0]]
        holes = [hole("x", x_shape)]
        made = relax.op.nn.relu(relax.op.matmul(*holes, weights(w_shape)))
    else:
        holes, made = _conv(point, hole, weights)
    with builder.function("main", holes):
        with builder.dataflow():
            out = builder.emit_output(builder.emit(made))
        builder.emit_func_output(out)
    return builder.get()


def _conv(
    point: Point, hole: Callable[[str, Sequence[int]], Any], weights: Callable[[Sequence[int]], Any]
) -> tuple[list[Any], Any]:
    from tvm import relax

    (batch, channels, *sizes), (outer, inner, *kernel), _ = shapes(point)
    facts = geometry(point)
    half = len(facts["pads"]) // 2
    before, after, strides = facts["pads"][:half], facts["pads"][half:], list(facts["strides"])
    if len(sizes) == 1:
        sizes, kernel, strides, before, after = [1, *sizes], [1, *kernel], [1, *strides], [0, *before], [0, *after]
    holes = [hole("x", [batch, *sizes, channels])]
    made = relax.op.nn.conv2d(
        *holes,
        weights([*kernel, inner, outer]),
        strides=strides,
        padding=[*before, *after],
        groups=facts["group"],
        data_layout="NHWC",
        kernel_layout="HWIO",
    )
    return holes, relax.op.nn.relu(made)


def _volume(point: Point) -> tuple[int, int]:
    from math import prod

    _, (_, inner, *kernel), (batch, _, *after) = shapes(point)
    return batch * prod(after), inner * prod(kernel)


def _time(module: Any, device: Any, kernels: Sequence[Sequence[Kernel]], threads: int) -> list[list[float]]:
    """Milliseconds of every op, ROUNDS times, all ops in turn."""
    import numpy as np
    import tvm

    rng = np.random.default_rng(0)
    tensors: dict[tuple[tuple[int, ...], int], Any] = {}

    def tensor(shape: tuple[int, ...], position: int) -> Any:
        if (shape, position) not in tensors:
            tensors[shape, position] = tvm.runtime.tensor(rng.standard_normal(shape, np.float32), device)
        return tensors[shape, position]

    _threads(device, threads)
    calls = [
        [(kernel.name, [tensor(shape, k) for k, shape in enumerate(kernel.shapes)]) for kernel in own]
        for own in kernels
    ]
    samples: list[list[float]] = [[] for _ in kernels]
    # While caches are emptied other threads fall asleep, and to wake them takes longer than many an op.
    how: dict[str, Any] = COLD if threads == 1 else WARM
    for _ in range(ROUNDS):
        for k, own in enumerate(calls):
            total = 0.0
            for name, args in own:
                total += float(np.median(module.time_evaluator(name, device, number=1, **how)(*args).results))
            samples[k].append(1e3 * total)
    return samples


def _threads(device: Any, threads: int) -> None:
    """On a device behind RPC its own pool stands."""
    import tvm

    if not hasattr(device, "_rpc_sess"):
        tvm.get_global_func("runtime.config_threadpool")(1, threads)

"""From a host's model to scheduled loops, through TVM's Relax: what every target that TVM compiles for shares.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

import io
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from ...errors import TargetError, first_line
from ...ir.host import Array, Host
from ...ir.program import Program
from ...passes.fold import Fold
from . import lstm, schedule, stack, torch_ops, transposed, vector_math
from .channel_selection import selections_into_readers
from .planes import planes_read
from .rewrites import clips, moved_weights, norms, pads, rewritten, squeezes, whole_pools
from .schedule_rows import softmaxes
from .separable import separables
from .tiles import NARROW, WIDE, Registers
from .winograd import GROWTH, filtered

_OPSET = 13  # the frontend reads older forms of Slice, Squeeze, ... as if they were of this opset


def toolchain() -> Any:
    """The package, its environment set first. Raises TargetError where it is not installed."""
    # Its DLPack bridge to torch is compiled when first needed, and nothing here needs it.
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")
    os.environ.setdefault("TVM_NUM_THREADS", str(os.cpu_count() or 1))  # the most a run may ask for
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # pinning this thread would pin torch's and ONNX Runtime's too
    # Threads that wait for work in a busy loop for 50 ms take the cores from what is timed in turns with them.
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")  # 1 ms: longer than any op leaves them idle
    try:
        import tvm
    except ImportError as error:
        message = f"target `tvm`: TVM is not installed ({first_line(error)})"
        raise TargetError(message, "pip install graphprune[tvm]") from error
    vector_math.registered()
    stack.registered()
    return tvm


def imported(host: Host, label: str = "tvm", layers: bool = True) -> tuple[Any, list[str]]:
    """The Relax module at the example's shapes, and the names of its inputs. ``label``: the target's, for
    messages; ``layers``: with LSTM layers whole, which ``lowered`` knows, and not as TVM reads them. Raises TargetError
    for what TVM's frontends cannot read."""
    toolchain()
    host = _folded(host)
    said = io.StringIO()  # the ONNX frontend prints which op it stumbled on
    try:
        with redirect_stdout(said):
            read: Callable[[Any, bool], Any] = _FRONTENDS.get(host.kind, _from_onnx)
            module = read(host, layers)
    except Exception as error:  # the frontends raise whatever their converters raise
        op = re.search(r"Error converting operator (\w+)", said.getvalue())
        message = f"target `{label}`: cannot import the model: {f'{op[1]}: ' if op else ''}{last_line(error)}"
        raise TargetError(message, "use the target `onnx`, or report the op to TVM") from error
    return module, [str(value.name) for value in module["main"].params]


def _folded(host: Host) -> Host:
    """BatchNorm folded into what comes before it, where that is exact: four ops less each."""
    return Fold().run(Program(host=host, source=host)).host


def _from_torch(host: Any, layers: bool) -> Any:
    from torch.export import default_decompositions
    from tvm.relax.frontend.torch import from_exported_program

    converters = {**transposed.torch_converters(), **lstm.torch_converters(), **torch_ops.converters()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = host.exported(static=True)
        table = {**default_decompositions(), **torch_ops.decompositions()}
        for op in lstm.whole(program) if layers else ():
            del table[op]
        program = program.run_decompositions(table)
        module = from_exported_program(program, custom_convert_map=converters, run_ep_decomposition=False)
    return torch_ops.indices(module)


def _from_onnx(host: Host, layers: bool) -> Any:
    """ONNX Runtime folds what is constant at these shapes first: the frontend reads few of the
    chains of Shape, Gather and Concat that exporters write."""
    import onnx
    import onnx.version_converter
    import onnxruntime as ort
    from tvm.relax.frontend.onnx import from_onnx

    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        given, simple = Path(folder) / "given.onnx", Path(folder) / "simple.onnx"
        host.save_onnx(given)
        model = onnx.load(str(given))
        weights = {tensor.name for tensor in model.graph.initializer}
        holes = [value for value in model.graph.input if value.name not in weights]
        for value, array in zip(holes, host.example(), strict=True):
            value.type.tensor_type.shape.CopyFrom(onnx.helper.make_tensor_type_proto(1, array.shape).tensor_type.shape)
        del model.graph.value_info[:]
        if any(entry.domain in ("", "ai.onnx") and entry.version < _OPSET for entry in model.opset_import):
            model = onnx.version_converter.convert_version(model, _OPSET)
        onnx.save(model, str(given))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard ops only
        options.optimized_model_filepath = str(simple)
        options.log_severity_level = 4
        ort.InferenceSession(str(given), options, providers=["CPUExecutionProvider"])
        model = onnx.shape_inference.infer_shapes(onnx.load(str(simple)))
        transposed.explicit_pads(model)
        with lstm.read_from_onnx() if layers else nullcontext():
            return from_onnx(model)


_FRONTENDS: Mapping[str, Callable[[Any, bool], Any]] = {"torch": _from_torch}
"""By host, where TVM reads its models without a detour over ONNX."""


def lowered(module: Any, target: Any, layout: str = "NHWC", scheduled: bool = True, growth: float = GROWTH) -> Any:
    """From the imported graph to loops for ``target``, one function per fused op, its schedule fixed
    (``scheduled``) or none. ``growth``: see ``winograd.filtered``."""
    from tvm import relax

    steps = relax.transform
    registers = _registers(target)
    module = lstm.kernels(module, registers.lanes, registers.tile, _threads(target))
    module = whole_pools(pads(transposed.plain(clips(steps.DecomposeOpsForInference()(norms(squeezes(module)))))))
    if layout == "NHWC":
        with suppress(Exception):  # over some ops that pass fails: then as they come, channels first, which is slower
            module = steps.ConvertLayout({"relax.nn.conv2d": ["NHWC", "HWIO"]})(module)
    module = planes_read(steps.CanonicalizeBindings()(moved_weights(steps.CanonicalizeBindings()(module))))
    module = separables(selections_into_readers(filtered(module, growth)), registers)
    return scheduled_loops(steps.FoldConstant()(softmaxes(module)), target, scheduled)


def scheduled_loops(module: Any, target: Any, scheduled: bool = True) -> Any:
    """The last part of ``lowered``: from ops to loops, fused, their schedule fixed or none."""
    from tvm import relax

    with target:
        module = relax.transform.FoldConstant()(relax.get_pipeline("zero")(module))
    module = relax.transform.AttachAttrLayoutFreeBuffers()(module)  # constants: they may be packed
    return packed(fixed(module, target)) if scheduled else module


def fixed(module: Any, target: Any) -> Any:
    """A module of loops with the fixed schedule for each function that has none."""
    return schedule.schedule(module, target, _registers(target))


def variants(function: Any, target: Any) -> Iterator[Any]:
    """Other schedules for one function, see schedule.variants."""
    return schedule.variants(function, target, _registers(target))


def packed(module: Any) -> Any:
    """What schedules do to weights before they read them, done now: one build for all of them, where
    FoldConstant would start the compiler for each."""
    import tvm
    from tvm import ir, relax, tirx

    plain = {  # loops that no schedule fits, of which that pass expects a form
        name: function
        for name, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc) and "tirx.is_scheduled" not in (function.attrs or {})
    }
    rest = {name: function for name, function in module.functions_items() if name not in plain}
    module = relax.transform.SplitLayoutRewritePreproc()(tvm.IRModule(rest, attrs=module.attrs))
    for name, function in plain.items():
        module[name] = function
    packers = {
        name: function.with_attr("global_symbol", name.name_hint)
        for name, function in module.functions_items()
        if name.name_hint.endswith("_weight_prepack")
    }
    if not packers:
        return module
    loops = tvm.IRModule({name.name_hint: function for name, function in packers.items()})
    built = tvm.tirx.build(loops, target=tvm.target.Target("llvm"))

    @relax.expr_functor.mutator
    class Packer(relax.PyExprMutator):  # type: ignore[misc]
        def visit_call_(self, call: Any) -> Any:
            call = self.visit_expr_post_order(call)
            if getattr(call.op, "name", "") != "relax.call_tir" or not call.args[0].name_hint.endswith(
                "_weight_prepack"
            ):
                return call
            given = [field.value for field in call.args[1].fields]
            made = [tvm.runtime.empty([int(n) for n in ty.shape.values], ty.dtype) for ty in _parts(call.ty)]
            built[call.args[0].name_hint](*given, *made)
            constants = [relax.const(each) for each in made]
            return relax.Tuple(constants) if isinstance(call.ty, ir.TupleType) else constants[0]

    steps = relax.transform
    return steps.DeadCodeElimination()(steps.CanonicalizeBindings()(rewritten(module, Packer)))


def _parts(ty: Any) -> list[Any]:
    return list(ty.fields) if hasattr(ty, "fields") else [ty]


def _registers(target: Any) -> Registers:
    from tvm.target import codegen

    return WIDE if codegen.llvm_cpu_has_features("avx512f", target) else NARROW


def _threads(target: Any) -> int:
    """How many code is for: a board's cores, in C one; 0 where TVM's runtime, which runs it, knows."""
    return 1 if target.kind.name == "c" else int(target.attrs.get("num-cores", 0))


def interface(names: Sequence[str], inputs: Sequence[Array], outputs: Sequence[Array]) -> dict[str, Any]:
    """What goes in and comes out, as model.json says it."""
    return {
        "inputs": [_tensor(name, array) for name, array in zip(names, inputs, strict=True)],
        "outputs": [_tensor(f"output{k}", array) for k, array in enumerate(outputs)],
    }


def _tensor(name: str, array: Array) -> dict[str, Any]:
    return {"name": name, "shape": list(array.shape), "dtype": str(array.dtype)}


def last_line(error: BaseException) -> str:
    """What TVM complains of: its messages begin with a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Traceback", "File", "[bt]", "Stack trace"))]
    return (said[-1] if said else type(error).__name__)[:300]

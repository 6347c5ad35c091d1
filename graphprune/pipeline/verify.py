"""The proof that the result is right: it computes what the masked model computes.

The plan is carried out anew on the model as it was given, once as a cut and once as a mask (every
reader slice that is not kept is zero), and the two are run side by side, in the precision and to the
tolerance of the host (float64 to 1e-12 in torch, float32 to 1e-5 in ONNX Runtime), or to what rounding
alone makes of the masked model where that is more. A failure names the first op that differs.

Where all that was cut is said to count for nothing (``exact``), or never to change and the means of it were added to
biases (``constant``), the original is the reference as well, on inputs
far from the example too: masked and pruned agree on channels that were alive.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from ..axes.index import Index
from ..cost.static import evaluate
from ..coupling.groups import everything
from ..errors import GraphpruneError, VerificationError
from ..ir.facts import Groups
from ..ir.gc_paused import paused
from ..ir.graph import Graph, Op, around
from ..ir.host import Array, Batch, Host, random_array
from ..ir.program import Program, must_be_program
from .compare import LIMIT, PIECE, Check, compare, relative, unmoved
from .correction import Correct
from .edits import Cut, kept
from .replay import kept_of, opened, replay, replayed
from .run import Rewrite

FAR = 64
"""How many times the usual random input: what only large inputs wake is alive."""
AS_GIVEN = 1e-3
"""How far a module may be from its trace: kernels differ, in the precision that it has."""
MEANS = "compensate{by=mean}"
DIGITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""The relative distance of neighbours."""


def verify(program: Program, batches: int = 2) -> tuple[Check, ...]:
    """Prove a compiled program. Raises VerificationError naming the first op that differs."""
    must_be_program(program, "verify")
    with paused():
        return _verified(program, batches)


def _verified(program: Program, batches: int) -> tuple[Check, ...]:
    """The model in the precision of the proof is read once, for the masked and the pruned one."""
    source = program.source
    exact = source.copy(source.proof_dtype)
    given = opened(program.plan, Program(host=exact, source=exact))
    graph = given.graph
    groups = everything(graph)
    mixed = _mixed(program, groups)
    if mixed:
        raise VerificationError(
            f"`{mixed}` was pruned although a normalisation runs across it: the masked model is no reference",
            "leave out `normalised=true`, or compile with --no-verify and measure the accuracy",
        )
    masked, pruned = replayed(program.plan, given, masked=True), replayed(program.plan, given)
    runs = [_run(program, masked.host, k) for k in range(batches)]
    inputs, whole = [batch for batch, _ in runs], [outputs for _, outputs in runs]
    found = [pruned.host.run(batch) for batch in inputs]
    interface = _interface(program, groups, given.host)
    expected = _cut(whole, graph, interface)
    check = compare(f"pruned = masked, {source.proof_dtype}", expected, found, source.tolerance, masked.host, inputs)
    error, tolerance = check.error, check.tolerance
    finite = [np.isfinite(x) for x in _floats(expected)]
    nothing = bool(finite) and not any(each.any() for each in finite)  # two that are NaN throughout prove nothing
    if nothing or not error <= tolerance:
        if not all(each.all() for each in finite):
            if not _finite([given.host.run(batch) for batch in inputs]):
                raise VerificationError(
                    "the model itself gives numbers that are not finite on the example or on inputs like it, and so "
                    "nothing to compare with",
                    "give example inputs on which it is; are there none, a variance may be negative, or a weight huge",
                )
            raise VerificationError(
                "the masked model gives numbers that are not finite on the example or on inputs like it, so it is "
                "no reference (an op that makes infinity of zero, say, before a weight that is masked)",
                "give example inputs on which the model is finite, or leave that dim alone with `group{freeze=...}`",
            )
        where = _first_difference(masked, pruned, program, inputs[0], tolerance)
        failure = VerificationError(
            f"the pruned model differs from the masked one by {error:.3g} relative "
            f"(allowed: {tolerance:.3g}{check.noise}); first at {where if isinstance(where, str) else where.where}",
            "this is a fault of graphprune: please report it with the model; `group{freeze=...}` leaves that dim alone",
        )
        failure.around = None if isinstance(where, str) else around(masked.graph, where)
        raise failure
    check = replace(check, unmoved=unmoved(expected, inputs))
    whole_host = _without_dropped(program, exact)
    opening = [_as_opened(program, given.host, whole_host, inputs)] if program.plan.openings else []
    others = [_as_original(program, pruned.host, whole_host, inputs, graph, interface)] if _exact(program) else []
    return (check, *opening, *others, *_as_given(program), _same_weights(program, pruned))


def _as_given(program: Program) -> list[Check]:
    """That what was read computes what the model itself does, on the example. Raises VerificationError: a module may
    take other ways while torch.export traces it."""
    origin = program.origin
    if (expected := origin.as_given()) is None or (graph := origin.lift()).draws:
        return []
    found = origin.run(origin.example())
    if [x.shape for x in expected] != [x.shape for x in found]:
        return []
    digits = max((DIGITS.get(value.dtype, 0.0) for value in graph.parameters.values()), default=0.0)
    error = max((relative(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
    check = Check("as read = as given", error, max(AS_GIVEN, 8 * digits))
    if not check.holds:
        raise VerificationError(
            f"what torch.export traced differs from the module by {error:.3g} relative on the example (allowed: "
            f"{check.tolerance:.3g}): the module computes something else while it is traced",
            "look for torch.compiler.is_exporting(), is_compiling() and is_tracing() in its code, or leave that input "
            "or option out of the example",
        )
    return [check]


def _exact(program: Program) -> bool:
    """Whether nothing was done but to cut, open, fold and add means, no cut was of what counts, and the means were
    added where a cut was of constants."""
    edits, cuts = program.plan.edits, program.plan.of(Cut)
    means = any(cut.constant for cut in cuts)
    added = [edit for edit in edits if isinstance(edit, Correct) and edit.by == MEANS]
    plain = (edit.opens or isinstance(edit, Cut) or (isinstance(edit, Rewrite) and edit.by == "fold") for edit in edits)
    return (
        bool(cuts)
        and all(cut.exact for cut in cuts)
        and bool(added) == means
        and all(ok or edit in added for ok, edit in zip(plain, edits, strict=True))
    )


def _exact_tolerance(program: Program) -> float:
    """The host's; with means, which have no more digits than the weights, what is left of these."""
    if not program.plan.of(Correct):
        return program.source.tolerance
    weights = (value.dtype for value in program.graph.parameters.values())
    digits = max((DIGITS.get(dtype, 0.0) for dtype in weights), default=0.0)
    return max(program.source.tolerance, min(64 * digits, LIMIT))


def _without_dropped(program: Program, given: Host) -> Host:
    """The original, in which what the plan drops beside channels is masked."""
    made = Program(host=given, source=given)
    for edit in program.plan.openings:
        made = edit.masked(made, {}) if edit.drops else made
    return made.host


def _as_opened(program: Program, opened: Host, given: Host, inputs: Sequence[Batch]) -> Check:
    """Raises VerificationError where what was rewritten to open dims computes something else than the original."""
    expected, found = ([model.run(batch) for batch in inputs] for model in (given, opened))
    source, masked = program.source, any(edit.drops for edit in program.plan.openings)
    what = f"opened = original{', what was dropped masked' * masked}, {source.proof_dtype}"
    check = compare(what, expected, found, source.tolerance, given, inputs)
    if not check.holds:
        names = ", ".join(dict.fromkeys(f"`{edit.by}`" for edit in program.plan.openings))
        raise VerificationError(
            f"after {names} the model differs from the original by {check.error:.3g} relative (allowed: "
            f"{check.tolerance:.3g}{check.noise})",
            "this is a fault of graphprune: please report it with the model; leave out what opens dims",
        )
    return check


def _as_original(
    program: Program, pruned: Host, given: Host, inputs: Sequence[Batch], graph: Graph, interface: Index
) -> Check:
    """Raises VerificationError where the cut network is not the original, on these inputs and ``FAR`` times them."""
    far = [[x * scale if x.dtype.kind == "f" else x for x in batch] for batch in inputs for scale in (1, FAR, -FAR)]
    whole, found = ([host.run(batch) for batch in far] for host in (given, pruned))
    source, expected = program.source, _cut(whole, graph, interface)
    tolerance = _exact_tolerance(program)
    check = compare(f"pruned = original, {source.proof_dtype}", expected, found, tolerance, given, far)
    if not check.holds:
        raise VerificationError(
            f"the pruned model differs from the original by {check.error:.3g} relative (allowed: "
            f"{check.tolerance:.3g}{check.noise}): a channel that was cut as counting for nothing was alive",
            "this is a fault of graphprune: please report it with the model; leave out `dead`",
        )
    return check


def _interface(program: Program, groups: Groups, host: Host) -> Index:
    """What the program keeps of the axes of the original's inputs and outputs, at the sizes of the example."""
    keep = kept_of(groups, program.plan.parameters, lambda group: group.dim.outside)
    return Index(keep, lambda size: evaluate(size, host.sizes()))


def _cut(outputs: Sequence[Sequence[Array]], graph: Graph, interface: Index) -> list[list[Array]]:
    """Outputs of the original, per batch, as wide as those of the program."""
    return [[interface.cut(x, v.dims) for x, v in zip(batch, graph.outputs, strict=True)] for batch in outputs]


def _run(program: Program, host: Host, seed: int) -> tuple[Batch, list[Array]]:
    """Inputs, and what the host makes of them. Other integers than the example's may not be legal."""
    try:
        batch = _inputs(program, seed)
        return batch, host.run(batch)
    except GraphpruneError:
        if seed == 0 or not any(x.dtype.kind in "iu" for x in program.source.example()):
            raise
    batch = _inputs(program, seed, integers=False)
    return batch, host.run(batch)


def _inputs(program: Program, seed: int, integers: bool = True) -> Batch:
    """The example first, then random data of the same shapes; ``integers`` within the example's range,
    which is all that is known to be legal, or the example's own."""
    example = program.source.example()
    if seed == 0:
        return example
    rng = np.random.default_rng([program.seed, seed])
    return [_like(rng, x, integers) for x in example]


def _like(rng: np.random.Generator, x: Array, integers: bool) -> Array:
    if x.dtype.kind in "iu" and x.size and integers:
        return rng.integers(x.min(), x.max(), x.shape, endpoint=True).astype(x.dtype)
    return random_array(rng, x.shape, str(x.dtype)) if x.dtype.kind == "f" else x


def _mixed(program: Program, groups: Groups) -> str | None:
    left = kept(program.plan)
    return next((g.name for g in groups if g.dim.mixed and left.get(g.name, g.size) < g.size), None)


def _same_weights(program: Program, pruned: Program) -> Check:
    """The plan alone gives the program's weights, to the last bit: as it was replayed for the proof or, where that was
    in another precision and rounds otherwise, in the model's own."""
    if _unlike(program, pruned) and (name := _unlike(program, replay(program.plan, program.source))):
        raise VerificationError(f"{name}: replaying the plan does not give the same weights")
    return Check("plan replayed = weights", 0.0, 0.0)


def _unlike(program: Program, again: Program) -> str | None:
    """A parameter that another program has otherwise."""
    parameters = program.graph.parameters
    return next((n for n in parameters if not _equal(program.host.parameter(n), again.host.parameter(n))), None)


def _equal(a: Array, b: Array) -> bool:
    """Whether all numbers are the same, or none; a large weight is compared piece by piece, which takes no other."""
    if a.shape != b.shape:
        return False
    a, b = a.reshape(-1), b.reshape(-1)
    pieces = (slice(k, k + PIECE) for k in range(0, len(a), PIECE))
    return all(np.array_equal(a[at], b[at], equal_nan=a.dtype.kind == "f") for at in pieces)


def _floats(batches: Iterable[Sequence[Array]]) -> list[Array]:
    return [x for batch in batches for x in batch if x.dtype.kind in "fc" and x.size]


def _finite(batches: Iterable[Sequence[Array]]) -> bool:
    return all(np.isfinite(x).all() for x in _floats(batches))


def _first_difference(masked: Program, pruned: Program, program: Program, batch: Batch, tolerance: float) -> Op | str:
    """The first op, in order of execution, whose kept positions differ; else what can be said."""
    cuts = program.plan.of(Cut)
    if len(cuts) != 1:
        return "an op that cannot be told after several cuts"
    groups = everything(masked.graph)
    index = cuts[0].fact().index(groups)
    ops = [op for op in masked.graph.ops if op.outputs and op.outputs[0].shape is not None]
    names = {value.name for value in pruned.graph.values()}
    wanted: Sequence[str] = [op.outputs[0].name for op in ops if op.outputs[0].name in names]
    whole, cut = masked.host.watch(batch, wanted), pruned.host.watch(batch, wanted)
    for op in ops:
        name = op.outputs[0].name
        if (
            name in whole
            and name in cut
            and relative(_select(whole[name], op.outputs[0].dims, index), cut[name]) > tolerance
        ):
            return op
    return "the outputs"


def _select(array: Array, dims: Sequence[object], index: Index) -> Array:
    for axis, dim in enumerate(dims):
        if index.touches(dim):  # type: ignore[arg-type]
            array = array.take(index(dim), axis)  # type: ignore[arg-type]
    return array

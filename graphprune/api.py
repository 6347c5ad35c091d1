"""The Python interface: load, run, compile, apply, verify."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .backends.effort import Budget
from .backends.target import Target, on_devices, target
from .calibration import batches as calibration
from .calibration import processes
from .calibration.held_back import hold_back
from .calibration.images import Images
from .calibration.losses import labels_of, loss_of
from .calibration.suspect import one_sample, raw_pixels
from .cost.budget import spelt
from .cost.latency.table import Table
from .cost.units import UNITS
from .driver.artifact import Code, check_code, coded, emit, profiled, write
from .driver.closeness import Evaluate, closeness, figures
from .driver.configured import DIFFERED, more_unlike, pretrained, unsaid
from .driver.contenders import Made, nearest, readers
from .driver.dump import dumped
from .driver.latency_search import has_latency, recorded, to_latency
from .driver.measured import Measured, settled
from .driver.no_slower import Tried, guarded
from .driver.output import apart, new_folder, outside
from .driver.stages import Stages
from .driver.summary import Compilation
from .errors import BudgetError, DataError, ModelError, RecipeError, TargetError
from .hosts.given import PREFIX, as_host, imported, origins
from .ir.facts import Groups, Keep, Scores
from .ir.gc_paused import paused
from .ir.host import Host
from .ir.program import Loss, Program, must_be_program
from .passes.compensate import Compensate
from .passes.group import Group
from .passes.mask import Mask
from .pipeline.base import Progress
from .pipeline.compare import Check
from .pipeline.edits import Cut
from .pipeline.fingerprint import fingerprint
from .pipeline.instrument import Instrument
from .pipeline.plan_file import read_plan
from .pipeline.plan_reader import as_plan
from .pipeline.published import published
from .pipeline.recipe import Recipe
from .pipeline.replay import apply_plan
from .pipeline.run import Begun
from .pipeline.run import run as run_recipe
from .pipeline.verify import verify
from .pipeline.verify import verify as prove

T = TypeVar("T")
AUTO = "auto"
AGAIN = "the network was pruned before: budgets are shares of what was left, and this plan follows that one's"

__all__ = [
    "Artifact",
    "Check",
    "apply",
    "closeness",
    "compile",
    "curve",
    "hold_back",
    "load",
    "rebuild",
    "record",
    "run",
    "verify",
]


@dataclass(frozen=True, repr=False)
class Artifact:
    """What compile returns: the compiled program, the report, and the folder if one was written."""

    program: Program
    report: Mapping[str, Any]
    path: Path | None = None

    @property
    def model(self) -> Any:
        """The user's model, smaller: a torch.fx GraphModule or an onnx_ir.Model."""
        return self.program.model

    def __repr__(self) -> str:
        from .report.page import verdict

        place = f", in {self.path}" if self.path else ""
        return f"<Artifact of {self.report['model']}: {verdict(self.report)[:-1]}{place}>"

    def _repr_html_(self) -> str:
        """For notebooks: the head of the report."""
        from .report.head import head

        return head(self.report)

    def save(self, out: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the folder ``out``, whole or not at all, as ``compile(out=...)`` does, without code for other targets:
        the model, the plan, the report, and of a module what makes its own class at the new widths (``widths.json``,
        ``weights.pt``, ``rebuild.py``). Returns it. Raises OutputError if it exists, unless ``force``."""
        with new_folder(out, force) as folder:
            assert folder is not None
            emit(folder, self.program, (), None)
            write(folder, self.program, dict(self.report))
        return Path(out)


def load(
    model: Any,
    example_inputs: Any = None,
    *,
    dynamic_shapes: Any = None,
    data: Any = None,
    fixed: Sequence[str] = (),
    images: Images | None = None,
    loss: Callable[..., Any] | str | None = None,
    seed: int = 0,
    check: bool = True,
) -> Program:
    """Read a model.

    ``model``: an nn.Module (with ``example_inputs``: a tensor, a tuple, a mapping of forward's arguments by name,
    or ``{"args": ..., "kwargs": ...}``), an ExportedProgram, an onnx_ir.Model or onnx.ModelProto, a path to an
    ``.onnx`` or ``.pt2`` file, or ``"package.module:factory"``, or ``"path/to/file.py:factory"``, where
    ``factory()`` returns ``(module, example_inputs)``. Of all but a module ``example_inputs`` may leave inputs out
    and give sizes for arrays, by name: ``{"x": (1, 3, 320, 320), "rate": 16000}``; of an ONNX model what is not given
    is as the first sample of ``data``, or else sizes are tried until it runs. ``dynamic_shapes`` as torch.export takes
    it; by default the batch axis may vary where the model allows. ``data``: calibration data, see calibration.batches;
    ``fixed``: the inputs that are the same for all of its samples; ``images``: how a folder of images becomes
    arrays. ``loss``: for criteria with gradients, called as ``loss(output, *rest)`` with what ``data`` has beside
    the model's inputs (``data=(images, labels)``, an .npz with ``labels``, a folder of images with a folder a
    class): a function, ``"cross_entropy"`` (see calibration.losses), or ``"package.module:function"``.

    ``check``: whether weights are looked at; without it none of a folder of transformers, or of ONNX with external
    data, is read from disk. The model given is not changed. Raises ModelError (a weight is NaN, too), DataError.
    """
    data = _text(model, data)
    if not isinstance(seed, int) or seed < 0:
        raise RecipeError(f"seed={seed!r} is no whole number from 0 up")
    if data is None and images is not None:
        raise DataError("mean, std, layout and resize are of images, and no data was given", "--data FOLDER")
    if isinstance(loss, str):
        loss = loss_of(loss, imported)
    if data is None and fixed:
        raise DataError(
            f"`{fixed[0]}` is to be the same for every sample, and there are none: no data was given",
            "give data too; the value of an input of the example is --input NAME=VALUE",
        )
    samples = _first(model, data)
    _agree(example_inputs, samples)
    with paused(), _naming(data):
        host = as_host(model, example_inputs, dynamic_shapes, samples)
        program = _with_data(host, data, fixed, images, loss, seed, sized=example_inputs is not None)
    if check:
        _check_weights(program)
    return program


def _with_data(
    host: Host,
    data: Any,
    fixed: Sequence[str],
    images: Images | None,
    loss: Callable[..., Any] | None,
    seed: int,
    *,
    sized: bool,
) -> Program:
    """The program of a model and its data; ``sized``: its example inputs were given, and images are as large."""
    if data is not None and (inputs := host.undecided()):
        samples, data = calibration.first(data, inputs, fixed, images)
        host.suppose(samples)
    program = Program(host=host, source=host, seed=seed)
    _check_axes(program)  # which reads it
    program = program.note(*host.notes, *_never_read(program))
    inputs = program.graph.inputs
    if data is None:
        if loss is not None:
            raise DataError("a loss needs calibration data with labels", "give data too: an .npz with `labels`")
        return program
    sizes = host.sizes() if sized else None
    if loss is not None:
        found, rest = calibration.with_rest(data, inputs, fixed, sizes, images)
        return replace(program, data=found, loss=Loss(loss, rest)).note(*_in_order(found))
    program = replace(program, data=calibration.batches(data, inputs, fixed, sizes, images))
    program = program.note(*_in_order(program.data))
    program = program.note(*filter(None, (raw_pixels(program), one_sample(program), calibration.unread(data, inputs))))
    same = [value.name for value in inputs if value.shape and value.name in getattr(program.data, "fixed", ())]
    detected = [name for name in same if name not in fixed]
    return program.note(f"calibration: the same for every sample: {', '.join(detected)}") if detected else program


@contextmanager
def _naming(data: Any) -> Iterator[None]:
    """What is wrong with data is said of its file."""
    try:
        yield
    except DataError as error:
        if isinstance(data, (str, os.PathLike)) and os.fspath(data) not in error.message:
            error.message = f"{os.fspath(data)}: {error.message}"
        raise


def _never_read(program: Program) -> tuple[str, ...]:
    """A remark on inputs that no op reads and no output is."""
    graph = program.graph
    read = {value.name for op in graph.ops for value in op.inputs if value is not None}
    read |= {value.name for value in graph.outputs}
    unread = [value.name for value in graph.inputs if value.name not in read]
    return (f"the network never reads {', '.join(f'`{name}`' for name in unread)}",) if unread else ()


def _in_order(data: Any) -> tuple[str, ...]:
    order = getattr(data, "order", ())
    return (f"calibration: no name is an input's, so arrays are taken in order: {', '.join(order)}",) if order else ()


def run(
    recipe: str | Recipe,
    program: Program,
    *,
    progress: Progress | None = None,
    instruments: Sequence[Instrument] = (),
) -> Program:
    """Run a recipe (text or Recipe) on a program. The program given is not changed. ``instruments`` are
    called before and after every pass, see pipeline.instrument.

    The whole recipe is checked before any weight moves; after every edit all shapes are inferred
    and compared. Numeric proof is ``verify``'s. Raises RecipeError, BudgetError, ShapeError.
    """
    must_be_program(program, "run")
    return run_recipe(Recipe.parse(recipe) if isinstance(recipe, str) else recipe, program, progress, instruments)


def apply(
    plan: Mapping[str, Any] | str | Path | Program | Artifact,
    model: Any,
    example_inputs: Any = None,
    *,
    in_place: bool = False,
    optimizer: Any = None,
    allow_unread: Sequence[str] = (),
    allow_other_weights: bool = False,
) -> Program:
    """Do to a fresh copy of the same model what ``plan`` (a plan.json, the folder of one, or an artifact or program
    that was compiled) did: the same weights, to the last bit.

    ``in_place``: cut the nn.Module itself, so that its training goes on, and the state of ``optimizer``
    with it; the result is checked against the GraphModule of the program returned. What the traced forward
    does not read (an auxiliary head, a buffer of training, a copy of weights) and has a width that is cut is
    refused by name; ``allow_unread`` names, with wildcards, what needs no cut. With a program for the plan
    the example inputs may be left out.

    A plan is for the weights it was made from; ``allow_other_weights`` keeps the same channels of others, which a
    plan with fitted weights cannot. Of a program it is done to the model as it is now where the plan was made from
    that (of what was compiled again), else to the model as it was given.

    Raises RecipeError if the plan is none or does not fit the model, ModelError where it cannot be cut in place.
    """
    if in_place and "torch" not in origins(model):
        raise ModelError(f"in_place cuts an nn.Module, not a {type(model).__name__}", "leave out in_place")
    plan, follows = plan.program if isinstance(plan, Artifact) else plan, False
    if isinstance(plan, Program):
        follows = any(plan.earlier)
        if example_inputs is None and "torch" in origins(model) and not plan.source.trainable:
            raise ModelError(
                "the program was made from an ONNX model, whose examples a module does not take",
                "give example_inputs; the names of its parameters must be the module's",
            )
        if example_inputs is None:
            args, kwargs = plan.source.call_arguments(plan.source.example())
            example_inputs = {"args": args, "kwargs": kwargs}
        plan = plan.plan
    made = read_plan(Path(plan)) if isinstance(plan, (str, Path)) else as_plan(plan)
    try:
        if in_place:
            from .train.inplace import cut

            return cut(made, model, example_inputs, optimizer, allow_unread, allow_other_weights)
        if not isinstance(model, Program):
            return apply_plan(made, as_host(model, example_inputs), allow_other_weights=allow_other_weights)
        given = model.afresh() if model.plan and fingerprint(model) == made.fingerprint else model
        done = apply_plan(made, given.source, allow_other_weights=allow_other_weights)
        return replace(done, first=given.first, earlier=given.earlier)
    except RecipeError as error:
        if follows:
            error.hint = "it follows the plan of an earlier compilation: apply that one first, and this to its result"
        if isinstance(plan, (str, Path)):
            error.message = f"{plan}: {error.message}"
        raise


def rebuild(made: Artifact | Program | str | os.PathLike[str], module: Any) -> Any:
    """The user's own class with the widths and weights of a compiled network, proven to compute the same.

    ``made``: an artifact or its folder (or a file in it), or a program. ``module``: a fresh instance of the class that
    was compiled, which is changed and returned; no example inputs are needed. Where graphprune is not, ``rebuild.py``
    in the folder does the same. Raises ModelError where the class has no place for what was made, or its forward
    does not go by its layers' sizes; the instance is then of no more use.
    """
    from .driver.rebuilding import rebuilt, why_not
    from .hosts.torch.host import TorchHost

    made = made.program if isinstance(made, Artifact) else made
    if isinstance(made, Program):
        if not made.host.trainable:
            raise ModelError("an ONNX model has no class", "compile the module that it was exported from")
        return rebuilt(made, module)
    place = Path(made)
    folder = place if place.is_dir() else place.parent
    widths = folder / "widths.json"
    if not widths.exists():
        if why := why_not(folder):
            raise ModelError(f"{folder}: {why}", "the network itself is in model.pt2: torch.export.load")
        raise ModelError(f"{widths}: no such file", "compile a module with out=, or save the artifact")
    host = TorchHost.load(folder / "model.pt2")
    return rebuilt(Program(host=host, source=host), module, json.loads(widths.read_text(encoding="utf-8")))


def compile(
    model: Any,
    example_inputs: Any = None,
    *,
    recipe: str | Recipe | Sequence[str | Recipe] | None = None,
    channels: str | float | None = None,
    params: str | float | None = None,
    size: str | float | None = None,
    macs: str | float | None = None,
    memory: str | float | None = None,
    latency: str | float | None = None,
    freeze: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    ignore: Sequence[Any] = (),
    width: Mapping[str, int | float | str] | None = None,
    floor: float | None = None,
    grain: int | None = None,
    alike: bool = True,
    vocabulary: bool | str = False,
    data: Any = None,
    fixed: Sequence[str] = (),
    images: Images | None = None,
    loss: Callable[..., Any] | str | None = None,
    targets: Sequence[str | Target] = (),
    threads: int = 1,
    table: str | os.PathLike[str] | None = None,
    rpc: str | None = None,
    tune: str | None = None,
    seed: int = 0,
    verify: bool = True,
    measure: bool = True,
    dry_run: bool = False,
    cache: bool = False,
    evaluate: Evaluate | str | None = None,
    out: str | os.PathLike[str] | None = None,
    force: bool = False,
    dump: str | os.PathLike[str] | None = None,
    instruments: Sequence[Instrument] = (),
    progress: Progress | None = None,
) -> Artifact:
    """Prune, prove, measure and write a model.

        artifact = gp.compile(module, torch.randn(1, 3, 224, 224), macs=0.5, data=images, out="out")
        artifact.model  # smaller; artifact.report says how much, and how close; out/report.html shows it

    **The model.** ``model``, ``example_inputs``: as ``load`` takes them (a module with inputs, a file, a
    ``"file.py:factory"``). A program that was compiled before is pruned further: budgets, proof and plan are of the
    network as it is now. One that knows scores or a keep list (``gp.train``'s ``learned()``) is pruned by them.

    **How small.** One of ``channels``, ``params``, ``size`` (bytes of weights), ``macs``, ``memory`` (bytes of
    activations at their peak) and ``latency``: what remains, as a share
    (``0.5``, ``"0.5x"``, ``"50%"``) or, but for channels, as an amount (``200_000``, ``"1.5G"``, ``"3MB"``,
    ``"12ms"``); by default half of the MACs. A latency is *measured* on the first target, on ``threads`` threads, and
    measured again at the end, which is what the report says; with data it is met twice, by readers of the same channels
    that agree and by readers that choose where that pays, and the result that is nearer on samples held back is taken.
    Of every budget, what is slower than the original on a target is made anew with other widths, or called so.
    ``table``: a latency table that ``record`` made elsewhere. Instead of a budget ``recipe``: the passes, see
    ``graphprune passes``; or beside one, the name of a published recipe, such as ``"2ssp"``. Several recipes
    (``["auto", "all", "ranks"]``) all run, and the result that changes outputs least on samples held back is taken:
    ``auto``, what runs where none is given, lets channels go alone.

    **What may go.** ``freeze``: names of groups, layers, parameters to leave alone (``*`` is a wildcard); ``only``:
    of those whose outputs may go, and no others; ``ignore``: modules of the model itself to leave alone
    (``[model.head]``); ``width``: counts of your own by what writes the channels (``{"conv1": 24, "blocks.*":
    0.5}``; with no budget nothing else is cut); ``floor``: the least share that a group keeps; ``grain``: the
    multiple that axes are kept at (else what the targets like). ``alike``: of a folder of transformers, keep as many of
    the same layer of all blocks, as its configuration says widths; False lets them differ, and the folder that is
    written has a class of its own, ``modeling_pruned.py``, for ``from_pretrained(..., trust_remote_code=True)``.
    ``vocabulary``: tokens that do not occur in ``data`` go as well, as the first pass of a recipe too; or options of
    that pass (``"occurs=5 keep=0-258"``, see ``graphprune passes vocabulary``).

    **Data.** ``data``: a few hundred inputs, no labels (arrays, a loader, a file, a folder; see
    calibration.batches): channels go that the others can make up for, layers are fitted after the cut, and the
    report says how close the outputs are to the original's, on samples held back (every eighth, about 64 at most;
    see ``hold_back``). ``fixed``, ``images``, ``loss``: as ``load`` takes them. ``evaluate``: your own figure before
    and after: a function, or ``"package.module:function"``, called with each network as it comes out of its file (an
    nn.Module, for ONNX an onnxruntime.InferenceSession), that returns a number or a dict of numbers.

    **Targets.** ``targets``: what code is written for and measured on, such as ``"onnx"`` or
    ``"tvm{layout=NCHW}"``, see ``graphprune targets``; ``rpc``: the device of a board, ``"host:port"``; ``tune``
    (``"10min"`` or a number of trials): search schedules for the first target, into records that later runs use.

    **The run.** ``seed``: of all randomness. ``verify``: prove that pruned equals masked; ``measure``: time both.
    ``dry_run``: what would remain, and how long it would take on ``targets``, without a proof, a fit or a file.
    ``cache``: keep what long passes learn from data until the run ends well, so that one that was stopped goes on
    there. ``out``: a folder, written whole or not at all; ``force``: replace one that graphprune wrote. ``dump``: a
    folder for the program after every pass; ``instruments``: called before and after every pass, of every attempt;
    ``progress``: called as ``progress(what, done, total)``.

    **Several processes** (torchrun, or any with torch.distributed begun), each of which calls this with the same model
    and the whole of the data: statistics, distortions and sweeps of branches are shared out by batch, all come to the
    plan that one alone comes to, and the first proves and writes. Latencies are for one process alone: none is taken.

    Raises GraphpruneError of the kind that fits (BudgetError, DataError, ModelError, OutputError, RecipeError,
    TargetError, VerificationError), with a hint; nothing is written then.
    """
    budgets = zip(UNITS, (channels, params, size, macs, memory, latency), strict=True)
    given = {unit: spelt(budget) for unit, budget in budgets if budget is not None}
    control = Control.read(model, freeze, only, ignore, width, floor, grain, vocabulary)
    ways = {_called(one): _own(one, given, control) for one in _recipes(recipe)}
    if dry_run and len(ways) > 1:
        raise RecipeError("a dry run fits nothing, and recipes are compared once they are fitted", "give one of them")
    chosen = _targets(targets, rpc)
    effort = Budget.parse(tune) if tune is not None else None
    fallback: Mapping[str, Any] = {}
    if dry_run:
        out, verify, measure = None, False, measure and bool(chosen)
    apart(out, dump)
    outside(out, model, data)
    first = processes.rank() == 0  # of several, the one that writes and proves
    measure, verify = measure and processes.count() == 1, verify and first
    with new_folder(out if first else None, force) as folder, dumped(dump if first else None, force) as dumps:
        watching = (*instruments, *dumps)
        if progress:
            progress("load", 0, 1)
        options: dict[str, Any] = {"data": data, "fixed": fixed, "images": images, "loss": loss, "seed": seed}
        program = model if isinstance(model, Program) else load(model, example_inputs, **options)
        processes.check_data(program.data)
        program, judged = hold_back(program)
        judge, name = _evaluation(evaluate)
        figures_before = figures(judge, program.host, name) if judge else {}  # a function that fails does so now
        if program.plan.of(Cut):
            program = program.afresh().note(AGAIN)
        chosen = chosen or [target(program.host.native_target)]
        for one in chosen:
            one.admit(program)
        widest = max(one.grain for one in chosen)
        if (given_as := pretrained(program)) and given_as.widths is not None:
            program, alike = program.note(DIFFERED), False
        if given_as and None in ways.values():
            control = replace(control, freeze=(*control.freeze, *unsaid(program, alike)), alike=alike)
        if recipe is None and not given and program.knows(Keep):  # training has decided already
            ways = {AUTO: Recipe.parse("propagate,compensate" if program.data else "propagate")}
        theirs = [own for own in ways.values() if own is not None]
        _read_by(theirs, loss)
        for each in theirs:
            each.check(known=program.facts, has_data=bool(program.data))
            _cuts(each)
        unit, text = next(iter(given.items()), ("", "") if width else ("macs", "0.5x"))
        held = Table.read(Path(table)) if table is not None else None

        stages = Stages.of(program) if cache and processes.count() == 1 else None
        perform = stages.perform if stages else None

        def attempt(steps: Recipe) -> tuple[Program, Mapping[str, Any]]:
            if dry_run:  # what is fitted changes no width
                steps = Recipe(tuple(step for step in steps.steps if not isinstance(step, Compensate)))
            if not has_latency(steps):
                if held is not None:
                    raise RecipeError(f"{table}: a latency table, and no budget of latency", "--latency 0.6x reads it")
                return run_recipe(steps, program, progress, watching, perform), {}
            if processes.count() > 1:
                raise RecipeError("a latency is measured by one process alone", "give another budget, or no torchrun")
            outcome = to_latency(
                program,
                steps,
                chosen[0],
                threads=threads,
                table=held,
                progress=progress,
                instruments=watching,
                perform=perform,
            )
            return outcome.program, outcome.facts

        def made_by(own: Recipe | None) -> Made:
            if own is not None:
                return own, attempt(own)
            with more_unlike(bool(given_as) and alike):
                aligned = _aligned(program, unit, text, widest, control, attempt)
            if unit == "latency" and not given_as:  # whose class has no place for selections
                aligned = readers(program, aligned, chosen[0], judged, attempt)
            return aligned

        tried = {name: partial(made_by, own) for name, own in ways.items()}
        taken, (steps, (done, facts)), contest = nearest(program, tried, judged)
        auto = ways[taken] is None
        if processes.count() > 1:
            processes.check_plan(json.dumps(dict(done.plan), default=repr))
        made = Code()

        def written(done: Program) -> Measured:
            nonlocal made
            made = coded(folder, program, done, chosen, threads, verify or measure, measure, progress)
            return made.measured

        # A latency, and a grain of the user's own, are as they were asked for: the report says where they are slower.
        free = not dry_run and not facts and control.grain is None
        if (free or effort is None) and written(done) and free:
            result, fallback = guarded(
                program,
                Tried(done, steps, made.measured),
                widest,
                written,
                progress=progress,
                instruments=watching,
                perform=perform,
            )
            done, steps = result.program, result.recipe
        found: Mapping[str, Any] = {}
        if effort is not None and first:
            chosen[0], found = chosen[0].tune(done, effort, threads=threads, seed=seed, progress=progress)
            written(done)
        if progress and verify:
            progress("verify", 0, 1)
        checks = (*prove(done), *check_code(done, chosen, made.ready)) if verify else None
        if facts and chosen[0].label in made.measured:
            facts = settled(facts, made.measured[chosen[0].label])
        took = profiled(program, done, chosen, threads) if measure else None
        after = figures(judge, done.host, name) if judge and not dry_run else {}
        report = Compilation(program, done, steps, chosen, checks, made.measured, took, made.files).report(
            model=_name(model),
            data=os.fspath(data) if isinstance(data, (str, os.PathLike)) else None,
            judged=judged,
            auto=auto,
            default=auto and not given and not width,
            dry_run=dry_run,
            images=asdict(images) if images is not None else {},
            evaluation={"what": name, "before": figures_before, "after": after} if after else {},
            latency=facts,
            tuning=found,
            fallback=fallback,
            contest=contest,
        )
        if folder is not None:
            write(folder, done, report)
    processes.wait()
    if stages and not dry_run:
        stages.clear()
    return Artifact(done, report, Path(out) if out is not None else None)


def curve(
    model: Any,
    example_inputs: Any = None,
    *,
    budgets: str | Sequence[str | float] = "0.3..0.9",
    unit: str = "macs",
    data: Any = None,
    fixed: Sequence[str] = (),
    images: Images | None = None,
    evaluate: Evaluate | str | None = None,
    freeze: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    ignore: Sequence[Any] = (),
    width: Mapping[str, int | float | str] | None = None,
    floor: float | None = None,
    grain: int | None = None,
    seed: int = 0,
    targets: Sequence[str | Target] = (),
    out: str | os.PathLike[str],
    force: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Compile a model to several budgets, and set their sizes and latencies against what they cost.

    ``budgets``: ``[0.3, 0.5]``, or ``"0.3..0.9"``, ``"0.3..0.9/4"`` (so many points), of a ``unit`` that compile
    takes. ``out``: a folder with a folder per point (model, plan, report), ``curve.json`` and ``curve.html``, a page
    over all of them; where it holds points of the same model, data and options they are not made again. What is the
    same at every budget (groups, scores, measured distortions) is made once. The rest, and ``options``, as for
    ``compile``. Returns what ``curve.json`` holds. A budget that cannot be met is a point that says so.

    Raises DataError where neither data nor ``evaluate`` says what a cut costs, and what ``compile`` raises.
    """
    from .driver import curve as curves

    if unit not in UNITS:
        raise RecipeError(f"unknown unit `{unit}`", f"known: {', '.join(UNITS)}")
    if data is None and evaluate is None:
        raise DataError("a curve sets sizes against what they cost, and nothing says that", "give data, or evaluate")
    control = Control.read(model, freeze, only, ignore, width, floor, grain)
    texts = curves.budgets(budgets if isinstance(budgets, str) else ",".join(map(spelt, budgets)), unit)
    if progress:
        progress("load", 0, 1)
    program = load(model, example_inputs, data=data, fixed=fixed, images=images, seed=seed)
    chosen = _targets(targets)
    said = {"unit": unit, "control": control, "seed": seed, "targets": [one.text() for one in chosen], **options}
    judge, name = _evaluation(evaluate)
    facts = {
        "version": 1,
        "model": _name(model),
        "data": os.fspath(data) if isinstance(data, (str, os.PathLike)) else None,
        "unit": unit,
        "identity": curves.identity(program, **said, evaluate=name if judge else ""),
    }
    before: dict[str, float] = {}
    shared: list[Program] = []  # made for the first point that is not there yet

    def compiled(text: str, place: Path) -> Mapping[str, Any]:
        if not shared:
            rest, _ = hold_back(program)
            recipe = default_recipe(unit, text, control, data=bool(program.data))
            shared.append(program.learn(curves.begun(rest, recipe, progress).fact(Begun)))
            before.update(figures(judge, program.host, name) if judge else {})
        budget: dict[str, Any] = {unit: text}
        made = compile(
            shared[0],
            **budget,
            freeze=control.freeze,
            only=control.only,
            width=dict(control.width),
            floor=floor,
            grain=grain,
            targets=chosen,
            **options,
        )
        report = {**made.report, "model": facts["model"], "data": facts["data"]}
        if judge:
            after = figures(judge, made.program.host, name)
            report["evaluation"] = {"what": name, "before": before, "after": after}
        replace(made, report=report).save(place, force=place.exists())
        return report

    return curves.trace(Path(out), facts, texts, compiled, progress, force)


def record(
    model: Any,
    on: str | Target,
    example_inputs: Any = None,
    *,
    threads: int = 1,
    rpc: str | None = None,
    out: str | os.PathLike[str],
    progress: Progress | None = None,
) -> Table:
    """Time every op that the model may have at any width on a target, into the file ``out``; what is in it
    already is not timed again. Raises TargetError, DataError for a table of something else."""
    one = target(on) if isinstance(on, str) else on
    one = on_devices([one], rpc)[0] if rpc is not None else one
    program = model if isinstance(model, Program) else load(model, example_inputs)
    scored = run("group", program)
    path = Path(out)
    table = Table.read(path, one.key(threads)) if path.exists() else Table(one.key(threads), path)
    mask = Mask(latency="0.5x", grain=one.grain)
    return recorded(scored, one, mask, threads=threads, table=table, progress=progress)[0]


def _aligned(
    program: Program, unit: str, text: str, widest: int, control: Control, attempt: Callable[[Recipe], T]
) -> tuple[Recipe, T]:
    """The default recipe, with the user's grain, or the largest up to ``widest`` that meets the budget; a latency
    table has a price for what is below the grain."""
    scored = program.knows(Groups) and program.knows(Scores)
    if scored and control.vocabulary:
        raise RecipeError("training has found the groups already", "gp.run('vocabulary', program) before it")
    if scored and (control.freeze or control.only):
        raise RecipeError("training has found the groups already", "gp.run('group{freeze=...}', program) before it")
    grain = widest if control.grain is None else control.grain
    if unit == "channels" and grain > 1 and control.grain is None:  # a coarse one leaves groups unlike shares
        grain = _near(program if scored else run(f"{control.group()},score", program), text, grain)
    while True:
        chosen = replace(control, grain=grain)
        steps = default_recipe(unit, text, chosen, data=bool(program.data), scored=scored)
        try:
            return steps, attempt(steps)
        except BudgetError:
            if grain == 1 or unit == "latency" or control.grain is not None:
                raise
            grain //= 2


def _near(scored: Program, text: str, grain: int) -> int:
    """The largest grain at which at least nine tenths of the channels asked for are kept."""
    whole = sum(group.size for group in scored.fact(Groups))
    while grain > 1:
        mask = Mask(channels=text, grain=grain)
        try:
            kept = sum(map(len, mask.run(scored).fact(Keep).keep.values()))
        except BudgetError:
            kept = 0
        if kept >= 0.9 * mask.budget()[1].share(whole) * whole:
            break
        grain //= 2
    return grain


@dataclass(frozen=True)
class Control:
    """What a user says beside a budget, for the default recipe: see ``compile``."""

    freeze: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    width: tuple[tuple[str, str], ...] = ()
    floor: float | None = None
    grain: int | None = None
    alike: bool = False
    vocabulary: str = ""  # the pass that trims it

    @classmethod
    def read(
        cls,
        model: Any,
        freeze: str | Sequence[str],
        only: str | Sequence[str],
        ignore: Sequence[Any],
        width: Mapping[str, int | float | str] | None,
        floor: float | None,
        grain: int | None,
        vocabulary: bool | str = False,
    ) -> Control:
        """From the arguments of ``compile``; modules of ``model`` that ``ignore`` has go by their names. Raises
        ModelError for one that is none of its, RecipeError for a name without a letter."""
        left, alone = ((one,) if isinstance(one, str) else tuple(one) for one in (freeze, only))
        for what, given in (("freeze", left), ("only", alone)):
            if other := [one for one in given if not isinstance(one, str)]:
                raise RecipeError(
                    f"{what} takes names, not {type(other[0]).__name__}", "ignore=[model.head] takes modules"
                )
            if not all(given):
                raise RecipeError(f"{what} has an empty name, which matches nothing", "`*` matches everything")
        names = {id(module): name for name, module in _modules(model)} if ignore else {}
        for module in ignore:
            if not names.get(id(module)):
                raise ModelError(
                    f"ignore has {type(module).__name__}, which is no module within the {type(model).__name__} given",
                    "ignore=[model.head]; freeze=['head'] takes names",
                )
        widths = tuple((name, str(one)) for name, one in (width or {}).items())
        trim = f"vocabulary{{{vocabulary}}}" if isinstance(vocabulary, str) else "vocabulary" * vocabulary
        frozen = (*left, *(names[id(module)] for module in ignore))
        return cls(frozen, alone, widths, floor, grain, vocabulary=trim)

    def group(self) -> str:
        return Group(freeze="|".join(self.freeze), only="|".join(self.only)).text()

    def mask(self) -> list[str]:
        own = [f"width={'|'.join(f'{name}={one}' for name, one in self.width)}"] if self.width else []
        floor = [] if self.floor is None else [f"floor={self.floor}"]
        grain = [] if self.grain in (None, 1) else [f"grain={self.grain}"]
        return own + floor + grain + (["alike=layers"] if self.alike else [])


def default_recipe(unit: str, text: str, control: Control | None = None, *, data: bool, scored: bool = False) -> Recipe:
    """`auto`: the recipe that is run where none is given. With calibration data: channels by what the
    others cannot make up for, as many of each group as its measured distortion says, and every layer
    after the cut fitted to the original network. Without: by weights. Chosen by benchmarks/accuracy.py.
    ``scored``: training has scored the channels, and one threshold for all decides."""
    control = control or Control()
    fit = ",compensate{bias=false}" if control.alike else ",compensate"  # a class of the library has no place for more
    score, allocate, repair = ("score{by=obs}", "rd", fit) if data else ("score", "global", "")
    trim = f"{control.vocabulary}," if control.vocabulary else ""
    steps = "" if scored else f"{trim}{control.group()},{score},"
    allocate = "global" if scored else allocate
    if not unit:  # widths of the user's own, and nothing else is cut
        allocate = "uniform"
    options = [f"{unit}={text}"] if unit else []
    # Channels are a promise about every group; of latency the least loss is chosen, measured or of scores.
    if unit and unit != "channels" and (unit != "latency" or allocate == "rd"):
        options.append(f"allocate={allocate}")
    options += control.mask()
    return Recipe.parse(f"{steps}mask{{{' '.join(options)}}},propagate{repair}")


def _cuts(recipe: Recipe) -> None:
    """Raises RecipeError where channels are chosen and never cut."""
    steps = recipe.steps
    chosen = next((k for k in reversed(range(len(steps))) if Keep in steps[k].gives), len(steps))
    if chosen < len(steps) and not any(Keep in step.needs and step.rewrites for step in steps[chosen:]):
        raise RecipeError(
            f"`{steps[chosen].text()}` chooses what stays, and nothing after it cuts the rest",
            "put `propagate` after it",
        )


def _text(model: Any, data: Any) -> Any:
    """Calibration data; of a text file the tokens, for a network that has a tokeniser in its folder."""
    if not isinstance(data, (str, os.PathLike)) or Path(data).suffix != ".txt":
        return data
    if not (isinstance(model, str) and model.startswith(PREFIX)):
        raise DataError(
            f"{data}: text, of which no tokeniser makes inputs", f"a folder with one is given as {PREFIX}FOLDER"
        )
    from .hosts.torch.pretrained import tokenised

    return tokenised(Path(model.removeprefix(PREFIX)), Path(data))


def _first(model: Any, data: Any) -> dict[str, Any] | None:
    """Of arrays by name, two samples each, for a folder of transformers; what cannot be read is told of later."""
    if not (isinstance(model, str) and model.startswith(PREFIX)):
        return None
    import numpy as np

    with suppress(Exception):
        if isinstance(data, (str, os.PathLike)) and Path(data).suffix == ".npz":
            with np.load(data) as file:
                data = dict(file)
        if isinstance(data, Mapping):
            labels = labels_of([*data], [])  # with which the class would compute a loss
            first = {name: array[:2] for name, array in data.items() if hasattr(array, "shape") and name not in labels}
            return first if all(array.ndim > 1 and len(array) for array in first.values()) else None
    return None


def _agree(example_inputs: Any, samples: Mapping[str, Any] | None) -> None:
    """Raises ModelError where sizes that are given for inputs of a folder are not those of its data."""
    given = example_inputs if isinstance(example_inputs, Mapping) else {}
    for name, array in (samples or {}).items():
        if isinstance(size := given.get(name), tuple) and size[1:] != array.shape[1:]:
            said, has = ("x".join(map(str, ["N", *sizes[1:]])) for sizes in (size, array.shape))
            raise ModelError(
                f"example inputs: `{name}` is to be {said}, and the data has {has}",
                "leave --input (example_inputs) out: a folder is traced at the sizes of its data",
            )


def _recipes(given: str | Recipe | Sequence[str | Recipe] | None) -> Sequence[str | Recipe]:
    """All that were given, ``auto`` where none was. Raises RecipeError for what are none."""
    several = [AUTO if given is None else given] if isinstance(given, (str, Recipe, type(None))) else given
    if not isinstance(several, Sequence) or not several:
        raise RecipeError(f"a recipe is text, not {type(given).__name__}", "'group,score,mask{macs=0.5x},propagate'")
    for one in several:
        if not isinstance(one, (str, Recipe)):
            raise RecipeError(f"a recipe is text, not {type(one).__name__}", "['auto', 'all']")
    if twice := [_called(one) for k, one in enumerate(several) if one in several[:k]]:
        raise RecipeError(f"the recipe `{twice[0]}` is given twice")
    return several


def _called(recipe: str | Recipe) -> str:
    return recipe if isinstance(recipe, str) else recipe.text()


def _own(recipe: str | Recipe, given: Mapping[str, str], control: Control) -> Recipe | None:
    """One of the user's own, with the budget that was given where it is a published one; None is ``auto``. Raises
    RecipeError where there are several budgets, or it says itself what ``control`` has."""
    named = isinstance(recipe, str) and recipe in published()
    whole = None if recipe == AUTO or named else recipe if isinstance(recipe, Recipe) else Recipe.parse(recipe)
    if (budgets := len(given) + (whole is not None)) > 1:
        raise RecipeError(f"one budget or a recipe, not {budgets}", "a recipe has its budget in `mask{...}`")
    if recipe == AUTO:
        return None
    if control != Control(vocabulary=control.vocabulary):
        raise RecipeError(
            "a recipe says itself what is frozen, and at which floor and grain",
            "group{freeze=... only=...}, mask{floor=... grain=...}",
        )
    own = whole or published()[_called(recipe)].recipe(*next(iter(given.items()), ("macs", "0.5x")))
    return Recipe((*Recipe.parse(control.vocabulary).steps, *own.steps)) if control.vocabulary else own


def _read_by(recipes: Sequence[Recipe], loss: Any) -> None:
    """Raises RecipeError where a loss is given and nothing in the recipes reads it."""
    if loss is not None and not any(step.wants_loss() for recipe in recipes for step in recipe.steps):
        raise RecipeError(
            "a loss was given, and no pass of the recipe reads it",
            "score by one that does: group,score{by=taylor},mask{macs=0.5x allocate=global},propagate,compensate",
        )


def _evaluation(evaluate: Evaluate | str | None) -> tuple[Evaluate | None, str]:
    """The function, and what reports call it."""
    if not isinstance(evaluate, str):
        return evaluate, getattr(evaluate, "__name__", type(evaluate).__name__)
    return imported(evaluate), evaluate


def _check_axes(program: Program) -> None:
    """No empty axis."""
    for value in (*program.graph.inputs, *program.graph.parameters.values()):
        if value.shape is not None and 0 in value.shape and value.shape != (0,):  # how caches begin
            raise ModelError(f"`{value.name}` has an axis of size zero: {'x'.join(map(str, value.shape))}")


def _check_weights(program: Program) -> None:
    """No NaN weight."""
    import numpy as np

    for name, value in program.graph.parameters.items():
        if "float" in value.dtype:
            weight = program.host.parameter(name)
            bad = int(np.isnan(weight).sum()) if np.isnan(np.min(weight, initial=0.0)) else 0
            if bad:
                raise ModelError(
                    f"weight `{name}` has {bad} NaN of {weight.size} numbers",
                    "a model with NaN weights computes nothing",
                )


def _modules(model: Any) -> Iterable[tuple[str, Any]]:
    """Those within a module, by name; nothing else has any."""
    found: Iterable[tuple[str, Any]] = model.named_modules() if hasattr(model, "named_modules") else ()
    return found


def _targets(given: Sequence[str | Target], rpc: str | None = None) -> list[Target]:
    """The targets, each under a name of its own. Raises TargetError."""
    if isinstance(given, str):
        raise TargetError("targets is a list", f"targets=[{given!r}]")
    chosen = [target(item) if isinstance(item, str) else item for item in given]
    labels = [one.label for one in chosen]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise TargetError(f"two targets are called `{twice[0]}`, and each has a folder of its name", "give it once")
    return on_devices(chosen, rpc) if rpc is not None else chosen


def _name(model: Any) -> str:
    return str(model) if isinstance(model, (str, os.PathLike)) else type(model).__name__

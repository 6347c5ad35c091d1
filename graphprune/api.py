"""The Python interface: load, run, compile, apply, verify."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from .backends.effort import Budget
from .backends.target import Target, on_devices, target
from .calibration import processes
from .calibration.held_back import hold_back
from .calibration.images import Images
from .calibration.losses import loss_of
from .cost.budget import spelt
from .cost.latency.table import Table
from .cost.units import UNITS
from .driver.artifact import Code, check_code, coded, emit, no_folder, profiled, write
from .driver.auto import ALL, AUTO, Control, aligned, alone, at_grain, check, default_recipe, ways
from .driver.closeness import Evaluate, closeness, figures
from .driver.configured import DIFFERED, asked, more_unlike, pretrained, unsaid
from .driver.contenders import Made, nearest, readers
from .driver.dump import dumped
from .driver.latency_search import has_latency, recorded, to_latency
from .driver.loading import check_sizes, check_weights, first_samples, naming, text_as_tokens, with_data
from .driver.measured import Measured, settled
from .driver.no_slower import Tried, guarded
from .driver.output import apart, new_folder, outside
from .driver.stages import Stages
from .driver.summary import Compilation
from .errors import DataError, ModelError, RecipeError, TargetError
from .hosts.given import as_host, imported, origins
from .ir.facts import Keep
from .ir.gc_paused import paused
from .ir.program import Program, must_be_program
from .passes.compensate import Compensate
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
    data = text_as_tokens(model, data)
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
    samples = first_samples(model, data)
    check_sizes(example_inputs, samples)
    with paused(), naming(data):
        host = as_host(model, example_inputs, dynamic_shapes, samples)
        program = with_data(host, data, fixed, images, loss, seed, sized=example_inputs is not None)
    if check:
        check_weights(program)
    return program


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
    alike: bool | None = None,
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
    measured again at the end, which is what the report says; with data it is met three times, by readers of the same
    channels that agree, by readers that choose where that pays, and by the recipe ``all``, and the result that is
    nearest on samples held back is taken (``recipe="auto"`` leaves out the last, which takes longest).
    Of every budget, what is slower than the original on a target is made anew with other widths, or called so.
    ``table``: a latency table that ``record`` made elsewhere. Instead of a budget ``recipe``: the passes, see
    ``graphprune passes``; or beside one, the name of a published recipe, such as ``"2ssp"``. Several recipes
    (``["auto", "all"]``) all run, and the result that changes outputs least on samples held back is taken:
    ``auto`` lets channels go alone, and is what runs where none is given, but for a latency with data.

    **What may go.** ``freeze``: names of groups, layers, parameters to leave alone (``*`` is a wildcard); ``only``:
    of those whose outputs may go, and no others; ``ignore``: modules of the model itself to leave alone
    (``[model.head]``); ``width``: counts of your own by what writes the channels (``{"conv1": 24, "blocks.*":
    0.5}``; with no budget nothing else is cut); ``floor``: the least share that a group keeps; ``grain``: the
    multiple that axes are kept at (else what the targets like). ``alike``: of a folder of transformers, keep as many of
    the same layer of all blocks, as its configuration says widths; False lets them differ, and the folder that is
    written has a class of its own, ``modeling_pruned.py``, for ``from_pretrained(..., trust_remote_code=True)``. A
    network of transformers in memory is cut freely, and True keeps it to what its configuration can say.
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
    wanted = ways(recipe, given, control)
    if dry_run and len(wanted) > 1:
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
        configurable, given_as = asked(program, alike), pretrained(program)
        alike = alike is not False
        if given_as and given_as.widths is not None:
            program, alike = program.note(DIFFERED), False
        if configurable and None in wanted.values():
            frozen = unsaid(program, configurable, alike)
            control = replace(control, freeze=(*control.freeze, *frozen), alike=alike)
        if recipe is None and not given and program.knows(Keep):  # training has decided already
            wanted = {AUTO: Recipe.parse("propagate,compensate" if program.data else "propagate")}
        if recipe is None and latency is not None and judged and not (dry_run or given_as or alone(program, control)):
            wanted |= ways(ALL, given, control)
        wanted = {name: own and (at_grain(own, widest) if name in published() else own) for name, own in wanted.items()}
        check(wanted, program, loss)
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
                result = attempt(own)
                if given_as and len(wanted) > 1 and (why := no_folder(result[0])):
                    raise ModelError(f"nothing that from_pretrained loads can be written of it: {why}")
                return own, result
            with more_unlike(program, alike):
                made = aligned(program, unit, text, widest, control, attempt)
            if unit == "latency" and not configurable:  # whose class has no place for selections
                made = readers(program, made, chosen[0], judged, attempt)
            return made

        tried = {name: partial(made_by, own) for name, own in wanted.items()}
        taken, (steps, (done, facts)), contest = nearest(program, tried, judged)
        auto = wanted[taken] is None
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
            own, *_ = ways(options.get("recipe"), {unit: text}, control).values()
            recipe = own or default_recipe(unit, text, control, data=bool(program.data))
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


def _evaluation(evaluate: Evaluate | str | None) -> tuple[Evaluate | None, str]:
    """The function, and what reports call it."""
    if not isinstance(evaluate, str):
        return evaluate, getattr(evaluate, "__name__", type(evaluate).__name__)
    return imported(evaluate), evaluate


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

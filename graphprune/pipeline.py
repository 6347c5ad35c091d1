"""Passes, recipes (text and TOML, round trip), and running them.

group,score{by=l2},mask{macs=0.5x grain=8},propagate
"""

from __future__ import annotations

import re
import time
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar

from .correction import Correction, correct
from .costs import params
from .errors import GraphpruneError, RecipeError, nearest
from .facts import Keep, Order
from .grouping import find_groups
from .ir import Host, Program, Site, Step

Progress = Callable[[str, int, int], None]
"""Called from long work as ``progress(what, done, total)``."""


class Pass:
    """One step of a recipe: a frozen dataclass whose fields are its options."""

    name: ClassVar[str]
    needs: ClassVar[tuple[type, ...]] = ()  # facts that must be known
    gives: ClassVar[tuple[type, ...]] = ()  # facts that it learns
    rewrites: ClassVar[bool] = False  # it edits the host, which drops all facts

    def run(self, program: Program) -> Program:
        raise NotImplementedError

    def wants_data(self) -> bool:
        """Whether this pass, with these options, needs calibration data."""
        return False

    def text(self) -> str:
        """Canonical text: the name, and the options that are not at their default."""
        options = [f"{k}={_spell(v)}" for k, v in self.options().items() if v != _default(type(self), k)]
        return f"{self.name}{{{' '.join(options)}}}" if options else self.name

    def options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]


@cache
def passes() -> Mapping[str, type[Pass]]:
    """Every pass by name: the built-in ones and those of the entry-point group ``graphprune.passes``."""
    found: dict[str, type[Pass]] = {}
    for entry in sorted(entry_points(group="graphprune.passes"), key=lambda entry: entry.name):
        try:
            found[entry.name] = entry.load()
        except Exception as error:  # someone else's package: anything may be wrong with it
            raise RecipeError(
                f"pass `{entry.name}` ({entry.value}) does not load: {error}", "repair or uninstall the plug-in"
            ) from error
    return {**found, **_built_in()}


def _built_in() -> dict[str, type[Pass]]:
    from importlib import import_module

    names = ("group", "score", "mask", "dead", "reorder", "propagate", "fold", "compensate")
    modules = [import_module(f"graphprune.passes.{name}") for name in names]
    classes = [c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__ == m.__name__]
    return {c.name: c for c in classes if issubclass(c, Pass)}


@dataclass(frozen=True)
class Recipe:
    """A sequence of passes. ``Recipe.parse(recipe.text()) == recipe``, and the same for TOML."""

    steps: tuple[Pass, ...]

    @classmethod
    def parse(cls, text: str) -> Recipe:
        """Read ``name{option=value ...},...``. Raises RecipeError at the first thing amiss."""
        return cls(tuple(make(name, options) for name, options in _steps(text)))

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """Read ``[[pass]]`` tables: ``name`` and options."""
        try:
            tables = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"the recipe is not TOML: {error}") from error
        extra = sorted(set(tables) - {"pass"})
        if extra or not isinstance(tables.get("pass"), list) or not all(isinstance(t, dict) for t in tables["pass"]):
            raise RecipeError(
                f"a recipe file holds [[pass]] tables, not {extra or 'nothing'}", '[[pass]]\n  name = "group"'
            )
        return cls(
            tuple(
                make(str(table.get("name", "")), {k: v for k, v in table.items() if k != "name"})
                for table in tables["pass"]
            )
        )

    def text(self) -> str:
        return ",".join(step.text() for step in self.steps)

    def toml(self) -> str:
        out = []
        for step in self.steps:
            changed = {k: v for k, v in step.options().items() if v != _default(type(step), k)}
            out.append(
                "\n".join(["[[pass]]", f'name = "{step.name}"', *(f"{k} = {_toml(v)}" for k, v in changed.items())])
            )
        return "\n\n".join(out) + "\n"

    def check(self, *, known: Iterable[type] = (), has_data: bool = False) -> None:
        """Every need is met before any weight moves. Raises RecipeError."""
        have = set(known)
        for number, step in enumerate(self.steps, 1):
            for need in step.needs:
                if need not in have:
                    givers = [name for name, kind in passes().items() if need in kind.gives]
                    raise RecipeError(
                        f"step {number} `{step.name}` needs {need.__name__}, which no earlier step gives",
                        f"put `{givers[0]}` before it" if givers else None,
                    )
            if step.wants_data() and not has_data:
                raise RecipeError(
                    f"step {number} `{step.text()}` needs calibration data",
                    "give --data FILE, or gp.load(..., data=...)",
                )
            have = (set() if step.rewrites else have) | set(step.gives)


def make(name: str, options: Mapping[str, Any]) -> Pass:
    """One pass from its name and options as text or TOML values. Raises RecipeError."""
    kind = passes().get(name)
    if kind is None:
        raise RecipeError(f"unknown pass `{name}`", nearest(name, passes()))
    types = typing.get_type_hints(kind)
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    values = {}
    for key, value in options.items():
        if key not in known:
            raise RecipeError(f"`{name}` has no option `{key}`", nearest(key, known) if known else "it has none")
        values[key] = _value(name, key, value, types[key])
    return kind(**values)


def run(recipe: Recipe, program: Program, progress: Progress | None = None) -> Program:
    """Check the whole recipe, then run it; after every edit the graph is read and checked anew."""
    recipe.check(known=program.facts, has_data=bool(program.data))
    asked = program.progress
    program = program.reporting(progress) if progress else program
    for number, step in enumerate(recipe.steps):
        if progress:
            progress(step.text(), number, len(recipe.steps))
        program = run_pass(step, program)
    if progress:
        progress("done", len(recipe.steps), len(recipe.steps))
    return program.reporting(asked)


def run_pass(step: Pass, program: Program) -> Program:
    """Run one pass and record it. An error gains the names of the passes already run."""
    start = time.perf_counter()
    before = len(program.plan.get("steps", ()))
    try:
        program = step.run(program)
        graph = program.graph  # read anew after an edit: structure and rule sizes are checked here
    except GraphpruneError as error:
        done = [made.text for made in program.history]
        error.message = f"in `{step.text()}`" + (f" after `{','.join(done)}`" if done else "") + f": {error.message}"
        raise
    for made in program.plan.get("steps", ())[before:]:
        made["pass"] = step.text()
    seconds = time.perf_counter() - start
    size = int(params(graph, program.host)())
    return program.ran(Step(step.name, step.options(), step.text(), seconds, len(graph.ops), size))


def replay(plan: Mapping[str, Any], host: Host, *, masked: bool = False) -> Program:
    """Do to ``host`` what ``plan`` did to its source, with nothing measured again.

    ``masked``: instead of cutting, zero what reads a channel that is not kept; the result computes
    what the cut network computes, in the original shapes.
    """
    program = Program(host=host, source=host)
    if masked and "parameters" in plan:  # all cuts at once: they name positions of the original axes
        program = program.rewrite(_mask(program, plan["parameters"]))
    for step in plan.get("steps", ()):
        if "reindex" in step:
            program = program.rewrite(opened(program.host, step["reindex"]), step)
        elif "keep" in step:
            program = program if masked else _replay_cut(step, program)
        elif "bias" in step:
            shapes = plan.get("parameters", {}) if masked else None
            program = program.rewrite(correct(program, Correction.read(step), shapes), step)
        elif not masked:  # every other edit (fold) must not change what is computed
            program = run_pass(Recipe.parse(step["pass"]).steps[0], program)
    return program


def opened(host: Host, sites: Iterable[Any]) -> Host:
    """A copy of the host with a ``reindex`` op at every site: a Site, or its fields as a plan lists them."""
    host = host.copy()
    for site in sites:
        host.insert_reindex(site if isinstance(site, Site) else Site(*site))
    return host


def original(program: Program) -> Host:
    """The model as it was given, with the sites that its plan opened: what the groups of the plan are
    groups of."""
    sites = [site for step in program.plan.get("steps", ()) for site in step.get("reindex", ())]
    return opened(program.source, sites) if sites else program.source


def _replay_cut(step: Mapping[str, Any], program: Program) -> Program:
    import numpy as np

    groups = find_groups(program.graph, normalised=True)
    unknown = sorted(set(step["keep"]) - {group.name for group in groups})
    if unknown:
        raise RecipeError(
            f"the plan keeps channels of `{unknown[0]}`, which this model does not have", "is it the same model?"
        )
    for group in groups:
        kept = step["keep"].get(group.name, [])
        if kept and max(kept) >= group.size:
            raise RecipeError(
                f"the plan keeps channel {max(kept)} of `{group.name}`, which has {group.size}", "is it the same model?"
            )
    lists = {part: {name: np.asarray(at, np.intp) for name, at in step.get(part, {}).items()} for part in _LISTS}
    order = Order(step.get("sinks", {}))
    program = program.learn(groups).learn(Keep(**lists)).learn(order)
    cut = passes()[Recipe.parse(step["pass"]).steps[0].name]
    return run_pass(cut(), program)


_LISTS = ("keep", "blank")


def _mask(program: Program, parameters: Mapping[str, Any]) -> Host:
    """A copy of the program's host in which every reader slice that the plan does not keep is zero."""
    import numpy as np

    host = program.host.copy()
    for name, axes in parameters.items():
        for axis, entry in axes.items():
            if entry["role"] == "reader":
                size = program.graph.parameters[name].shape[int(axis)]  # type: ignore[index]
                drop = np.union1d(np.setdiff1d(np.arange(size), entry["keep"]), entry.get("blank", [])).astype(np.intp)
                if len(drop):
                    host.zero(name, int(axis), drop)
    return host


_STEP = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(?:\{([^{}]*)\})?\s*(,|$)")


def _steps(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    at = 0
    while at < len(text) or at == 0:
        found = _STEP.match(text, at)
        if not found:
            raise RecipeError(
                f"cannot read the recipe at `{text[at : at + 30]}`",
                "write it as group,score{by=l2},mask{channels=0.5x},propagate",
            )
        name, body, _ = found.groups()
        options = {}
        for item in (body or "").split():
            key, equals, value = item.partition("=")
            if not equals or not value:
                raise RecipeError(f"`{name}`: cannot read option `{item}`", "write option=value, separated by spaces")
            options[key] = value
        yield name, options
        at = found.end()


def _value(name: str, key: str, value: Any, kind: Any) -> Any:
    try:
        if kind is bool:
            return {"true": True, "false": False}[str(value).lower()]
        if isinstance(value, (bool, list, dict)) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"`{name}`: option `{key}` takes a {kind.__name__}, not `{value}`") from error


def _default(kind: type[Pass], key: str) -> Any:
    default = next(field.default for field in fields(kind) if field.name == key)  # type: ignore[arg-type]
    return None if default is MISSING else default


def _spell(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _toml(value: Any) -> str:
    return _spell(value) if isinstance(value, (bool, int, float)) else f'"{value}"'

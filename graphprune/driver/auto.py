"""`auto`, the recipe that runs where none is given, with what the user says beside a budget; and recipes of theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from ..errors import BudgetError, ModelError, RecipeError, nearest, shown
from ..ir.facts import Groups, Keep, Scores
from ..ir.program import Program
from ..passes.group import Group
from ..passes.mask import Mask
from ..pipeline.published import published
from ..pipeline.recipe import Recipe
from ..pipeline.run import run

T = TypeVar("T")
AUTO = "auto"
ALL = "all"
"""The published recipe that also takes branches and ranks."""


def ways(
    recipe: str | Recipe | Sequence[str | Recipe] | None, given: Mapping[str, str], control: Control
) -> dict[str, Recipe | None]:
    """By name what was asked for: the user's own recipes, None for ``auto``. ``given``: budgets by unit. Raises
    RecipeError."""
    return {_called(one): _own(one, given, control) for one in _recipes(recipe)}


def _recipes(given: str | Recipe | Sequence[str | Recipe] | None) -> Sequence[str | Recipe]:
    """All that were given, ``auto`` where none was. Raises RecipeError for what are none."""
    several = [AUTO if given is None else given] if isinstance(given, (str, Recipe, type(None))) else given
    if not isinstance(several, Sequence):
        raise RecipeError(f"a recipe is text, not {type(given).__name__}", "'group,score,mask{macs=0.5x},propagate'")
    if not several:
        raise RecipeError("a list of no recipes was given", "recipe=None is `auto`; ['auto', 'all'] compares two")
    for one in several:
        if not isinstance(one, (str, Recipe)):
            raise RecipeError(f"a recipe is text, not {type(one).__name__}", "['auto', 'all']")
        if several is given and isinstance(one, str) and one.isidentifier() and one not in (AUTO, *published()):
            names = nearest(one, (AUTO, *published()))
            raise RecipeError(f"`{shown(one)}` is no recipe", f"{names}; passes are one text: 'group,score,mask...'")
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
    if control.says_more:
        raise RecipeError(
            f"`{shown(_called(recipe))}` says itself what is frozen, and at which floor and grain",
            "freeze, only, width, floor and grain are of `auto`; of a recipe as text group{freeze=... only=...}, "
            "mask{floor=... grain=...}",
        )
    own = whole or published()[_called(recipe)].recipe(*next(iter(given.items()), ("macs", "0.5x")))
    return Recipe((*Recipe.parse(control.vocabulary).steps, *own.steps)) if control.vocabulary else own


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

    @property
    def says_more(self) -> bool:
        """Whether there is anything but the vocabulary, which a recipe of the user's has no place for."""
        return self != Control(vocabulary=self.vocabulary)

    def group(self) -> str:
        return Group(freeze="|".join(self.freeze), only="|".join(self.only)).text()

    def mask(self) -> list[str]:
        own = [f"width={'|'.join(f'{name}={one}' for name, one in self.width)}"] if self.width else []
        floor = [] if self.floor is None else [f"floor={self.floor}"]
        grain = [] if self.grain in (None, 1) else [f"grain={self.grain}"]
        return own + floor + grain + (["alike=layers"] if self.alike else [])


def _modules(model: Any) -> Iterable[tuple[str, Any]]:
    """Those within a module, by name; nothing else has any."""
    found: Iterable[tuple[str, Any]] = model.named_modules() if hasattr(model, "named_modules") else ()
    return found


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


def aligned(
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
        grain = _near(program if scored else run(Recipe.parse(f"{control.group()},score"), program), text, grain)
    while True:
        chosen = replace(control, grain=grain)
        steps = default_recipe(unit, text, chosen, data=bool(program.data), scored=scored)
        try:
            return steps, attempt(steps)
        except BudgetError:
            if grain == 1 or unit == "latency" or control.grain is not None:
                raise
            grain //= 2


def alone(program: Program, control: Control) -> bool:
    """Whether nothing but ``auto`` can do what is asked for: training has scored the channels, or the user says what a
    published recipe has no place for."""
    return any(program.knows(fact) for fact in (Groups, Scores, Keep)) or control.says_more


def at_grain(recipe: Recipe, grain: int) -> Recipe:
    """A published recipe for a target: a latency is met at the multiples that the target likes."""
    steps = (
        replace(step, grain=grain) if isinstance(step, Mask) and step.latency and step.grain == 1 else step
        for step in recipe.steps
    )
    return Recipe(tuple(steps))


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


def check(ways: Mapping[str, Recipe | None], program: Program, loss: Any) -> None:
    """Raises RecipeError where a recipe of the user's cannot run (of a published one it says which), would cut nothing
    of what it chooses, or where none reads a loss that was given."""
    recipes = {name: recipe for name, recipe in ways.items() if recipe is not None}
    for name, recipe in recipes.items():
        try:
            recipe.check(known=program.facts, has_data=bool(program.data))
            _check_cuts(recipe)
        except RecipeError as error:
            error.message = f"`{name}`: {error.message}" if name in published() else error.message
            raise
    if loss is not None and not any(step.wants_loss() for recipe in recipes.values() for step in recipe.steps):
        raise RecipeError(
            "a loss was given, and no pass of the recipe reads it",
            "score by one that does: group,score{by=taylor},mask{macs=0.5x allocate=global},propagate,compensate",
        )


def _check_cuts(recipe: Recipe) -> None:
    """Raises RecipeError where channels are chosen and never cut."""
    steps = recipe.steps
    chosen = next((k for k in reversed(range(len(steps))) if Keep in steps[k].gives), len(steps))
    if chosen < len(steps) and not any(Keep in step.needs and step.rewrites for step in steps[chosen:]):
        raise RecipeError(
            f"`{steps[chosen].text()}` chooses what stays, and nothing after it cuts the rest",
            "put `propagate` after it",
        )

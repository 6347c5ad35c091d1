"""Passes of other packages that break their word, and options nobody can read: one clear error each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import nets
import pytest

from graphprune.backends.target import target
from graphprune.errors import SHOWN, RecipeError, TargetError
from graphprune.passes.fold import Fold
from graphprune.pipeline import base
from graphprune.pipeline.base import Pass, passes
from graphprune.pipeline.recipe import Recipe, make
from graphprune.pipeline.run import run

HINT = "\n  hint: repair or uninstall the plug-in"


@dataclass(frozen=True)
class Mine(Pass):
    """Does what it is told."""

    name = "mine"

    fails: str = ""

    def __post_init__(self) -> None:
        if self.fails == "made":
            raise ValueError("cannot be made")

    def run(self, program):
        if self.fails == "run":
            raise KeyError("bn1\nand more")
        return program.note("ran")

    def before(self):
        return [1] if self.fails == "before" else ()

    def wants_data(self):
        return {}["key"] if self.fails == "data" else False


@pytest.mark.parametrize(
    ("fails", "says", "cause"),
    [
        ("run", "in `mine{fails=run}` after `group`: pass `mine` (WHERE.Mine): `run` raised KeyError: 'bn1", KeyError),
        ("before", "pass `mine` (WHERE.Mine): `before` returned a list, not a tuple" + HINT, None),
        ("data", "pass `mine` (WHERE.Mine): `wants_data` raised KeyError: 'key'" + HINT, KeyError),
        ("made", "pass `mine` (WHERE.Mine): `__post_init__` raised ValueError: cannot be made" + HINT, ValueError),
    ],
)
def test_what_a_pass_raises_is_one_error_that_names_it(fails, says, cause):
    with pytest.raises(RecipeError) as caught:
        run(Recipe((*Recipe.parse("group").steps, Mine(fails))), nets.program("MLP"))
    assert str(caught.value).startswith(says.replace("WHERE", __name__)) and HINT in str(caught.value)
    assert type(caught.value.__cause__) is (cause or type(None))


def test_a_pass_that_keeps_its_word_is_left_alone():
    assert run(Recipe((Mine(),)), nets.program("MLP")).notes == ("ran",)
    with pytest.raises(RecipeError, match=r"pass `empty` \(.*\.Empty\) has no `run`"):
        run(Recipe((Empty(),)), nets.program("MLP"))
    assert not hasattr(Fold.run, "__wrapped__")  # an error of graphprune's own is a fault with a traceback


@dataclass(frozen=True)
class Empty(Pass):
    name = "empty"


class Undecorated(Pass):
    name = "entered"


class Half(Mine):
    name = "entered"

    by: str = "l2"


@dataclass(frozen=True)
class Needy(Pass):
    name = "entered"

    by: str


@dataclass(frozen=True)
class Untyped(Pass):
    name = "entered"

    by: int | None = None


@dataclass(frozen=True)
class Unknown(Pass):
    name = "entered"

    by: Missing = 0  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (int, "pass `entered` (builtins.int) is no subclass of Pass" + HINT),
        (Empty, "calls itself `empty`\n  hint: set name = 'entered' in the class"),
        (Undecorated, "Undecorated) is no dataclass\n  hint: put @dataclass(frozen=True) above it"),
        (Half, "Half) has the option `by` and is no dataclass\n  hint: put @dataclass(frozen=True) above it"),
        (Needy, "has no default for its option `by`\n  hint: put @dataclass(frozen=True) above it"),
        (Untyped, "has the option `by` of type int | None, which no text is read as"),
        (Unknown, "has annotations that cannot be read (name 'Missing' is not defined)"),
    ],
)
def test_a_class_that_is_no_pass_is_refused(monkeypatch, kind, says):
    enter(monkeypatch, kind)
    with pytest.raises(RecipeError) as caught:
        passes.__wrapped__()
    assert says in str(caught.value)


def enter(monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    class Entry:
        name, value = "entered", "package:Kind"

        def load(self) -> Any:
            return kind

    monkeypatch.setattr(base, "entry_points", lambda group: [Entry()])


LONG = "x" * 5000
SHORT = "x" * SHOWN + "... (5000 characters)"


@pytest.mark.parametrize(
    ("read", "text", "raises", "says"),
    [
        (Recipe.parse, LONG, RecipeError, f"unknown pass `{SHORT}`"),
        (Recipe.parse, f"mask{{grain={LONG}}}", RecipeError, f"`mask`: option `grain` takes a int, not `{SHORT}`"),
        (Recipe.parse, f"mask{{{LONG}=1}}", RecipeError, f"`mask` has no option `{SHORT}`"),
        (Recipe.parse, f"mask{{{LONG}}}", RecipeError, f"`mask`: cannot read option `{SHORT}`"),
        (target, LONG, TargetError, f"unknown target `{SHORT}`"),
        (target, f"tvm{{opt={LONG}}}", TargetError, f"`tvm`: option `opt` takes a int, not `{SHORT}`"),
        (target, f"tvm{{{LONG}=1}}", TargetError, f"target `tvm` has no option `{SHORT}`"),
        (target, LONG + "{", TargetError, f"cannot read the target `{SHORT[:SHOWN]}... (5001 characters)`"),
    ],
)
def test_what_is_long_is_shortened(read, text, raises, says):
    with pytest.raises(raises) as caught:
        read(text)
    assert caught.value.message == says


def test_numbers_that_nobody_can_write_are_refused():
    says = "`mask`: option `grain` takes a int, not `a int too long to write`"
    for option in ("grain", "channels"):
        with pytest.raises(RecipeError) as caught:
            make("mask", {option: 10**6000})
        assert caught.value.message == says.replace("grain` takes a int", f"{option}` takes a {kind(option)}")
    with pytest.raises(RecipeError, match="takes a int, not `9223372036854775808`"):
        make("mask", {"grain": 2**63})
    with pytest.raises(RecipeError, match="takes a float, not `a int"):
        make("mask", {"floor": 10**6000})


def kind(option: str) -> str:
    return {"grain": "int", "channels": "str"}[option]


def test_a_board_of_an_option_replaces_that_of_the_name():
    assert target("aarch64{board=armv7}") == target("armv7")

"""tokens: of the tokens of an image only the best go on behind a block, chosen for every image anew."""

from __future__ import annotations

from dataclasses import dataclass

from ..coupling.tokens import tokens
from ..errors import RecipeError, nearest
from ..ir.program import Program
from ..pipeline.base import Pass
from ..pipeline.options import portion
from ..pipeline.tokens import CHOICES
from ..pipeline.tokens import Tokens as Dropping


@dataclass(frozen=True)
class Tokens(Pass):
    """Drop tokens behind a block of attention: those that the class token attends to least, or that hold least."""

    name = "tokens"
    rewrites = True
    opens = True

    keep: str = "0.5x"  # of the tokens that may go, a share or so many: class tokens and text stay beside
    after: str = "1"  # the number of the block; `2|4` with keep=`0.75x|0.5x`: behind each, shares of all
    by: str = "attention"  # what the class token, or the last one, attends to; `flow`, of all blocks so far; `random`
    places: str = ""  # `0-575`: the first and the last that may go, where others must stay too

    def __post_init__(self) -> None:
        if self.by not in CHOICES:
            raise RecipeError(f"`tokens`: `by` cannot be `{self.by}`", nearest(self.by, CHOICES))
        blocks = self._blocks()
        if len(self.keep.split("|")) != len(blocks):
            raise RecipeError(f"`tokens`: {len(blocks)} blocks and keep={self.keep}", "say what stays behind each")
        self._counts(1)
        self._places()

    def run(self, program: Program) -> Program:
        """See pipeline.tokens. Raises ModelError where the model has no tokens, or something reads them in a way that
        is not known."""
        if program.plan.of(Dropping):
            raise RecipeError("`tokens` comes once in a recipe", "one can drop by and by: after=3|6 keep=0.7x|0.5x")
        found = tokens(program.graph, self._blocks(), None, program.host, self._places())
        edit = Dropping(self._fitting(found.some), self._blocks(), self.by, program.seed, self._places())
        done = edit.apply(program)
        if self.by == "flow" and found.row != 0:
            done = done.note("`tokens{by=flow}` without a class token: how alike values are to its is not counted")
        return done

    def _blocks(self) -> tuple[int, ...]:
        try:
            blocks = tuple(map(int, self.after.split("|")))
        except ValueError:
            blocks = ()
        if not blocks or list(blocks) != sorted(set(blocks)) or blocks[0] < 1:
            raise RecipeError(f"`tokens`: after={self.after} are no blocks in order", "write after=3, or after=3|6")
        return blocks

    def _places(self) -> tuple[int, int] | None:
        if not self.places:
            return None
        begin, dash, end = self.places.partition("-")
        if not dash or not begin.isdecimal() or not end.isdecimal() or int(begin) > int(end):
            raise RecipeError(
                f"`tokens`: places={self.places} is no range of tokens", "write places=0-575: the first, and the last"
            )
        return int(begin), int(end)

    def _counts(self, some: int) -> tuple[int, ...]:
        """How many of ``some`` tokens stay behind each block."""
        counts = []
        for text in self.keep.split("|"):
            try:
                whole = text.isdigit() and text != "1"
                share = int(text) / some if whole else portion(text)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1 and not whole:
                raise RecipeError(f"`tokens`: keep={self.keep} is no share or count", "write keep=0.5x, or keep=98")
            if whole and not int(text):
                raise RecipeError(f"`tokens`: keep={self.keep} keeps no token", "give at least 1 (`0.01x` is a share)")
            counts.append(max(1, round(share * some)))
        return tuple(counts)

    def _fitting(self, some: int) -> tuple[int, ...]:
        """The counts of a model with ``some`` tokens that may go. Raises RecipeError for more than there are."""
        counts, left = self._counts(some), some
        for block, count in zip(self._blocks(), counts, strict=True):
            if count > left:
                there = f"{left} tokens that may go" if left == some else f"the {left} tokens that are left"
                raise RecipeError(
                    f"`tokens`: keep={self.keep} keeps {count} of {there} behind block {block}", f"at most {left}"
                )
            left = count
        return counts

"""vocabulary: tokens that do not occur go, with their rows of the embedding and of the head."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..coupling.vocabulary import Vocabulary as Found
from ..coupling.vocabulary import vocabulary
from ..errors import DataError, RecipeError
from ..ir.host import Array
from ..ir.program import Program
from ..pipeline.base import Pass
from ..pipeline.options import portion
from ..pipeline.vocabulary import Vocabulary as Trimming

MEAN = "mean"
ONE_IN = 8
"""Samples of which one is not counted, to see what of new text is not covered."""


@dataclass(frozen=True)
class Vocabulary(Pass):
    """Trim the vocabulary to the tokens that occur in the data; any other is unknown, and has a constant logit."""

    name = "vocabulary"
    rewrites = True
    opens = True

    occurs: int = 1  # tokens that occur less often in the data go
    size: str = ""  # instead: so many stay, or a share, those that occur most often
    keep: str = ""  # tokens that stay all the same, by number: `0-258,500`
    unknown: int = -1  # the token that others are read as; -1: the tokeniser's own or, without one, the most frequent
    fill: str = MEAN  # the logit of one that went: its mean over the data, or a number, -inf
    embedding: str = ""  # whose rows are meant: the largest that numbers of an input are looked up in

    def __post_init__(self) -> None:
        if self.occurs < 1:
            raise RecipeError(f"`vocabulary`: occurs={self.occurs} lets everything stay", "give 1 or more")
        if self.size and self.occurs > 1:
            raise RecipeError(
                f"`vocabulary`: size={self.size} and occurs={self.occurs} are two ways to say what stays", "give one"
            )
        if self.unknown < -1:
            raise RecipeError(
                f"`vocabulary`: unknown={self.unknown} is no number of a token",
                "give 0 or more, or leave it out: the tokeniser's own or, without one, the most frequent",
            )
        self._ranges()
        self._fill()
        self._count(1)

    def wants_data(self) -> bool:
        return True

    def run(self, program: Program) -> Program:
        """See pipeline.vocabulary. Raises ModelError where the model has no vocabulary, or something else reads it."""
        found = vocabulary(program.graph, self.embedding)
        seen = _Occurrences(program, found)
        counts = seen.counts()
        beside, unknown = self._beside(program, found, counts)
        keep = self._kept(program, counts, beside)
        gone = np.setdiff1d(np.arange(found.size), keep)
        if not len(gone):
            return program.note(f"`vocabulary`: all {found.size} tokens stay")
        fill = _means(program, found)[gone] if self.fill == MEAN and found.heads else self._fill()
        done = Trimming(found.embedding, tuple(keep.tolist()), unknown, fill).apply(program)
        read = f"`{self.text()}`: {len(keep)} of {found.size} tokens stay; others are read as token {unknown}"
        said = " and have a constant logit" if found.heads else ""
        return done.note(f"{read}{said}", self._covered(program, found, seen, beside))

    def _beside(self, program: Program, found: Found, counts: Array) -> tuple[Array, int]:
        """What stays whether it occurs or not, and the token that others are read as."""
        special, own = program.source.special_tokens()
        unknown = self.unknown if self.unknown >= 0 else own if own is not None else int(counts.argmax())
        ranges = self._ranges()
        if (last := max([*special, unknown, *(last for _, last in ranges)])) >= found.size:
            raise RecipeError(
                f"`vocabulary`: there is no token {last}, of {found.size}", f"they have numbers 0 to {found.size - 1}"
            )
        always = (np.arange(first, last + 1) for first, last in ranges)
        return np.unique(np.concatenate([np.array([*special, unknown], np.intp), *always])), unknown

    def _kept(self, program: Program, counts: Array, beside: Array) -> Array:
        """The tokens that stay, in order, with what a tokeniser makes them of."""
        if not self.size:
            keep = np.flatnonzero(counts >= self.occurs)
        else:
            number = self._count(len(counts))
            if number < len(beside):
                raise RecipeError(f"`vocabulary`: size={self.size} are {number} tokens, and {len(beside)} have to stay")
            others = np.setdiff1d(np.argsort(-counts, kind="stable"), beside, assume_unique=True)
            keep = others[: number - len(beside)]
        return np.array(program.source.tokens_within(np.union1d(keep, beside).tolist()), np.intp)

    def _covered(self, program: Program, found: Found, seen: _Occurrences, beside: Array) -> str:
        """What the tokens that are chosen on most samples leave out of the others."""
        some, rest = seen.counts(False), seen.counts(True)
        if not rest.sum() or not some.sum():
            return f"`vocabulary`: fewer than {ONE_IN} samples: what share of new text is not covered is not known"
        keep = self._kept(program, some, beside)
        lost = rest.sum() - rest[keep].sum()
        return (
            f"`vocabulary`: {100 * lost / rest.sum():.2g} % of the tokens of held-out samples ({rest.sum():,} tokens, "
            "one sample in eight) are not covered by what is chosen on the others"
        )

    def _ranges(self) -> list[tuple[int, int]]:
        """The first and the last of each range that ``keep`` names."""
        found = list[tuple[int, int]]()
        for part in self.keep.split(",") if self.keep else ():
            ends = re.fullmatch(r"(\d{1,9})(?:-(\d{1,9}))?", part)
            if ends is None:
                raise RecipeError(f"`vocabulary`: keep={self.keep} are no numbers of tokens", "write keep=0-258,500")
            first, last = int(ends[1]), int(ends[2] or ends[1])
            if first > last:
                raise RecipeError(f"`vocabulary`: keep={part} are no tokens", f"write keep={last}-{first}")
            found.append((first, last))
        return found

    def _fill(self) -> float:
        try:
            found = 0.0 if self.fill == MEAN else float(self.fill)
        except ValueError:
            found = np.nan
        if np.isnan(found) or found == np.inf:
            raise RecipeError(f"`vocabulary`: fill={self.fill} is no logit", "write fill=mean, fill=-inf or a number")
        return found

    def _count(self, tokens: int) -> int:
        """How many of so many tokens ``size`` says."""
        try:
            count, share = (int(self.size), 1.0) if self.size.isdigit() else (1, portion(self.size or "1x"))
        except (ValueError, OverflowError):
            count, share = 0, 0.0
        if count < 1 or not 0 < share <= 1:
            raise RecipeError(f"`vocabulary`: size={self.size} is no share or count", "write size=0.5x, or size=8000")
        return min(count, tokens) if self.size.isdigit() else max(1, round(share * tokens))


@dataclass(frozen=True)
class _Occurrences:
    """Of the tokens in the data of a program."""

    program: Program
    found: Found

    def counts(self, held: bool | None = None) -> Array:
        """How often each token occurs in all samples, or in every eighth (``held``), or in the others. Raises DataError
        where a number is that of no token."""
        total, first = np.zeros(self.found.size, np.int64), 0
        for batch in self.program.data:
            for number in self.found.inputs:
                ids = self._checked(np.asarray(batch[number]), number)
                out = (np.arange(first, first + len(ids)) % ONE_IN) == ONE_IN - 1
                chosen = ids if held is None else ids[out == held]
                total += np.bincount(chosen.astype(np.int64).ravel(), minlength=self.found.size)
            first += len(batch[self.found.inputs[0]])
        return total

    def _checked(self, ids: Array, number: int) -> Array:
        out = ids[(ids < 0) | (ids >= self.found.size)]
        if len(out):
            raise DataError(
                f"`vocabulary`: the data for input `{self.program.graph.inputs[number].name}` hold {out[0]}, which is "
                f"no token: they have numbers 0 to {self.found.size - 1}",
                "give numbers of tokens, padding too (-100 is for labels alone)",
            )
        return ids


def _means(program: Program, found: Found) -> Array:
    """The mean of each output of the head over the data."""
    name, total, rows = found.heads[0].out.name, np.zeros(found.size), 0
    for number, batch in enumerate(program.data):
        program.progress("logits", number, len(program.data))
        out = program.host.watch(batch, [name])[name].reshape(-1, found.size)
        total, rows = total + out.sum(0, dtype=np.float64), rows + len(out)
    return (total / max(rows, 1)).astype(np.float32)

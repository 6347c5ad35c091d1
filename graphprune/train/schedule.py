"""When to prune how much: plain generators of the share that remains after each round.

for share in gp.train.cubic(rounds=5, keep=0.3):
    ...prune to this share of the dense network, then train
"""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import RecipeError


def one_shot(keep: float) -> Iterator[float]:
    """All at once."""
    _check(1, keep)
    yield keep


def linear(rounds: int, keep: float) -> Iterator[float]:
    """The same number of channels each round."""
    _check(rounds, keep)
    for k in range(1, rounds + 1):
        yield 1 - (1 - keep) * k / rounds


def cubic(rounds: int, keep: float) -> Iterator[float]:
    """Fast at first, slow at the end: keep + (1 - keep) (1 - k/rounds)^3 (Zhu and Gupta, To Prune or Not to
    Prune, 2018, section 3)."""
    _check(rounds, keep)
    for k in range(1, rounds + 1):
        yield cubic_at(k / rounds, keep)


def cubic_at(done: float, keep: float) -> float:
    """The share that remains when ``done`` of the time is over."""
    return keep + (1 - keep) * (1 - min(max(done, 0.0), 1.0)) ** 3


def _check(rounds: int, keep: float) -> None:
    if rounds < 1 or not 0 < keep <= 1:
        raise RecipeError(
            f"rounds={rounds}, keep={keep} is no schedule", "at least one round; a share above 0, up to 1"
        )

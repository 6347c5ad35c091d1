"""Polynomials in numbered variables: what a Cost comes to where no sizes are put in but names for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Factors = tuple[int, ...]
"""The variables of a product by number, rising, one that stands there twice twice."""


@dataclass(frozen=True)
class Polynomial:
    """The sum of products of ``terms``: of each the variables, and the number before them."""

    terms: Mapping[Factors, float]

    @classmethod
    def variable(cls, number: int) -> Polynomial:
        return cls({(number,): 1.0})

    @classmethod
    def of(cls, value: Polynomial | float) -> Polynomial:
        return value if isinstance(value, Polynomial) else cls({(): float(value)})

    def of_one(self, number: int, values: Mapping[int, float] | Sequence[float]) -> list[float]:
        """The coefficients in one variable, rising, the others having ``values``."""
        found = [0.0]
        for factors, coefficient in self.terms.items():
            power = 0
            for factor in factors:
                if factor == number:
                    power += 1
                else:
                    coefficient *= values[factor]
            found += [0.0] * (power + 1 - len(found))
            found[power] += coefficient
        return found

    def __add__(self, other: Polynomial | float) -> Polynomial:
        terms = dict(self.terms)
        for factors, number in Polynomial.of(other).terms.items():
            terms[factors] = terms.get(factors, 0.0) + number
        return Polynomial(terms)

    def __mul__(self, other: Polynomial | float) -> Polynomial:
        terms: dict[Factors, float] = {}
        for mine, number in self.terms.items():
            for theirs, by in Polynomial.of(other).terms.items():
                factors = tuple(sorted((*mine, *theirs)))
                terms[factors] = terms.get(factors, 0.0) + number * by
        return Polynomial(terms)

    __radd__ = __add__
    __rmul__ = __mul__

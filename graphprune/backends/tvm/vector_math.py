"""exp, sigmoid, tanh and erf of whole vectors.

LLVM calls the C library for each lane of them, two nanoseconds a number: more than the convolution before a sigmoid
takes. Here they are polynomials, which run in all lanes at once. Each is within 4e-7 of its exact result, relatively;
infinities and what is no number are kept. Where exp is no normal float it is zero, from 88.4 on infinite.

TVM is an extra and slow to import, so every import of it is inside a function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

LEVEL = 20  # of TVM's own rules for LLVM: 10

LEAST, MOST = -87.33654, 88.37626  # of exp: beyond them zero and infinity
LOG2 = (0.693359375, -2.12194440e-4)  # in two parts, the first of few bits: its multiples are exact
EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
"""exp(r) is 1 + r + r * r * EXP(r), r at most half of log 2 (Moshier, Cephes: expf)."""

FAR = 88.0  # of sigmoid: below -88 it is zero
FALL = (-8.29027209e-3, 4.189816048e-2, -1.666763813e-1, 4.999914783e-1, -9.999997063e-1)
"""exp(-r) is 1 + r * FALL(r), r at most half of log 2 (minimax, 9e-8)."""

TANH, TANH_BELOW = (
    (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08,
     1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03),
    (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03),
)  # fmt: skip
ERF, ERF_BELOW = (
    (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
     -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02),
    (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
     -1.42647390514189e-02),
)  # fmt: skip
"""Both are x times a quotient of polynomials in x * x, up to 7.9 and 4 (the minimax approximations of Eigen)."""


@cache
def registered() -> None:
    """Make them TVM's for LLVM, in this process."""
    from tvm.tirx import register_intrin_lowering

    for name, rule in _RULES.items():
        register_intrin_lowering(f"tirx.{name}", target="llvm", f=_of_floats(rule), level=LEVEL)


def _of_floats(rule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def lower(call: Any) -> Any:
        return rule(call.args[0]) if str(call.ty.dtype).startswith("float32") else call

    return lower


def _exp(x: Any) -> Any:
    from tvm import tirx

    def power(r: Any, n: Any) -> Any:
        """exp(r) * 2 ** n."""
        bits = (n.astype(_like(x, "int32")) + _whole(x, 127)) << _whole(x, 23)
        return (_polynomial(EXP, r) * r * r + r + _number(x, 1)) * tirx.reinterpret(x.ty.dtype, bits)

    def every(x: Any) -> Any:
        made = _let(_clamped(x, LEAST, MOST), lambda near: _reduced(near, power))
        made = tirx.Select(x < _number(x, LEAST), _number(x, 0), made)
        return _real(x, tirx.Select(x > _number(x, MOST), _number(x, math.inf), made))

    return _let(x, every)


def _sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x)), with less care for exp than above: what is no normal float counts for nothing beside one."""
    from tvm import tirx

    def fall(r: Any, n: Any) -> Any:
        """exp(-r) / 2 ** n."""
        bits = tirx.reinterpret(_like(x, "int32"), r * _polynomial(FALL, r) + _number(x, 1))
        return tirx.reinterpret(x.ty.dtype, bits - (n.astype(_like(x, "int32")) << _whole(x, 23)))

    def every(x: Any) -> Any:
        made = _number(x, 1) / (_number(x, 1) + _let(_clamped(x, -FAR, FAR), lambda near: _reduced(near, fall)))
        return _real(x, tirx.Select(x < _number(x, -FAR), _number(x, 0), made))

    return _let(x, every)


def _rational(above: Sequence[float], below: Sequence[float], end: float) -> Callable[[Any], Any]:
    def rule(x: Any) -> Any:
        def bounded(near: Any) -> Any:
            return _let(near * near, lambda s: near * _polynomial(above, s) / _polynomial(below, s))

        return _let(x, lambda x: _real(x, _let(_clamped(x, -end, end), bounded)))

    return rule


_RULES: dict[str, Callable[[Any], Any]] = {
    "exp": _exp,
    "sigmoid": _sigmoid,
    "tanh": _rational(TANH, TANH_BELOW, 7.90531110763549805),
    "erf": _rational(ERF, ERF_BELOW, 4.0),
}


# ---- expressions --------------------------------------------------------------------------------------


def _let(value: Any, body: Callable[[Any], Any]) -> Any:
    """What ``body`` makes of a value that is computed once."""
    from tvm import tirx

    name = tirx.Var("v", value.ty.dtype)
    return tirx.Let(name, value, body(name))


def _reduced(x: Any, body: Callable[[Any, Any], Any]) -> Any:
    """What ``body`` makes of r, at most half of log 2, and the whole number n, which x is r + n * log 2 of."""
    from tvm import tirx

    n = tirx.nearbyint(x * _number(x, 1 / math.log(2)))
    return _let(n, lambda n: _let(x - n * _number(x, LOG2[0]) - n * _number(x, LOG2[1]), lambda r: body(r, n)))


def _polynomial(weights: Sequence[float], x: Any) -> Any:
    made = _number(x, weights[0])
    for weight in weights[1:]:
        made = made * x + _number(x, weight)
    return made


def _clamped(x: Any, low: float, high: float) -> Any:
    from tvm import tirx

    return tirx.min(tirx.max(x, _number(x, low)), _number(x, high))


def _real(x: Any, value: Any) -> Any:
    """``value``, or x where that is no number."""
    from tvm import tirx

    return tirx.Select(tirx.EQ(x, x), value, x)


def _like(x: Any, kind: str) -> str:
    """The dtype of as many lanes as x has."""
    return str(x.ty.dtype).replace("float32", kind)


def _number(x: Any, value: float) -> Any:
    return _constant(x, value, "float32")


def _whole(x: Any, value: int) -> Any:
    return _constant(x, value, "int32")


def _constant(x: Any, value: float, kind: str) -> Any:
    from tvm import tirx

    lanes = str(x.ty.dtype).partition("x")[2]
    number = tirx.const(value, kind)
    return tirx.Broadcast(number, int(lanes)) if lanes else number

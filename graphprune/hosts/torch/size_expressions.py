"""Which texts are sizes: sums, products and functions of symbols, and nothing that could run or not end."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable

_SYMBOL = re.compile(r"[a-z]{1,4}\d{1,6}")
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,40})?(e[+-]?\d{1,3})?|-?oo")
_FUNCTIONS = frozenset(
    "Symbol Integer Float Rational Add Mul FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt "
    "CeilDiv IntTrueDiv FloatTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt RoundDecimal "
    "ToFloat Identity Max Min Abs floor ceiling Piecewise ExprCondPair OpaqueUnaryFn_sqrt RShift "
    "Eq Ne Lt Le Gt Ge Equality Unequality StrictLessThan LessThan StrictGreaterThan GreaterThan And Or Not".split()
)
_GROWING = frozenset(("Pow", "PowByNatural", "FloatPow", "LShift"))
_NAMES = frozenset(("true", "false", "oo", "int_oo"))
_FACTS = frozenset(("positive", "negative", "integer", "nonnegative", "nonpositive", "nonzero", "real", "precision"))
_NODES = (
    *(ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.Tuple, ast.keyword),
    *(ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context),
)
_LENGTH, _LARGEST, _LARGEST_POWER = 20000, 2**63, 64


def is_size(text: str) -> bool:
    """Whether ``text`` is an expression as torch.export writes sizes: ``Mul(Integer(8), Symbol('s0',
    integer=True))``, ``8*s0``."""
    if len(text) > _LENGTH:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    spelled = {id(arg) for node in nodes if _calls(node, ("Symbol", "Float")) for arg in node.args[:1]}  # type: ignore[attr-defined]
    return all(_allowed(node, id(node) in called, id(node) in spelled) for node in nodes)


def _calls(node: ast.AST, names: Iterable[str]) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names


def _allowed(node: ast.AST, called: bool, spelled: bool) -> bool:
    if isinstance(node, ast.Call):
        named = all(word.arg in _FACTS and _is_small(word.value) for word in node.keywords)
        return named and (_calls(node, _FUNCTIONS) or (_calls(node, _GROWING) and _stays_small(node)))
    if isinstance(node, ast.Name):
        return called or node.id in _NAMES or _SYMBOL.fullmatch(node.id) is not None
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return spelled and (_SYMBOL.fullmatch(node.value) or _NUMBER.fullmatch(node.value)) is not None
        return isinstance(node.value, (bool, int, float)) and abs(node.value) <= _LARGEST
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift)):
        return _stays_small(node)
    return isinstance(node, _NODES)


def _is_small(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and abs(node.value) <= _LARGEST_POWER


def _stays_small(power: ast.AST) -> bool:
    """Whether a power can be worked out: of small numbers, and not of another power."""
    parts = [part for part in ast.walk(power) if part is not power]
    if any(_calls(part, _GROWING) or isinstance(part, ast.BinOp) for part in parts):
        return False
    numbers = [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, (int, float))]
    return all(abs(number) <= _LARGEST_POWER for number in numbers)

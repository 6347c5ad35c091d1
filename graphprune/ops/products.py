"""Rules of matrix products and attention."""

from __future__ import annotations

from ..ir.graph import Op
from .registry import rule
from .wording import per_channel, rank_of, shape_of


@rule("matmul")
def matmul(op: Op) -> str:
    """(a, b) as numpy.matmul; with c: a @ b + c."""
    a, b = (rank_of(value) for value in op.inputs[:2])
    left = "k" if a == 1 else "... i k"
    right = "k" if b == 1 else "... k j"
    out = " ".join(["...", *("i" for _ in range(a > 1)), *("j" for _ in range(b > 1))])
    if len(op.inputs) > 2:
        added = shape_of(op.inputs[2])[-2:]
        names = ["1" if n == 1 else name for n, name in zip(added, "ij"[2 - len(added) :], strict=True)]
        return f"{left}, {right}, {' '.join(['...'] * (len(added) > 1) + names)} -> {out}"
    return f"{left}, {right} -> {out}"


@rule("fused_matmul")
def fused_matmul(op: Op) -> str:
    """(a, b), ``transA``, ``transB``: a matrix product of the last two axes, batches broadcast, times a
    number."""
    left = "... k i" if op.attrs["transA"] else "... i k"
    right = "... j k" if op.attrs["transB"] else "... k j"
    return f"{left}, {right} -> ... i j"


@rule("integer_matmul")
def integer_matmul(op: Op) -> str:
    """(a, b, parameters...): matmul on integers, the parameters one for all or one per output column.
    ``dynamic``: a is quantised on the way, with one scale over all of it."""
    lead = [f"r{k}" for k in range(rank_of(op.inputs[0]) - 2)]
    mark = "^" if op.attrs.get("dynamic") else ""
    left = " ".join(f"{name}{mark}" for name in (*lead, "i", "k"))
    right = " ".join((*lead[len(lead) + 2 - rank_of(op.inputs[1]) :], "k", "j")) if rank_of(op.inputs[1]) > 2 else "k j"
    rest = "".join(f", {per_channel(value, 'j')}" for value in op.inputs[2:])
    return f"{left}, {right}{rest} -> {' '.join((*lead, 'i', 'j'))}"


rule("grouped_matmul", axes="n i, e i o, e -> n o")
"""(rows, weights, ends): the rows up to the first end times the first weight, those up to the next times the next."""


@rule("gemm", "fused_gemm")
def gemm(op: Op) -> str:
    """(a, b, c), ``transA``, ``transB``: a @ b + c."""
    a = "k i" if op.attrs.get("transA") else "i k"
    b = "j k" if op.attrs.get("transB") else "k j"
    c = op.inputs[2] if len(op.inputs) > 2 else None
    shape = () if c is None or c.shape is None else c.shape
    bias = " ".join("1" if n == 1 else name for n, name in zip(shape[::-1], "ji", strict=False))
    return f"{a}, {b}, {' '.join(bias.split()[::-1])} -> i j"


@rule("integer_gemm")
def integer_gemm(op: Op) -> str:
    """As gemm on integers: (a, b, c, parameters...), the parameters one for all or one per output."""
    rest = "".join(f", {per_channel(value, 'j')}" for value in op.inputs[3:])
    left, _, right = gemm(op).partition("->")
    return f"{left}{rest} -> {right}"


@rule("einsum")
def einsum(op: Op) -> str:
    """``equation`` in letters."""
    left, _, right = op.attrs["equation"].replace(" ", "").replace("...", ".").partition("->")
    terms = [" ".join(term).replace(".", "...") for term in (*left.split(","), right)]
    return f"{', '.join(terms[:-1])} -> {terms[-1]}"


@rule("attention")
def attention(op: Op) -> str:
    """(q, k, v, mask) of shapes (..., heads, length, width), ``scale``; more query than key heads is
    GQA. The default scale is 1/sqrt(width), which a narrower head must not change."""
    q, k = op.inputs[0], op.inputs[1]
    many, few = shape_of(q)[-3] if rank_of(q) > 2 else 1, shape_of(k)[-3] if rank_of(k) > 2 else 1
    lead = [f"b{i}" for i in range(rank_of(q) - 3)]
    heads = "h" if many == few else f"(h:{few} g)"
    mask = op.inputs[3] if len(op.inputs) > 3 else None
    names = [*lead, heads, "q", "_"][-rank_of(mask) :] if mask else []
    masked = " ".join("1" if n == 1 else name for n, name in zip(shape_of(mask), names, strict=True)) if mask else "_"
    b = " ".join(lead)
    scale = "| scale=rsqrt(d)" if op.attrs.get("scale") is None else ""
    if rank_of(q) < 3:
        return f"q d, _ d, _ e, {masked} -> q e {scale}"
    return f"{b} {heads} q d, {b} h _ d, {b} h _ e, {masked} -> {b} {heads} q e {scale}"


@rule("multi_head_attention")
def multi_head_attention(op: Op) -> str:
    """(q, k, v, bias of all three, mask, other, past keys, past values), ``heads``, ``kv_heads``,
    ``widths`` of keys and values, ``scale``, ``packed``: attention with heads and widths packed in the
    last axis, (batch, length, heads x width); k and v are absent where ``packed`` into q. Present keys
    and values may be further outputs. Widths may change where nothing else knows them (``free``)."""
    many, few, (wide, tall) = op.attrs["heads"], op.attrs["kv_heads"], op.attrs["widths"]
    heads, free = f"h:{few}" if many == few else f"h:{few} g:{many // few}", op.attrs["free"]
    d, e = (f"d:{wide}", f"e:{tall}") if free else (f"_:{wide}", f"_:{tall}")
    queries, keys, values = f"({heads} {d})", f"(h:{few} {d})", f"(h:{few} {e})"
    bias = f"({queries} + {keys} + {values})"
    mask = op.inputs[4] if len(op.inputs) > 4 else None
    names = ["_", "h" if many == few else "(h g)", "_", "_"][4 - rank_of(mask) :] if mask else []
    masked = " ".join("1" if n == 1 else name for n, name in zip(shape_of(mask), names, strict=True)) if mask else "_"
    ins = f"b q {bias if op.attrs.get('packed') else queries}, b _ {keys}, b _ {values}, {bias}, {masked}, ~"
    literals = " ".join(["kv_heads=h", *(["query_group=g"] * (many != few))])
    if free and op.attrs.get("scale") is None:
        literals += " scale=rsqrt(d)"
    return f"{ins}, b h _ _, b h _ _ -> b q ({heads} {e}), b h _ _, b h _ _ | {literals}"


@rule("packed_attention")
def packed_attention(op: Op) -> str:
    """(x, weight, bias, others...), ``heads``, ``widths`` of queries and values: attention that makes its
    own queries, keys and values."""
    made = f"((h:{op.attrs['heads']} d:{op.attrs['widths'][0]}) + (h d) + (h e:{op.attrs['widths'][1]}))"
    rest = ", ~" * len(op.inputs[3:])
    return f"b q i, i {made}, {made}{rest} -> b q (h e) | heads=h value_width=e"


@rule("rotary")
def rotary(op: Op) -> str:
    """(x, positions and caches...), ``heads`` (None: an axis of their own): entries of a head are turned
    in pairs."""
    packed = op.attrs["heads"] is not None
    axes = f"b s (h:{op.attrs['heads']} _)" if packed else "b h s _"
    return f"{axes}{', ~' * len(op.inputs[1:])} -> {axes}{' | heads=h' * packed}"

"""Attention as one op: ONNX `Attention`, and what ONNX Runtime fuses it to.

Heads go where the op's attributes count them; widths where its scale can be pinned by its attribute
and nothing else (a cache, a bias inside the op, rotary embeddings) knows them.
"""

from __future__ import annotations

from typing import Any

from ...axes.dim import Size
from ...ir.graph import Value
from .node import Call, Reader, Reading, Unreadable


def _fixed(size: Size, what: str) -> int:
    if not isinstance(size, int):
        raise Unreadable(f"{what} has the dynamic size {size}")
    return size


def _scale(c: Call) -> dict[str, Any]:
    scale = c.attr("scale")
    return {"scale": scale} if scale else {}  # com.microsoft: 0 is the default, 1/sqrt(width)


def _several(c: Call, names: str, first: int = 0) -> None:
    """Raises Unreadable where one of the inputs named, from number ``first`` on, is given."""
    for k, name in enumerate(names.split(), first):
        if c.input(k) is not None:
            raise Unreadable(f"`{c.node.op_type}` is given {name.replace('_', ' ')}")


def _attention(c: Call) -> Reading:
    """Opset 23: (q, k, v, mask, past key, past value), of rank 4, or of rank 3 with counted heads."""
    _several(c, "lengths_of_its_keys", 6)
    c.only_output(1, 2)
    cached = any(v is not None for v in (c.input(4), c.input(5), *c.outputs[1:]))
    if len(c.shape(0)) == 3:
        return _packed_heads(c, c.attr("q_num_heads", 0), c.attr("kv_num_heads", 0), c.input(3), not cached)
    if cached:
        raise Unreadable("`Attention` keeps a cache of its keys and values")
    many, few = _fixed(c.shape(0)[1], "its heads"), _fixed(c.shape(1)[1], "its heads")
    if many % few:
        raise Unreadable(f"`Attention` has {many} heads of queries and {few} of keys")
    causal = {"causal": True} if c.attr("is_causal", 0) else {}
    return "attention", [c.input(k) for k in range(3 + (c.input(3) is not None))], {**_scale(c), **causal}


def _packed_heads(
    c: Call,
    many: int,
    few: int,
    mask: Value | None,
    free: bool,
    bias: Value | None = None,
    other: Value | None = None,
    past: tuple[int, int] = (4, 5),
) -> Reading:
    """(batch, length, heads x width) for q, k and v."""
    q, k, v = (_fixed(c.shape(n)[-1], "its last axis") for n in range(3))
    if len({len(c.shape(n)) for n in range(3)} | {3}) > 1:
        raise Unreadable(f"`{c.node.op_type}` is given queries, keys and values of different ranks")
    if not many or not few or many % few or q % many or k % few or v % few or q // many != k // few:
        raise Unreadable(f"`{c.node.op_type}` with {many} and {few} heads does not fit sizes {q}, {k} and {v}")
    operands = [*(c.input(n) for n in range(3)), bias, mask, other, *(c.input(n) for n in past)]
    attrs = {"heads": many, "kv_heads": few, "widths": (k // few, v // few), "free": free, **_scale(c)}
    return "multi_head_attention", operands, attrs


def _multi_head(c: Call) -> Reading:
    """com.microsoft: (q, k, v, bias, padding mask, attention bias, past key, past value)."""
    if c.input(1) is None or c.input(2) is None:
        raise Unreadable("`MultiHeadAttention` is given queries, keys and values in one packed tensor")
    _several(c, "the_length_of_its_past cache_indirection", 8)
    c.only_output(1, 2)
    cached = any(v is not None for v in (c.input(6), c.input(7), *c.outputs[1:]))
    heads, bias = c.attr("num_heads"), c.input(3)
    return _packed_heads(c, heads, heads, c.input(5), not cached and bias is None, bias, c.input(4), (6, 7))


def _grouped_query(c: Call) -> Reading:
    """com.microsoft: heads only; the widths are those of the cache, and of the rotary embedding."""
    _several(c, "position_ids attention_bias head_sink k_scale v_scale q_norm_weight k_norm_weight", 9)
    c.only_output(1, 2)
    many, few = c.attr("num_heads"), c.attr("kv_num_heads")
    if c.input(1) is not None:
        kind, operands, attrs = _packed_heads(c, many, few, None, False, past=(3, 4))
    else:
        size, rest = divmod(_fixed(c.shape(0)[-1], "its last axis"), many + 2 * few)
        if rest or many % few:
            raise Unreadable(f"`GroupQueryAttention` with {many} and {few} heads does not fit {c.shape(0)[-1]}")
        operands = [c.input(0), None, None, None, None, None, c.input(3), c.input(4)]
        attrs = {"heads": many, "kv_heads": few, "widths": (size, size), "free": False, "packed": True}
        kind = "multi_head_attention"
    return kind, operands, {**attrs, **_scale(c)}


def _own_weights(c: Call) -> Reading:
    """com.microsoft `Attention`: (x, weight, bias, mask, past, attention bias)."""
    _several(c, "a_past_cache an_attention_bias", 4)
    c.only_output()
    weight, heads = c.input(1), c.attr("num_heads")
    if weight is None or not weight.constant or c.input(2) is None:
        raise Unreadable("the weight or bias of `Attention` is not a constant")
    total = _fixed(c.shape(1)[-1], "its weight")
    sizes = list(c.attr("qkv_hidden_sizes") or [total // 3] * 3)
    if sum(sizes) != total or any(n % heads for n in sizes) or sizes[0] != sizes[1]:
        raise Unreadable(f"`Attention` with {heads} heads does not fit sizes {sizes}")
    attrs = {"heads": heads, "widths": (sizes[0] // heads, sizes[2] // heads), **_scale(c)}
    return "packed_attention", [c.input(0), weight, c.input(2), c.input(3)], attrs


def _rotary(c: Call) -> Reading:
    x = c.shape(0)
    heads = c.attr("num_heads", 0)
    if len(x) == 3 and not heads:  # com.microsoft: as many as the cache is wide
        cache = next((c.shape(k) for k in (2, 3) if c.node.domain and c.input(k) is not None), ())
        width = 2 * _fixed(cache[-1], "its cache") if cache else 0
        if not width or c.attr("rotary_embedding_dim", 0):
            raise Unreadable("`RotaryEmbedding` does not say how many heads there are")
        heads = _fixed(x[-1], "its last axis") // width
    if len(x) == 3 and (not heads or _fixed(x[-1], "its last axis") % heads):
        raise Unreadable(f"`RotaryEmbedding` with {heads} heads does not fit {x[-1]}")
    return "rotary", list(c.inputs), {"heads": heads if len(x) == 3 else None}


ATTENTION: dict[str, Reader] = {"Attention": _attention, "RotaryEmbedding": _rotary}
MICROSOFT_ATTENTION: dict[str, Reader] = {
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _grouped_query,
    "Attention": _own_weights,
    "RotaryEmbedding": _rotary,
}

"""The thin graph, the host that owns the weights, the Program that carries both, and the facts that passes share."""

from .facts import Frozen, Group, Groups, Keep, Latency, Losses, Member, Order, Scores
from .graph import Graph, Masker, Op, Piece, Relation, Site, Value
from .host import Array, Batch, Host, random_array
from .program import Loss, Program, Step

__all__ = [
    "Array",
    "Batch",
    "Frozen",
    "Graph",
    "Group",
    "Groups",
    "Host",
    "Keep",
    "Latency",
    "Loss",
    "Losses",
    "Masker",
    "Member",
    "Op",
    "Order",
    "Piece",
    "Program",
    "Relation",
    "Scores",
    "Site",
    "Step",
    "Value",
    "random_array",
]

"""The facts that passes share, under the name that plug-ins and scripts import them by."""

from .ir.facts import Budget, Frozen, Group, Groups, Keep, Latency, Losses, Member, Order, Scores

__all__ = ["Budget", "Frozen", "Group", "Groups", "Keep", "Latency", "Losses", "Member", "Order", "Scores"]

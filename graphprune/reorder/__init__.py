"""Unconstrained pruning: readers with channels of their own, and the order in which channels are stored."""

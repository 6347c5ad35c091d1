"""Latency tables: what ops cost on a target at every width, measured once and kept."""

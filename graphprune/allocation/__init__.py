"""How many channels of each group survive: pure functions from numbers to counts."""

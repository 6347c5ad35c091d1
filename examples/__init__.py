"""Examples that run from the root of a checkout."""

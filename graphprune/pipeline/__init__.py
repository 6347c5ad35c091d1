"""Passes and recipes, running and replaying them, and the proof that the result is right."""

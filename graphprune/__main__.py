"""``python -m graphprune``."""

from .cli import main

main(prog_name="graphprune")

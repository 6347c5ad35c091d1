"""``python -m graphprune.cli``."""

from . import main

main(prog_name="graphprune")

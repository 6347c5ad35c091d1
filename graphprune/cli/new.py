"""`graphprune new`: a package with a pass, a criterion or a target of one's own."""

from __future__ import annotations

from pathlib import Path

import click

from .console import echo


@click.command(short_help="Write a package with a pass, a criterion or a target of your own.")
@click.argument("kind", type=click.Choice(["pass", "criterion", "target"]))
@click.argument("name")
@click.option(
    "-o", "--out", metavar="OUT", type=click.Path(path_type=Path), help="The folder to write; else graphprune-NAME."
)
@click.option("--force", is_flag=True, help="Replace OUT if it exists.")
def new(kind: str, name: str, out: Path | None, force: bool) -> None:
    """Write an installable package with a pass, a criterion or a target called NAME, and a test that passes.

    What it brings works as it stands: put your own in its place.

    \b
    Examples:
      graphprune new pass keep_half
      graphprune new criterion spectral -o plug-ins/spectral
      graphprune new target my-board
    """
    from ..driver import new as kit

    folder = kit.new(kind, name, out, force=force)
    lines = (f"cd {folder}", "pip install -e '.[test]'", "pytest", kit.used(kind, name))
    echo("\n  ".join((f"written: {folder}", *lines)))

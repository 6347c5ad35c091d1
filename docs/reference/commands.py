"""A hook of mkdocs: the page of the commands, from the command line's own parser."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import click

PAGE = "reference/commands.md"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page of commands gains what ``--help`` says of each."""
    return f"{markdown}\n{text()}" if page.file.src_uri == PAGE else markdown


def text() -> str:
    from graphprune.cli import main

    context = click.Context(main, info_name="graphprune")
    return "\n".join(line for name in main.list_commands(context) for line in _command(name, main, context))


def _command(name: str, main: click.Group, above: click.Context) -> Iterator[str]:
    command = main.get_command(above, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=above)
    yield from (
        f"## graphprune {name}",
        "",
        f"    {context.command_path} {' '.join(command.collect_usage_pieces(context))}",
        "",
    )
    yield from _help(command.help or "")
    yield from ("| option | what it does |", "|---|---|")
    for option in command.get_params(context):
        if isinstance(option, click.Option) and not option.hidden:
            record = option.get_help_record(context)
            assert record is not None
            yield "| {} | {} |".format(*(_cell(part, code=k == 0) for k, part in enumerate(record)))
    yield ""


def _help(text: str) -> Iterator[str]:
    """Paragraphs as they are; what click does not wrap (after a line of \\b) as it stands."""
    for part in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if part.startswith("\b"):
            head, *lines = part.removeprefix("\b").strip("\n").splitlines()
            yield from (head, "", "```", *(line.strip() for line in lines), "```", "")
        else:
            yield from (" ".join(part.split()), "")


def _cell(text: str, code: bool) -> str:
    text = " ".join(text.split())
    return f"`{text}`" if code else text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

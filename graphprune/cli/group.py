"""The command that the others are part of: the order they are listed in, and how errors end."""

from __future__ import annotations

import errno
import signal
import sys
import threading
import warnings
from functools import partial
from typing import Any

import click

from .. import __version__
from ..errors import GraphpruneError, Terminated
from .console import echo, plain_streams

ENDS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
"""What ends a process from outside, but for Ctrl-C: a terminal that closes too."""


class _Commands(click.Group):
    """Commands in the order of their definition; a GraphpruneError is a message and exit code 1, and what ends the
    process from outside (Ctrl-C, SIGTERM, SIGHUP) lets it clean up first."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GraphpruneError as error:
            echo(f"error: {error}", err=True)
            ctx.exit(1)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            echo(f"error: {error.strerror}: {error.filename or 'what this command prints cannot be written'}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            echo("interrupted", err=True)
            ctx.exit(130)


EPILOG = """
\b
Environment (docs/environment.md has more):
  GRAPHPRUNE_CACHE            the folder of tables, tuning records, stages
  XDG_CACHE_HOME              else its folder graphprune, or that of ~/.cache
  TVM_NUM_THREADS             the most threads that TVM targets may use
  TVM_THREAD_POOL_SPIN_COUNT  how long their idle threads spin

\b
Completion of commands, targets and recipes (bash; zsh and fish likewise):
  eval "$(_GRAPHPRUNE_COMPLETE=bash_source graphprune)"
"""


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=EPILOG,
)
@click.version_option(__version__, prog_name="graphprune")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Compile a trained network into a smaller one that provably computes what the masked one does.

    A MODEL is an ONNX file (model.onnx), a torch.export file (model.pt2), a folder of transformers
    (hf:FOLDER), or package.module:factory, a function that returns (module, example_inputs), looked up
    from the current directory.

    \b
    Start here:
      graphprune inspect model.onnx                     what can be pruned
      graphprune compile model.onnx --macs 0.5x -o out   half the work
      open out/report.html                               what happened

    Exit codes: 0 done, 1 an error that is explained on stderr, 2 wrong usage, 130 interrupted, 143 terminated
    (129 with its terminal); interrupted or terminated a command writes nothing.
    """
    plain_streams()
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # of libraries, about libraries
    if threading.current_thread() is threading.main_thread():
        for number in ENDS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                ctx.call_on_close(partial(signal.signal, number, signal.signal(number, _terminated)))


def _terminated(number: int, frame: object) -> None:
    """Every block that is open ends as it would with an error: nothing half written stays."""
    echo("terminated", err=True)
    raise Terminated(128 + number)

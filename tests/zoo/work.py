"""One measurement in a process of its own, which may crash, hang or run out of memory alone."""

from __future__ import annotations

import logging
import multiprocessing as mp
import os
import resource
import signal
import warnings
from multiprocessing.connection import Connection
from typing import Any

PEER = "Torch-Pruning"
HOSTS = ("torch", "onnx")
COLUMNS = (*HOSTS, PEER)
LIMIT_S = 900
PEER_LIMIT_S = 30
"""Of processor time: a busy machine must not look like a hang."""
BACKSTOP_S = 7200.0
"""Of the clock: for what waits and never wakes."""


def measured(name: str, column: str) -> dict[str, Any]:
    """The result of one column for one architecture; ``outcome`` hang or crash where there is none."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "onnx", f"{__package__}.catalogue"])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(name, column, there), daemon=True)
    process.start()
    there.close()
    try:
        if here.poll(BACKSTOP_S):
            result: dict[str, Any] = here.recv()
            return result
        return {"outcome": "hang", "detail": f"no end after {BACKSTOP_S:.0f} s of the clock"}
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            return {"outcome": "hang", "detail": f"no end after {_limit_s(column)} s"}
        return {"outcome": "crash", "detail": f"the process died ({process.exitcode})"}
    finally:
        process.join(5)  # a moment to clean up behind itself
        process.kill()
        process.join()


def _limit_s(column: str) -> int:
    return PEER_LIMIT_S if column == PEER else LIMIT_S


def _work(name: str, column: str, answer: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # exporters and tracers chat there
    os.dup2(2, 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    from . import measure, peer
    from .all import CATALOGUE

    resource.setrlimit(resource.RLIMIT_CPU, (_limit_s(column), resource.RLIM_INFINITY))
    try:
        architecture = CATALOGUE[name]
        result = peer.measure(architecture) if column == PEER else measure.measure(architecture, column)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        result = {"outcome": "crash", "detail": f"{type(error).__name__}: {lines[0][:200]}"}
    answer.send(result)

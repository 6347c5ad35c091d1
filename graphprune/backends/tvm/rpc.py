"""Devices behind TVM's RPC: code is built here, sent there, and timed there.

``host:port`` is one server (``python -m tvm.exec.rpc_server`` on the device); ``host:port/key`` is a
tracker, and every device that serves under the key takes part.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...cost.latency.table import Point
from ...errors import TargetError
from ...ir.facts import Latency
from ...ir.host import Array, Batch
from ..boards import Board
from ..measure import Runnable
from . import time_ops as relax_ops
from .lower import last_line, toolchain

SESSION_SECONDS = 600
WAIT_SECONDS = 20
MOST_DEVICES = 16


def sessions(address: str, most: int = MOST_DEVICES) -> list[Any]:
    """A session with every device at ``address``, or with so many. Raises TargetError where there is none."""
    from tvm import rpc

    host, port, key = _parts(address)
    with _answering(address):
        if not key:
            return [rpc.connect(host, port, session_timeout=SESSION_SECONDS)]
        count = min(free(address), most)
        tracker = rpc.connect_tracker(host, port)
        return [tracker.request(key, session_timeout=SESSION_SECONDS, max_retry=1) for _ in range(count)]


def free(address: str) -> int:
    """How many devices wait for work at ``address``. Raises TargetError where none does."""
    from tvm import rpc

    host, port, key = _parts(address)
    if not key:
        return 1
    with _answering(address):
        tracker = rpc.connect_tracker(host, port)
        found, patience = 0, time.monotonic() + WAIT_SECONDS
        while not found and time.monotonic() < patience:  # one that was just let go reports back in seconds
            found = int(tracker.summary()["queue_info"].get(key, {}).get("free", 0))
            time.sleep(0 if found else 0.5)
        if not found:
            raise TargetError(f"{address}: the tracker has no free device `{key}`", "start rpc_server --key on one")
        return found


def _parts(address: str) -> tuple[str, int, str]:
    toolchain()
    place, _, key = address.partition("/")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise TargetError(f"`{address}` is not an RPC address", "give host:port, or host:port/key for a tracker")
    return host, int(port), key


@contextmanager
def _answering(address: str) -> Iterator[None]:
    try:
        yield
    except TargetError:
        raise
    except Exception as error:  # sockets, handshakes and timeouts share no base class here
        raise TargetError(
            f"{address}: no RPC device answers ({last_line(error)})",
            "on the device: python -m tvm.exec.rpc_server --host 0.0.0.0 --port 9090",
        ) from error


def time_ops(
    points: Sequence[Point], threads: int, label: str, device: Board, address: str
) -> Iterator[dict[Point, Latency]]:
    """As Target.time_ops, shared out over every device at the address."""
    tvm = toolchain()
    code, found = tvm.target.Target(device.llvm()), sessions(address)
    parts = [points[k : k + relax_ops.BATCH_POINTS] for k in range(0, len(points), relax_ops.BATCH_POINTS)]

    def work(k: int) -> list[dict[Point, Latency]]:
        mine = [point for part in parts[k :: len(found)] for point in part]
        return list(relax_ops.time_ops(mine, threads, label, code, sender(found[k], device), growth=device.growth))

    with ThreadPoolExecutor(len(found)) as pool:
        for batches in pool.map(work, range(len(found))):
            yield from batches


def sender(session: Any, device: Board) -> Callable[[Any], tuple[Any, Any]]:
    """Takes a built module to the device: what it is there, and the device."""

    def send(built: Any) -> tuple[Any, Any]:
        with _library(built, device) as path:
            session.upload(str(path))
            return session.load_module(path.name), session.cpu()

    return send


@contextmanager
def _library(built: Any, device: Board) -> Iterator[Path]:
    from tvm.support import cc

    with tempfile.TemporaryDirectory(prefix="graphprune-") as folder:
        path = Path(folder) / "ops.so"
        built.export_library(str(path), fcompile=cc.cross_compiler(device.cc))
        yield path


class Remote(Runnable):
    """A network in TVM's virtual machine on the first device at an address."""

    def __init__(self, executable: Any, device: Board, address: str, label: str, threads: int, example: Batch) -> None:
        super().__init__(label, threads, example)
        from tvm import relax

        self._session = sessions(address)[0]
        send = sender(self._session, device)
        module, self._device = send(executable)
        self._vm: Any = relax.VirtualMachine(module, self._device)

    def bind(self, batch: Batch) -> Callable[[], object]:
        import tvm

        tensors = [tvm.runtime.tensor(array, self._device) for array in batch]
        self._vm.set_input("main", *tensors)
        vm = self._vm
        return lambda: vm.invoke_stateful("main")

    def run(self, batch: Batch) -> list[Array]:
        self.bind(batch)()
        count = self._vm.get_outputs("main")
        return [out.numpy() for out in (count if isinstance(count, (list, tuple)) else [count])]

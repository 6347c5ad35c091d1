"""Reads hostile files in processes of their own, which are watched: memory, time, what they write.

Time is the processor time of the process, so that a busy machine makes no case look like one that hangs.
"""

from __future__ import annotations

import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

MEMORY = 2 * 2**30
SECONDS = 10.0  # of processor time that one case may take
YARDSTICKS = 100.0  # or so many times what a sound file takes here, where that is more: the machine may be slow
ENDLESS = 6  # times the limit: there the kernel ends a case
BACKSTOP = 1800.0  # seconds of the clock, for what waits and never wakes: the machine may be busy
ROOT = Path(__file__).parents[2]
SOUND = "pt2/sound/0"
SAID = "stderr"  # of a worker, in its sandbox


def read_all(cases: Sequence[str], jobs: int = 1) -> Iterator[dict[str, Any]]:
    """One result a case: ``end`` is ``refused``, ``right``, or ``WRONG`` and why."""
    todo: queue.Queue[str] = queue.Queue()
    done: queue.Queue[dict[str, Any]] = queue.Queue()
    for case in cases:
        todo.put(case)
    for _ in range(jobs):
        threading.Thread(target=_keeper, args=(todo, done), daemon=True).start()
    for _ in cases:
        yield done.get()


def _keeper(todo: queue.Queue[str], done: queue.Queue[dict[str, Any]]) -> None:
    """Feeds one worker, and starts another where it dies or hangs."""
    with tempfile.TemporaryDirectory(prefix="untrusted-") as sandbox:
        worker = None
        while True:
            try:
                case = todo.get_nowait()
            except queue.Empty:
                break
            if worker is None or worker.poll() is not None:
                worker = _start(Path(sandbox))
            result = _ask(worker, case, Path(sandbox))
            if result.pop("spent", False):  # what it did not give back would be counted against the next case
                worker.kill()
                worker.wait()
            done.put(result)
        if worker is not None:
            worker.kill()
            worker.wait()


def _start(sandbox: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(sandbox), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fuzz.worker", str(sandbox)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(sandbox / SAID).open("wb"),
        text=True,
        cwd=ROOT,
        env=env,
    )


def _ask(worker: subprocess.Popen[str], case: str, sandbox: Path) -> dict[str, Any]:
    assert worker.stdin is not None and worker.stdout is not None
    start, killer = time.monotonic(), threading.Timer(BACKSTOP, worker.kill)
    killer.start()
    try:
        worker.stdin.write(case + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    except BrokenPipeError:
        line = ""
    finally:
        killer.cancel()
    if line:
        result: dict[str, Any] = json.loads(line)
        return result
    code = worker.wait()
    waits = time.monotonic() - start >= BACKSTOP
    last = (sandbox / SAID).read_text(errors="replace").strip().rpartition("\n")[2]
    why = "hangs" if code == -signal.SIGXCPU else "waits" if waits else f"the process died ({code}): {last}"
    return {"case": case, "end": f"WRONG: {why}", "error": "", "seconds": 0.0}


# ---- in the worker -----------------------------------------------------------------------------------


_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.symlink")


class Guard:
    """Notes what is written outside the sandbox, and every program that is started."""

    def __init__(self, sandbox: Path) -> None:
        self.sandbox, self.seen, self.on = str(sandbox.resolve()), list[str](), False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(args[0], (str, bytes)):
            path, mode, flags = os.fsdecode(args[0]), args[1], args[2]
            writes = (mode and set(mode) & set("wax+")) or (
                isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            )
            if writes and not os.path.realpath(path).startswith(self.sandbox) and path != os.devnull:
                self.seen.append(f"writes {path}")
        elif event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn", "socket.connect"):
            self.seen.append(f"{event} {args[:1]}")
        elif event in _CHANGES and isinstance(args[0], str):
            changed = Path(args[0])  # a relative one is relative to an open folder: rmtree's, in the sandbox
            if changed.is_absolute() and not str(changed.resolve()).startswith(self.sandbox):
                self.seen.append(f"{event} {changed}")


def read(case: str, sandbox: Path, guard: Guard, limit: float = SECONDS) -> dict[str, Any]:
    """Use the files of one case, as mutate.use does. Beyond ``limit`` seconds of processor time it is
    wrong, and far beyond the process ends."""
    import graphprune as gp

    from .attacks import MARKER
    from .mutate import OUTPUTS, files, use

    made = files(case)
    folder = sandbox / "in"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in made.items():
        (folder / name).write_bytes(content)
    (folder / "beside").write_bytes(bytes(64))
    (folder / "link").symlink_to(sandbox / "secret")
    before = _files(sandbox)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(start + ENDLESS * limit) + 1, resource.RLIM_INFINITY))
    guard.seen.clear()
    guard.on = True
    error = said = ""
    try:
        use(case, folder, sandbox / "out")
        end = "right"
    except gp.GraphpruneError as refusal:
        end, error, said = "refused", type(refusal).__name__, str(refusal)
    except BaseException as fault:  # whatever it is, it should not have come here
        end, said = f"WRONG: {type(fault).__name__}", _where(fault)
    guard.on = False
    seconds = time.process_time() - start
    if seconds > limit:
        end = f"WRONG: took {seconds:.1f} s"
    if guard.seen:
        end = f"WRONG: {guard.seen[0]}"
    extra = _files(sandbox) - before - OUTPUTS
    if extra or list(sandbox.rglob(MARKER)):
        end = f"WRONG: leaves {sorted(extra)}"
    for name in extra:
        (sandbox / name).unlink(missing_ok=True)
    return {"case": case, "end": end, "error": error, "said": said, "seconds": seconds}


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def _where(error: BaseException) -> str:
    import traceback

    lines = traceback.extract_tb(error.__traceback__)
    ours = [f"{Path(f.filename).name}:{f.lineno}" for f in lines if "graphprune" in f.filename]
    return f"{'>'.join(ours[-4:])} {str(error)[:200]}"


def _addresses() -> int:
    """Bytes of address space in use."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    import logging
    import warnings

    sandbox = Path(sys.argv[1])
    for name in ("out", "in"):
        (sandbox / name).mkdir(exist_ok=True)
    (sandbox / "secret").write_bytes(bytes(64))
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the libraries print
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    import torch

    import graphprune.hosts.onnx.host
    import graphprune.hosts.torch.host  # noqa: F401

    from .documents import plan_files, table_file
    from .mutate import onnx_file, pt2_file

    torch.set_num_threads(1)
    for which in (0, 1):
        onnx_file(which), pt2_file(which)
    plan_files(), table_file()
    guard = Guard(sandbox)
    os.chdir(sandbox)
    read(SOUND, sandbox, guard)  # what is imported late is imported now
    limit = max(SECONDS, YARDSTICKS * read(SOUND, sandbox, guard)["seconds"])
    used = _addresses()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        result = read(line.strip(), sandbox, guard, limit)
        result["spent"] = _addresses() > used + MEMORY // 4
        replies.write(json.dumps(result) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()

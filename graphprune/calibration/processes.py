"""Several processes, as torchrun starts them: batches are shared out, each to the process whose turn it is, and what
was made of them comes together in their order. So all add the same numbers in the same order as one alone would.

torch.distributed is asked only where it was imported already. What is sent are arrays, never pickles.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from ..errors import DataError, GraphpruneError
from ..ir.host import Array, Batch

T = TypeVar("T")


def _group() -> Any:
    """torch.distributed, where there are other processes."""
    found: Any = sys.modules.get("torch.distributed")
    there = found is not None and found.is_available() and found.is_initialized() and found.get_world_size() > 1
    return found if there else None


def count() -> int:
    """How many processes there are."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def rank() -> int:
    """The number of this one. Number 0 writes and measures."""
    group = _group()
    return int(group.get_rank()) if group else 0


def mine(items: Sequence[T]) -> list[T]:
    """Those whose turn is this process's."""
    return [items[k] for k in range(rank(), len(items), count())]


def turns(number: int, made: Callable[[int], Iterable[Sequence[Array]]]) -> Iterator[Iterable[Sequence[Array]]]:
    """For each of so many batches, in order, what ``made`` gives for it, which only the process does whose turn it is:
    one process alone holds no more than it asks for."""
    if count() == 1:
        yield from map(made, range(number))
        return
    for start in range(0, number, count()):
        own = start + rank()
        parts = [list(part) for part in made(own)] if own < number else []
        for k in range(start, min(start + count(), number)):
            yield sent(parts, k - start)


def gathered(own: Sequence[Mapping[str, Array]], number: int) -> list[Mapping[str, Array]]:
    """Of all batches, in order, from what each process has of its own (``mine``): arrays by name."""
    if count() == 1:
        return list(own)
    names = list(own[0]) if own else []
    made = turns(number, lambda k: ([own[k // count()][name]] for name in names))
    told = [bytes(name).decode() for (name,) in sent([[np.frombuffer(one.encode(), np.uint8)] for one in names], 0)]
    return [dict(zip(told, (array for (array,) in parts), strict=True)) for parts in made]


def sent(parts: Sequence[Sequence[Array]], by: int) -> list[list[Array]]:
    """What the process ``by`` has."""
    group = _group()
    if group is None:
        return [list(part) for part in parts]
    import torch

    device = "cuda" if group.get_backend() == "nccl" else "cpu"
    packed = bytearray(_packed(parts)) if rank() == by else bytearray()
    size = torch.tensor([len(packed)], device=device)
    group.broadcast(size, by)
    data = torch.frombuffer(packed, dtype=torch.uint8) if packed else torch.empty(int(size), dtype=torch.uint8)
    data = data.to(device)
    group.broadcast(data, by)
    return _unpacked(data.cpu().numpy().tobytes())


def _packed(parts: Sequence[Sequence[Array]]) -> bytes:
    file = io.BytesIO()
    arrays = {f"{k}.{n}": array for k, part in enumerate(parts) for n, array in enumerate(part)}
    np.savez(file, allow_pickle=False, **arrays, lengths=np.array([len(part) for part in parts], np.int64))
    return file.getvalue()


def _unpacked(data: bytes) -> list[list[Array]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        return [[file[f"{k}.{n}"] for n in range(length)] for k, length in enumerate(file["lengths"])]


def check_data(batches: Sequence[Batch]) -> None:
    """Raises DataError where this process was given other calibration data than the first."""
    if count() == 1:
        return
    found = hashlib.sha256(repr(len(batches)).encode())
    for array in (*batches[0], *batches[-1]) if batches else ():
        found.update(repr((array.shape, str(array.dtype))).encode() + np.ascontiguousarray(array).tobytes())
    if not agree(found.digest()):
        raise DataError(
            "not all processes were given the same calibration data",
            "give each of them all of it: it is shared out here (no DistributedSampler)",
        )


def agree(digest: bytes) -> bool:
    """Whether all processes have the same bytes: all of them are told the same."""
    each = [sent([[np.frombuffer(digest, np.uint8)]], k)[0][0] for k in range(count())]
    return all(np.array_equal(each[0], other) for other in each)


def check_plan(text: str) -> None:
    """Raises GraphpruneError where processes came to different plans."""
    if not agree(hashlib.sha256(text.encode()).digest()):
        raise GraphpruneError(
            "the processes came to different plans",
            "do they run the same versions, on the same kind of machine, with as many threads?",
        )


def wait() -> None:
    """Until all processes are here."""
    group = _group()
    if group is not None:
        group.barrier()


@contextmanager
def torchrun() -> Iterator[None]:
    """Within, the processes that torchrun started know each other."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield
        return
    import torch.distributed as dist

    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()

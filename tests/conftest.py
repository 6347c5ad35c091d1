"""One thread to each test process: threads of several processes that wait for one another on the same
cores cost more than they bring. And the zoo is whole in each, whichever files are collected there. Examples of
properties are the same in every run, and take the time that a busy machine takes. ``alone``: a group of one process."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import deform  # noqa: F401
import experts  # noqa: F401
import kinds  # noqa: F401
import listed_experts  # noqa: F401
import pytest
import torch.distributed as dist
from hypothesis import settings

settings.register_profile("graphprune", deadline=None, derandomize=True, max_examples=150)
settings.load_profile("graphprune")


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()

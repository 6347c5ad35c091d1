"""One thread to each test process: threads of several processes that wait for one another on the same
cores cost more than they bring. And the zoo is whole in each, whichever files are collected there."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch

import deform  # noqa: F401
import experts  # noqa: F401
import kinds  # noqa: F401

"""One thread to each test process: threads of several processes that wait for one another on the same
cores cost more than they bring."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

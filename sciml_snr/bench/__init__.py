"""Problems times methods times learning rates times seeds, from one file: ``sciml-snr bench``."""

from __future__ import annotations

import os

os.environ.setdefault("DDE_BACKEND", "pytorch")  # of workers on other machines, too

from ..runs import run as _run  # noqa: F401 (first: it imports DeepXDE without its announcement)
from . import tables
from .plan import KEYS, Job, Plan, read_plan
from .rows import BACKENDS, append_missing, missing, read
from .training import run_job

__all__ = [
    "BACKENDS",
    "KEYS",
    "Job",
    "Plan",
    "append_missing",
    "missing",
    "read",
    "read_plan",
    "run_job",
    "tables",
]

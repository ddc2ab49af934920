"""What a run of :mod:`benchmarks.fields` is told, and the options of ``fit_field`` it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Run:
    """One method on one draw. ``size``: samples; ``lr``: 0 for the default."""

    task: str
    case: str
    size: int
    noise: float
    seed: int
    method: str
    lr: float = 0.0


def frequencies(first: float, hidden: float) -> dict[str, Any]:
    """Options of a fit whose network starts with these."""
    return {"network_options": {"first_omega_0": first, "hidden_omega_0": hidden}}


def thresholds_at(*values: float) -> dict[str, dict[str, Any]]:
    """Name -> options of a fit whose gate has this threshold."""
    return {f"z {z:g}": {"gate": {"z": z}} for z in values}


def options_of(run: Run, others: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What a method gives to ``fit_field``; others: method -> options of what else was tried."""
    options = dict(others.get(run.method, {}))
    options |= {"optimizer": "adam"} if run.method == "Adam" else {}
    return options | ({"lr": run.lr} if run.lr else {})

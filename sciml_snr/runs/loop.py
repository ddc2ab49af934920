"""What every long run needs: a clean stop, a device that works, the state of the random numbers."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch


@contextlib.contextmanager
def first_interrupt(handle: Callable[[], None]) -> Iterator[None]:
    """Turn the first Ctrl-C inside into a call of ``handle``; a second one acts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)

    def once(*_: Any) -> None:
        signal.signal(signal.SIGINT, previous)
        handle()

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def rng_state() -> dict[str, Any]:
    """The state of torch's and numpy's global generators: tensors and numbers only."""
    numpy_state: Any = np.random.get_state(legacy=True)
    return {
        "torch_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),
        "numpy_rng": [
            numpy_state[0],
            torch.tensor(numpy_state[1].astype(np.int64)),
            *numpy_state[2:],
        ],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Continue from :func:`rng_state`; what else the mapping holds does not matter."""
    torch.set_rng_state(state["torch_rng"])
    torch.cuda.set_rng_state_all(state["cuda_rng"])
    kind, keys, *rest = state["numpy_rng"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))


def check_device(device: str) -> None:
    """Refuse a device that cannot be used.

    Raises:
        ValueError: says which and why.
    """
    try:
        torch.zeros(1, device=device).item()  # of "meta" there is no value
    except Exception as error:  # torch raises whatever its backends raise
        reason = str(error).splitlines()[0]
        raise ValueError(f"The device {device!r} cannot be used: {reason}") from None


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global generators start from ``seed`` inside, and go on afterwards as if nothing had been."""
    before = rng_state()
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        set_rng_state(before)


def check_memory(needed: float, what: str) -> None:
    """Refuse what would not fit into this machine's memory.

    Args:
        needed: bytes.
        what: for the message.

    Raises:
        ValueError: says how much it would take, and how much there is.
    """
    if not hasattr(os, "sysconf"):
        return
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if not math.isfinite(needed) or needed > there:
        raise ValueError(
            f"{what} would take about {needed / 1e9:,.0f} GB of memory, and this machine has "
            f"{there / 1e9:,.0f} GB."
        )

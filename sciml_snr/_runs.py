"""What every long run needs: interruption, rows of a log, checkpoints, the state of chance."""

from __future__ import annotations

import contextlib
import csv
import inspect
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
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


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file, with a header where it is the first."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def rewrite_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a CSV file by these rows."""
    path.unlink(missing_ok=True)
    for row in rows:
        append_row(path, row)


def save_atomically(state: Any, path: Path) -> None:
    """``torch.save`` that leaves the previous file whole until the new one is."""
    partial = path.with_name(path.name + ".partial")
    torch.save(state, partial)
    partial.replace(path)


def defaults_of(call: Callable[..., Any]) -> dict[str, Any]:
    """What a call's arguments are where they are not given."""
    return {name: p.default for name, p in inspect.signature(call).parameters.items()}


def check_resumed(
    where: Path, asked: Mapping[str, Any], default: Mapping[str, Any], saved: Mapping[str, Any]
) -> None:
    """Refuse to resume a run under settings that are not its own.

    Args:
        where: its folder.
        asked: settings by name, as the caller has them; None or empty is no wish.
        default: what they are where the caller says nothing; that is no wish either.
        saved: the run's, from JSON.

    Raises:
        ValueError: names the first that differs.
    """
    for name, value in asked.items():
        own = saved.get(name)
        unsaid = value in (None, {}, default.get(name))
        if not unsaid and as_json(value) != own:
            raise ValueError(
                f"The run in {where} has {name} = {'its default' if own is None else repr(own)} "
                f"and not {value!r}. Resume it with its own, or start another run elsewhere."
            )


def as_json(value: Any) -> Any:
    """What is read again where the value is written to a JSON file: lists for tuples."""

    def plain(x: Any) -> Any:
        return x.item() if hasattr(x, "item") else str(x)

    return json.loads(json.dumps(value, default=plain))


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
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device {device!r} cannot be used: {error}") from None


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

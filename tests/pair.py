"""Two processes that wait for work: starting them takes longer than most of their tests."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

SECONDS = 120
"""What an answer may take."""


class Pair:
    """Runs functions of test modules in two processes of one process group (gloo)."""

    def __init__(self, pipes: list[Any]) -> None:
        self._pipes = pipes

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> list[Any]:
        """What ``function(rank, ...)`` returns in either; of an error, its type and message."""
        for pipe in self._pipes:
            pipe.send((function, args, options))
        found = []
        for pipe in self._pipes:
            assert pipe.poll(SECONDS), "no answer: one process waits for the other"
            found.append(pipe.recv())
        return found


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    """A pair that lives for some tests; ``folder`` is where the two meet."""
    context = mp.get_context("spawn")
    pipes, processes = [], []
    for rank in range(2):
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, rank, str(folder / "meeting")))
        process.start()
        pipes.append(here)
        processes.append(process)
    try:
        yield Pair(pipes)
    finally:
        for pipe in pipes:
            pipe.send(None)
        for process in processes:
            process.join(10)
            if process.is_alive():
                process.kill()


def _serve(pipe: Any, rank: int, meeting: str) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=20)
    torch.distributed.init_process_group(
        "gloo", f"file://{meeting}", rank=rank, world_size=2, timeout=wait
    )
    while (work := pipe.recv()) is not None:
        function, args, options = work
        try:
            found = function(rank, *args, **options)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        pipe.send(found)
    torch.distributed.destroy_process_group()

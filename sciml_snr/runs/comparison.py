"""Several runs of a problem, side by side."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.progress import Progress

from .config import as_json
from .folder import METRICS, SUMMARY, RunFolder, rewrite_rows
from .held_out import PENDING
from .options import ProblemConfig
from .run import PREDICTION, period, run_name, solve
from .summary import Summary, read_summary


def compare(
    configs: Sequence[ProblemConfig],
    out: str | Path,
    *,
    jobs: int = 1,
    progress: bool = True,
    format: str | None = None,
) -> list[Summary]:
    """Run several configs, each in a folder of its own under ``out``; finished ones are kept.

    Interrupted, it can be called again with the same ``out``: it does what is left.

    Args:
        configs: the runs.
        out: folder of the run folders and of ``comparison.csv``.
        jobs: runs at a time, one thread each.
        progress: draw a progress bar over the runs.
        format: write the comparison's figure in this format, too: "pdf", "svg".

    Returns:
        One summary per config, in their order.
    """
    from joblib import Parallel, delayed

    from .figure import comparison_figure

    configs = [config.resolved() for config in configs]
    kinds = {(c.problem, c.data, c.noise, c.points, str(c.settings)): c for c in configs}
    for config in kinds.values():
        config.build()  # refuse bad data before any work
    folders = [Path(out) / run_name(config) for config in configs]
    if len(set(folders)) < len(folders):
        raise ValueError("Two of the runs have the same problem, optimizer and seed.")
    for config, folder in zip(configs, folders, strict=True):
        _finished(config, folder)  # refuse a folder of another run before any work
    work = (
        delayed(_run_one)(config, folder) for config, folder in zip(configs, folders, strict=True)
    )
    with RunFolder(out, "comparison").locked():
        done = Parallel(n_jobs=min(jobs, len(configs)), return_as="generator")(work)
        with _progress_of(folders, configs) if progress else contextlib.nullcontext():
            summaries = list(done)
        rewrite_rows(Path(out) / "comparison.csv", [asdict(summary) for summary in summaries])
        comparison_figure(Path(out), folders, format)
    return summaries


@contextlib.contextmanager
def _progress_of(folders: Sequence[Path], configs: Sequence[ProblemConfig]) -> Iterator[None]:
    """A bar over runs in other processes, from the rows they have written."""
    total = sum(1 + -(-(c.iterations or 0) // period(c.iterations or 0)) for c in configs)
    stop = threading.Event()

    def rows() -> int:
        files = [folder / "metrics.csv" for folder in folders]
        return sum(len(file.read_bytes().splitlines()) - 1 for file in files if file.exists())

    def watch() -> None:
        while not stop.wait(1.0):
            bar.update(task, completed=rows())

    with Progress() as bar:
        task = bar.add_task(f"{len(folders)} runs", total=total)
        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            bar.update(task, completed=rows())


def _finished(config: ProblemConfig, folder: Path) -> Summary | None:
    """The summary of a finished run of a comparison; None where there is work left.

    Raises:
        FileExistsError: the folder holds a run with other settings.
        ValueError: a file in it is damaged.
    """
    from .figure import read_run

    run = RunFolder(folder, "problem")
    if not run.holds_run:
        run.check_free()
        return None
    if run.load()[0] != as_json(asdict(config)):
        raise FileExistsError(f"{folder} holds a run with other settings: choose another folder.")
    last = "figure.png"  # written last: without it, the run was killed on its way
    if not all((folder / name).exists() for name in (SUMMARY, PREDICTION, METRICS, last)):
        return None
    read_run(folder)
    summary = read_summary(folder)
    return None if summary.interrupted or summary.held_out_note == PENDING else summary


def _run_one(config: ProblemConfig, folder: Path) -> Summary:
    """One run of a comparison in a worker process; taken from its folder where it is finished."""
    torch.set_num_threads(1)
    summary = _finished(config, folder)
    if summary is None:
        resume = RunFolder(folder, "problem").holds_run
        summary = solve(config, folder, resume=resume, progress=False)
    if summary.interrupted:
        raise KeyboardInterrupt
    return summary

"""Runs that are killed, run out of disk or meet damaged files: what is lost, and what is stuck?

    python -m benchmarks.reliability [accidents | fuzz] [CASES]

writes benchmarks/results/reliability.csv: a row per class of trials, of both parts unless one is
named. A trial is a run in a process
of its own that is stopped somewhere; then the command is repeated, with ``--resume`` where there is
a checkpoint. It is stuck if that fails, and lost if it ends otherwise than a run that nothing
stopped: every bit of the networks counts, and every row but for its seconds. CASES (10,000) are
those of :mod:`benchmarks.fuzz`.
"""

from __future__ import annotations

import builtins
import contextlib
import csv
import errno
import hashlib
import importlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import fuzz, text
from benchmarks.harness import RESULTS, read
from sciml_snr.fields import fit, fit_image, fit_sdf
from sciml_snr.runs import comparison, run
from sciml_snr.runs.folder import CHECKPOINT, METRICS, rewrite_rows, unsealed
from sciml_snr.runs.options import ProblemConfig

PATH = RESULTS / "reliability.csv"
STEPS = 3
TRIALS = 24
"""At most so many per class and command."""

# --- Commands --------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
PIXELS = np.add.outer(np.linspace(0, 3, 10), np.linspace(0, 3, 12)) + RNG.normal(size=(10, 12)) / 4
ANGLES = np.linspace(0, 6, 30)
CURVE = np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1) + 0.02 * RNG.normal(size=(30, 2))
SMALL: dict[str, Any] = {
    "network_options": {"hidden_features": 4, "hidden_layers": 1},
    "steps": STEPS,
    "progress": False,
}


def solve(folder: Path, resume: bool) -> None:
    config = ProblemConfig("convection", points=8, iterations=STEPS)
    run.solve(config, folder, resume=resume, progress=False)


def image(folder: Path, resume: bool) -> None:
    fit_image(PIXELS, out=folder, resume=resume, **SMALL)


def shape(folder: Path, resume: bool) -> None:
    fit_sdf(CURVE, out=folder, resume=resume, **SMALL)


def compare(folder: Path, resume: bool) -> None:
    configs = [
        ProblemConfig("convection", optimizer=name, points=8, iterations=2)
        for name in ("adamw", "snr_adam")
    ]
    comparison.compare(configs, folder, progress=False)


COMMANDS: dict[str, Callable[[Path, bool], None]] = {
    "solve": solve,
    "fit-image": image,
    "fit-sdf": shape,
    "compare": compare,
}


def bits(folder: Path) -> str:
    """Equal for runs that ended alike: networks to the bit, and rows without seconds."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob(CHECKPOINT)):
        whole = torch.load(io.BytesIO(unsealed(file)), weights_only=True)
        for name, value in whole["state"]["network"].items():
            found.update(name.encode() + value.numpy().tobytes())
        for table in (file.with_name(METRICS), folder / "comparison.csv"):
            if table.exists():
                with table.open(newline="") as rows:
                    for row in csv.DictReader(rows):
                        row.pop("seconds")
                        found.update(repr(row).encode())
    names = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if ".lock" not in p.name)
    return found.hexdigest() + " ".join(names)


# --- Processes that something happens to ------------------------------------------------------


class Events:
    """Calls that change files below a folder are counted, and at one of them something happens.

    Args:
        folder: whose files.
        at: the number of the call, from 1 on.
        happens: gets the call's name.
        torn: whether a write has been half done by then.
    """

    def __init__(
        self, folder: Path, at: int, happens: Callable[[str], None], torn: bool = True
    ) -> None:
        self.folder, self.at, self.happens, self.torn = str(folder), at, happens, torn
        self.count = 0

    def _event(self, name: str, half: Callable[[], Any] = lambda: None) -> None:
        self.count += 1
        if self.count >= self.at:
            if self.torn:
                half()
            self.happens(name)

    def watch(self) -> None:
        """From now on, in this process."""
        real = {name: getattr(os, name) for name in ("replace", "unlink", "fsync", "mkdir")}

        def watched(name: str) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                if name == "fsync" or self.folder in str(args[0]):
                    self._event(name)
                return real[name](*args, **kwargs)

            return call

        for name in real:
            setattr(os, name, watched(name))
        plain = builtins.open

        def opened(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            ours = set(mode) & set("wax") and self.folder in str(file)
            if ours:
                self._event("open")
            found = plain(file, mode, *args, **kwargs)
            return _Watched(found, self._event) if ours else found

        builtins.open = opened  # type: ignore[assignment]


class _Watched:
    """An open file: a write can be stopped in its middle."""

    def __init__(self, file: Any, event: Callable[..., None]) -> None:
        self._file, self._event = file, event

    def write(self, data: Any) -> Any:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._event("write", half)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _Watched:
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()


class Child:
    """A process that runs a command, and tells how it ended: "", or its error.

    Args:
        work: what it does; what it returns as a text is told, too.
    """

    def __init__(self, work: Callable[[], str | None]) -> None:
        self.reads, writes = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.reads)
            told = _told(work)
            with os.fdopen(writes, "wb") as pipe:
                pipe.write(told.encode(errors="replace"))
            os._exit(0)
        os.close(writes)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> str:
        """Wait for it; "killed" if it was."""
        with os.fdopen(self.reads, "rb") as pipe:
            told = pipe.read().decode()
        status = os.waitpid(self.pid, 0)[1]
        return "killed" if os.WIFSIGNALED(status) else told


def _told(work: Callable[[], str | None]) -> str:
    run.Recorder.checkpoint_seconds = fit.CHECKPOINT_SECONDS = -1.0  # after every step
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        with fuzz.small_figures():
            return work() or ""
    except BaseException as error:
        return f"{type(error).__name__}: {error}"


def kill_here(_: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full_here(_: str) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# --- Trials ---------------------------------------------------------------------------------------


@dataclass
class Row:
    """Of the results file."""

    kind: str
    trials: int = 0
    lost: int = 0
    stuck: int = 0
    tracebacks: int = 0
    seconds: float = 0.0


def import_all(root: Path) -> None:
    """What the commands import on their way, here: otherwise every child does it anew."""
    for name, command in COMMANDS.items():
        folder = root / f"imports-{name}"

        def work(command: Any = command, folder: Path = folder) -> str:
            command(folder, False)
            return " ".join(sys.modules)

        for module in Child(work).ended().split():
            if module not in sys.modules:
                with contextlib.suppress(Exception):
                    importlib.import_module(module)


class Campaign:
    """Trials of one command, in folders of their own."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.command, self.root = name, COMMANDS[name], root
        self.trial = 0
        self.random = random.Random(name)
        folder = self.fresh()
        started = time.perf_counter()
        assert Child(lambda: self.command(folder, False)).ended() == ""
        self.seconds = time.perf_counter() - started
        self.bits = bits(folder)
        counted = self.fresh()

        def count() -> str:
            events = Events(counted, sys.maxsize, kill_here)
            events.watch()
            self.command(counted, False)
            return str(events.count)

        self.events = int(Child(count).ended())

    def some(self) -> list[int]:
        """Numbers of events, from the first to the last."""
        every = range(1, self.events + 1)
        return sorted(self.random.sample(every, min(TRIALS, self.events)))

    def fresh(self) -> Path:
        """A folder's path that nothing is at."""
        self.trial += 1
        return self.root / f"{self.name}-{self.trial}"

    def begin(
        self, folder: Path, happens: Callable[[str], None], at: int, torn: bool = True
    ) -> Child:
        """Start the command, or go on with it, and let something happen at its n-th event."""

        def work() -> None:
            Events(folder, at, happens, torn).watch()
            self.command(folder, self.is_begun(folder))

        return Child(work)

    def is_begun(self, folder: Path) -> bool:
        return (folder / CHECKPOINT).exists()

    def finish(self, row: Row, folder: Path) -> None:
        """Repeat the command undisturbed, and judge."""
        begun = self.is_begun(folder)
        told = Child(lambda: self.command(folder, begun)).ended()
        row.trials += 1
        if told:
            row.stuck += 1
            print(f"stuck: {row.kind}, trial {self.trial}: {told}", flush=True)
        elif bits(folder) != self.bits:
            row.lost += 1
            print(f"lost: {row.kind}, trial {self.trial}: {bits(folder)}, {self.bits}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)

    def kills_by_event(self, row: Row) -> None:
        """At every call that changes a file: before it, and of a write in its middle."""
        for at in self.some():
            folder = self.fresh()
            assert self.begin(folder, kill_here, at).ended() == "killed"
            self.finish(row, folder)

    def kills_again(self, row: Row) -> None:
        """Three times in a row, while it starts and while it is resumed."""
        for _ in range(TRIALS // 3):
            folder = self.fresh()
            for _ in range(3):
                at = self.random.randint(1, self.events)
                self.begin(folder, kill_here, at).ended()
            self.finish(row, folder)

    def kills_by_time(self, row: Row) -> None:
        for _ in range(TRIALS // 2):
            folder = self.fresh()
            child = Child(lambda folder=folder: self.command(folder, False))  # type: ignore[misc]
            time.sleep(self.random.uniform(0, self.seconds))
            child.kill()
            child.ended()
            self.finish(row, folder)

    def full_disk(self, row: Row) -> None:
        """At every call that changes a file, and at all of them afterwards."""
        for at in self.some():
            folder = self.fresh()
            told = self.begin(folder, full_here, at).ended()
            plain = told.startswith("OSError: Cannot ") and "No space left" in told
            if told and not plain:  # what only cleans up may go wrong silently
                row.tracebacks += 1
                print(f"message: {row.kind}, event {at}: {told}", flush=True)
            for file in folder.rglob(CHECKPOINT):
                unsealed(file)
            self.finish(row, folder)

    def two_processes(self, row: Row) -> None:
        """A second one comes at some event of the first."""
        for _ in range(TRIALS // 5):
            folder = self.fresh()
            asked, answer = os.pipe(), os.pipe()
            # Not before the first has written its name beside the lock.
            at, stopped = self.random.randint(9, self.events - 4), False

            def wait(_: str) -> None:
                nonlocal stopped
                if not stopped:
                    stopped = True
                    os.write(asked[1], b"x")  # noqa: B023
                    os.read(answer[0], 1)  # noqa: B023

            first = self.begin(folder, wait, at, torn=False)
            os.read(asked[0], 1)
            begun = self.is_begun(folder)
            second = Child(lambda folder=folder, b=begun: self.command(folder, b))  # type: ignore[misc]
            told = second.ended()
            os.write(answer[1], b"x")
            if not told.startswith("BlockingIOError") or f"process {first.pid} on" not in told:
                row.tracebacks += 1
                print(f"message: {row.kind}, event {at}: {told}", flush=True)
            if ended := first.ended():
                row.lost += 1
                print(f"first: {row.kind}, event {at}: {ended}", flush=True)
            for end in (*asked, *answer):
                os.close(end)
            self.finish(row, folder)


CLASSES: dict[str, Callable[[Campaign, Row], None]] = {
    "kill -9 at a change of a file": Campaign.kills_by_event,
    "kill -9 three times": Campaign.kills_again,
    "kill -9 at any time": Campaign.kills_by_time,
    "disk full": Campaign.full_disk,
    "two processes in one folder": Campaign.two_processes,
}


@contextlib.contextmanager
def timed(row: Row) -> Iterator[Row]:
    started = time.perf_counter()
    yield row
    row.seconds = time.perf_counter() - started
    print(row, flush=True)


def accidents(root: Path, kinds: Iterable[str] = CLASSES) -> Iterator[Row]:
    """Kills, full disks and second processes: a row per class and command."""
    import_all(root)
    for name in COMMANDS:
        campaign = Campaign(name, root)
        print(f"{name}: {campaign.events} events, {campaign.seconds:.2f} s", flush=True)
        for kind in kinds:
            with timed(Row(f"{kind}: {name}")) as row:
                CLASSES[kind](campaign, row)
            yield row


def fuzzed(root: Path, cases: int) -> Iterator[Row]:
    """Nasty arguments and damaged files: a row per kind."""
    rows = {kind: Row(f"fuzz: {kind}") for kind in fuzz.KINDS}
    root.mkdir()
    world = fuzz.World(root)
    fuzz.limit_memory()
    for case, outcome in fuzz.run_all(world, range(cases)):
        row = rows[case.kind]
        row.trials += 1
        row.seconds += outcome.seconds
        row.lost += outcome.fault.startswith("touched")
        row.stuck += outcome.fault == "hang"
        row.tracebacks += bool(outcome.fault) and not outcome.fault.startswith(("touched", "hang"))
        if outcome.fault:
            print(case.seed, case.kind, ascii(outcome.fault), ascii(case.arguments), flush=True)
    yield from rows.values()


def write(rows: Iterable[Row]) -> None:
    """Rows replace those of their classes."""
    names = ("class", *[field.name for field in fields(Row)][1:])
    known = {row["class"]: row for row in read(PATH)}
    for row in rows:  # as they come
        values = [*astuple(row)[:-1], f"{row.seconds:.1f}"]
        known[row.kind] = dict(zip(names, map(str, values), strict=True))
        rewrite_rows(PATH, sorted(known.values(), key=lambda row: row["class"].startswith("fuzz")))


def table() -> str:
    """Trials and what went wrong in them, per class."""
    rows = read(PATH)
    names = ("trials", "lost", "stuck", "tracebacks")
    lines = [[row["class"], *(row[name] for name in names)] for row in rows]
    sums = [str(sum(int(row[name]) for row in rows)) for name in names]
    return text.table("class|trials|lost|stuck|tracebacks", [*lines, ["all", *sums]])


def main(part: str = "", cases: str = "10000") -> None:
    with tempfile.TemporaryDirectory() as folder:
        if part != "fuzz":
            write(accidents(Path(folder)))
        if part != "accidents":
            write(fuzzed(Path(folder) / "fuzz", int(cases)))
    print(table())


if __name__ == "__main__":
    main(*sys.argv[1:])

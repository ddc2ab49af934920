"""The folder of a run: nothing in it is ever half written, and no run in it can be lost.

A file is written under another name, brought to the disk and then put in its place, so that a kill
or a full disk leaves the one before. ``checkpoint.pt``, ``fit.npz`` and ``prediction.npz`` carry a
checksum. A lock keeps a second process out. A folder holds a run as soon as it has a
``checkpoint.pt``, and the checkpoint holds all of it: ``config.json`` is a copy to read.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import secrets
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from ..processes import is_first

FORMAT = 1
"""Of run folders, stated in ``config.json`` and ``checkpoint.pt``."""

CONFIG, CHECKPOINT, METRICS, SUMMARY = "config.json", "checkpoint.pt", "metrics.csv", "summary.json"

FILES = (
    *(CONFIG, CHECKPOINT, METRICS, SUMMARY, "prediction.npz", "fit.npz", "figure.png"),
    *("figure.pdf", "figure.svg"),
    *("memorization.csv", "memorization.json", "memorization.png"),
)
"""All that a run writes."""

_DIGEST = b"sha256:"
_SEALED = len(_DIGEST) + 64


class RunFolder:
    """A run's folder; it need not exist yet.

    Args:
        path: the folder.
        kind: of run: "problem", "field", "image" or "sdf".
        anew: how a user chooses another folder, for messages.

    Raises:
        ValueError: one of the run's files is a link, or no file at all.
        NotADirectoryError: there is a file of the folder's name.
    """

    def __init__(self, path: str | Path, kind: str, anew: str = "--out") -> None:
        self.path = Path(path)
        self.kind = kind
        self.anew = anew
        if self.path.exists() and not self.path.is_dir():
            raise NotADirectoryError(f"{self.path} is no folder: choose another ({anew}).")
        for name in FILES:
            check_plain(self.path / name)

    @property
    def holds_run(self) -> bool:
        """Whether there is a run that can be resumed."""
        return (self.path / CHECKPOINT).exists()

    def check_free(self) -> None:
        """Refuse a folder in which a new run would overwrite something.

        What a run left that ended before its first checkpoint is nothing that could be lost.

        Raises:
            FileExistsError: there is a run already, or a file of one of a run's names that is not
                a run's.
        """
        if self.holds_run:
            raise FileExistsError(
                f"{self.path} already holds a run: resume it (--resume), or choose another folder "
                f"({self.anew})."
            )
        config = self.path / CONFIG
        there = [name for name in FILES if (self.path / name).exists()]
        if there and not _is_ours(config):
            name = CONFIG if CONFIG in there else there[0]
            raise FileExistsError(
                f"{self.path / name} is not of a run of sciml-snr, and would be overwritten: "
                f"choose another folder ({self.anew})."
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """No other process can run in the folder inside; makes the folder.

        Raises:
            OSError: another process does, which the message names; or nothing can be written here.
        """
        with guarded(self.path, f"make {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
        with lock(self.path / ".lock", str(self.path)):
            for partial in self.path.glob(".*.partial"):  # of a process that was killed
                _remove(partial)
            yield

    def begin(self, config: Mapping[str, Any]) -> None:
        """Start a run: write ``config.json``; what was left of an earlier start goes.

        Raises:
            FileExistsError: as for :meth:`check_free`.
        """
        self.check_free()
        for name in FILES:
            if name != CONFIG:
                _remove(self.path / name)
        self.write_json(CONFIG, self.described(config))

    def described(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A config as ``config.json`` has it: with the folder's format and kind."""
        return {**config, "format": FORMAT, "kind": self.kind}

    def save(self, config: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Write the checkpoint: the config, and all that the next step depends on.

        Raises:
            OSError: it cannot be written; the checkpoint before is kept.
        """
        whole = {"config": json.dumps(self.described(config)), "state": dict(state)}
        write_state(self.path / CHECKPOINT, whole)

    def load(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The config and the state of the run, checked against damage.

        Raises:
            FileNotFoundError: there is no run.
            ValueError: the checkpoint is damaged or of another version or kind, or config.json is
                not the checkpoint's; the message says what to do.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            raise FileNotFoundError(
                f"There is no run to resume in {self.path}: no {CHECKPOINT} there."
            )
        try:
            data = unsealed(path)
            with readable(path):
                whole = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
                if not isinstance(whole, dict):
                    raise ValueError("it holds no run")
                config, state = json.loads(whole["config"]), dict(whole["state"])
            self._check_kind(config, path)
            found = self.config()
        except ValueError as error:
            raise ValueError(f"{error} Put back the file, or remove {self.path}.") from None
        if _without_budget(found) != _without_budget(config):
            raise ValueError(
                f"{self.path / CONFIG} is not that of {CHECKPOINT}: put back what was changed "
                f"there, or begin anew in another folder ({self.anew})."
            )
        return _plain(config), state

    def config(self) -> dict[str, Any]:
        """``config.json``.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of another version or kind.
        """
        path = self.path / CONFIG
        found = read_json(path)
        self._check_kind(found, path)
        return found

    def settings(self) -> dict[str, Any]:
        """``config.json`` without what the folder says of itself; raises as :meth:`config`."""
        return _plain(self.config())

    def _check_kind(self, found: Any, path: Path) -> None:
        if not isinstance(found, dict) or not {"format", "kind"} <= found.keys():
            raise ValueError(f"{path} is not of a run of sciml-snr.")
        if found["format"] != FORMAT:
            raise ValueError(
                f"{path} is of format {found.get('format')!r}, and this version of sciml-snr reads "
                f"{FORMAT}: begin anew in another folder ({self.anew})."
            )
        if found.get("kind") != self.kind:
            raise ValueError(
                f"{path} is of a run of another kind ({found['kind']}), and not of this one "
                f"({self.kind}): choose another folder ({self.anew})."
            )

    def append_row(self, row: Mapping[str, Any]) -> None:
        """Add a row to ``metrics.csv``."""
        append_row(self.path / METRICS, row)

    def rewrite_rows(self, rows: Iterable[Mapping[str, Any]], name: str = METRICS) -> None:
        """Replace ``metrics.csv``, or another CSV file, by these rows."""
        rewrite_rows(self.path / name, rows)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; what is not finite becomes null."""
        text = json.dumps(_finite(value), indent=2) + "\n"
        write_atomically(self.path / name, text.encode())

    def write_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Write an .npz file with a checksum."""
        write_arrays(self.path / name, arrays)

    def write_by(self, save: Callable[[Path], Any], name: str) -> None:
        """Let a function write a file."""
        save(self.path / name)

    def write_figure(self, name: str, figure: Any) -> None:
        """Write a matplotlib figure."""
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=130, format="png")
        write_atomically(self.path / name, buffer.getvalue())


class FollowersFolder(RunFolder):
    """A run's folder in a process that makes the same run as the first one of several: it may read
    there what the run is to be resumed from, and writes nothing."""

    def check_free(self) -> None:
        """The first process does."""

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The first process has the lock."""
        yield

    def _write_nothing(self, *_: Any, **__: Any) -> None:
        """The first process writes."""

    begin = save = append_row = rewrite_rows = _write_nothing
    write_json = write_arrays = write_by = write_figure = _write_nothing


def run_folder(path: str | Path, kind: str, anew: str = "--out") -> RunFolder:
    """A run's folder, in which the first of several processes writes (``torchrun``).

    Args, errors: as for :class:`RunFolder`.
    """
    return (RunFolder if is_first() else FollowersFolder)(path, kind, anew)


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("format", "kind")}


def _without_budget(config: Mapping[str, Any]) -> dict[str, Any]:
    """A resumed run may get another one, which is in the checkpoint first."""
    kept = {k: v for k, v in config.items() if k not in ("iterations", "steps")}
    if isinstance(kept.get("options"), dict):
        kept["options"] = _without_budget(kept["options"])
    return kept


def _is_ours(config: Path) -> bool:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"format", "kind"} <= found.keys()


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _remove(path: Path) -> None:
    check_plain(path)
    with guarded(path, f"remove {path}"):
        path.unlink(missing_ok=True)


def check_plain(path: Path) -> None:
    """Refuse a path that is a link, a folder or a device: nothing is written through it.

    Raises:
        ValueError: names it.
    """
    if path.is_symlink():
        raise ValueError(f"{path} is a link to {os.readlink(path)}: it is not followed. Remove it.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file: remove it.")


@contextlib.contextmanager
def lock(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file.

    Raises:
        BlockingIOError: another process holds it, which the message names.
        OSError: it cannot be made.
    """
    owner = path.with_name(path.name + ".owner")
    held = FileLock(path, timeout=0)
    try:
        with guarded(path, f"lock {what}"):
            held.acquire()
    except Timeout:
        by = "another process"
        with contextlib.suppress(OSError):
            by = owner.read_text(encoding="utf-8").strip() or by
        raise BlockingIOError(f"{what} is in use by {by}: wait for it, or end it.") from None
    try:
        write_atomically(owner, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink(missing_ok=True)
        held.release()


@contextlib.contextmanager
def guarded(path: Path, what: str, kept: bool = False) -> Iterator[None]:
    """Say of an error of the file system what could not be done, and that nothing is lost."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        rest = f" The {path.name} before is kept." if kept and path.exists() else ""
        raise type(error)(f"Cannot {what}: {reason}.{rest}") from None


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file, or leave it as it was.

    Raises:
        OSError: it cannot be written.
    """
    check_plain(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        with guarded(path, f"write {path}", kept=True):
            with open(partial, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def check_can_write(path: Path) -> None:
    """Refuse a file that cannot be written, before there is anything to lose.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it is a folder or a link.
        OSError: says why it cannot be written.
    """
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {path.parent} to put {path.name} into.")
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path} is a link that leads nowhere: remove it.")
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file that could be overwritten.")
    trial = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    with guarded(path, f"write {path}"):
        trial.touch(exist_ok=False)
        trial.unlink()
        if path.exists():
            with open(path, "ab"):
                pass


def sealed(data: bytes) -> bytes:
    """A zip archive with its checksum as the archive's comment; any reader of zip files reads it.

    Raises:
        ValueError: it is no zip archive, or has a comment.
    """
    if data[-22:-18] != b"PK\5\6" or data[-2:] != b"\0\0":
        raise ValueError("This is no zip archive without a comment.")
    body = data[:-2] + _SEALED.to_bytes(2, "little")
    return body + _DIGEST + hashlib.sha256(body).hexdigest().encode()


def unsealed(path: Path) -> bytes:
    """The bytes of a file that :func:`sealed` made.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another, or not as it was written.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is not a file.")
    with guarded(path, f"read {path}"):
        data = path.read_bytes()
    if data[-_SEALED:-64] != _DIGEST:
        raise ValueError(
            f"{path} is not a file of sciml-snr with a checksum, or its end is missing."
        )
    if hashlib.sha256(data[:-_SEALED]).hexdigest().encode() != data[-64:]:
        raise ValueError(f"{path} is damaged: its checksum is another one.")
    return data


def write_state(path: Path, state: Any) -> None:
    """``torch.save`` with a checksum, which ``torch.load`` reads as ever.

    Raises:
        OSError: it cannot be written; the file before is kept.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomically(path, sealed(buffer.getvalue()))


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz file with a checksum, which numpy reads as ever."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_atomically(path, sealed(buffer.getvalue()))


def read_arrays(path: Path) -> dict[str, Any]:
    """The arrays of :func:`write_arrays`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    data = unsealed(path)
    with readable(path), np.load(io.BytesIO(data)) as archive:
        return dict(archive)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"There is no {path}.")
    with readable(path):
        found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it holds {found!r}.")
    return found


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever a library says of a file that it cannot read becomes one error that names the file.

    Raises:
        ValueError: names it.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged ({_reason(error)}).") from None


@contextlib.contextmanager
def blamed(path: Path) -> Iterator[None]:
    """For work that depends on a file alone: an error that no message was written for becomes one
    that names the file.

    A right checksum says that the file is as it was written, not that it was written by us.

    Raises:
        ValueError: the file holds something else than it should.
    """
    try:
        yield
    except (ValueError, OSError, FloatingPointError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged ({_reason(error)}).") from None


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    if isinstance(error, zipfile.BadZipFile):
        return "it is no archive"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a CSV file, with a header where it is the first. What a row lacks is empty.

    Raises:
        OSError: it cannot be written.
        ValueError: the file has no column for an entry.
    """
    check_plain(path)
    text = io.StringIO(newline="")
    with guarded(path, f"write {path}"):
        header: list[str] = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                header = next(csv.reader(file), [])
        if header and (new := [name for name in row if name not in header]):
            raise ValueError(f"{path} has no column {', '.join(map(repr, new))}.")
        writer = csv.DictWriter(text, fieldnames=header or list(row))
        if not header:
            writer.writeheader()
        writer.writerow(row)
        with open(path, "ab") as file:
            file.write(text.getvalue().encode())


def rewrite_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace a CSV file by these rows; no rows, no file.

    Raises:
        OSError: it cannot be written.
    """
    rows = list(rows)
    if not rows:
        _remove(path)
        return
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=names)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def cut_torn_row(path: Path) -> None:
    """Cut off a last row of a CSV file that a killed process left without its end."""
    if not path.exists():
        return
    with guarded(path, f"read {path}"):
        data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        write_atomically(path, data[: data.rfind(b"\n") + 1])

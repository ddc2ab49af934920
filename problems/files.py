"""Problems in files of the user's own."""

from __future__ import annotations

import functools
import hashlib
import re
import sys
import traceback
import types
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import deepxde as dde
import torch

from sciml_snr.text_files import read_text

from .base import Problem

SUFFIX = ".py"
"""Of a name that is a file's."""


def is_file(name: str) -> bool:
    """Whether a problem's name is that of a file."""
    return name.endswith(SUFFIX)


def load(path: str | Path) -> type[Problem]:
    """The problem that a Python file defines: its one subclass of :class:`Problem`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be run, or defines no problem, or several; names file and line.
    """
    path = Path(path).resolve()
    return _loaded(path, read_text(path))


@functools.lru_cache(maxsize=32)
def _loaded(path: Path, text: str) -> type[Problem]:
    module = types.ModuleType(f"sciml_snr_problem_{path.stem}_{digest(path)}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where pickle and dataclasses look for it
    with blamed(path):
        exec(compile(text, str(path), "exec"), module.__dict__)
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Problem)
        and value.__module__ == module.__name__
    ]
    leaves = [cls for cls in own if not any(cls in other.__mro__[1:] for other in own)]
    if len(leaves) != 1:
        found = ", ".join(cls.__name__ for cls in leaves) or "none"
        raise ValueError(
            f"{path.name} must define one subclass of sciml_snr.problems.Problem, and defines "
            f"{found}. `sciml-snr new-problem NAME` writes a file to start from."
        )
    (cls,) = leaves
    if "name" not in vars(cls):
        cls.name = path.stem
    _check_class(path, cls)
    return cls


def _check_class(path: Path, cls: type[Problem]) -> None:
    """Refuse a class that lacks something.

    Raises:
        ValueError: names what.
    """
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ValueError(f"{path.name}: {cls.__name__} has no method {', '.join(missing)}.")
    if not hasattr(cls, "outputs") or not isinstance(cls.outputs, tuple) or not cls.outputs:
        raise ValueError(f'{path.name}: {cls.__name__} needs outputs, such as outputs = ("u",).')
    if not cls.ranges and cls.domain is Problem.domain:
        raise ValueError(
            f'{path.name}: {cls.__name__} needs ranges, such as ranges = {{"t": (0.0, 1.0)}}.'
        )
    if cls.ranges and tuple(cls.ranges) != tuple(cls.coordinates):
        raise ValueError(
            f"{path.name}: the coordinates of {cls.__name__} are {', '.join(cls.coordinates)}, and "
            f"its ranges are of {', '.join(cls.ranges)}."
        )
    if cls.outputs[: len(cls.measured)] != tuple(cls.measured):
        raise ValueError(f"{path.name}: what is measured must be the first of the outputs.")
    missing = [name for name in cls.unknown_names if name not in cls.guesses]
    if missing and cls.unknown is Problem.unknown:
        raise ValueError(f"{path.name}: there is no guess of {', '.join(missing)}.")


def digest(path: str | Path) -> str:
    """Equal for files of equal text."""
    return hashlib.sha256(read_text(path).encode()).hexdigest()[:16]


@contextmanager
def blamed(path: str | Path) -> Iterator[None]:
    """An error that the code of a user's file has made becomes one that names its line.

    Raises:
        ValueError: says file, line and what went wrong.
    """
    try:
        yield
    except SyntaxError as error:
        raise ValueError(f"{Path(path).name}, line {error.lineno}: {error.msg}.") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = str(Path(path).resolve())
        lines = [frame.lineno for frame in frames if frame.filename == own]
        is_ours = isinstance(error, (ValueError, OSError)) and frames[-1].filename != own
        if not lines or is_ours:
            raise
        what = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{Path(path).name}, line {lines[-1]}: {kind}{what}") from error


def check_runs(problem: Problem, path: str | Path) -> None:
    """Try a problem of a user's file once, before any work: its data, network, and every term.

    Raises:
        ValueError: something in it does not work; names the line where it can.
    """
    path = Path(path)
    with blamed(path):
        if not problem.num_domain and type(problem).data is Problem.data:
            raise ValueError(
                f"{path.name}: num_domain is 0, so that the equation would hold nowhere between "
                "the measurements: set it to some hundred."
            )
        network = problem.network()
        model = problem.model(network)
        x = torch.as_tensor(model.data.train_points()[:8], dtype=torch.get_default_dtype())
        x.requires_grad_()
        y = network(x)
        if y.shape != (len(x), len(problem.outputs)):
            raise ValueError(
                f"{path.name}: the network gives {tuple(y.shape)[1:]} numbers a point, and "
                f"{problem.name} has {len(problem.outputs)} outputs."
            )
        dde.grad.clear()
        try:
            found: Any = problem.residual(x, y)
        finally:
            dde.grad.clear()
        found = found if isinstance(found, (list, tuple)) else [found]
        for part in found:
            if not isinstance(part, torch.Tensor):
                raise ValueError(
                    f"{path.name}: residual() returns {part!r}: it must return a tensor, or a list "
                    "of tensors, one for each equation."
                )
            if tuple(getattr(part, "shape", ())) != (len(x), 1):
                raise ValueError(
                    f"{path.name}: residual() gives the shape {tuple(getattr(part, 'shape', ()))} "
                    f"for {len(x)} points: it must be ({len(x)}, 1), one for each equation."
                )
        problem.weights()


def template(name: str, file: str) -> str:
    """The text of a new problem's file, which runs as it is.

    Args:
        name: the problem's.
        file: the file's, for its first lines.
    """
    source = resources.files(__package__) / "template.py"
    text = source.read_text(encoding="utf-8")
    cls = "".join(part.capitalize() for part in re.split(r"[^0-9A-Za-z]+", name)) or "MyProblem"
    cls = cls if cls[0].isalpha() else f"Problem{cls}"
    text = text.replace("class MyProblem", f"class {cls}", 1)
    return text.replace("NAME", name, 1).replace("FILE", file)

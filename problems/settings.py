"""What of a problem can be set: its domain, its guesses, its known constants."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

from .base import Problem

_OWN = tuple(inspect.signature(Problem.__init__).parameters)


def constants(cls: type[Problem]) -> dict[str, Any]:
    """What a problem's constructor takes beside what all take, with its defaults."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and issubclass(base, Problem):
            for name, parameter in inspect.signature(vars(base)["__init__"]).parameters.items():
                if parameter.kind is parameter.KEYWORD_ONLY and name not in _OWN:
                    found.setdefault(name, parameter.default)
    return found


def settable(cls: type[Problem]) -> dict[str, Any]:
    """Everything that can be set, by the names of ``--set``, with its defaults."""
    domain = {f"domain.{name}": ends for name, ends in cls.ranges.items()}
    guesses = {f"guess.{name}": value for name, value in cls.guesses.items()}
    equation = {"num_domain": cls.num_domain} if cls.num_domain else {}
    return {**domain, **guesses, **constants(cls), **equation}


def of_own(cls: type[Problem]) -> dict[str, Any]:
    """Of :func:`settable`, what matters to own measurements."""
    return {k: value for k, value in settable(cls).items() if k not in cls.example_constants}


def known_constants(cls: type[Problem]) -> dict[str, Any]:
    """The constants of the equation, with their defaults."""
    return {k: v for k, v in constants(cls).items() if k in of_own(cls) and v is not None}


def arguments(cls: type[Problem], settings: Mapping[str, Any], own_data: bool) -> dict[str, Any]:
    """Settings as keyword arguments of the problem's class.

    Args:
        cls: whose.
        settings: by the names of :func:`settable`.
        own_data: whether the measurements are the user's.

    Raises:
        ValueError: there is no such setting, or its value is of another kind than its default;
            names what can be set.
    """
    possible = of_own(cls) if own_data else settable(cls)
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if own_data and name in cls.example_constants:
            raise ValueError(
                f"{name} is what {cls.name} makes its own measurements with: it says nothing about "
                f"yours.{_instead(cls)}"
            )
        if name not in possible:
            told = ", ".join(f"{key}={shown(default)}" for key, default in possible.items())
            raise ValueError(
                f"{cls.name} has no {name!r} that could be set. Possible, with what they are by "
                f"default: {told or 'none'}."
            )
        group, dot, rest = name.partition(".")
        value = _checked(name, value, possible[name])
        if not dot:
            found[name] = value
        else:
            found.setdefault({"domain": "domain", "guess": "guesses"}[group], {})[rest] = value
    return found


def _instead(cls: type[Problem]) -> str:
    names = ", ".join(f"guess.{name}" for name in cls.guesses)
    return f" Where the search for unknowns starts is set by {names}." if names else ""


def shown(value: Any) -> str:
    """A setting's value as it is written on the command line."""
    if value is None or value is inspect.Parameter.empty:
        return "?"
    if isinstance(value, (tuple, list)):
        return ",".join(
            f"({shown(x)})" if isinstance(x, (tuple, list)) else shown(x) for x in value
        )
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _checked(name: str, value: Any, default: Any) -> Any:
    """A value like its default: a number, or a list as long."""
    if isinstance(default, (tuple, list)):
        is_flat = all(_is_number(x) for x in default)
        if not isinstance(value, (tuple, list)) or (is_flat and len(value) != len(default)):
            raise ValueError(f"{name} must be like {shown(default)}, got {shown(value)}.")
        if not is_flat:
            return (
                tuple(map(tuple, value))
                if all(isinstance(x, (tuple, list)) for x in value)
                else value
            )
        return tuple(_checked(name, x, 0.0) for x in value)
    if _is_number(default):
        if not _is_number(value) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}.")
        return float(value) if isinstance(default, float) else value
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)

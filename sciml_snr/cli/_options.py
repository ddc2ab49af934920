"""The command line's options from the configs' fields: :mod:`sciml_snr.runs.options`."""

from __future__ import annotations

import ast
import functools
import inspect
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..runs.config import Config, help_of, kinds

_TYPES = {
    "path": Path,
    "numbers": list[str],
    "numbers or path": list[str],
    "whole": int,
    "pairs": list[str],
}


def with_options(
    config: type[Config], without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator: the command has the config's fields as options.

    It gets those that are given as its argument ``given``, a dictionary; files as texts, pairs
    ``name=value`` as a dictionary.

    Args:
        config: whose fields.
        without: those that the command does not have.
    """
    shown = [
        field
        for field in fields(config)
        if field.metadata["command"] != "none" and field.name not in tuple(without)
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        own = [
            p.replace(annotation=hints[p.name])
            for p in inspect.signature(command).parameters.values()
            if p.name != "given"
        ]
        at = next((i for i, p in enumerate(own) if p.default is not p.empty), len(own))
        added = [_parameter(config, field) for field in shown]
        listed = [
            p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own[:at], *added, *own[at:])
        ]

        @functools.wraps(command)
        def called(**values: Any) -> None:
            taken = {field.name: _plain(field, values.pop(field.name)) for field in shown}
            given = {name: value for name, value in taken.items() if value is not None}
            command(**values, given=given)

        called.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
        called.__annotations__ = {p.name: p.annotation for p in listed}
        return called

    return decorate


def _parameter(config: type[Config], field: Field[Any]) -> inspect.Parameter:
    about = field.metadata
    hint = typing.get_type_hints(config)[field.name]
    kind = _TYPES[about["command"]] if about["command"] else kinds(hint)[0]
    name = about["flag"] or field.name.replace("_", "-")
    option = typer.Option(f"--{name}", help=help_of(config, field.name), show_default=False)
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[(str if kind is Any else kind) | None, option],
    )


def _plain(field: Field[Any], value: Any) -> Any:
    if not value and isinstance(value, (list, type(None))):
        return None
    if isinstance(value, Path):
        return str(value)
    if field.metadata["command"] == "numbers":
        return parse_numbers(f"--{field.metadata['flag'] or field.name}", value)
    if field.metadata["command"] == "numbers or path":
        return _numbers_or_path(field.name, value)
    return parse_pairs(value) if field.metadata["command"] == "pairs" else value


def parse_numbers(name: str, texts: Sequence[str]) -> list[float]:
    """Numbers that are given one by one, or with commas: ``--shift 500000,4600000,0``.

    Raises:
        ValueError: one is none.
    """
    try:
        return [float(part) for text in texts for part in text.split(",")]
    except ValueError:
        raise ValueError(
            f"{name} must be numbers, such as 0.5 or 1,2,3; got {' '.join(texts)}."
        ) from None


def _numbers_or_path(name: str, texts: Sequence[str]) -> list[float] | str:
    """Numbers where all are; else the one that is a file.

    Raises:
        ValueError: they are neither.
    """
    try:
        return parse_numbers(name, texts)
    except ValueError:
        if len(texts) == 1:
            return texts[0]
    raise ValueError(f"{name} must be numbers, or one file, got {', '.join(texts)}.") from None


def parse_pairs(pairs: Sequence[str]) -> dict[str, Any]:
    """``["gate=hard", "lambd=4"]`` as a dictionary.

    Raises:
        ValueError: one is not of the form name=value.
    """
    options = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ValueError(f"{pair!r} is not of the form name=value.")
        options[name] = _value(text)
    return options


def _value(text: str) -> Any:
    """A number, True, False, None, a list or a tuple; all else is a text."""
    known = text.capitalize() if text in ("true", "false", "none") else text
    try:
        value = ast.literal_eval(known)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
    return value if isinstance(value, (int, float, bool, list, tuple, type(None))) else text

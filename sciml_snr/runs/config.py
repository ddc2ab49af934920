"""The options of runs: each is declared once, as a field of a :class:`Config`.

Its default, its range and its help stand with the field. Keyword arguments (:func:`takes`), the
command line (``sciml_snr.cli``), ``config.json`` and the check of what a resumed run is asked come
from there. None means "not given" throughout, so that a value that is given and equal to the
default is told from one that is not given.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import math
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import Self

Call = TypeVar("Call", bound=Callable[..., Any])


def option(
    default: Any = None,
    help: str = "",
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    among: Iterable[str] | None = None,
    flag: str | None = None,
    command: str = "",
) -> Any:
    """A field of a :class:`Config`.

    Args:
        default: its value where nothing is given.
        help: one or two sentences for the command line and for docstrings.
        least, above, most: the range of a number: >= least, > above, <= most.
        among: the possible texts.
        flag: the command line's name where it is not the field's own; a repeatable ``name=value``
            where the field is a dictionary.
        command: what it is on the command line where it can be more in Python: "path", "numbers"
            (a repeatable number), "numbers or path" (that, or a file), "whole" (an integer),
            "pairs" (``name=value``, repeatable), or "none": it is not there.
    """
    about = {
        "help": help,
        "least": least,
        "above": above,
        "most": most,
        "among": None if among is None else tuple(among),
        "flag": flag,
        "command": command,
    }
    return dataclasses.field(default=default, metadata=about)


@dataclass(frozen=True)
class Config:
    """Base of the options of runs: frozen dataclasses whose fields are made by :func:`option`.

    Raises:
        ValueError: a value is of the wrong type or out of range; the message names the option.
    """

    def __post_init__(self) -> None:
        """Check every field by itself; numpy's numbers become Python's."""
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            value = checked(field, hints[field.name], getattr(self, field.name))
            object.__setattr__(self, field.name, value)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The options' names."""
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_json(cls, found: Any, where: str | Path) -> Self:
        """Read what a run has written of itself.

        Raises:
            ValueError: a key is missing or unknown, or its value is impossible; names ``where``.
        """
        if not isinstance(found, dict):
            raise ValueError(f"{where} is damaged: {found!r} is no set of options.")
        check_keys(found, cls.names(), where)
        try:
            return cls(**found)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{where} is damaged: {error}") from None


def check_keys(found: Mapping[str, Any], needed: Iterable[str], where: str | Path) -> None:
    """Refuse a mapping that has not exactly these keys.

    Raises:
        ValueError: names those that are missing, or those that are unknown.
    """
    needed = tuple(needed)
    if missing := [name for name in needed if name not in found]:
        raise ValueError(f"{where} is damaged: it has no {', '.join(map(repr, missing))}.")
    if unknown := [name for name in found if name not in needed]:
        raise ValueError(
            f"{where} is damaged, or of another version: it has an unknown "
            f"{', '.join(map(repr, unknown))}."
        )


def is_whole(value: Any) -> bool:
    """Whether it is a count: an integer >= 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_number(value: Any) -> bool:
    """Whether it is a number, which may be infinite or NaN."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def rows_with(*names: str) -> Callable[[Any], bool]:
    """A test for rows of a log: dictionaries of numbers that have these names, and others."""

    def are_rows(value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(row, dict)
            and row.keys() >= set(names)
            and all(isinstance(key, str) and is_number(entry) for key, entry in row.items())
            for row in value
        )

    return are_rows


def check_kinds(
    found: Mapping[str, Any], needed: Mapping[str, Callable[[Any], bool]], where: str | Path
) -> None:
    """Refuse a mapping that has not exactly these keys, with values that pass these tests.

    Raises:
        ValueError: names the first that is wrong.
    """
    check_keys(found, needed, where)
    for name, test in needed.items():
        if not test(found[name]):
            raise ValueError(f"{where} is damaged: its {name} is {shortened(found[name])}.")


def anything(_: Any) -> bool:
    """A test that all pass: the loader of the value has tests of its own."""
    return True


def kinds(hint: Any) -> tuple[Any, ...]:
    """The types that a field of this annotation can be of, without None."""
    is_union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return tuple(k for k in (typing.get_args(hint) if is_union else (hint,)) if k is not type(None))


def help_of(config: type[Config], name: str) -> str:
    """The help of an option; a config's ``HELP`` says more than the field it has inherited."""
    own = getattr(config, "HELP", {})
    (field,) = (field for field in fields(config) if field.name == name)
    return str(own.get(name, field.metadata["help"]))


def checked(field: dataclasses.Field[Any], hint: Any, value: Any) -> Any:
    """The value of a field of this annotation as it is kept.

    Raises:
        ValueError: names the option and what is possible.
    """
    name, about = field.name, field.metadata
    if value is None and (hint is Any or type(None) in typing.get_args(hint)):
        return None
    possible = kinds(hint)
    if possible in ((int,), (float,)):
        return _number(name, about, value, whole=possible == (int,))
    if typing.get_origin(possible[0]) is dict and not isinstance(value, dict):
        raise ValueError(f"{name} must be a dictionary, got {shortened(value)}.")
    if possible == (bool,) and not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False, got {value!r}.")
    if possible == (str,):
        if isinstance(value, Path):
            value = str(value)
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, got {value!r}.")
        if about["among"] is not None and value not in about["among"]:
            raise ValueError(
                f"There is no {name} {value!r}. Choose one of: {', '.join(about['among'])}."
            )
    return value


def _number(name: str, about: Mapping[str, Any], value: Any, whole: bool) -> Any:
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    least, above, most = about["least"], about["above"], about["most"]
    is_number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool)
    inside = (
        is_number
        and math.isfinite(value)
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
    )
    if inside:
        return int(value) if whole else float(value)
    if least == 0 and most == 1:
        span = "a share in [0, 1]"
    elif above == 0 and most is None and not whole:
        span = "a positive number"
    else:
        bounds = ((">=", least), (">", above), ("<=", most))
        said = " and ".join(f"{sign} {bound:,}" for sign, bound in bounds if bound is not None)
        span = f"{'an integer' if whole else 'a finite number'} {said}".rstrip()
    raise ValueError(f"{name} must be {span}, got {shortened(value)}.")


def shortened(value: Any) -> str:
    """A value for a message, in one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def check_same(where: Path, asked: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse to resume a run under settings that are not its own.

    Args:
        where: its folder.
        asked: what is asked for, by name; None is no wish.
        own: the run's settings, from JSON.

    Raises:
        ValueError: names the first that differs.
    """
    for name, value in asked.items():
        if value is None:
            continue
        if as_json(value) != own.get(name):
            its = own.get(name)
            raise ValueError(
                f"The run in {where} has {name} = {'its default' if its is None else repr(its)} "
                f"and not {value!r}. Resume it with its own, or start another run elsewhere."
            )


def as_json(value: Any) -> Any:
    """What is read again where the value is written to a JSON file: lists for tuples."""

    def plain(x: Any) -> Any:
        return x.item() if hasattr(x, "item") else str(x)

    return json.loads(json.dumps(value, default=plain))


def takes(
    config: type[Config], without: Iterable[str] = (), **defaults: Any
) -> Callable[[Call], Call]:
    """A decorator: the call's ``**options`` are a config's fields; it gets those that are given.

    The call's signature and docstring (in place of ``{options}``) name them. None is not given
    where it is the default.

    Args:
        config: whose fields.
        without: those that it does not take.
        defaults: what its signature says in place of the fields' own defaults.
    """
    without, hints = tuple(without), typing.get_type_hints(config)
    chosen = [field for field in fields(config) if field.name not in without]
    shown = {field.name: defaults.get(field.name, field.default) for field in chosen}
    lines = [
        textwrap.fill(f"{field.name}: {help_of(config, field.name)}", 88, subsequent_indent="    ")
        for field in chosen
    ]

    def decorate(call: Call) -> Call:
        own = [p for p in inspect.signature(call).parameters.values() if p.kind != p.VAR_KEYWORD]
        at = next((i for i, p in enumerate(own) if p.kind == p.KEYWORD_ONLY), len(own))
        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=hints[name],
            )
            for name, default in shown.items()
        ]
        signature = inspect.signature(call).replace(parameters=[*own[:at], *options, *own[at:]])

        @functools.wraps(call)
        def called(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs).arguments  # or a TypeError that names the rest
            for name, default in shown.items():
                if default is None and given.get(name, 0) is None:
                    del kwargs[name]
            return call(*args, **kwargs)

        called.__signature__ = signature  # type: ignore[attr-defined]
        before, place, after = (call.__doc__ or "").partition("{options}")
        indent = before.rpartition("\n")[2]  # Python 3.13 takes the source's away
        block = textwrap.indent("\n".join(lines), indent).lstrip()
        called.__doc__ = before + (block if place else "") + after
        return typing.cast("Call", called)

    return decorate

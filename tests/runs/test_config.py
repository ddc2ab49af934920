"""Options: declared once, checked, told from those that are not given; in calls and commands."""

import inspect
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from sciml_snr.cli._options import parse_pairs, with_options
from sciml_snr.fields import fit_field, fit_image, fit_sdf
from sciml_snr.runs.config import Config, as_json, check_keys, check_same, option, takes
from sciml_snr.runs.loop import check_device, check_memory
from sciml_snr.runs.options import (
    FieldOptions,
    FitOptions,
    ImageOptions,
    PointsOptions,
    ProblemConfig,
)


@dataclass(frozen=True)
class Small(Config):
    """Some options of every kind."""

    rate: float = option(0.5, "A rate.", above=0)
    share: float = option(0.0, "A share.", least=0, most=1)
    steps: int | None = option(None, "Steps [default: many].", least=1, most=100)
    kind: str = option("a", "A kind.", among=("a", "b"))
    loud: bool = option(False, "Noise.")
    file: str | None = option(None, "A file.", command="path")
    extra: dict[str, Any] | None = option(None, "Extra.", flag="extra-option", command="pairs")
    hidden: Any = option(None, "Not there.", command="none")


# Values --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (dict(rate=0), "rate must be a positive number, got 0"),
        (dict(rate=float("nan")), "rate must be a positive number, got nan"),
        (dict(rate=float("inf")), "rate must be a positive number"),
        (dict(rate="fast"), "rate must be a positive number, got 'fast'"),
        (dict(rate=None), "rate must be"),
        (dict(rate=True), "rate must be"),
        (dict(share=1.5), r"share must be a share in \[0, 1\], got 1.5"),
        (dict(steps=0), "steps must be an integer >= 1 and <= 100, got 0"),
        (dict(steps=1.5), "steps must be an integer"),
        (dict(steps=10**30), "steps must be an integer"),
        (dict(kind="c"), "no kind 'c'. Choose one of: a, b"),
        (dict(kind=3), "kind must be a text, got 3"),
        (dict(loud=1), "loud must be True or False, got 1"),
        (dict(extra=[1]), r"extra must be a dictionary, got \[1\]"),
        (dict(rate=np.ones(1000)), r"got array\(\[1"),
    ],
    ids=str,
)
def test_a_bad_value_is_named(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Small(**values)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_numpys_numbers_and_paths_become_pythons() -> None:
    found = Small(rate=np.float32(0.25), steps=np.int64(3), file=Path("a") / "b")
    assert (type(found.rate), type(found.steps), found.file) == (float, int, "a/b")
    assert Small(rate=1).rate == 1.0 and isinstance(Small(rate=1).rate, float)


def test_json_there_and_back() -> None:
    small = Small(steps=3, extra={"a": (1, 2)})
    found = Small.from_json(as_json(asdict(small)), "config.json")
    assert found == Small(steps=3, extra={"a": [1, 2]})


@pytest.mark.parametrize("name", Small.names())
def test_every_missing_key_is_named(name: str) -> None:
    found = asdict(Small())
    del found[name]
    with pytest.raises(ValueError, match=f"here is damaged: it has no '{name}'"):
        Small.from_json(found, "here")


@pytest.mark.parametrize("found", [[], None, "x", {"rate": "x"}, 3], ids=str)
def test_what_is_no_config_is_named(found: Any) -> None:
    if isinstance(found, dict):
        found = asdict(Small()) | found
    with pytest.raises(ValueError, match="here is damaged"):
        Small.from_json(found, "here")


def test_unknown_keys_are_named() -> None:
    with pytest.raises(ValueError, match="unknown 'z'"):
        check_keys({"a": 1, "z": 2}, ["a"], "here")


def test_only_what_is_given_is_compared() -> None:
    own = {"lr": 0.1, "seed": 0, "betas": [0.9, 0.99]}
    check_same(Path("run"), {"lr": None, "seed": 0, "betas": (0.9, 0.99)}, own)
    for asked in ({"lr": 0.2}, {"seed": 1}, {"betas": (0.8, 0.99)}):
        with pytest.raises(ValueError, match="Resume it with its own"):
            check_same(Path("run"), asked, own)


# Calls ---------------------------------------------------------------------------------------


@takes(Small, without=("hidden",), steps=7)
def call(x: int, *, out: str | None = None, **options: Any) -> dict[str, Any]:
    """Does it.

    Args:
        x: a number.
        {options}
        out: a folder.
    """
    return options


def test_a_call_gets_what_is_given() -> None:
    assert call(1) == {}
    assert call(1, rate=0.5, file=None, out="a") == {"rate": 0.5}
    with pytest.raises(TypeError, match="unexpected keyword argument 'hidden'"):
        call(1, hidden=2)
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        call()


def test_its_signature_and_docstring_name_the_options() -> None:
    parameters = inspect.signature(call).parameters
    assert list(parameters) == ["x", *Small.names()[:-1], "out"]
    assert parameters["steps"].default == 7 and parameters["rate"].default == 0.5
    assert "\n    steps: Steps [default: many].\n" in str(inspect.getdoc(call))


@pytest.mark.parametrize(
    ("function", "config"),
    [(fit_field, FieldOptions), (fit_image, ImageOptions), (fit_sdf, PointsOptions)],
)
def test_the_fits_take_the_options_of_their_config(function, config) -> None:
    parameters = set(inspect.signature(function).parameters)
    assert set(config.names()) - {"patience"} <= parameters
    page = inspect.getdoc(function)
    assert all(f"\n    {name}: " in page for name in set(config.names()) & parameters)


# The command line ----------------------------------------------------------------------------


def run(*arguments: str) -> tuple[int, list[Any], str]:
    """Exit code, what the command was given, what was printed."""
    app, seen = typer.Typer(), []

    @app.command()
    @with_options(Small)
    def command(name: str, given: dict[str, Any], out: str = "here") -> None:
        """A command."""
        seen.extend([name, given, out])

    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, seen, result.output


def test_a_command_has_the_options_and_knows_which_are_given() -> None:
    assert run("x") == (0, ["x", {}, "here"], "")
    options = ["--rate", "0.5", "--steps", "3", "--file", "a", "--extra-option", "b=1"]
    code, seen, _ = run("x", *options, "--extra-option", "c=[1, 2]", "--out", "there")
    given = {"rate": 0.5, "steps": 3, "file": "a", "extra": {"b": 1, "c": [1, 2]}}
    assert (code, seen) == (0, ["x", given, "there"])
    text = run("--help")[2]
    assert "--extra-option" in text and "--hidden" not in text and "A rate." in text
    assert run("x", "--steps", "many")[0] == 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("true", True),
        ("none", None),
        ("hard", "hard"),
        ("(1, 2)", (1, 2)),
        ("", ""),
        ("{[]: 1}", "{[]: 1}"),
        ("{1: 2}", "{1: 2}"),
        ("(" * 500, "(" * 500),
        ("a=b", "a=b"),
    ],
)
def test_pairs(text: str, value: Any) -> None:
    assert parse_pairs([f"x={text}"]) == {"x": value}


def test_a_pair_without_a_name() -> None:
    for pair in ("x", "=1", ""):
        with pytest.raises(ValueError, match="not of the form name=value"):
            parse_pairs([pair])


# Runs ----------------------------------------------------------------------------------------


def test_a_problems_defaults_are_filled_in() -> None:
    config = ProblemConfig("heat").resolved()
    assert (config.optimizer, config.seed, config.snr_options) == ("snr_adam", 0, {})
    assert config.lr is not None and config.iterations is not None
    assert json.loads(json.dumps(asdict(config))) == asdict(config)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "rmsprop"])
def test_options_of_a_gate_are_not_for_others(optimizer: str) -> None:
    with pytest.raises(ValueError, match=f"{optimizer} has no z"):
        ProblemConfig("heat", optimizer, snr_options={"z": 1}).resolved()
    with pytest.raises(ValueError, match="adam has no gate"):
        FitOptions("adam", gate="hard")


def test_what_memory_cannot_hold_is_refused_before() -> None:
    with pytest.raises(ValueError, match=r"points = 100000000000 would take about [\d,]+ GB"):
        ProblemConfig("heat", points=10**11).build()
    with pytest.raises(ValueError, match="A field would take about 1,000,000 GB of memory"):
        check_memory(1e15, "A field")
    check_memory(1e6, "Little")


def test_devices_that_are_none() -> None:
    check_device("cpu")
    for device in ("meta", "nowhere", "cpu:x"):
        with pytest.raises(ValueError, match=f"The device '{device}' cannot be used"):
            check_device(device)

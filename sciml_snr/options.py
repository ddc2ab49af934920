"""The options of SNRAdam and SNRSOAP, as they are kept and checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from . import gate as gates
from .eigenbasis import BASES
from .gate import resolve_alpha

COORDINATES = ("auto", "own", "eigen")
REDUCTIONS = ("none", "per_tensor")


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as they are kept: the gate as a dictionary, numpy's scalars and tensors (but for the
    learning rate) as Python's numbers. Every state can be saved and loaded then."""

    def plain(value: Any, name: str) -> Any:
        if isinstance(value, tuple):
            return tuple(plain(part, name) for part in value)
        is_number = (
            isinstance(value, Tensor) and value.numel() == 1 and name not in ("lr", "params")
        )
        return value.item() if is_number or isinstance(value, np.generic) else value

    found = {name: plain(value, name) for name, value in options.items()}
    softness = found.pop("softness", None)
    if softness is not None:
        if found.get("lambd", 1.0) not in (1.0, softness):
            raise ValueError("softness is another name of lambd: give one of them.")
        found["lambd"] = softness
    if "gate" in found:
        found["gate"] = gates.overrides(found["gate"])
    return found


def require_option(options: Mapping[str, Any], name: str, ok: bool, what: str) -> None:
    """Refuse the option of this name, unless ``ok``, with what it must be."""
    if not ok:
        raise ValueError(f"Invalid {name}: {options[name]!r}; it must be {what}.")


def validate_options(options: Mapping[str, Any]) -> None:
    """Check a full set of SNRAdam's group options.

    Raises:
        ValueError: names the option that is out of range and the range.
    """

    require = functools.partial(require_option, options)

    def number(name: str, low: float, high: float = math.inf) -> None:
        value = options[name]
        if isinstance(value, Tensor) and name == "lr":
            require(name, value.numel() == 1, "a number or a 1-element tensor")
            value = value.item()
        span = f"a finite number >= {low:g}" + (f" and < {high:g}" if high < math.inf else "")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        require(name, is_number and low <= value < high, span)

    for name in ("lr", "eps", "weight_decay", "lambd"):
        number(name, 0)
    number("rho", 0, 1)
    betas = options["betas"]
    require(
        "betas",
        isinstance(betas, (tuple, list))
        and len(betas) == 2
        and all(isinstance(b, (int, float)) and 0 <= b < 1 for b in betas),
        "two numbers >= 0 and < 1",
    )
    require("nonfinite", options["nonfinite"] in ("raise", "skip"), "'raise' or 'skip'")
    every = options["floor_every"]
    whole = isinstance(every, int) and not isinstance(every, bool) and every >= 1
    require("floor_every", whole, "an integer >= 1")
    for name in ("batch_size", "data_size"):
        size = options[name]
        ok = size is None or (isinstance(size, int) and size >= 1)
        require(name, ok, "None or an integer >= 1")
    resolve_alpha(options["alpha"], options["batch_size"], options["data_size"])
    texts = (("coordinates", COORDINATES), ("basis", BASES), ("reduction", REDUCTIONS))
    for name, known in texts:
        require(name, options[name] in known, "one of " + ", ".join(map(repr, known)))
    beta = options["shampoo_beta"]
    ok = isinstance(beta, (int, float)) and not isinstance(beta, bool) and 0 <= beta < 1
    require("shampoo_beta", ok, "a number >= 0 and < 1")
    for name in ("precondition_frequency", "max_precondition_dim"):
        ok = isinstance(options[name], int) and options[name] >= 1
        require(name, ok, "an integer >= 1")


def check_unpublished(options: Mapping[str, Any]) -> None:
    """Refuse options of the published rule beside declared noise."""
    if options["alpha"] != "fresh" or options["lambd"] != 1.0:
        raise ValueError(
            "alpha and lambd belong to the published rule, and noise was declared. Give the "
            "threshold by gate=sciml_snr.Gate(z=...)."
        )

"""The page about the command line, from the commands."""

from __future__ import annotations

from typing import Any

import typer

from benchmarks import text
from sciml_snr.cli import app


def commands() -> str:
    """Each command: what it does, and its arguments and options."""
    sections = []
    for name, command in vars(typer.main.get_command(app))["commands"].items():
        paragraphs = (command.help or "").strip().split("\n\n")
        about = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
        lines = [_line(p) for p in command.params if not p.hidden and "--help" not in p.opts]
        sections += [f"## sciml-snr {name}", about]
        sections += [text.table("argument or option|meaning", lines)] if lines else []
    return "\n\n".join(sections)


def _line(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        names = f"`{parameter.name.upper()}`" + ("" if parameter.required else ", may be left out")
    else:
        names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return [names, " ".join((parameter.help or "").split()).replace("|", r"\|")]

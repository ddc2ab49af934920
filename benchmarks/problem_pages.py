"""The page about the problems, from their classes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from sciml_snr.problems import PROBLEMS, Problem
from sciml_snr.problems.measured_source import MeasuredSource

from benchmarks import text as words

# Sphinx's roles, in the Markdown that GitHub shows.
ROLES = (
    (r":math:`(.+?)`", r"$`\1`$"),
    (r":(?:class|meth|func):`(.+?)`", r"`\1`"),
    (r"``(.+?)``", r"`\1`"),
)


def overview() -> str:
    """One line per problem."""
    lines = []
    for cls in PROBLEMS.values():
        problem = cls()
        unknown = [f"{name} = {value:.4g}" for name, value in problem.truth().items()]
        unknown += [name for name in cls.scored if name not in cls.measured]
        sigma = problem.sigma()
        measured = f"{', '.join(cls.measured)} at {len(problem.observations)} points"
        if isinstance(problem, MeasuredSource):
            measured += f", f at {len(problem.source_observations)}"
        line = [
            f"[{cls.name}](#{cls.name})",
            f"`{cls.equation}`".replace("|", r"\|"),
            measured,
            "?" if sigma is None else f"{sigma.max():.3g}",
            ", ".join(unknown) or "-",
        ]
        lines.append(line)
    return words.table("problem|equation|measured|sigma|unknown", lines)


def details() -> str:
    """The docstring of each problem."""
    sections = []
    for cls in PROBLEMS.values():
        budget = f"{cls.iterations} iterations at a learning rate of {cls.lr:g}"
        text = markdown(inspect.getdoc(cls) or "")
        sections += [f"### {cls.name}", text, f"Default: {budget}. File: {_source(cls)}."]
    return "\n\n".join(sections)


def markdown(docstring: str) -> str:
    """A docstring with Sphinx's roles and math blocks, its arguments as a list."""
    for role, plain in ROLES:
        docstring = re.sub(role, plain, docstring, flags=re.DOTALL)
    text, _, arguments = docstring.partition("\nArgs:\n")
    text = re.sub(r"^\.\. math::\n((?: {4}.*\n?)+)", _math, text, flags=re.MULTILINE)
    items = re.findall(r"^ {4}(\S.*?):\s+(.*(?:\n {8}.*)*)", arguments, flags=re.MULTILINE)
    listed = [f"- `{name}`: {re.sub(chr(10) + ' +', ' ', what)}" for name, what in items]
    return "\n".join([text.rstrip(), *([""] if listed else []), *listed])


def _math(block: re.Match[str]) -> str:
    return f"```math\n{inspect.cleandoc(block[1])}\n```\n"


def _source(cls: type[Problem]) -> str:
    path = f"problems/{Path(inspect.getfile(cls)).name}"
    return f"[{path}](../../{path})"

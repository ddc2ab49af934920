"""Docstrings for mkdocstrings: Sphinx's roles and formulas as Markdown, names that are imported
on first use as members."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from typing import Any

import griffe

ROLE = re.compile(r":(class|meth|func|attr|data|mod|exc):`~?([^`]+)`")
MATH = re.compile(r"^( *)\.\. math::[ \n]((?:.*\n?)(?:(?:\1 {4,}.*|\s*)\n?)*)", flags=re.MULTILINE)


class SphinxMarkup(griffe.Extension):
    """Rewrites docstrings, and gives ``sciml_snr`` its names of ``_LATER``."""

    def on_package(self, *, pkg: griffe.Module, loader: Any, **_: Any) -> None:
        """All modules of a package are there."""
        if pkg.name == "sciml_snr":
            for module, names in ast.literal_eval(str(pkg["_LATER"].value)).items():
                for name in names:
                    target = f"{pkg.path}.{module}.{name}"
                    pkg.set_member(name, griffe.Alias(name, target))
            for name in ("field.fit_field", "image.fit_image", "surface.fit_sdf"):
                _as_called(pkg[f"fields.{name}"])

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """A class, function, module or attribute was found."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value, obj)


def _as_called(function: griffe.Function) -> None:
    """Signature and docstring as ``sciml_snr.runs.config.takes`` makes them: with all options."""
    called = getattr(importlib.import_module("sciml_snr.fields"), function.name)
    known = {parameter.name: parameter for parameter in function.parameters}
    made = [
        known.get(name)
        or griffe.Parameter(
            name,
            annotation=inspect.formatannotation(parameter.annotation),
            kind=griffe.ParameterKind.keyword_only,
            default=repr(parameter.default),
        )
        for name, parameter in inspect.signature(called).parameters.items()
    ]
    function.parameters = griffe.Parameters(*made)
    function.docstring.value = markdown(inspect.getdoc(called), function)


def markdown(text: str, obj: griffe.Object) -> str:
    """A docstring in Markdown."""

    def role(match: re.Match[str]) -> str:
        name = match[2]
        return f'<autoref identifier="{_path(name, obj)}" optional><code>{name}</code></autoref>'

    def block(match: re.Match[str]) -> str:
        indent, body = match[1], match[2]
        lines = inspect.cleandoc(body).splitlines()
        return "\n".join(f"{indent}{line}" for line in ["$$", *lines, "$$"]) + "\n\n"

    text = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
    text = MATH.sub(block, text)
    text = re.sub(r":math:`([^`]+)`", lambda m: f"${' '.join(m[1].split())}$", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = re.sub(r"`?\bdocs/([\w/-]+)\.md\b`?", r"[\1](../\1.md)", text)
    return ROLE.sub(role, text)


def _path(name: str, obj: griffe.Object) -> str:
    """Where a name of a docstring is documented."""
    first, _, rest = name.partition(".")
    for scope in (name, first):
        try:
            found = obj.resolve(scope)
        except griffe.NameResolutionError:
            continue
        return found if scope == name or not rest else f"{found}.{rest}"
    return name

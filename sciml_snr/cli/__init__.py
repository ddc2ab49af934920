"""Command line: ``sciml-snr problems``, ``solve``, ``compare``, ``fit-image``."""

import importlib

from ._app import app

for _module in ("_problems", "_images"):  # each adds its commands
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["app"]

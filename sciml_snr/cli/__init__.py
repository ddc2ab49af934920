"""Command line: ``sciml-snr problems``, ``new-problem``, ``solve``, ``compare``, ``bench``,
``fit-field``, ``fit-image``, ``fit-sdf``, ``memorization``."""

import importlib

from ._app import app

for _module in (
    "_problems",
    "_bench",
    "_fields",
    "_images",
    "_shapes",
    "_memorization",
):  # each adds its commands
    importlib.import_module(f"{__name__}.{_module}")

__all__ = ["app"]

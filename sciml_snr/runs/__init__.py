"""Runs: their options (``config``), folders (``folder``), loops (``loop``), and those of problems
(``run``, the only room here that imports DeepXDE)."""

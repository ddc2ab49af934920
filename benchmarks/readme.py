"""Run the README's first example and keep what it prints.

    python -m benchmarks.readme

writes benchmarks/results/readme.json: the example and its output. The README shows the output
(`python -m benchmarks.report`); a test fails where the example is not the one that was run.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.harness import RESULTS

PATH = RESULTS / "readme.json"
README = Path(__file__).parents[1] / "README.md"


def example() -> str:
    """The README's first block of Python."""
    found = re.search(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert found is not None
    return found[1]


def output() -> str:
    """What it printed, as a block of text.

    Raises:
        ValueError: the example has changed since it was run.
    """
    kept = json.loads(PATH.read_text())
    if kept["example"] != example():
        raise ValueError(
            "README's example is not the one that was run: python -m benchmarks.readme"
        )
    return f"```text\n{kept['output'].strip()}\n```"


def main() -> None:
    """Run it on one thread."""
    code = example()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DDE_BACKEND": "pytorch"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    PATH.write_text(json.dumps({"example": code, "output": done.stdout}, indent=1) + "\n")
    print(done.stdout)


if __name__ == "__main__":
    main()

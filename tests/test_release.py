"""What a release says of itself in several places is the same everywhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

import sciml_snr

ROOT = Path(__file__).parents[1]


def test_the_version_is_the_same_everywhere() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    newest = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert sciml_snr.__version__ == str(cited) == newest


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/**/*.yml")), ids=lambda path: path.stem)
def test_forms_and_workflows_can_be_read(path: Path) -> None:
    assert yaml.safe_load(path.read_text())

"""The examples can be imported, as in a run of them; a skipped test is a failed one."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    return _failed(report) if report.skipped and not hasattr(report, "wasxfail") else report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    return _failed(report) if report.skipped else report


def _failed(report):
    report.outcome = "failed"
    report.longrepr = f"It must not be skipped: {report.longrepr}"
    return report

"""What is said of a number and its interval."""

import math

import pytest

from sciml_snr.measure.intervals import statement


@pytest.mark.parametrize(
    ("interval", "is_determined"),
    [
        ((0.65, 0.77), True),
        ((0.01, 0.9), True),
        ((0.001, 0.9), False),  # not even the order of magnitude
        ((-900.0, -1.0), False),
        ((-2e-3, 3e-3), True),  # perhaps 0, and small in any case
        ((0.1, math.inf), False),
        ((math.nan, math.nan), False),
    ],
)
def test_statement_says_where_nothing_is_determined(interval, is_determined) -> None:
    found = statement("k", 0.713, 0.031, interval)
    assert found.startswith("k = 0.713 +- 0.031 (95 %: ")
    assert found.endswith(": not determined by these data") is not is_determined

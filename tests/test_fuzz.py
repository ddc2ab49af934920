"""A few hundred of the cases of ``make fuzz``: nasty arguments, damaged files."""

from collections import Counter

import pytest

from benchmarks import fuzz

CASES = 240


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> fuzz.World:
    return fuzz.World(tmp_path_factory.mktemp("fuzz"))


def test_no_case_ends_in_a_traceback_hangs_or_touches_what_it_refuses(world) -> None:
    kinds: Counter[str] = Counter()
    for case, outcome in fuzz.run_all(world, range(100_000, 100_000 + CASES)):
        kinds[case.kind] += 1
        assert not outcome.fault, f"python -m benchmarks.fuzz --only {case.seed}: {outcome}"
    assert kinds.keys() == fuzz.KINDS.keys()


def test_a_case_follows_from_its_seed(world) -> None:
    first = [fuzz.case(seed, world) for seed in (3, 4, 5)]
    assert [fuzz.case(seed, world) for seed in (5, 4, 3)] == first[::-1]


def test_a_fault_is_seen_and_what_was_changed_is_put_back(world, monkeypatch) -> None:
    """A command that overwrites a run's file before it refuses, and one that fails unexpectedly."""
    from sciml_snr.runs import run

    path = world.here / "runs/problem/summary.json"
    before = path.read_bytes()

    def careless(*_, **__) -> None:
        path.write_text("gone")
        raise ValueError("no such luck")

    def unexpected(*_, **__) -> None:
        raise KeyError("x")

    case = fuzz.Case(0, "arguments", fuzz.SOLVE)
    with fuzz.inside(world.here):
        monkeypatch.setattr(run, "solve", careless)
        assert fuzz.tried(case, world).fault == "touched: here/runs/problem/summary.json"
        assert path.read_bytes() == before
        monkeypatch.setattr(run, "solve", unexpected)
        assert fuzz.tried(case, world).fault == "unexpected"

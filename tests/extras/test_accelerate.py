"""accelerate runs the plain loop: the same bits."""

from __future__ import annotations

import plain_torch
import pytest
import torch
import with_accelerate as example
from accelerate.state import AcceleratorState
from oscillator import SIGMA, Network, measurements

import sciml_snr
from tests.cases import assert_same_bits
from tests.extras.running import assert_noise_is_kept_out, floors, printed, run_page, states


@pytest.fixture(autouse=True)
def one_precision_a_test():
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def states_of(run) -> dict:
    return states(run.plain_net(), run.optimizer.optimizer)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_noise_is_kept_out(precision: str) -> None:
    text = printed("with_accelerate.py", precision)
    assert_noise_is_kept_out(text)
    assert "the same bits as without, True" in text


def test_the_page_runs(tmp_path) -> None:
    example.Run().train(2).accelerator.save_state(str(tmp_path))
    x, y = measurements()
    more = dict(net=Network(), x=x, y=y, batch_size=32, precision="no", folder=tmp_path)
    space = run_page("accelerate.md", example, self=example.Run(clip=1.0), **more)
    assert space["self"].optimizer.optimizer.beside_exact is True
    assert space["run"].optimizer.optimizer.beside_exact is True


def test_steps_are_those_of_the_plain_loop() -> None:
    plain = plain_torch.fit(sciml_snr.NoisyLoss(SIGMA), "SNRAdam", 20)
    assert_same_bits(states_of(example.Run().train(20)), states(*plain))


def test_steps_of_clipped_batches_are_those_of_the_plain_loop() -> None:
    plain = plain_torch.fit_in_batches(10)
    run = example.Run(batch_size=32, every=4, clip=1.0).train(10)
    assert_same_bits(states_of(run), states(*plain))


def test_resumed_from_a_saved_state_it_takes_the_same_steps(tmp_path) -> None:
    broken = example.with_a_break(30, tmp_path)
    assert_same_bits(states_of(broken), states_of(example.Run().train(30)))


def test_in_mixed_precision_the_floor_is_the_same_up_to_rounding(monkeypatch) -> None:
    monkeypatch.setattr(example, "WEIGHT", 1.0)  # more than the rounding of 16 bits
    full = example.Run().train(1)
    AcceleratorState._reset_state()
    half = example.Run(precision="bf16").train(1)
    found = floors(half.plain_net(), half.optimizer.optimizer)
    expected = floors(full.plain_net(), full.optimizer.optimizer)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(found, expected)
    assert half.optimizer.optimizer.beside_exact is True

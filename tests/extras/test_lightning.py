"""Lightning runs the plain loop: the same bits."""

from __future__ import annotations

import plain_torch
import pytest
import torch
import with_lightning as example
from oscillator import SIGMA
from torch import nn

import sciml_snr
from tests.cases import assert_same_bits
from tests.extras.running import assert_noise_is_kept_out, floors, printed, run_page, states

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, on workers and devices


def states_of(model) -> dict:
    return states(model.net, model.optimizers(use_pl_optimizer=False))


def test_noise_is_kept_out() -> None:
    text = printed("with_lightning.py")
    assert_noise_is_kept_out(text)
    assert "the same bits as without, True" in text


def test_the_page_runs(tmp_path) -> None:
    first = example.trainer(2)
    first.fit(example.Oscillator(), example.batches(128))
    first.save_checkpoint(tmp_path / "half.ckpt")
    model = example.Oscillator(population=128)
    space = run_page("lightning.md", example, model=model, epochs=4, options={}, folder=tmp_path)
    optimizer = space["model"].optimizers(use_pl_optimizer=False)
    assert optimizer.beside_exact is True
    assert isinstance(space["Oscillator"]().configure_optimizers(), sciml_snr.SNRAdam)


def test_steps_are_those_of_the_plain_loop() -> None:
    plain = plain_torch.fit(sciml_snr.NoisyLoss(SIGMA), "SNRAdam", 20)
    assert_same_bits(states_of(example.fit("SNRAdam", 20)), states(*plain))


def test_steps_of_clipped_batches_are_those_of_the_plain_loop() -> None:
    plain = plain_torch.fit_in_batches(10)
    model = example.fit_in_batches(10)
    assert_same_bits(states_of(model), states(*plain))
    unclipped = example.fit_in_batches(10, gradient_clip_val=None)
    assert floors(*plain).mean() < 0.9 * floors(unclipped.net, unclipped.optimizers(False)).mean()


def test_resumed_from_a_checkpoint_it_takes_the_same_steps(tmp_path) -> None:
    broken = example.fit_with_a_break(30, tmp_path)
    assert_same_bits(states_of(broken), states_of(example.fit("SNRAdam", 30)))


def test_in_mixed_precision_the_floor_is_the_same_up_to_rounding(monkeypatch) -> None:
    monkeypatch.setattr(example, "WEIGHT", 1.0)  # more than the rounding of 16 bits
    half = example.fit("SNRAdam", 1, precision="bf16-mixed")
    full = example.fit("SNRAdam", 1)
    found = floors(half.net, half.optimizers(False))
    expected = floors(full.net, full.optimizers(False))
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert not torch.equal(found, expected)
    assert half.optimizers(False).beside_exact is True


def test_clipping_by_value_is_refused() -> None:
    options = {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}
    with pytest.raises(RuntimeError, match="clip_grad_value_"):
        example.fit_in_batches(1, **options)


def test_evaluation_between_the_steps_changes_nothing() -> None:
    class Validated(example.Oscillator):
        def validation_step(self, batch, batch_idx):
            x, y = batch
            assert self.data(self.net(x), y) == nn.functional.mse_loss(self.net(x), y)

    model = Validated()
    example.trainer(10).fit(model, example.batches(128), example.batches(32))
    assert_same_bits(states_of(model), states_of(example.fit("SNRAdam", 10)))

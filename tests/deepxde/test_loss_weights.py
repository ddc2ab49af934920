"""balanced_weights."""

import deepxde as dde
import pytest
import torch

from sciml_snr import NoisyLoss, balanced_weights
from tests.deepxde.models import X, Y, ends, exact, measured, model


def squares_by_hand(own):
    """Squared norm of every loss term's gradient, by DeepXDE's own compiled losses."""
    data, params = own.data, list(own.net.parameters())
    found = []
    for i in range(1 + len(data.bcs)):
        losses = own.outputs_losses_train(data.train_x, data.train_y, data.train_aux_vars)[1]
        grads = torch.autograd.grad(losses[i], params, allow_unused=True)
        found.append(torch.cat([g.flatten() for g in grads if g is not None]).square().sum())
    return torch.stack(found)


def test_exact_terms_pull_as_hard_as_all_noisy_ones_together_in_random_networks():
    conditions = (measured(), ends(), measured(points=X + 0.05), exact())
    own = model(*conditions)
    weights = balanced_weights(own, networks=200)
    assert weights[1] == weights[3] == 1
    own.compile("adam", lr=1e-3, loss_weights=weights, verbose=0)
    squares = torch.zeros(5)
    kept = [p.detach().clone() for p in own.net.parameters()]
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p, before in zip(own.net.parameters(), kept, strict=True):
                order = torch.randperm(p.numel(), generator=generator)
                p.copy_(before.flatten()[order].view_as(p))
        squares += squares_by_hand(own)
    noisy, others = squares[[1, 3]].sum(), squares[[0, 2, 4]]
    torch.testing.assert_close(others / noisy, torch.ones(3), rtol=0.4, atol=0)


def test_losses_that_know_the_noise_count_as_noisy():
    losses = ["MSE", NoisyLoss(0.3), "MSE"]
    found = balanced_weights(model(exact(), ends()), losses)
    assert found == pytest.approx(balanced_weights(model(measured(0.3, X + 0.1), ends())))


def test_the_model_is_left_as_it_is():
    own = model(measured(), ends())
    own.net.eval()
    before = [p.clone() for p in own.net.parameters()]
    random = torch.get_rng_state()
    first = balanced_weights(own)
    assert balanced_weights(own) == first
    assert not own.net.training
    assert all(p.grad is None for p in own.net.parameters())
    assert all(map(torch.equal, before, own.net.parameters()))
    assert torch.equal(random, torch.get_rng_state())


def test_it_does_not_depend_on_the_weights_in_force():
    own = model(measured(), ends())
    first = balanced_weights(own)
    own.compile("snr_adam", lr=1e-3, loss_weights=[3, 1, 5], verbose=0)
    assert balanced_weights(own) == pytest.approx(first)
    own.compile("snr_adam", lr=1e-3, loss_weights=first, verbose=0)
    own.train(iterations=2, verbose=0)


def test_a_condition_that_the_network_meets_by_its_form_has_the_weight_one():
    own = model(measured(), ends())
    own.net.apply_output_transform(lambda x, u: (1 - x**2) * u)
    _, _, at_ends = balanced_weights(own)
    assert at_ends == 1


def test_supervised_data_have_one_term():
    data = dde.data.DataSet(X_train=X, y_train=Y, X_test=X, y_test=Y)
    own = dde.Model(data, dde.nn.FNN([1, 8, 1], "tanh", "Glorot uniform"))
    assert balanced_weights(own, NoisyLoss(0.1)) == [1]


def test_without_noise_or_with_nonsense_there_are_no_weights():
    with pytest.raises(ValueError, match="this model has none: declare the noise"):
        balanced_weights(model(exact(), ends()))
    own = model(measured(), ends())
    with torch.no_grad():
        next(own.net.parameters()).fill_(float("nan"))
    with pytest.raises(ValueError, match="finite gradients"):
        balanced_weights(own)

"""The progress bar: what it shows, what it leaves alone, and that it always ends."""

import io
import re
import sys

import deepxde as dde
import numpy as np
import pytest
import torch
from rich.console import Console

from sciml_snr import ProgressBar

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"


class Screen:
    """A console that writes to memory, and what could be read there."""

    def __init__(self, terminal):
        self.file = io.StringIO()
        self.console = Console(file=self.file, force_terminal=terminal, width=120)

    @property
    def raw(self):
        return self.file.getvalue()

    @property
    def text(self):
        """Everything that was ever shown, without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw)


@pytest.fixture
def terminal():
    return Screen(terminal=True)


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def screen(request):
    return Screen(request.param)


@pytest.fixture
def model():
    torch.manual_seed(0)
    np.random.seed(0)
    line = dde.geometry.Interval(-1, 1)
    net = dde.nn.FNN([1, 8, 1], "tanh", "Glorot uniform")
    model = dde.Model(dde.data.Function(line, np.square, 8, 8), net)
    model.compile("snr_adam", lr=1e-2, verbose=0)
    return model


@pytest.fixture
def short_lbfgs(monkeypatch):
    """Calls of two iterations, six iterations in all."""
    for option, value in {"maxiter": 6, "iter_per_step": 2, "fun_per_step": 3}.items():
        monkeypatch.setitem(dde.optimizers.LBFGS_options, option, value)


class Do(dde.callbacks.Callback):
    """Call an action at the end of the n-th iteration."""

    def __init__(self, action, at=3):
        super().__init__()
        self.action, self.left = action, at

    def on_epoch_end(self):
        self.left -= 1
        if self.left == 0:
            self.action()


def fail(exception, at=3):
    def action():
        raise exception

    return Do(action, at)


def train(model, bar, *others, iterations=12, verbose=0):
    model.train(iterations=iterations, display_every=2, callbacks=[bar, *others], verbose=verbose)


def test_shows_count_rate_and_time(model, screen):
    train(model, ProgressBar(12, "fitting", screen.console))
    *_, last = (line for line in screen.text.splitlines() if "fitting" in line)
    assert re.search(r"12/12 \d+ it/s \d:\d\d:\d\d left", last)


def test_prints_one_line_to_a_file(model):
    screen = Screen(terminal=False)
    train(model, ProgressBar(12, "fitting", screen.console))
    assert screen.text.count("fitting") == 1
    assert screen.raw == screen.text


def test_without_iterations_there_is_a_count_only(model, screen):
    train(model, ProgressBar(console=screen.console))
    assert re.search(r"12/\? ", screen.text)


def test_begins_where_a_resumed_run_left_off(model, screen):
    train(model, ProgressBar(20, console=screen.console, start=8))
    assert re.search(r" 20/20 ", screen.text)


def test_stops_where_training_stops_with_some_time_left(model, screen):
    def stop():
        model.stop_training = True

    train(model, ProgressBar(12, "fitting", screen.console), Do(stop, at=5))
    *_, last = (line for line in screen.text.splitlines() if "fitting" in line)
    assert re.search(r" 5/12 \d+ it/s \d:\d\d:\d\d left", last)


def test_shows_the_status(model, screen):
    bar = ProgressBar(12, console=screen.console)
    bar.status("too early, but harmless")
    train(model, bar, Do(lambda: bar.status("error 0.125"), at=12))
    assert re.search(r"\d left +\| error 0\.125", screen.text)
    assert "too early" not in screen.text


def test_counts_iterations_of_lbfgs(model, screen, short_lbfgs):
    train(model, ProgressBar(console=screen.console), iterations=2)
    model.compile("L-BFGS", verbose=0)
    train(model, ProgressBar(console=screen.console), iterations=None)
    *_, last = re.findall(r"(\d+)/\?", screen.text)
    assert int(last) == 6 == model.train_state.step - 2


@pytest.mark.parametrize("iterations", [0, -1])
def test_less_than_one_iteration_is_refused(iterations):
    with pytest.raises(ValueError, match=f"iterations must be at least 1, got {iterations}"):
        ProgressBar(iterations)


def test_deepxdes_lines_are_not_lost(model, screen, capsys):
    train(model, ProgressBar(12, console=screen.console), verbose=1)
    lines = [line.rstrip() for line in (capsys.readouterr().out + screen.text).splitlines()]
    for step, loss in zip(model.losshistory.steps, model.losshistory.loss_train, strict=True):
        assert any(line.startswith(f"{step:<10}[{loss[0]:.2e}]") for line in lines), step
    assert {"Training model...", "Best model at step 12:", "  test metric: []"} <= set(lines)


def test_other_output_is_itself_afterwards(model, terminal):
    stdout, stderr = sys.stdout, sys.stderr
    train(model, ProgressBar(12, console=terminal.console))
    assert (sys.stdout, sys.stderr) == (stdout, stderr)


# However training ends, the bar ends too


def assert_nothing_live(screen):
    """The cursor is back, and what is printed does not go through the bar's console any more."""
    assert screen.raw.rfind(SHOW_CURSOR) >= screen.raw.rfind(HIDE_CURSOR)
    before = screen.raw
    print("afterwards")
    assert screen.raw == before


@pytest.mark.parametrize("exception", [KeyboardInterrupt, FloatingPointError])
def test_an_exception_leaves_no_live_display(model, screen, exception):
    bar = ProgressBar(12, console=screen.console)
    with pytest.raises(exception):
        train(model, bar, fail(exception))
    assert_nothing_live(screen)
    assert re.search(r" 3/12 ", screen.text)


def test_an_exception_in_lbfgs_leaves_no_live_display(model, terminal, short_lbfgs):
    model.compile("L-BFGS", verbose=0)
    with pytest.raises(KeyboardInterrupt):
        train(model, ProgressBar(console=terminal.console), fail(KeyboardInterrupt, at=2))
    assert_nothing_live(terminal)


@pytest.mark.parametrize("same_bar", [True, False])
def test_after_an_exception_training_goes_on_with_a_bar(model, screen, same_bar):
    bar = ProgressBar(12, console=screen.console)
    with pytest.raises(KeyboardInterrupt):
        train(model, bar, fail(KeyboardInterrupt))
    train(model, bar if same_bar else ProgressBar(12, console=screen.console))
    assert " 12/12 " in screen.text
    assert_nothing_live(screen)


def test_an_exception_before_the_first_iteration(model, terminal):
    """The bar cannot know of it; the next one must work all the same."""

    class Refuse(dde.callbacks.Callback):
        def on_train_begin(self):
            raise ValueError("not today")

    bar = ProgressBar(12, console=terminal.console)
    with pytest.raises(ValueError, match="not today"):
        train(model, bar, Refuse())
    train(model, bar)
    assert " 12/12 " in terminal.text
    assert_nothing_live(terminal)


def test_leaves_the_model_as_it_was(model, screen):
    before = set(vars(model))
    train(model, ProgressBar(12, console=screen.console))
    assert set(vars(model)) == before


def test_one_bar_for_two_trainings(model, screen):
    bar = ProgressBar(12, console=screen.console)
    train(model, bar)
    train(model, bar)
    assert screen.text.rstrip().count(" 12/12 ") >= 2
    assert_nothing_live(screen)


def test_stopping_twice_or_never_started_is_harmless(screen):
    bar = ProgressBar(console=screen.console)
    bar.stop()
    bar.on_epoch_end()
    bar.stop()
    assert screen.raw == ""

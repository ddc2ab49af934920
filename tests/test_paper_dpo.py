"""Preference optimization: data and tables always, training where the extra is installed."""

import csv
import importlib.util
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.harness import append_missing, read
from benchmarks.paper import dpo, grammar

needs_trl = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("trl", "transformers")),
    reason='needs the extra "dpo" (transformers and trl)',
)


def test_sentences_follow_the_rules() -> None:
    rng = random.Random(0)
    kinds = {word: kind for kind, words in grammar.WORDS.items() for word in words}
    assert len(kinds) == sum(map(len, grammar.WORDS.values()))  # no word is of two kinds
    seen = set()
    for _ in range(200):
        prompt, rest = grammar.sentence(rng)
        form = [kinds[word][0] for word in prompt.split()]
        assert "".join(form) in ("dnv", "danv")
        assert rest.endswith(" .")
        form = [kinds[word][0] for word in rest.split()[:-1]]
        assert "".join(form) in {a + b for a in ("dn", "dan") for b in ("", "pdn", "pdan")}
        seen.add("".join(form))
    assert len(seen) == 6


def test_the_reward_is_the_mean_value_of_the_letters() -> None:
    values = {"a": 1.0, "b": -2.0}
    assert grammar.reward(" Ab a. 7", values) == pytest.approx(0.0)
    assert grammar.reward("aaab", values) == pytest.approx(0.25)
    assert grammar.reward(" .", values) == 0.0
    assert grammar.letter_values(1) == grammar.letter_values(1) != grammar.letter_values(2)
    assert len(grammar.letter_values(0)) == 26


def test_exactly_the_share_is_swapped() -> None:
    pairs = [grammar.Pair(f"p{i}", "good", "bad") for i in range(40)]
    noisy = grammar.swap(pairs, 0.3, seed=0)
    changed = [new for new, old in zip(noisy, pairs, strict=True) if new != old]
    assert len(changed) == 12
    assert all((pair.chosen, pair.rejected) == ("bad", "good") for pair in changed)
    assert [pair.prompt for pair in noisy] == [pair.prompt for pair in pairs]
    assert grammar.swap(pairs, 0.3, seed=0) == noisy != grammar.swap(pairs, 0.3, seed=1)


def test_prompts_differ_and_are_new_for_each_seed() -> None:
    found = grammar.prompts(0, 300)
    assert len(set(found)) == 300
    assert found == grammar.prompts(0, 300) != grammar.prompts(1, 300)


def test_jobs_begin_with_the_grid_of_the_first_seed() -> None:
    jobs = list(dpo.jobs())
    size = len(dpo.METHODS) * len(dpo.LRS)
    assert len(set(jobs)) == len(jobs) == size * dpo.SEEDS
    assert {job.seed for job in jobs[:size]} == {0}


def test_tables_and_figure_of_the_small_model(tmp_path, monkeypatch) -> None:
    path = tmp_path / "dpo.csv"
    curve = {"steps": "[1, 2]", "curve_accuracy": "[0.5, 0.6]", "curve_drift": "[0.1, 0.2]"}
    numbers = {"final_drift": 2.0, "final_kl": 0.25, "gain": 0.5, "swapped_learned": 0.75}
    with path.open("w", newline="") as file:
        names = ["method", "lr", "seed", "model", "final_accuracy", "best_accuracy"]
        writer = csv.DictWriter(file, [*names, *numbers, *curve])
        writer.writeheader()
        for method, lr, seed, model, accuracy in (
            ("AdamW", "0.001", 0, "", 0.6),
            ("AdamW", "0.001", 1, "", 0.7),
            ("AdamW", "0.0001", 0, "", 0.9),  # the best, on fewer seeds
            ("AdamW", "0.0003", 0, "", 0.5),
            ("AdamW", "0.0003", 1, "", 0.55),
            ("AdamW", "0.003", 0, "another model", 1.0),
            (list(dpo.METHODS)[-1], "0.001", 0, "", 0.8),
        ):
            own = {"final_accuracy": accuracy, "best_accuracy": accuracy + 0.01}
            key = {"method": method, "lr": lr, "seed": seed, "model": model}
            writer.writerow({**key, **own, **numbers, **curve})
    monkeypatch.setattr(dpo, "PATH", path)
    tuned, everything = dpo.table().splitlines(), dpo.grid().splitlines()
    assert tuned[2].startswith("| AdamW | 0.001 | 2 | 0.650 (0.600 to 0.700) | 0.660 ")
    assert tuned[3].startswith(f"| {list(dpo.METHODS)[-1]} | 0.001 | 1 | 0.800 | 0.810 | 2.000 |")
    assert len(tuned) == 4
    assert len(everything) == 2 + 4
    assert len({line.count("|") for line in tuned}) == 1
    assert dpo.claim() == "not yet run"  # no row of one of the two
    monkeypatch.setattr(dpo, "GATED", list(dpo.METHODS)[-1])
    assert "accuracy 0.650 and 0.800, drift 2.000 and 2.000; at the same rate" in dpo.claim()
    assert dpo.claim().endswith("1.0 to 1.0 times closer (1 seeds)")
    dpo.figure(tmp_path / "figures" / "dpo.png")
    assert (tmp_path / "figures" / "dpo.png").stat().st_size > 10_000


def test_no_rows_no_lines(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(dpo, "PATH", tmp_path / "none.csv")
    assert len(dpo.table().splitlines()) == len(dpo.grid().splitlines()) == 2


def test_distance_against_its_definition() -> None:
    """Two bigram models in place of language models, summed token by token."""

    class Bigram(torch.nn.Module):
        device = torch.device("cpu")

        def __init__(self, seed: int) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            self.logits = torch.randn(5, 5, generator=generator, dtype=torch.float64)

        def forward(self, input_ids, attention_mask):
            return type("Output", (), {"logits": self.logits[input_ids]})

    own, other = Bigram(0), Bigram(1)
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 4, 4], [0, 1, 3, 0], [0, 1, 2, 0]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, 0]])
    batch = {"input_ids": ids, "completion_mask": mask, "attention_mask": torch.ones_like(ids)}
    found = dpo.distance(own, other, [batch])
    rewards, kls = [], []
    for row, counted in zip(ids.tolist(), mask.tolist(), strict=True):
        total = 0.0
        for before, token, counts in zip(row, row[1:], counted[1:], strict=False):
            if counts:
                p, q = (net.logits[before].softmax(0) for net in (own, other))
                total += float((p[token] / q[token]).log())
                kls.append(float((p * (p / q).log()).sum()))
        rewards.append(dpo.BETA * total)
    right = [rewards[i] > rewards[i + 2] for i in range(2)]
    assert found.accuracy == sum(right) / 2
    assert found.drift == pytest.approx(sum(map(abs, rewards)) / 4)
    assert found.kl == pytest.approx(sum(kls) / len(kls))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A reference hardly trained, as a checkpoint in a folder."""
    dpo.quiet_libraries(offline=True)
    return str(dpo.Small(width=16, layers=1, steps=20).folder(tmp_path_factory.mktemp("dpo")))


@pytest.fixture
def job(tiny: str, monkeypatch: pytest.MonkeyPatch) -> dpo.Job:
    monkeypatch.setattr(dpo, "HELD_OUT", 24)
    monkeypatch.setattr(dpo, "MOMENTS", 2)
    return dpo.Job("AdamW", 1e-2, seed=3, model=tiny, pairs=20, batch=8, epochs=2)


@needs_trl
@pytest.mark.parametrize("method", ["SNRAdam, soft, z = 2", "AdamW, robust loss"])
def test_a_run_learns_its_pairs(job: dpo.Job, method: str) -> None:
    row = dpo.run(replace(job, method=method))
    assert json.loads(row["steps"]) == [3, 6]
    for name in dpo.Distance._fields:
        assert len(json.loads(row[f"curve_{name}"])) == 2
    assert 0 <= row["final_accuracy"] <= row["best_accuracy"] <= 1
    assert row["final_drift"] > 0 and row["final_kl"] > 0
    assert 0 <= row["swapped_learned"] <= 1


@needs_trl
def test_runs_are_repeated_and_resumed(job: dpo.Job, tmp_path: Path) -> None:
    path, other = tmp_path / "dpo.csv", replace(job, lr=1e-3)
    append_missing(path, [job], dpo.KEYS, dpo.run, jobs=1)
    append_missing(path, [job, other], dpo.KEYS, dpo.run, jobs=1)
    first, second = read(path)
    assert (first["lr"], second["lr"]) == ("0.01", "0.001")
    again = dpo.run(job)
    for name in ("final_accuracy", "final_drift", "final_kl", "gain", "curve_drift"):
        assert first[name] == str(again[name])
        assert first[name] != second[name] or name == "final_accuracy"


@needs_trl
def test_accuracy_and_rewards_are_those_of_trl(job: dpo.Job, tmp_path: Path) -> None:
    policy, tokenizer = dpo.load(job.model)
    reference, _ = dpo.load(job.model)
    pairs = dpo.preferences(reference, tokenizer, job.seed, 44)
    trainer = dpo.trainer_for(job, policy, tokenizer, pairs[24:], pairs[:24], str(tmp_path))
    trainer.train()
    trainer.evaluate()
    theirs = trainer.state.log_history[-1]
    own = dpo.distance(policy.eval(), reference, list(trainer.get_eval_dataloader()))
    assert own.accuracy == pytest.approx(theirs["eval_rewards/accuracies"])
    assert own.drift >= abs(theirs["eval_rewards/chosen"] + theirs["eval_rewards/rejected"]) / 2


@needs_trl
def test_pairs_are_in_the_order_of_the_reward_and_continue_their_prompts(job: dpo.Job) -> None:
    model, tokenizer = dpo.load(job.model)
    pairs, values = dpo.preferences(model, tokenizer, 0, 30), grammar.letter_values(0)
    assert len({pair.prompt for pair in pairs}) == 30
    for pair in pairs:
        assert grammar.reward(pair.chosen, values) > grammar.reward(pair.rejected, values)
        assert pair.chosen.startswith(" ") and "<" not in pair.chosen
    words = {word for kind in grammar.WORDS.values() for word in kind} | {".", "<unknown>"}
    assert {word for pair in pairs for word in pair.chosen.split()} <= words


@needs_trl
@pytest.mark.parametrize("kind", ["texts", "messages"])
def test_preferences_of_a_data_set(job: dpo.Job, tmp_path: Path, kind: str) -> None:
    words = [word for kind in grammar.WORDS.values() for word in kind]

    def said(text: str) -> str | list[dict[str, str]]:
        if kind == "texts":
            return text
        return [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]

    lines = [
        {"prompt": f"the {one}", "chosen": said(f" sees the {one} ."), "rejected": said(" keeps .")}
        for one in words
    ]
    same = {"prompt": "a", "chosen": said(" b"), "rejected": said(" b")}
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, [same, *lines])) + "\n")
    tokenizer = dpo.load(job.model)[1]
    pairs = dpo.given_preferences(str(path), tokenizer, 0, len(lines))
    assert {pair.prompt for pair in pairs} == {f"the {one}" for one in words}
    assert all(pair.chosen.startswith(" sees") and pair.rejected == " keeps ." for pair in pairs)
    assert pairs != dpo.given_preferences(str(path), tokenizer, 1, len(lines))
    row = dpo.run(replace(job, dataset=str(path)))
    assert row["gain"] == "" and row["dataset"] == str(path)
    assert row["final_accuracy"] > 0.5 and row["final_drift"] > 0
    with pytest.raises(ValueError, match="pairs of different texts, 999 are needed"):
        dpo.given_preferences(str(path), tokenizer, 0, 999)
    path.write_text('{"prompt": "a", "better": "b"}\n')
    with pytest.raises(ValueError, match="has no column 'chosen': it needs"):
        dpo.given_preferences(str(path), tokenizer, 0, 1)


@pytest.mark.parametrize("method", list(dpo.METHODS))
def test_every_method_takes_a_step(method: str) -> None:
    if method == "CASMO":
        pytest.importorskip("casmo")
    weight = torch.nn.Parameter(torch.ones(3))
    build, _ = dpo.METHODS[method]
    optimizer = build([weight], dpo.Job(method, 1e-3, 0))
    for _ in range(3):
        weight.grad = torch.full((3,), 2.0)
        optimizer.step()
    assert torch.isfinite(weight).all() and (weight < 1).all()

r"""Direct preference optimization with swapped preferences: AdamW against SNRAdam.

    python -m benchmarks.paper.dpo                                    what the table lacks
    python -m benchmarks.paper.dpo --model NAME_OR_PATH --lrs 1e-6    with a real checkpoint
    ... --dataset NAME_OR_PATH                                        and real preferences

appends to benchmarks/results/dpo.csv and draws docs/figures/dpo.png; `python -m benchmarks.report`
makes the table from it. Needs the extra "dpo" (transformers and trl).

A causal language model pi_ref (a small Llama, trained here on sentences of a grammar, or the given
checkpoint) writes two continuations per prompt. A known reward, which counts letters, says which
of them is better, and 30 % of these preferences are swapped. trl's DPOTrainer then makes passes
over the fixed set of pairs, minimizing (Rafailov et al., arXiv:2305.18290)

.. math::
    -\log\sigma(r(y_{chosen}) - r(y_{rejected})), \qquad
    r(y) = \beta \log\frac{\pi(y|x)}{\pi_{ref}(y|x)} \quad \text{(the implicit reward)}

Preferences of a data set have columns ``prompt``, ``chosen`` and ``rejected``: texts, or lists of
messages whose last one counts, as in UltraFeedback. The prompt is put into the tokenizer's chat
template, if it has one.

Measured on new prompts with true preferences: the share of pairs in the right order, and how far
the policy has moved, as the mean abs(r) and as KL(pi || pi_ref) per token, in nats. The paper
(arXiv:2605.01172) has accuracy 0.566 -> 0.641 at a 3.05 times smaller distance.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean, median, pstdev
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks import text
from benchmarks.harness import FIGURES, RESULTS, append_missing, read
from benchmarks.paper.grammar import WORDS, Pair, letter_values, prompts, reward, sentence, swap
from benchmarks.paper.rivals import casmo
from sciml_snr import SNRAdam
from sciml_snr.figures import COLORS

PATH = RESULTS / "dpo.csv"
ROOT = Path(__file__).parents[2]
FIGURE = FIGURES / "dpo.png"
BETA = 0.1
SWAPPED = 0.3
WEIGHT_DECAY = 0.01
"""torch's default for AdamW, here for every method."""
LRS = (1e-4, 3e-4, 1e-3, 3e-3)
SEEDS = 5
HELD_OUT = 512
"""Pairs with true preferences."""
MOMENTS = 10
"""Measurements along a run."""
NEW_TOKENS = 12
"""The longest continuation."""
MAX_LENGTH = 1024
"""Tokens of a text of a data set, prompt and all; longer ones are cut off."""


@dataclass(frozen=True)
class Job:
    """One run."""

    method: str
    lr: float
    seed: int
    """Of the reward, the pairs, and their order."""
    model: str = ""
    """Name or path of a checkpoint; empty: the small one, trained here."""
    pairs: int = 256
    batch: int = 32
    epochs: int = 30
    dataset: str = ""
    """Name or path of preferences; empty: by the known reward."""


KEYS = tuple(field.name for field in fields(Job))


def adamw(params: Sequence[Tensor], job: Job) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=job.lr, weight_decay=WEIGHT_DECAY)


def snr_adam(params: Sequence[Tensor], job: Job, **gate: Any) -> torch.optim.Optimizer:
    return SNRAdam(params, lr=job.lr, weight_decay=WEIGHT_DECAY, **gate)


ADAMW, SOFT_2, SNR = "AdamW", "SNRAdam, soft, z = 2", "SNRAdam, snr"
GATED = "SNRAdam, snr, per tensor"
"""The gate of the highest accuracy: the one in :func:`claim`."""
DRAWN = (ADAMW, "SNRAdam, published rule, soft", SNR, GATED)
"""In the figure."""
ROBUST = {"loss_type": ["robust"], "label_smoothing": SWAPPED}
METHODS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    ADAMW: (adamw, {}),
    "SNRAdam, published rule, soft": (snr_adam, {}),
    SOFT_2: (functools.partial(snr_adam, gate={"form": "soft", "z": 2.0}), {}),
    "AdamW, robust loss": (adamw, ROBUST),
    SNR: (functools.partial(snr_adam, gate="snr"), {}),
    "SNRAdam, snr, softness 0.3": (functools.partial(snr_adam, gate="snr", softness=0.3), {}),
    "SNRAdam, snr, softness 3": (functools.partial(snr_adam, gate="snr", softness=3.0), {}),
    "SNRAdam, snr, softness 10": (functools.partial(snr_adam, gate="snr", softness=10.0), {}),
    "SNRAdam, soft, lambda 0": (functools.partial(snr_adam, gate="soft", lambd=0.0), {}),
    GATED: (functools.partial(snr_adam, gate="snr", reduction="per_tensor"), {}),
    "CASMO": (lambda params, job: casmo(params, lr=job.lr, weight_decay=WEIGHT_DECAY), {}),
}
"""Name -> optimizer, options of the loss.

The robust loss (Chowdhury et al., arXiv:2403.00409) is told the share of swapped pairs.
"""


def quiet_libraries(offline: bool) -> None:
    """Import transformers and datasets without their reports; offline unless a model is asked for.

    Raises:
        ModuleNotFoundError: the extra "dpo" is missing.
    """
    if offline:  # read when huggingface_hub is imported
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        import datasets
        import transformers
        import trl  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f'{error}. Preference optimization needs the extra "dpo": pip install -e ".[dpo]"'
        ) from None
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


@dataclass(frozen=True)
class Small:
    """The small reference model and its training on sentences of the grammar."""

    width: int = 64
    layers: int = 2
    steps: int = 1000
    batch: int = 64
    lr: float = 2e-3

    def folder(self, root: Path = ROOT / "runs/dpo") -> Path:
        """Where it lies, trained on first use."""
        settings = json.dumps([asdict(self), WORDS])
        folder = root / f"reference-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        if not folder.exists():
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root) as partial:
                self._train(Path(partial) / "model")
                (Path(partial) / "model").rename(folder)
        return folder

    def _train(self, folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        tokenizer = small_tokenizer()
        torch.manual_seed(0)
        rng = random.Random("sentences")
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=4,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=True,
        )
        model = LlamaForCausalLM(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.steps)
        for _ in range(self.steps):
            texts = [" ".join(sentence(rng)) + tokenizer.eos_token for _ in range(self.batch)]
            tokens = tokenizer(texts, return_tensors="pt", padding=True)
            labels = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
            optimizer.zero_grad()
            model(**tokens, labels=labels).loss.backward()
            optimizer.step()
            schedule.step()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def small_tokenizer() -> Any:
    """A token per word of the grammar."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "<unknown>", ".", *(w for kind in WORDS.values() for w in kind)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unknown>",
        padding_side="left",
    )


def load(path: str) -> tuple[Any, Any]:
    """Model and tokenizer of a checkpoint, in evaluation mode.

    Raises:
        ValueError: the tokenizer does not say where a text ends.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.eos_token is None:
        raise ValueError(f"The tokenizer of {path} has no end-of-sequence token, which DPO needs.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(), tokenizer


@torch.no_grad()
def continuations(
    model: Any, tokenizer: Any, prompts: Sequence[str], batch: int = 256
) -> list[str]:
    """One sample of the model per prompt, beginning with a space."""
    found = []
    for start in range(0, len(prompts), batch):
        tokens = tokenizer(list(prompts[start : start + batch]), return_tensors="pt", padding=True)
        tokens = {key: tokens[key].to(model.device) for key in ("input_ids", "attention_mask")}
        written = model.generate(
            **tokens,
            max_new_tokens=NEW_TOKENS,
            do_sample=True,
            top_k=0,
            temperature=1.0,
            pad_token_id=tokenizer.pad_token_id,
        )[:, tokens["input_ids"].shape[1] :]
        found += tokenizer.batch_decode(written, skip_special_tokens=True)
    return [" " + one.strip() for one in found]


def preferences(model: Any, tokenizer: Any, seed: int, count: int) -> list[Pair]:
    """Pairs of the model's samples by their true reward, every prompt once."""
    values = letter_values(seed)
    torch.manual_seed(seed)
    # A few samples are twice the same, and have no better one.
    asked = prompts(seed, count + max(20, count // 5))
    first, second = (continuations(model, tokenizer, asked) for _ in range(2))
    pairs = []
    for prompt, one, other in zip(asked, first, second, strict=True):
        difference = reward(one, values) - reward(other, values)
        if difference:
            pairs.append(Pair(prompt, *((one, other) if difference > 0 else (other, one))))
    if len(pairs) < count:
        raise ValueError(
            f"Only {len(pairs)} of {len(asked)} prompts have two samples that differ in reward, "
            f"{count} are needed: the model writes almost nothing but one text per prompt."
        )
    return pairs[:count]


def given_preferences(dataset: str, tokenizer: Any, seed: int, count: int) -> list[Pair]:
    """Pairs of a data set, in an order drawn by the seed.

    Args:
        dataset: a file .json, .jsonl or .parquet, a folder of ``save_to_disk``, or a name.

    Raises:
        ValueError: it lacks a column, or has too few pairs that differ.
    """
    from datasets import DatasetDict, load_dataset, load_from_disk

    kind = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}.get(Path(dataset).suffix)
    if kind:
        found = load_dataset(kind, data_files=dataset)
    else:
        found = load_from_disk(dataset) if Path(dataset).is_dir() else load_dataset(dataset)
    if isinstance(found, DatasetDict):
        found = found["train_prefs" if "train_prefs" in found else next(iter(found))]
    if missing := [name for name in Pair._fields if name not in found.column_names]:
        raise ValueError(
            f"{dataset} has no column {missing[0]!r}: it needs {', '.join(Pair._fields)}, and has "
            f"{', '.join(found.column_names)}."
        )
    pairs = []
    for i in random.Random(f"order {seed}").sample(range(len(found)), len(found)):
        prompt, *both = (_text(found[i][name]) for name in Pair._fields)
        if both[0] == both[1] or not all(both):
            continue
        if tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(
                message, tokenize=False, add_generation_prompt=True
            )
        pairs.append(Pair(prompt, *both))
        if len(pairs) == count:
            return pairs
    raise ValueError(f"{dataset} has {len(pairs)} pairs of different texts, {count} are needed.")


def _text(value: Any) -> str:
    """Of a text, or of the last of a list of messages."""
    return value if isinstance(value, str) else str(value[-1]["content"])


class Distance(NamedTuple):
    """A policy against its reference, on held-out pairs."""

    accuracy: float
    """Share of the pairs whose implicit rewards are in the right order."""
    drift: float
    """Mean abs(implicit reward)."""
    kl: float
    """KL(policy || reference) per token of the continuations, in nats."""


@torch.no_grad()
def distance(model: Any, reference: Any, batches: Sequence[dict[str, Tensor]]) -> Distance:
    """Measured on batches of trl: the chosen continuations' rows, then the rejected ones'."""
    right, moved, divergence, tokens = [], [], 0.0, 0.0
    for batch in batches:
        mask = batch["completion_mask"][:, 1:].to(model.device)
        ids = batch["input_ids"].to(model.device)
        attention = batch["attention_mask"].to(model.device)
        own, other = (
            net(input_ids=ids, attention_mask=attention).logits[:, :-1].log_softmax(-1)
            for net in (model, reference)
        )
        ratio = (own - other).gather(2, ids[:, 1:, None])[..., 0]
        rewards = BETA * (ratio * mask).sum(1)
        chosen, rejected = rewards.chunk(2)
        right.append((chosen > rejected).float())
        moved.append(rewards.abs())
        divergence += float(((own.exp() * (own - other)).sum(-1) * mask).sum())
        tokens += float(mask.sum())
    accuracy, drift = (float(torch.cat(parts).mean()) for parts in (right, moved))
    return Distance(accuracy, drift, divergence / tokens)


def trainer_for(
    job: Job, model: Any, tokenizer: Any, pairs: Sequence[Pair], held: Sequence[Pair], folder: str
) -> Any:
    """trl's, with the optimizer of the method and a constant learning rate."""
    from datasets import Dataset
    from transformers import get_constant_schedule
    from trl import DPOConfig, DPOTrainer

    build, loss = METHODS[job.method]
    optimizer = build(list(model.parameters()), job)
    settings = DPOConfig(
        output_dir=folder,
        beta=BETA,
        num_train_epochs=job.epochs,
        per_device_train_batch_size=job.batch,
        per_device_eval_batch_size=64,
        precompute_ref_log_probs=True,
        seed=job.seed,
        use_cpu=not job.model,
        bf16=False,
        gradient_checkpointing=False,
        max_length=MAX_LENGTH if job.dataset else None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **loss,
    )
    return DPOTrainer(
        model,
        args=settings,
        train_dataset=Dataset.from_list([pair._asdict() for pair in pairs]),
        eval_dataset=Dataset.from_list([pair._asdict() for pair in held]),
        processing_class=tokenizer,
        optimizers=(optimizer, get_constant_schedule(optimizer)),
    )


def run(job: Job) -> dict[str, Any]:
    """One row: train in this process, on one thread unless the model is a given checkpoint."""
    quiet_libraries(offline=not job.model)
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    started = time.process_time()
    if not job.model:
        torch.set_num_threads(1)
    device = "cuda" if job.model and torch.cuda.is_available() else "cpu"
    path = job.model or str(Small().folder())
    reference, tokenizer = load(path)
    reference.to(device)
    needed = HELD_OUT + job.pairs
    if job.dataset:
        found = given_preferences(job.dataset, tokenizer, job.seed, needed)
    else:
        found = preferences(reference, tokenizer, job.seed, needed)
    held, clean = found[:HELD_OUT], found[HELD_OUT:]
    pairs = swap(clean, SWAPPED, job.seed)
    wrong = [pair for pair, right in zip(pairs, clean, strict=True) if pair != right]
    policy = load(path)[0].to(device)
    curve: list[tuple[int, Distance]] = []

    class Measure(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            last = state.global_step == state.max_steps
            if state.global_step % max(1, state.max_steps // MOMENTS) == 0 or last:
                curve.append((state.global_step, distance(policy, reference, batches)))

    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_for(job, policy, tokenizer, pairs, [*held, *wrong], folder)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Measure())
        measured = trainer.eval_dataset
        batches = list(trainer.get_eval_dataloader(measured.select(range(HELD_OUT))))
        learned = list(trainer.get_eval_dataloader(measured.select(range(HELD_OUT, len(measured)))))
        trainer.train()
    policy.eval()
    final, best = curve[-1][1], max(curve, key=lambda moment: moment[1].accuracy)
    gained: float | str = ""
    if not job.dataset:
        torch.manual_seed(job.seed)
        written = continuations(policy, tokenizer, [pair.prompt for pair in held])
        gained = gain(written, held, letter_values(job.seed))
    return {
        **{key: str(value) for key, value in asdict(job).items()},
        **{f"final_{name}": value for name, value in final._asdict().items()},
        "best_accuracy": best[1].accuracy,
        "best_step": best[0],
        "swapped_learned": distance(policy, reference, learned).accuracy,
        "gain": gained,
        "steps": json.dumps([step for step, _ in curve]),
        **{
            f"curve_{name}": json.dumps([float(f"{getattr(d, name):.4g}") for _, d in curve])
            for name in Distance._fields
        },
        "cpu_seconds": time.process_time() - started,
    }


def gain(written: Sequence[str], held: Sequence[Pair], values: dict[str, float]) -> float:
    """Mean true reward of the policy's texts, in standard deviations above the reference's."""
    theirs = [reward(one, values) for pair in held for one in (pair.chosen, pair.rejected)]
    own = [reward(one, values) for one in written]
    return (mean(own) - mean(theirs)) / pstdev(theirs)


def jobs(lrs: Sequence[float] = LRS, model: str = "", dataset: str = "") -> Iterator[Job]:
    """Every rate on the first seed, then seed by seed."""
    for seed in range(SEEDS):
        for lr in lrs:
            for method in METHODS:
                yield Job(method, lr, seed, model, dataset=dataset)


def claim() -> str:
    """In one sentence: AdamW and the gate of the highest accuracy, at tuned rates and the same."""
    groups = _groups()
    both = [(method, _tuned(groups, method)) for method in (ADAMW, GATED)]
    shared = [lr for method, lr in groups if method == ADAMW and (GATED, lr) in groups]
    if not shared:
        return "not yet run"

    def at(cell: tuple[str, str], name: str) -> float:
        return median(text.column(groups[cell], f"final_{name}"))

    accuracy, drift = ([f"{at(cell, name):.3f}" for cell in both] for name in ("accuracy", "drift"))
    closer = [at((ADAMW, lr), "drift") / at((GATED, lr), "drift") for lr in shared]
    return (
        f"tuned AdamW and {GATED}: accuracy {' and '.join(accuracy)}, drift {' and '.join(drift)}; "
        f"at the same rate {min(closer):.1f} to {max(closer):.1f} times closer "
        f"({len(groups[both[1]])} seeds)"
    )


def table() -> str:
    """Every method at the rate of the highest median final accuracy, of those with most seeds."""
    groups = _groups()
    chosen = {method: _tuned(groups, method) for method in METHODS}
    return _lines([(method, lr) for method, lr in chosen.items() if lr], groups)


def grid() -> str:
    """Every method at every rate."""
    return _lines(_groups(), _groups())


Groups = dict[tuple[str, ...], text.Rows]


def _lines(which: Iterable[tuple[str, ...]], groups: Groups) -> str:
    columns = {
        "accuracy, median (range)": "final_accuracy",
        "best on the way": "best_accuracy",
        "drift": "final_drift",
        "KL per token": "final_kl",
        "true reward gained, sd": "gain",
        "swapped pairs learned": "swapped_learned",
    }
    lines = []
    for cell in which:
        rows = groups[cell]
        cells = [text.spread_of(rows, name) for name in columns.values()]
        lines.append([*cell, str(len(rows)), *cells])
    return text.table(["method", "lr", "seeds", *columns], lines)


def _groups() -> Groups:
    """(method, rate) -> the rows of the small model, in the order of METHODS and of the rates."""
    rows = [row for row in read(PATH) if not row["model"]]
    order = list(METHODS)
    rows.sort(key=lambda row: (order.index(row["method"]), float(row["lr"]), int(row["seed"])))
    return text.groups(rows, "method", "lr")


def _tuned(groups: Groups, method: str) -> str:
    own = [rows for (name, _), rows in groups.items() if name == method]
    if not own:
        return ""
    best = max(text.whole(own), key=lambda rows: median(text.column(rows, "final_accuracy")))
    return best[0]["lr"]


def figure(path: Path = FIGURE) -> None:
    """Accuracy and drift over the steps, every method at its tuned rate: median and range."""
    from matplotlib.figure import Figure

    groups = _groups()
    drawing = Figure(figsize=(10, 4.2), layout="constrained")
    axes: Any = drawing.subplots(1, 2)
    for method, color in zip(DRAWN, COLORS, strict=False):
        if lr := _tuned(groups, method):
            rows = groups[method, lr]
            for ax, name in zip(axes, ("accuracy", "drift"), strict=True):
                curves = np.array([json.loads(row[f"curve_{name}"]) for row in rows])
                steps = json.loads(rows[0]["steps"])
                ax.plot(steps, np.median(curves, 0), color=color, label=f"{method}, lr {lr}")
                ax.fill_between(
                    steps, curves.min(0), curves.max(0), color=color, alpha=0.15, linewidth=0
                )
    axes[0].set(xlabel="step", title="accuracy on held-out pairs, true preferences")
    axes[1].set(xlabel="step", title="drift: mean abs(implicit reward)", yscale="log")
    drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=130)


def main() -> None:
    """Do what is missing of the table, or of the runs with a given checkpoint."""
    parser = argparse.ArgumentParser(description="DPO with swapped preferences")
    parser.add_argument("--model", default="", help="name or path of a causal language model")
    parser.add_argument("--dataset", default="", help="preferences: a file, a folder, or a name")
    parser.add_argument("--lrs", type=float, nargs="+", default=LRS, help="learning rates")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one per core")
    options = parser.parse_args()
    if options.dataset and not options.model:
        parser.error("--dataset needs --model: the small one knows a few words only.")
    quiet_libraries(offline=not options.model)
    if not options.model:
        Small().folder()  # once, before the workers start
    try:
        every = jobs(options.lrs, options.model, options.dataset)
        append_missing(PATH, every, KEYS, run, options.jobs)
    finally:  # also of what was done before an interruption
        if _groups():
            figure()


if __name__ == "__main__":
    main()

"""Sentences of a small grammar, a known reward that counts letters, and preferences by it."""

from __future__ import annotations

import random
import string
from collections.abc import Sequence
from typing import NamedTuple

_WORDS = {
    "determiner": "the a every one this that some any",
    "adjective": "old young quick pale brave wild quiet golden humble foggy jolly next",
    "noun": "sailor fox king queen baker ship horse garden bridge window jackal puzzle wizard "
    "village forest vixen",
    "verb": "sees finds keeps loves brings takes moves quizzes follows paints judges watches",
    "preposition": "near under behind with beyond against",
}
WORDS = {kind: words.split() for kind, words in _WORDS.items()}


def sentence(rng: random.Random) -> tuple[str, str]:
    """A prompt (noun phrase, verb) and its continuation, words and a full stop with spaces between.

    The rules: S -> NP V NP [PP] ".", NP -> D [A] N, PP -> P NP.
    """

    def one(kind: str) -> list[str]:
        return [rng.choice(WORDS[kind])]

    def phrase() -> list[str]:
        adjective = one("adjective") if rng.random() < 0.5 else []
        return one("determiner") + adjective + one("noun")

    prompt = phrase() + one("verb")
    place = one("preposition") + phrase() if rng.random() < 0.5 else []
    return " ".join(prompt), " ".join([*phrase(), *place, "."])


def prompts(seed: int, count: int) -> list[str]:
    """Different prompts."""
    rng = random.Random(f"prompts {seed}")
    found: dict[str, None] = {}
    while len(found) < count:
        found[sentence(rng)[0]] = None
    return list(found)


def letter_values(seed: int) -> dict[str, float]:
    """What each letter is worth: standard normal."""
    rng = random.Random(f"letters {seed}")
    return {letter: rng.gauss(0, 1) for letter in string.ascii_lowercase}


def reward(text: str, values: dict[str, float]) -> float:
    """Mean value of the text's letters, whatever its length; 0 for a text without."""
    found = [values[letter] for letter in text.lower() if letter in values]
    return sum(found) / len(found) if found else 0.0


class Pair(NamedTuple):
    """A preference, right or swapped."""

    prompt: str
    chosen: str
    rejected: str


def swap(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """Chosen and rejected changed over in this share of the pairs, drawn by the seed."""
    chance = random.Random(f"swaps {seed}")
    wrong = set(chance.sample(range(len(pairs)), round(share * len(pairs))))
    return [
        Pair(pair.prompt, pair.rejected, pair.chosen) if i in wrong else pair
        for i, pair in enumerate(pairs)
    ]

r"""The arithmetic of the grokking runs: tables modulo 97, and two networks that learn them.

The transformer is that of A. Power, Y. Burda, H. Edwards, I. Babuschkin and V. Misra, *Grokking:
Generalization Beyond Overfitting on Small Algorithmic Datasets*, arXiv:2201.02177 (2022): a
decoder of 2 layers, width 128, 4 heads and no dropout, which reads ``a / b =``. The perceptron
reads the embeddings of a and b side by side; it takes a fifth of the transformer's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MODULUS, WIDTH, HEADS = 97, 128, 4
EMBEDDING, HIDDEN = 64, 256
"""Widths of the perceptron."""


class Block(nn.Module):
    """Causal attention and a two-layer perceptron, each followed by layer normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH, bias=False)
        self.key_value = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        self.widen = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.narrow = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        self.norm_attention, self.norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

    def forward(
        self,
        x: Tensor,
        past: Tensor | None = None,
        index: Tensor | None = None,
        last: bool = False,
    ) -> Tensor:
        """(n, t, WIDTH) outputs at the tokens x, or (n, 1, WIDTH) at the last of them.

        Args:
            x: (n, t, WIDTH) inputs.
            past: (k, s, WIDTH) inputs at the tokens before, of k different beginnings.
            index: (n,) which beginning each row has.
            last: see above.
        """
        keys_values = self.key_value(x)
        if past is not None:
            keys_values = torch.cat([self.key_value(past)[index], keys_values], 1)
        keys, values = keys_values.chunk(2, -1)
        t, total = x.shape[1], keys.shape[1]
        seen = None if last else torch.ones(t, total, dtype=torch.bool).tril(total - t)
        x = x[:, -1:] if last else x
        q, k, v = (
            z.unflatten(-1, (HEADS, -1)).transpose(1, 2) for z in (self.query(x), keys, values)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norm_attention(x + self.out(mixed.transpose(1, 2).flatten(-2)))
        out: Tensor = self.norm(x + self.narrow(F.relu(self.widen(x))))
        return out


class Transformer(nn.Module):
    """Reads ``a / b =`` and predicts the quotient.

    What causal attention makes of the tokens ``a /`` depends on a alone, and is computed once for
    each of the 97 values, not for every pair.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(MODULUS + 2, WIDTH)
        self.first, self.second = Block(), Block()
        self.head = nn.Linear(WIDTH, MODULUS + 2, bias=False)
        angles = torch.arange(4)[:, None] * 1e4 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
        self.register_buffer("position", torch.stack([angles.sin(), angles.cos()], -1).flatten(1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, 99) logits of the quotients of (n,) dividends and divisors."""
        every = torch.arange(MODULUS)
        start = self._embedded(every, MODULUS, self.position[:2])
        end = self._embedded(b, MODULUS + 1, self.position[2:])
        end = self.first(end, start, a)
        logits: Tensor = self.head(self.second(end, self.first(start), a, last=True)[:, 0])
        return logits

    def _embedded(self, number: Tensor, sign: int, position: Tensor) -> Tensor:
        """(n, 2, WIDTH) of a number and the sign behind it."""
        embedded: Tensor = self.embed(torch.stack([number, torch.full_like(number, sign)], 1))
        return embedded + position


class Perceptron(nn.Module):
    """Two linear layers on the embeddings of both numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(MODULUS, EMBEDDING)
        self.hidden = nn.Linear(2 * EMBEDDING, HIDDEN)
        self.head = nn.Linear(HIDDEN, MODULUS)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """(n, 97) logits of the results for (n,) first and second numbers."""
        hidden = F.relu(self.hidden(torch.cat([self.embed(a), self.embed(b)], 1)))
        logits: Tensor = self.head(hidden)
        return logits


def quotients() -> Tensor:
    """All dividends a, divisors b and quotients a / b mod 97: (3, 97 * 96)."""
    a, b = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(1, MODULUS)).T
    inverse = torch.tensor([pow(int(x), -1, MODULUS) for x in range(1, MODULUS)])
    return torch.stack([a, b, a * inverse[b - 1] % MODULUS])


def sums() -> Tensor:
    """All pairs a, b and their sums mod 97: (3, 97 * 97)."""
    a, b = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS)).T
    return torch.stack([a, b, (a + b) % MODULUS])


class Task(NamedTuple):
    """A table to be learned, and the network that learns it."""

    table: Callable[[], Tensor]
    network: Callable[[], nn.Module]


TASKS = {
    "division, transformer": Task(quotients, Transformer),
    "addition, perceptron": Task(sums, Perceptron),
}

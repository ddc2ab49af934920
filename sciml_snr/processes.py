"""The processes that train one network together, and what they have to agree on.

In DistributedDataParallel every process has a batch and the whole network; ``fully_shard`` (FSDP2)
leaves every process a part of each parameter. Either averages the loss's gradients over the
processes. What noisy losses hand over beside them has to be averaged alike: this room does it.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ._tensors import as_real, flattened, is_sharded, local, parts_of

SAME = 1e-6
"""Relative difference of two sums over a network that count as one: machines round differently."""


def is_first() -> bool:
    """Whether this process is the one of several (of ``torchrun``, or of a process group) that
    writes files; True for one alone."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank()) == 0
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


class Processes:
    """Those that train together with this one.

    Args:
        process_group: of ``torch.distributed``; None: all processes, if there are several; False:
            this one trains alone.
        network: where parameters are sharded, the network that ``fully_shard`` was called on.
    """

    def __init__(self, process_group: Any = None, network: nn.Module | None = None) -> None:
        self._asked = process_group
        self._leaves = _leaves_of(network) if network is not None else {}

    @property
    def group(self) -> Any:
        """The process group; None where this process trains alone."""
        distributed = torch.distributed
        if self._asked is False or not distributed.is_available():
            return None
        if not distributed.is_initialized():
            return None
        group = distributed.group.WORLD if self._asked is None else self._asked
        return group if distributed.get_world_size(group) > 1 else None

    @property
    def size(self) -> int:
        """Their number."""
        group = self.group
        return 1 if group is None else int(torch.distributed.get_world_size(group))

    @property
    def rank(self) -> int:
        """The number of this one among them."""
        group = self.group
        return 0 if group is None else int(torch.distributed.get_rank(group))

    def numbers_of_all(self, own: Sequence[float], device: torch.device) -> Tensor:
        """Numbers of every process, as many of each: (processes, numbers), float64."""
        mine = torch.tensor(own, dtype=torch.float64, device=device)
        found = [torch.empty_like(mine) for _ in range(self.size)]
        torch.distributed.all_gather(found, mine, self.group)
        return torch.stack(found).cpu()

    def sums(self, own: Sequence[float], device: torch.device) -> list[float]:
        """Sums over the processes; the same bits in each."""
        total = torch.tensor(own, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(total, group=self.group)
        found: list[float] = total.tolist()
        return found

    def least(self, own: float, device: torch.device) -> float:
        """The least of a number of every process."""
        return float(self.numbers_of_all([own], device).min())

    def means(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Means over the processes of tensors of the same shapes; the same bits in each."""
        found = list(tensors)
        kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, x in enumerate(found):
            kinds.setdefault((x.device, x.dtype), []).append(i)
        for places in kinds.values():
            own = [found[i] for i in places]
            flat = flattened(own)
            flat = flat / self.size
            torch.distributed.all_reduce(flat, group=self.group)
            for i, mean in zip(places, parts_of(flat, own), strict=True):
                found[i] = mean
        return found

    def agree(self, error: Exception | None, flag: bool, device: torch.device) -> bool:
        """Whether a flag is up in all of them; where one has an error, none goes on.

        Raises:
            Exception: this process's own error.
            RuntimeError: another process has one.
        """
        found = self.numbers_of_all([float(error is not None), float(flag)], device)
        if error is not None:
            raise error
        if found[:, 0].any():
            first = int(found[:, 0].argmax())
            raise RuntimeError(
                f"Process {first} has refused this step, so that this one takes none, too: its "
                "own message says why. Parameters and optimizer state are as they were."
            )
        return bool(found[:, 1].all())

    # Sharded parameters

    def leaves(self, params: Sequence[Tensor]) -> dict[Tensor, Tensor]:
        """What stands for each parameter in the graph: itself, or of a shard the whole.

        Raises:
            RuntimeError: parameters are sharded, and their network is not known; or over other
            processes than these.
        """
        if not any(map(is_sharded, params)):
            return {p: p for p in params}
        if any(p.device_mesh.size() != self.size for p in params if is_sharded(p)):  # type: ignore[attr-defined]
            raise RuntimeError(
                "Parameters are sharded over other processes than those that train together: give "
                "the mesh's, SNRAdam(..., process_group=mesh.get_group())."
            )
        if not all(p in self._leaves for p in params):
            raise RuntimeError(
                "Parameters are sharded (fully_shard), and the noise's gradients are those of the "
                "whole ones: give the network to the optimizer, SNRAdam(net.parameters(), "
                "noise=data, network=net)."
            )
        return {p: self._leaves[p] for p in params}

    def own_part(self, whole: Tensor, p: Tensor) -> Tensor:
        """This process's part of a tensor like the whole of a sharded parameter."""
        if not is_sharded(p):
            return whole
        dim = p.placements[0].dim  # type: ignore[attr-defined]
        parts = whole.chunk(self.size, dim)
        return parts[self.rank] if self.rank < len(parts) else whole.narrow(dim, 0, 0)


def _leaves_of(network: nn.Module) -> dict[Tensor, Tensor]:
    """Of every sharded parameter the whole one that takes its place in forward passes."""
    from torch.distributed.fsdp import FSDPModule

    found: dict[Tensor, Tensor] = {}
    for module in network.modules():
        if isinstance(module, FSDPModule):
            shards = dict(module.named_parameters())
            module.unshard()
            wholes = dict(module.named_parameters())
            found |= {shards[name]: wholes[name] for name in shards if is_sharded(shards[name])}
            module.reshard()
    return {p: whole for p, whole in found.items() if not is_sharded(whole)}


def check_shards(
    params: Sequence[Tensor], coordinates: str, beside_exact: bool = False, reduction: str = "none"
) -> None:
    """Refuse what cannot be done with parameters that are spread over processes.

    Args:
        params: of a group.
        coordinates, reduction: the group's.
        beside_exact: whether exact terms stand beside declared noise.

    Raises:
        ValueError: they are spread in another way than ``fully_shard`` does it, or are to be turned
            into an eigenbasis, or gated as whole tensors, of which every process has a part only.
    """
    if not any(map(is_sharded, params)):
        return
    if reduction == "per_tensor":
        raise ValueError(
            "reduction='per_tensor' needs whole tensors, and sharded parameters are in parts: take "
            "reduction='none', or DistributedDataParallel in place of fully_shard."
        )
    if coordinates == "eigen" or (coordinates == "auto" and beside_exact):
        why = ", which exact terms beside noisy ones call for" if coordinates == "auto" else ""
        raise ValueError(
            f"Sharded parameters have no eigenbasis{why}: SNRSOAP and coordinates='eigen' need the "
            "whole of each matrix. Use SNRAdam(..., coordinates='own'), or "
            "DistributedDataParallel in place of fully_shard."
        )
    for p in filter(is_sharded, params):
        placements = tuple(p.placements)  # type: ignore[attr-defined]
        if len(placements) != 1 or not placements[0].is_shard():
            raise ValueError(
                f"A parameter of shape {tuple(p.shape)} is spread over processes as {placements}: "
                "SNRAdam takes parameters sharded along one dimension of a one-dimensional mesh, "
                "as fully_shard(net) makes them. Hybrid sharding and tensor parallelism are not "
                "supported."
            )


def fingerprint(texts: Sequence[str]) -> float:
    """A number that differs where texts do."""
    return float(zlib.crc32("\n".join(texts).encode()))


def size_of(tensors: Sequence[Tensor]) -> list[float]:
    """Two sums over all entries, which tell one network from another."""
    flat = [as_real(local(x.detach())).double() for x in tensors]
    total = sum(float(x.sum()) for x in flat)
    return [total, sum(float(x.square().sum()) for x in flat)]


def are_same(rows: Tensor) -> bool:
    """Whether the sums of :func:`size_of` are those of the same tensors; (processes, 2)."""
    if not rows.isfinite().all():
        return True  # that is refused elsewhere, by name
    unit = rows[0, 1].abs().sqrt(), rows[0, 1].abs()
    return all(
        bool((rows[:, i] - rows[0, i]).abs().max() <= SAME * unit[i].clamp_min(1e-30))
        for i in range(2)
    )

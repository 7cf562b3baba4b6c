"""Several processes, one training: every rank takes its share of each batch (``torchrun``).

    torchrun --nproc-per-node 4 -m training run mdrn-8b-gray-0-90 --data DIR --device cuda

All ranks hold the same weights and the same optimizer state; gradients are averaged, so that the
run computes what one process would with the whole batch. Rank 0 alone validates, logs and saves.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable

import torch
from torch import distributed, nn

from mdrn_plugin.errors import BadOption


@dataclasses.dataclass(frozen=True, slots=True)
class Ranks:
    """The place of this process among those that train together."""

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, batch: int) -> slice:
        """Return which pictures of a batch this rank takes.

        Raises
        ------
        BadOption
            The batch cannot be shared equally: the mean of the ranks' means would not be the
            batch's mean.
        """
        if batch % self.size:
            raise BadOption(
                f"batch: {batch} pictures cannot be shared equally by {self.size} processes; "
                "change the recipe's batch or the number of processes"
            )
        return slice(self.rank, batch, self.size)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the ranks, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        distributed.all_reduce(flat)
        flat /= self.size
        begin = 0
        for gradient in gradients:
            end = begin + gradient.numel()
            gradient.copy_(flat[begin:end].view_as(gradient))
            begin = end

    def mean(self, value: float) -> float:
        """Return the mean of a number over the ranks; NaN if any is NaN."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=_message_device())
        distributed.all_reduce(tensor)
        return float(tensor) / self.size

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank."""
        return self.mean(float(flag)) > 0

    def same(self, value: float) -> float:
        """Return rank 0's value on every rank."""
        if self.size == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=_message_device())
        distributed.broadcast(tensor, 0)
        return float(tensor)

    def wait(self) -> None:
        """Return when all ranks have come here."""
        if self.size > 1:
            distributed.barrier()


def join(device: str) -> tuple[Ranks, str]:
    """Join the processes that ``torchrun`` started, if it did.

    Returns
    -------
    ranks : Ranks
    device : str
        `device`, for "cuda" the one that belongs to this rank.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(), device
    on_gpu = device.startswith("cuda")
    if on_gpu:
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if on_gpu else "gloo")
    return Ranks(distributed.get_rank(), distributed.get_world_size()), device


def leave() -> None:
    """End what `join` began."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _message_device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"

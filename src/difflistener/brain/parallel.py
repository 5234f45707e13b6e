"""Training in several processes that `torchrun` started: equal shares of every batch, one result.

Every process draws the whole batch and its noise and works on its own rows, so the numbers are those of one process.
Only the first one writes files. Knows nothing of brains.
"""

import os

import torch
from torch import Tensor, distributed, nn


class Workers:
    """The processes of this run; a single one where `torchrun` was not used."""

    def __init__(self, device: str):
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0))
        self.device = device
        if self.count > 1 and device == "cuda":
            self.device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(self.device)
        self._joined = self.count > 1 and not distributed.is_initialized()
        if self._joined:
            distributed.init_process_group("nccl" if device == "cuda" else "gloo")

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """The rows of a batch that are this process's share."""
        return slice(self.rank, None, self.count)

    def share(self, network: nn.Module) -> nn.Module:
        """`network` with gradients averaged over all processes."""
        return nn.parallel.DistributedDataParallel(network) if self.count > 1 else network

    def mean(self, value: Tensor) -> float:
        """Mean of a number [] over all processes, the same in each."""
        if self.count > 1:
            value = value.detach().clone()
            distributed.all_reduce(value)
            value /= self.count
        return value.item()

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set in any process."""
        return self.mean(torch.tensor(float(flag), device=self.device)) > 0 if self.count > 1 else flag

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def leave(self) -> None:
        if self._joined:
            distributed.destroy_process_group()

"""Processes that train one model together, as torchrun starts them (gloo on the CPU, nccl on CUDA).

Each rank computes the gradient of its share of a batch. One all_reduce after the backward adds these gradients.
DistributedDataParallel expects one forward per backward, but OVF has N + 1.
"""

from __future__ import annotations

import atexit
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nft_ext._common import processes
from nft_ext._common.checks import fail
from nft_ext._common.differences import differences, listed


def place(device: torch.device) -> torch.device:
    """`device`; "cuda" without an index becomes the GPU of this process."""
    if device.type != "cuda" or device.index is not None:
        return device
    several = processes.size() > 1
    return processes.own_gpu(processes.rank()) if several else torch.device("cuda", torch.cuda.current_device())


def joined(device: torch.device) -> Ranks:
    """This process as a rank of the process group. Under torchrun, a missing group is created.

    The group lives until the process ends: a second one would find the first one's addresses in torchrun's store.

    Raises:
        ValueError: WORLD_SIZE is above 1, but MASTER_ADDR or another variable of torchrun is missing.
    """
    if not dist.is_available() or (processes.size() == 1 and not processes.grouped()):
        return Ranks(0, 1, device)
    if not processes.grouped():
        processes.check_address("WORLD_SIZE", ", or be unset to train in this process alone")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_leave)
    return Ranks(processes.rank(), processes.size(), device)


def _leave() -> None:
    if processes.grouped():
        dist.destroy_process_group()


@dataclass(frozen=True)
class Ranks:
    """The number of this process and the number of processes. A single process sends nothing."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this rank writes files and shows progress."""
        return self.rank == 0

    def share(self, indices: Tensor) -> Tensor:
        """This rank's part of a step's `indices [B]`: `[B // size]`. The last B % size indices are dropped.

        Equal parts make all ranks draw the same random numbers in a forward.
        """
        each = len(indices) // self.size
        return indices[self.rank * each : (self.rank + 1) * each]

    def add(self, values: Tensor) -> Tensor:
        """`values` summed over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def add_gradients(self, model: nn.Module, loss: Tensor) -> None:
        """Sums gradients and the scalar `loss` over the ranks, in place.

        Averages floating-point buffers (BatchNorm's running statistics). One all_reduce carries everything, so every
        rank gets the same bits. A parameter without a gradient on every rank keeps None.
        """
        if self.size == 1:
            return
        parameters = list(model.parameters())
        buffers = [b for b in _persistent_buffers(model) if b.is_floating_point()]
        kind = torch.float32
        for tensor in (*parameters, *buffers):
            kind = torch.promote_types(kind, tensor.dtype)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        found = torch.tensor([float(p.grad is not None) for p in parameters], device=self.device)
        parts = [*gradients, *(b / self.size for b in buffers), found, loss]
        flat = torch.cat([part.reshape(-1).to(self.device, kind) for part in parts])
        dist.all_reduce(flat)
        *gradients, counts, total = _split(flat, [*gradients, *buffers, found, loss])
        gradients, averages = gradients[: len(parameters)], gradients[len(parameters) :]
        # Reading the counts waits for the GPU. A rank that has every gradient need not read them.
        missing = any(p.grad is None for p in parameters)
        used = counts.tolist() if missing else [1.0] * len(parameters)
        with torch.no_grad():
            for parameter, gradient, count in zip(parameters, gradients, used, strict=True):
                parameter.grad = gradient.to(parameter.dtype).clone() if count else None
            for buffer, average in zip(buffers, averages, strict=True):
                buffer.copy_(average)
            loss.copy_(total)

    def share_weights(self, model: nn.Module) -> None:
        """Copies the first rank's parameters and persistent buffers to every rank."""
        if self.size > 1:
            with torch.no_grad():
                for tensor in (*model.parameters(), *_persistent_buffers(model)):
                    whole = tensor.contiguous()
                    dist.broadcast(whole, 0)
                    tensor.copy_(whole)

    def agree_with_first(self, argument: str, facts: Mapping[str, Any]) -> None:
        """Refuses, on every rank, JSON-able `facts` that differ between ranks.

        Raises:
            ValueError: the facts differ between ranks.
        """
        if self.size == 1:
            return
        mine = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8, device=self.device)
        length = torch.tensor([len(mine)], device=self.device)
        dist.broadcast(length, 0)
        first = mine if self.first else torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        dist.broadcast(first, 0)
        differing = torch.zeros(self.size, device=self.device)
        differing[self.rank] = float(not torch.equal(mine, first))
        dist.all_reduce(differing)
        others = differing.nonzero().flatten().tolist()
        if others:
            found = listed(
                differences(json.loads(bytes(first.tolist())), json.loads(json.dumps(facts))), "there", "here"
            )
            what = f"here {found} (there: rank 0)" if found else f"others on rank {', '.join(map(str, others))}"
            fail(argument, "must be the same on every rank", what)


def _persistent_buffers(model: nn.Module) -> list[Tensor]:
    # Tables and keys of noisy layers are buffers, too, but not in the state_dict.
    kept = model.state_dict(keep_vars=True)
    return [buffer for name, buffer in model.named_buffers() if name in kept]


def _split(flat: Tensor, like: list[Tensor]) -> list[Tensor]:
    pieces = flat.split([tensor.numel() for tensor in like])
    return [piece.view(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]

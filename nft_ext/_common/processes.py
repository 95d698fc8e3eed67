"""Rank and number of processes, from the process group or from the environment that torchrun sets."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from nft_ext._common.checks import fail

ADDRESS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def grouped() -> bool:
    """Whether a process group exists."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0 for a single process."""
    return dist.get_rank() if grouped() else int(os.environ.get("RANK") or 0)


def size() -> int:
    """The number of processes."""
    return dist.get_world_size() if grouped() else int(os.environ.get("WORLD_SIZE") or 1)


def is_main() -> bool:
    """Whether this process prints and writes files: rank 0."""
    return rank() == 0


def check_address(argument: str, otherwise: str = "") -> None:
    """Checks that the environment holds the address of the other processes.

    Args:
        argument: the argument that needs them.
        otherwise: an alternative to add to the message.

    Raises:
        ValueError: a variable is missing.
    """
    missing = [name for name in ADDRESS if not os.environ.get(name)]
    if missing:
        rule = f"needs {', '.join(ADDRESS)} in the environment, as torchrun sets them{otherwise}"
        fail(argument, rule, f"no {', '.join(missing)}")


def own_gpu(rank: int) -> torch.device:
    """The GPU for process `rank`, by its number within its machine.

    torchrun and Slurm give that number. Slurm may show a process only its own GPU, hence the remainder.
    """
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or rank)
    return torch.device("cuda", local % max(1, torch.cuda.device_count()))

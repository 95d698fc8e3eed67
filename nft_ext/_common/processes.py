"""Which of several processes this one is: as the process group says, or the environment that torchrun sets."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist

from nft_ext._common.checks import fail

ADDRESS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def grouped() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """This process's number; 0 where it is the only one."""
    return dist.get_rank() if grouped() else int(os.environ.get("RANK") or 0)


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if grouped() else int(os.environ.get("WORLD_SIZE") or 1)


def is_main() -> bool:
    """Whether this process is the one that prints and writes files."""
    return rank() == 0


def check_address(argument: str, otherwise: str = "") -> None:
    """Refuses an environment that does not lead to the other processes.

    Args:
        argument: what asked for them. otherwise: what else would do, for the message.

    Raises:
        ValueError: a variable is missing.
    """
    missing = [name for name in ADDRESS if not os.environ.get(name)]
    if missing:
        rule = f"needs {', '.join(ADDRESS)} in the environment, as torchrun sets them{otherwise}"
        fail(argument, rule, f"no {', '.join(missing)}")


def own_gpu(rank: int) -> torch.device:
    """The GPU of its machine that the process `rank` is to use.

    torchrun and Slurm number the processes of a machine. Slurm may show each of them its own GPU only, hence the
    remainder.
    """
    local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or rank)
    return torch.device("cuda", local % max(1, torch.cuda.device_count()))

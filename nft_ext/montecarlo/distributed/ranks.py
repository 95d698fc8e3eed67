"""Finds the processes of one evaluation, as torchrun or Slurm start them.

They talk through a torch.distributed store: that of the initialised process group, or the one at MASTER_ADDR and
MASTER_PORT (with RANK and WORLD_SIZE).
"""

from __future__ import annotations

import datetime

import torch

from nft_ext._common import processes
from nft_ext._common.checks import fail, optional_boolean
from nft_ext.montecarlo.distributed.team import JOIN, RanksError, Team, rank_timeout

__all__ = ["RanksError", "Team", "team_of"]

_team: Team | None = None


def team_of(ranks: bool | None) -> Team | None:
    """The processes that share the work; None for this process alone.

    Args:
        ranks: None: those of torchrun, if any. False: this process alone. True: an error without other processes.

    Raises:
        ValueError: `ranks` is True without a way to other processes, or only a part of the address is set.
    """
    global _team
    optional_boolean("ranks", ranks)
    if ranks is False:
        return None
    if _team is None:
        _team = _connect(bool(ranks))
    return _team if _team is not None and _team.size > 1 else None


def _connect(required: bool) -> Team | None:
    if not torch.distributed.is_available():
        if required:
            fail("ranks", "must be None or False, because this torch has no torch.distributed", True)
        return None
    if processes.grouped():
        store = torch.distributed.distributed_c10d._get_default_store()
        return Team(store, processes.rank(), processes.size())
    if processes.size() == 1 and not required:
        return None
    from torch.distributed.rendezvous import rendezvous

    processes.check_address("ranks", ", or ranks=False for this process alone")
    timeout = datetime.timedelta(seconds=JOIN * rank_timeout())
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    return Team(store, rank, size)

"""Module names of version 0.2, kept for one release. Importing one gives the moved module and a warning.

A whole model saved by torch.save names the modules of its classes, so reading it needs these names.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ROOMS = {
    "_common": "checks progress",
    "device": "tables",
    "ops": "build_info deterministic functional keys operands operators",
    "nn": "contexts conversion fusion",
    "montecarlo.statistics": "montecarlo.estimates montecarlo.intervals montecarlo.slice_statistic montecarlo.slices "
    "montecarlo.stopping montecarlo.tallies",
    "montecarlo.distributed": "montecarlo.journal montecarlo.ranks montecarlo.rows",
    "montecarlo.execution": "cuda_graphs montecarlo.cost montecarlo.passes",
    "montecarlo.report": "montecarlo.curves",
}
_RENAMED = {
    "layers": "nn",
    **{
        f"layers.{name}": f"nn.{name}"
        for name in ("base", "cascade", "conv", "fused", "linear", "noise_free", "programmed")
    },
    "metrics.methods": "metrics.method_difference",
    "montecarlo.images": "montecarlo.execution.data_reader",
    "montecarlo.plots": "montecarlo.report.sweep_plot",
    "montecarlo.statistic": "montecarlo.statistics.run_statistic",
    "montecarlo.stored": "montecarlo.report.statistic_json",
    "montecarlo.strata": "montecarlo.statistics.slice_estimate",
    "montecarlo.subject": "montecarlo.execution.evaluated_model",
    "montecarlo.text": "montecarlo.report.text_table",
    "outputs": "_common.logits",
    "training.files": "_common.files",
}
MOVED: dict[str, str] = {  # old name -> new name
    **{
        f"nft_ext.{old}": f"nft_ext.{room}.{old.rpartition('.')[2]}"
        for room, names in _ROOMS.items()
        for old in names.split()
    },
    **{f"nft_ext.{old}": f"nft_ext.{new}" for old, new in _RENAMED.items()},
}


class _Alias(Loader):
    """Loads the moved module, unchanged."""

    def __init__(self, new: str) -> None:
        self.new = new

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(self.new)
        self.own_spec, self.own_loader = module.__spec__, module.__loader__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has set the alias's own two.
        module.__spec__, module.__loader__ = self.own_spec, self.own_loader


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = MOVED.get(fullname)
        if new is None:
            return None
        warnings.warn(
            f"{fullname} is now {new}; the next release removes the old name", DeprecationWarning, stacklevel=2
        )
        return ModuleSpec(fullname, _Alias(new), is_package=fullname == "nft_ext.layers")


def keep_old_names() -> None:
    """Makes the old names importable. This finder comes first, before files of an older installation."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())

"""Calls a function of the model once per programmed chip, and collects its figures in the order of the draws."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nft_ext._common.checks import did_you_mean, fail
from nft_ext._common.progress import Progress
from nft_ext._common.seeded import seeded
from nft_ext.montecarlo.distributed.rows import Row
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.statistics.precision import Precision
from nft_ext.montecarlo.statistics.slice_estimate import estimate
from nft_ext.montecarlo.statistics.stopping import Goal, until
from nft_ext.nn import noisy_layers
from nft_ext.nn.contexts import chips
from nft_ext.nn.example import untouched
from nft_ext.nn.observed import Observation, observed

Values = dict[str, float]
ONLY = "value"  # name of the figure of a function that returns one number


class Chip:
    """The figures of one chip.

    Args:
        model: in eval mode while in use.
        fn: the user's function.
        seed: seed of the chips.
        place: torch device of the model.
        keys: the keys of the journal's chips, or None.
        check_names: refuses keys that do not fit the other arguments.

    Attributes:
        keys: the keys of all chips, once known.
        observation: which layers ran on the first chip of this process, None before.
    """

    def __init__(
        self,
        model: nn.Module,
        fn: Callable[[nn.Module], Any],
        seed: int,
        place: torch.device,
        keys: list[str] | None,
        check_names: Callable[[list[str]], None],
    ) -> None:
        self.model, self.fn, self.seed, self.place = model, fn, seed, place
        self.keys, self._check_names = keys, check_names
        if keys is not None:
            check_names(keys)
        self.observation: Observation | None = None
        self._before: dict[str, tuple] = {}  # of the parameters, before the first chip

    def values(self, draw: int) -> Values:
        """The figures of chip `draw`."""
        self.model.eval()
        if not self._before:
            self._before = _parameters(self.model)
        with contextlib.ExitStack() as stack:
            stack.enter_context(untouched(self.model))  # every chip begins with the same buffers
            stack.enter_context(chips(self.model, seed=self.seed, draws=[draw], domain="evaluation", programmed=True))
            stack.enter_context(seeded(self.place, "over_chips", self.seed, draw))
            opened = _contexts(self.model)
            observer = None if self.observation is not None else stack.enter_context(observed(self.model))
            try:
                found = self.fn(self.model)
            except Exception as error:
                what = f"{type(error).__name__}: {error}"
                raise RuntimeError(f"fn: failed on chip {draw} of seed {self.seed} ({what})") from error
            if _contexts(self.model) != opened:
                fail("fn", "must leave every noise context of the model that it enters", f"one open on chip {draw}")
        if observer is not None:
            self.observation = observer.found()
        after = _parameters(self.model)
        changed = [name for name in {**self._before, **after} if after.get(name) != self._before.get(name)]
        if changed:
            rule = "must not change the model's parameters, which all chips share"
            fail("fn", rule, f"{changed[0]!r} changed on chip {draw}")
        return self._checked(found, draw)

    def _checked(self, found: Any, draw: int) -> Values:
        entries = found if isinstance(found, Mapping) else {ONLY: found}
        rule = "must return a number, or a dict of names and numbers, at least one"
        if not entries or not all(isinstance(name, str) for name in entries):
            fail("fn", rule, f"keys {list(entries)} on chip {draw}")
        values = {name: _number(name, value, draw) for name, value in entries.items()}
        self.check_keys(values, draw)
        return values

    def check_keys(self, values: Mapping[str, Any], draw: int) -> None:
        """Refuses other keys than those of the chips before.

        Raises:
            ValueError: a key is missing or new.
        """
        if self.keys is None:
            self._check_names(sorted(values))  # before the second chip
            self.keys = sorted(values)
        if sorted(values) != self.keys:
            rule = f"must return the same keys on every chip, {', '.join(self.keys)}"
            fail("fn", rule, f"{', '.join(sorted(values))} on chip {draw}")


@torch.no_grad()
def _parameters(model: nn.Module) -> dict[str, tuple]:
    """What tells a changed parameter: its identity and version, and sums for writes through .data."""
    found, sums = {}, {}
    for name, p in model.named_parameters():
        found[name] = id(p), p._version, p.dtype
        if p.numel():
            flat = p.detach().reshape(-1)
            sums.setdefault(p.device, {})[name] = torch.stack(
                [part.sum(dtype=torch.float64) for part in (flat, flat[::2])]
            )
    for together in sums.values():
        for name, values in zip(together, torch.stack(list(together.values())).tolist()):
            found[name] += (repr(values),)  # repr: NaN equals NaN
    return found


def _contexts(model: nn.Module) -> list[int]:
    """The noise contexts that the layers are in."""
    return [id(change) for layer in noisy_layers(model).values() for change in layer._changes]


class Collected:
    """Collects the figures of chips, in the order of their draws.

    Attributes:
        values: the figures of chips 0, 1, ...
        interrupted: True after a KeyboardInterrupt.
    """

    def __init__(self, session: Session, chip: Chip, label: str, show: bool | None) -> None:
        self.session, self.chip, self.label, self.show = session, chip, label, show
        self.values: list[Values] = []
        self.interrupted = False

    def run(self, runs: int, goal: Goal | None, target: str | None) -> Precision | None:
        """Collects `runs` chips, or as many as the goal needs. Returns the precision that the goal fixed."""
        try:
            if goal is None:
                self.more(0, runs)
                return None
            return until(goal, 1, self.more, lambda: self._estimate(target), share=False)
        except KeyboardInterrupt:
            if not self.interrupted or len(self.values) < 2:
                raise
            return None

    def more(self, first: int, last: int) -> None:
        """Collects the chips first .. last - 1.

        Raises:
            KeyboardInterrupt: after an interrupt; `values` holds the finished chips.
        """
        todo = [draw for draw in range(first, last) if not self.session.known(draw)]
        with Progress(last - first, self.label, "chips", enabled=self.show) as progress:
            progress.update(last - first - len(todo))

            def arrived(rows: list[Row]) -> None:
                for row in rows:
                    self.chip.check_keys(row.tallies, row.draw)  # rows of other ranks
                    name = next(iter(row.tallies))
                    progress.update(1, note=f"{name} {row.tallies[name]:.5g}")

            rows, self.interrupted = self.session.rows(first, last, todo, self._row, arrived)
        for row in rows:
            self.chip.check_keys(row.tallies, row.draw)
            self.values.append(row.tallies)
        if self.interrupted:
            raise KeyboardInterrupt

    def _row(self, draw: int) -> list[Row]:
        return [Row(draw, self.chip.values(draw), 0.0)]

    def _estimate(self, target: str | None) -> Any:
        name = target_of(sorted(self.values[0]), target)
        values = np.array([chip[name] for chip in self.values])
        return estimate(values, np.ones_like(values), 1)


def _number(name: str, value: Any, draw: int) -> float:
    """A figure as a float. Refuses NaN, infinity and what is no real number."""
    if isinstance(value, torch.Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        rule = "must return numbers"
        fail("fn", rule, f"{type(value).__name__} for {name!r} on chip {draw}", TypeError)
    found = float(value)
    if not math.isfinite(found):
        fail("fn", "must return finite numbers", f"{found} for {name!r} on chip {draw}")
    return found


def target_of(keys: Sequence[str], target: str | None) -> str:
    """The key that the target is about."""
    if target is None and len(keys) > 1:
        fail("target_metric", f"must be one of {', '.join(keys)} with target_ci", None)
    if target is not None and target not in keys:
        fail("target_metric", f"must be one of {', '.join(keys)}{did_you_mean(target, keys)}", target)
    return keys[0] if target is None else target

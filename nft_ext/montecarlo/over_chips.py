"""Any figure over programmed chips: a function of the model, called once per chip."""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import nn

from nft_ext._common.checks import boolean, did_you_mean, fail, integer, number, optional_boolean
from nft_ext._common.value_identity import Describer
from nft_ext.montecarlo.configuration import Identity, identity_of, machine_fields, network_fields
from nft_ext.montecarlo.execution.arguments import MAX_RUNS
from nft_ext.montecarlo.execution.chip_function import Chip, Collected, Values, target_of
from nft_ext.montecarlo.execution.evaluated_model import (
    check_model,
    check_sigma_is_known,
    devices_in_use,
    eval_mode,
    on_device,
    switched_off,
)
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.report.chips_report import ChipsReport
from nft_ext.montecarlo.statistics.precision import Precision
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic
from nft_ext.montecarlo.statistics.stopping import PILOT_RUNS, Goal
from nft_ext.nn.contexts import noise
from nft_ext.nn.noise_free import shared_weights
from nft_ext.nn.observed import Observation
from nft_ext.ops.build_info import facts
from nft_ext.ops.keys import noise_key


def over_chips(
    model: nn.Module,
    fn: Callable[[nn.Module], Any],
    *,
    runs: int = 200,
    seed: int = 0,
    sigma: float | None = None,
    target_ci: float | None = None,
    target_metric: str | None = None,
    min_runs: int = PILOT_RUNS,
    max_runs: int = 20_000,
    higher_is_better: bool | Mapping[str, bool] = True,
    device: torch.device | str | None = None,
    progress: bool | None = True,
    resume: str | os.PathLike | None = None,
    ranks: bool | None = None,
) -> ChipsReport:
    """Calls `fn(model)` on each of `runs` chips, for figures of a whole set such as a rank correlation or mAP.

    Run r is chip r of `seed`, the same chip as that of `monte_carlo`, bit for bit. In each call the model is in eval
    mode, its layers hold that chip's weights, and gradients are off (`torch.enable_grad()` turns them on). The
    generators of torch, NumPy and Python are seeded by seed and r, and buffers and training flags are restored after
    each call. So a chip's figure does not depend on the order.

    Args:
        model: a converted model (`nft.convert`). It is left as it was.
        fn: gets the model on one chip and returns a number, or a dict of numbers with the same keys on every chip. It
            may run the model as often as it likes, and must not change its parameters.
        runs: number of chips, >= 2. Not used with target_ci.
        seed: 64 bits.
        sigma: overrides the sigma of every layer, in the unit of its device. None keeps them.
        target_ci: half-width of the 95 % interval of the mean to reach, in the unit of the figure.
        target_metric: key of the figure that target_ci is about. None: the only one.
        min_runs: chips of the pilot that fixes the number of chips, >= 64.
        max_runs: largest number of chips with target_ci.
        higher_is_better: whether a larger figure is better, for `worst`; a mapping for some keys, the others are True.
        device: torch device to evaluate on. A model on another torch device is copied. None: the model's own.
        progress: True, False, or None for a terminal only.
        resume: a file that keeps every finished chip. If it exists, its chips are read and only the others run. A file
            of another network, device or fn is refused. fn is identified by its code, closures and defaults, so it must
            not keep counters in them.
        ranks: as for `monte_carlo`: under torchrun all ranks share the chips.

    Returns:
        The report: `report.metrics["value"]` for a number, `report.metrics[key]` for a dict, each with `per_run`,
        `mean`, `std`, `ci95`, `quantile` and `worst`. After a KeyboardInterrupt it holds the finished chips.

    Raises:
        TypeError, ValueError: a bad argument or model, before any chip; or fn returns something else than finite
            numbers, other keys than before, changes the parameters, or leaves a noise context open. The message names
            the chip.
        RuntimeError: fn raised an exception, which is the `__cause__`. The message names the chip.
        OSError: the resume file is in use or cannot be written.
        RanksError: another rank failed.
    """
    optional_boolean("progress", progress)
    if not callable(fn) or isinstance(fn, nn.Module):
        fail("fn", "must be a function fn(model) that returns a number or a dict of numbers", repr(fn), TypeError)
    runs, seed, goal = integer("runs", runs, 2, MAX_RUNS), seed, _goal(target_ci, min_runs, max_runs)
    noise_key(seed=seed, draws=[0], domain="evaluation")  # checks the seed
    sigma = None if sigma is None else number("sigma", sigma, 0.0)
    if target_metric is not None and (goal is None or not isinstance(target_metric, str)):
        fail("target_metric", "must be a key of the figures, given with target_ci", repr(target_metric))
    if not isinstance(higher_is_better, Mapping):
        boolean("higher_is_better", higher_is_better)
    check_model(model)
    if sigma is None:
        check_sigma_is_known(model)
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(resume, ranks))
        identity = identity_of(model) if session.keeps else ({}, set())
        model, place = on_device(model, session.device(device))
        began = time.perf_counter()
        stack.enter_context(eval_mode(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(noise(model, sigma=sigma))
        header = _header(model, identity, fn, int(seed), sigma) if session.keeps else None
        if header is not None:
            session.open(header, {"runs": runs, "target": goal and asdict(goal), "of": target_metric}, dict)

        def check_names(names: list[str]) -> None:
            _directions(names, higher_is_better)
            if goal is not None:
                target_of(names, target_metric)

        chip = Chip(model, fn, int(seed), place, session.agree("keys", session.first_tallies()), check_names)
        collected = Collected(session, chip, f"{_name(fn)} over chips", progress if session.main else False)
        precision = collected.run(runs, goal, target_metric)
        found = session.agree("observed", chip.observation and asdict(chip.observation))
        seconds = session.agree("seconds", session.seconds_before + time.perf_counter() - began)
        notes = session.agree("notes", session.notes)

    texts = [] if found is None else Observation(**found).texts("on the first chip")
    if session.main:
        for text in texts:
            warnings.warn(f"over_chips: {text}", stacklevel=2)
    statistics = _statistics(collected.values, higher_is_better, precision, target_metric)
    done = len(collected.values)
    if collected.interrupted:
        notes.append(f"interrupted after {done} of {runs if goal is None else f'at most {goal.high}'} chips")
    elif goal is not None and precision is not None and not precision.reached:
        notes.append(f"the target half-width {goal.target:g} is not reached with max_runs = {goal.high}")
    if quiet := switched_off(model):
        notes.append("layers whose noise is switched off: " + ", ".join(quiet))
    return ChipsReport(
        statistics=statistics,
        function=_name(fn),
        runs=done,
        seed=int(seed),
        nvm=devices_in_use(model, sigma),
        hardware=torch.cuda.get_device_name(place) if place.type == "cuda" else place.type,
        seconds=seconds,
        interrupted=collected.interrupted,
        notes=[*notes, *texts, *([shared] if (shared := shared_weights(model)) else [])],
        versions=facts("nft_ext", "torch", "numpy", "python", "compiler", "instruction_set"),
        stopping=_stopping(goal, precision, target_metric),
    )


def _goal(target_ci: Any, min_runs: Any, max_runs: Any) -> Goal | None:
    for name, value in (("min_runs", min_runs), ("max_runs", max_runs)):
        integer(name, value, 1)  # the type, also without a target
    if target_ci is None:
        return None
    target = number("target_ci", target_ci)
    if target <= 0:
        fail("target_ci", "must be a half-width > 0, in the unit of the figure", target)
    high = integer("max_runs", max_runs, PILOT_RUNS, MAX_RUNS)
    return Goal(target, integer("min_runs", min_runs, PILOT_RUNS, high), high)


def _directions(names: Sequence[str], higher: bool | Mapping[str, bool]) -> dict[str, bool]:
    """Whether a larger value is better, for every figure."""
    found = dict.fromkeys(names, True if isinstance(higher, Mapping) else higher)
    for name, value in higher.items() if isinstance(higher, Mapping) else ():
        if name not in found:
            fail("higher_is_better", f"must have keys among {', '.join(names)}{did_you_mean(name, names)}", name)
        found[name] = boolean(f"higher_is_better[{name!r}]", value)
    return found


def _statistics(
    values: list[Values], higher: bool | Mapping[str, bool], precision: Precision | None, target: str | None
) -> dict[str, RunStatistic]:
    names = list(values[0])
    up = _directions(names, higher)
    fixed = None if precision is None else target_of(sorted(names), target)
    found = {}
    for name in names:
        per_run = np.array([chip[name] for chip in values], dtype=np.float64)
        found[name] = RunStatistic(per_run, float(per_run.mean()), up[name], precision if name == fixed else None)
    return found


def _header(
    model: nn.Module, identity: Identity, fn: Callable[[nn.Module], Any], seed: int, sigma: float | None
) -> dict[str, dict[str, Any]]:
    """The header of a journal; see `configuration`."""
    describe = Describer({id(module): name for name, module in model.named_modules()})
    fixed = {"kind": "over_chips", **network_fields(model, identity, seed, sigma), "fn": describe.short(fn)}
    return {
        "fixed": fixed,
        "noted": machine_fields(),
        "recorded": {},
        "unread": dict.fromkeys(sorted(identity[1] | describe.unread), "fn"),
    }


def _stopping(goal: Goal | None, precision: Precision | None, target: str | None) -> dict[str, Any] | None:
    if goal is None:
        return None
    return {
        "target_ci": goal.target,
        "metric": target,
        "reached": precision is not None and bool(precision.reached),
        "pilot_runs": None if precision is None else precision.pilot_runs,
        "min_runs": goal.low,
        "max_runs": goal.high,
    }


def _name(fn: Any) -> str:
    found = getattr(fn, "__name__", type(fn).__name__)
    return "fn" if found == "<lambda>" else found

"""Monte Carlo inference: what a network's accuracy is over chips programmed with it."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import asdict

import torch
from torch import nn

from nft_ext.ops.build_info import info
from nft_ext._common.checks import fail
from nft_ext.metrics.temperature import Tempered
from nft_ext.montecarlo.execution.arguments import Arguments, checked
from nft_ext.montecarlo.execution.collect import Collector
from nft_ext.montecarlo.configuration import configuration
from nft_ext.montecarlo.statistics.estimates import METRICS, run_statistics, slice_statistics
from nft_ext.montecarlo.execution.out_of_memory import Halving
from nft_ext.montecarlo.execution.preparation import Prepared, check, prepared
from nft_ext.montecarlo.execution.protocols import Plan, execute, plan
from nft_ext.montecarlo.report.report import MonteCarloReport
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.stopping import PILOT_RUNS, Precision
from nft_ext.montecarlo.statistics.strata import least_exact
from nft_ext.montecarlo.execution.subject import devices_in_use, layers_without_noise
from nft_ext.montecarlo.statistics.tallies import Tallies


def monte_carlo(
    model: nn.Module,
    data,
    *,
    runs: int = 200,
    seed: int = 0,
    sigma: float | None = None,
    protocol: str = "full",
    slice_images: int | str = "auto",
    target_ci: float | None = None,
    min_runs: int = PILOT_RUNS,
    max_runs: int = 20_000,
    metrics: tuple[str, ...] = ("accuracy", "ekl"),
    chips_per_pass: int | str = "auto",
    batch_size: int | str = "auto",
    device: torch.device | str | None = None,
    progress: bool | None = True,
    precision: str = "float32",
    resume: str | os.PathLike | None = None,
    ranks: bool | None = None,
) -> MonteCarloReport:
    """Accuracy of `model` over `runs` programmed chips, each tested on the whole of `data` or on a slice of it.

    Run r is chip draw = r of `seed` in the key domain "evaluation": its weights are those of
    `nft.program(model, seed=seed, draw=r)`, bit for bit, whatever chips_per_pass, batch_size and
    the number of threads are; its metrics are then equal up to the rounding of the products.
    The model is evaluated in eval mode and left as it was, training flags included. On a CPU a model with convolutions sees images with
    channels last in memory, if its logits are then the same up to rounding (checked once): convolutions are faster so.

    model: a converted model (`nft.convert`), inputs [B, ...] -> logits [B, C].
    data: DataLoader, map-style Dataset, or pair of tensors (inputs [n, ...], labels int [n]).
        Read once, and kept on the device where it takes at most half of the free memory.
        Floating-point inputs are cast to the dtype of the model's weights.
    runs: chips, >= 2; plays no part with target_ci. seed: 64 bits.
    sigma: overrides every layer's sigma (in the convention of its device); None keeps them, and
        refuses to run inside `nft.noise(model, sigma=...)`, which the report could not name.
    protocol: "full": every chip sees every image. "stratified": every chip sees a slice, slices tile
        the set, and many more chips are drawn: the same mean for far fewer inferences, and no quantiles
        or worst case (docs/monte_carlo.md).
    slice_images: images of a slice at most, 1 .. all; slices differ by at most one. "auto": the size that costs
        least by a pilot of variances and times, so it may differ between machines and moments; the
        report names it, and a number is reproducible.
    target_ci: half-width of the 95 % interval of the mean accuracy to reach, a fraction (0.001 is 0.1 points):
        a pilot of min_runs (>= 64) chips fixes how many are run. More than max_runs are not run;
        the report then says that the target is not reached.
    metrics: per-run metrics to report, of "accuracy" (required), "ekl", "nll". The pooled
        calibration error is always there.
    chips_per_pass: chips that share a forward pass, or "auto": as many as keep chips * batch_size
        within 128 rows on a CPU, 4096 on a GPU, and a quarter of the free memory. The last pass is
        padded with further draws, whose results are dropped. More than one is used only if two
        chips in one pass give what two passes give (checked once; `report.notes` says if not).
    batch_size: images a pass, or "auto": 128 on a CPU, 256 on a GPU.
    device: where to evaluate; a model that lives elsewhere is copied there. None: where it is.
    progress: True, False, or None for a terminal only.
    precision: "float32", or "bfloat16" for products under autocast, 1.3 to 2.0 times as fast on a Zen 4, which multiplies it (`nft-ext info`
        tells of others; a RuntimeWarning on a CPU that is many times slower with it), less exact.
    resume: a file that every finished chip is written to, one line each, as soon as its pass is done. Where it exists,
        its chips are taken from it and only the others are run; more runs may be asked for than before. A file of
        another configuration is refused, and the error names the fields that differ. `report.seconds` then holds the
        time of all its chips.
    ranks: None: under torchrun (or with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set) passes are dealt to all
        ranks, all of which must make this call and return the same report; rank 0 alone shows progress and writes.
        False: this process alone. True: insists. docs/monte_carlo_ranks.md says what is promised.

    On KeyboardInterrupt the finished runs are reported, marked `interrupted`; below two finished
    runs the interrupt is passed on.

    Raises, before any chip is evaluated: TypeError or ValueError that names the argument, the rule
    and the value; a model without noisy layers, or with NaN or infinite weights, is among them, and ranks with
    different arguments. OSError if the resume file is in use or cannot be written; RanksError if another rank failed.
    """
    asked = checked(runs=runs, seed=seed, sigma=sigma, protocol=protocol, slice_images=slice_images, target_ci=target_ci,
                    min_runs=min_runs, max_runs=max_runs, metrics=metrics, chips_per_pass=chips_per_pass,
                    batch_size=batch_size, precision=precision)
    check(model, asked)
    label = "monte carlo" if asked.sigma is None else f"monte carlo, sigma {asked.sigma:g}"
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(resume, ranks))
        ready = stack.enter_context(prepared(session, model, data, asked, device))
        asked, evaluator = ready.asked, ready.evaluator
        planned = _settled(session, ready)
        per_pass = session.agree("chips_per_pass", ready.chips_per_pass(planned))  # free memory decided, and may differ
        halving = Halving(planned.tallies_of(evaluator), per_pass, evaluator.batch_size)
        shown = progress if session.main else False
        collector = Collector(halving, per_pass, label, shown, session)
        tallies, fixed = execute(asked, collector, planned.count)
        seconds = session.agree("seconds", session.seconds_before + time.perf_counter() - ready.began)
        said = session.agree("notes", [*session.notes, *([halving.note] if halving.note else [])])

    if planned.slices is None:
        statistics = run_statistics(tallies, fixed)
    else:
        statistics = slice_statistics(tallies, planned.slices, fixed)
    notes = [*said, *([f"one chip a pass: {ready.alone}"] if ready.alone else [])]
    notes += _notes(evaluator.model, tallies, asked, planned, fixed, collector.interrupted, statistics)
    return MonteCarloReport(
        statistics={name: statistics[name] for name in METRICS if name in asked.metrics},
        ece=tallies.ece(),
        runs=len(tallies),
        images=len(ready.labels),
        classes=ready.probe.classes,
        seed=asked.seed,
        nvm=devices_in_use(evaluator.model, asked.sigma),
        protocol=protocol,
        precision=precision,
        chips_per_pass=per_pass,
        batch_size=evaluator.batch_size,
        hardware=ready.hardware,
        seconds=seconds,
        interrupted=collector.interrupted,
        notes=notes,
        versions=_versions(),
        slice_images=None if planned.slices is None else planned.slices.size,
        slices=planned.count,
        pilot=planned.pilot,
        stopping=_stopping(asked, fixed),
    )


def _settled(session: Session, ready: Prepared) -> Plan:
    """The plan of all chips: made here, or by rank 0, or by whoever began the journal."""
    asked, evaluator = ready.asked, ready.evaluator

    def settle() -> dict:
        made = plan(asked, evaluator, several=ready.alone is None)
        return {"slice_images": made.slices and made.slices.most, "pilot": made.pilot}

    if not session.keeps:
        settled = settle()
    else:
        header = configuration(evaluator.model, evaluator.inputs, evaluator.labels, asked, ready.hardware, evaluator.channels_last)
        goal = asked.goal and asdict(asked.goal)
        common = {"runs": asked.runs, "target": goal, "slice_images": asked.slice_images}
        settled = session.open(header, common | header["recorded"], settle)
    most = settled["slice_images"]
    if most is None:
        return Plan(None)
    if asked.slice_images not in ("auto", most):
        fail("resume", "must be of the same configuration",
             f"a file with slice_images {most}, {asked.slice_images} now")
    return Plan(Slices(asked.seed, len(evaluator.labels), most), settled["pilot"])


def _stopping(asked: Arguments, fixed: Precision | None) -> dict | None:
    """The stopping rule and its outcome, for the report."""
    if asked.goal is None:
        return None
    return {
        "target_ci": asked.goal.target,
        "reached": fixed is not None and bool(fixed.reached),
        "pilot_runs": None if fixed is None else fixed.pilot_runs,
        "min_runs": asked.goal.low,
        "max_runs": asked.goal.high,
    }


def _notes(model: nn.Module, tallies: Tallies, asked: Arguments, planned: Plan, fixed: Precision | None, interrupted: bool,
           statistics: dict) -> list[str]:
    """What a reader of the figures should know."""
    notes = []
    done = len(tallies)
    if interrupted:
        wanted = f"{asked.runs} runs" if asked.goal is None else f"at most {asked.goal.high} runs"
        notes.append(f"interrupted after {done} of {wanted}")
    elif fixed is not None and not fixed.reached:
        notes.append(f"the target half-width {asked.goal.target:g} is not reached with max_runs = {asked.goal.high}")
    if planned.slices is not None and statistics["accuracy"].conservative:
        notes.append(f"{done} chips, {done / planned.count:.2f} tilings of {planned.count} slices: below "
                     f"{least_exact(planned.count)} chips the intervals are too wide on average")
    if planned.pilot is not None:
        notes.append(f"slices of {planned.slices.size} images come from times measured here; slice_images="
                     f"{planned.slices.most} gives the same elsewhere")
    if isinstance(model, Tempered):
        notes.append(f"logits divided by the temperature {model.temperature:g}: EKL, NLL and calibration error are at it")
    quiet = layers_without_noise(model)
    if quiet:
        notes.append("computed without noise (not converted, or switched off): " + ", ".join(quiet))
    undefined = int(tallies.undefined.sum())
    if undefined:
        notes.append(
            f"{undefined} inferences gave NaN or infinite logits; they count as wrong, and are left "
            "out of the calibration error"
        )
    nothing_right = done - len(statistics["ekl"].values)
    if nothing_right and planned.slices is None:
        notes.append(f"{nothing_right} of {done} runs have nothing right, and so no EKL")
    return notes


def _versions() -> dict[str, str]:
    built = info()
    names = ("nft_ext", "torch", "numpy", "python", "compiler", "instruction_set")
    return {name: str(built[name]) for name in names}

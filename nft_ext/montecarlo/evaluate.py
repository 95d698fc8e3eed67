"""Monte Carlo inference: the accuracy of a network over programmed chips."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from nft_ext._common.checks import fail, optional_boolean
from nft_ext._common.targets import probability_note
from nft_ext.metrics.temperature import Tempered
from nft_ext.montecarlo.configuration import Identity, configuration, identity_of
from nft_ext.montecarlo.execution.arguments import Arguments, checked
from nft_ext.montecarlo.execution.collector import Collector
from nft_ext.montecarlo.execution.evaluated_model import devices_in_use, switched_off
from nft_ext.montecarlo.execution.out_of_memory import Halving
from nft_ext.montecarlo.execution.passes import PROBE_IMAGES
from nft_ext.montecarlo.execution.plan import Plan, execute, plan
from nft_ext.montecarlo.execution.preparation import Prepared, check, prepared
from nft_ext.montecarlo.execution.session import Session
from nft_ext.montecarlo.report.report import MonteCarloReport
from nft_ext.montecarlo.statistics.estimates import run_statistics, slice_statistics
from nft_ext.montecarlo.statistics.label_tallies import pooled_ece
from nft_ext.montecarlo.statistics.precision import Precision
from nft_ext.montecarlo.statistics.slice_estimate import least_exact
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.stopping import PILOT_RUNS
from nft_ext.montecarlo.statistics.tallies import Tallies
from nft_ext.montecarlo.tasks.forward import ForwardFunction
from nft_ext.montecarlo.tasks.metric import Metrics
from nft_ext.montecarlo.tasks.task import Task
from nft_ext.nn.noise_free import shared_weights
from nft_ext.nn.observed import Observation
from nft_ext.ops.build_info import facts


def monte_carlo(
    model: nn.Module,
    data: Any,
    *,
    forward: ForwardFunction | None = None,
    metrics: Metrics = ("accuracy", "ekl"),
    runs: int = 200,
    seed: int = 0,
    sigma: float | None = None,
    protocol: str = "full",
    slice_images: int | str = "auto",
    target_ci: float | None = None,
    min_runs: int = PILOT_RUNS,
    max_runs: int = 20_000,
    chips_per_pass: int | str = "auto",
    batch_size: int | str = "auto",
    device: torch.device | str | None = None,
    progress: bool | None = True,
    precision: str = "float32",
    resume: str | os.PathLike | None = None,
    ranks: bool | None = None,
) -> MonteCarloReport:
    """Accuracy, or other metrics, of `model` over `runs` programmed chips, each tested on all of `data` or on a slice.

    Run r is chip r of `seed`, in the key domain "evaluation". Its weights are those of `nft.program(model, seed=seed,
    draw=r)`, bit for bit, for any chips_per_pass, batch_size and number of threads. Its metrics are equal up to the
    rounding of the products. The model is evaluated in eval mode and left as it was. On a CPU, convolutions get images
    with channels last in memory, which is faster. One check ensures that the logits stay the same up to rounding.

    Args:
        model: a converted model (`nft.convert`), for example inputs [B, ...] -> logits [B, C].
        data: DataLoader, map-style Dataset, pair of tensors (inputs [n, ...], labels int [n]), mapping of tensors, or
            an iterable of batches. Batches are tensors, tuples, dicts or other containers of tensors [B, ...]. It is
            read once, and kept on the torch device if it takes at most half of the free memory. Batches of one shape
            are joined. Others, such as batches padded to their own lengths, stay as they are, under "full" only.
        forward: forward(model, batch) -> output. None: model(...) with the entries of a dict that the model's forward
            names, without labels, label, targets and target; or with all entries of a tuple but the last. Inputs in
            floating point are then cast to the dtype of the model's weights. A forward gets [S * B, ...] examples,
            those of each chip one after another. A check decides whether S may be above 1: each example must count by
            itself.
        metrics: what to report of every chip: names (docs/reference/metrics.md), pairs (name, f) or a dict {name: f}.
            f(output, batch) -> (numerator [B], denominator [B]) in floating point, one pair per example; the metric is
            sum(numerator) / sum(denominator) over the examples that a chip saw. f sees the output and the batch of one
            chip. f.higher_is_better = True or False tells which chip is the worst. `nft.montecarlo.metric` gives
            built-in metrics with options. The first metric is the one of `target_ci`, plots and tables.
        runs: number of chips, >= 2. Not used with target_ci.
        seed: 64 bits.
        sigma: overrides the sigma of every layer, in the unit of its device. None keeps them. None is an error inside
            `nft.noise(model, sigma=...)`, because the report would name another sigma.
        protocol: "full": every chip sees every image. "stratified": every chip sees one slice, and slices tile the set.
            The mean is the same for far fewer inferences, without quantiles and worst chip
            (docs/reference/monte_carlo.md).
        slice_images: largest number of images in a slice, 1 .. all; slices differ by at most one image. "auto" takes
            the cheapest size, measured by a pilot of variances and times. It may differ between calls and machines, and
            the report names it. A number is reproducible.
        target_ci: half-width of the 95 % interval of the first metric's mean to reach; for an accuracy a fraction
            (0.001 is 0.1 points). A pilot of min_runs chips fixes the number of chips.
        min_runs: chips of that pilot, >= 64.
        max_runs: largest number of chips with target_ci. The report says if they do not reach the target.
        chips_per_pass: chips that share a forward pass. On a CPU "auto" keeps the largest output of a layer within 4
            MiB, on a GPU the rows of every Linear (images, or tokens of texts) within 4096; and both within a quarter
            of the free memory. The last pass is padded with chips that are dropped.
            A check compares two chips in one pass with two passes. If they differ, every pass has one chip, and
            `report.notes` says so.
        batch_size: images per batch. "auto": 128 on a CPU, 256 on a GPU.
        device: torch device to evaluate on. A model on another torch device is copied. None: the model's own.
        progress: True, False, or None for a terminal only.
        precision: "float32", or "bfloat16" for products under autocast, which are less exact. bfloat16 is faster on
            processors that multiply it (see `nft-ext info`). A RuntimeWarning appears where it is many times slower.
        resume: a file that keeps every finished chip, one line per chip, written after each pass. If the file exists,
            its chips are read and only the others run. A call may ask for more runs than before. A file of another
            configuration is refused, and the error names the fields that differ. `report.seconds` counts all its chips.
        ranks: None: under torchrun (or with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set) all ranks share the
            passes. Every rank makes this call, and every rank returns the same report. Only rank 0 shows progress and
            writes files. False: this process alone. True: an error without other ranks.
            docs/guide/several_machines.md has the details.

    Returns:
        The report. After a KeyboardInterrupt it holds the finished chips and is marked `interrupted`. With fewer than
        two finished chips the interrupt is raised again.

    Raises:
        TypeError, ValueError: before any chip is evaluated: a bad argument, a model without noisy layers, NaN or
            infinite weights, ranks with different arguments, metrics that do not fit the output. Later: a metric that
            is not finite. The message names the argument, the rule and the value.
        OSError: the resume file is in use or cannot be written.
        RanksError: another rank failed.
    """
    optional_boolean("progress", progress)
    asked = checked(
        forward=forward,
        runs=runs,
        seed=seed,
        sigma=sigma,
        protocol=protocol,
        slice_images=slice_images,
        target_ci=target_ci,
        min_runs=min_runs,
        max_runs=max_runs,
        metrics=metrics,
        chips_per_pass=chips_per_pass,
        batch_size=batch_size,
        precision=precision,
    )
    check(model, asked)
    label = "monte carlo" if asked.sigma is None else f"monte carlo, sigma {asked.sigma:g}"
    with contextlib.ExitStack() as stack:
        session = stack.enter_context(Session(resume, ranks))
        identity = identity_of(model) if session.keeps else ({}, set())
        ready = stack.enter_context(prepared(session, model, data, asked, device))
        asked, evaluator = ready.asked, ready.evaluator
        doubtful = _probability_notes(ready)
        planned = _settled(session, ready, identity)
        per_pass = session.agree("chips_per_pass", ready.chips_per_pass(planned))  # free memory differs between ranks
        halving = Halving(planned.tallies_of(evaluator), per_pass, evaluator.batch_size)
        shown = progress if session.main else False
        figures = evaluator.task.figures
        collector = Collector(halving, per_pass, label, shown, session, figures[0])
        tallies, fixed = execute(asked, collector, planned, figures[0])
        observed = session.agree("observed", asdict(ready.observation))
        coverage = session.agree("coverage", ready.coverage.summary())
        images = len(evaluator.examples)
        findings = Observation(**observed).texts(f"in a pass of {min(PROBE_IMAGES, images)} images")
        if session.main:
            for text in findings:
                warnings.warn(f"monte_carlo: {text}", stacklevel=2)
        seconds = session.agree("seconds", session.seconds_before + time.perf_counter() - ready.began)
        said = session.agree("notes", [*session.notes, *([halving.note] if halving.note else [])])

    if planned.slices is None:
        statistics = run_statistics(figures, tallies, fixed)
    else:
        statistics = slice_statistics(figures, tallies, planned.slices, fixed)
    notes = [*said, *doubtful, *([f"one chip per pass: {ready.alone}"] if ready.alone else [])]
    notes += findings + _notes(
        evaluator.model, evaluator.task, tallies, asked, planned, fixed, collector.interrupted, statistics
    )
    return MonteCarloReport(
        statistics=dict(statistics),
        ece=math.nan if evaluator.task.labels is None else pooled_ece(tallies),
        runs=len(tallies),
        images=images,
        classes=evaluator.task.classes,
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
        versions=facts("nft_ext", "torch", "numpy", "python", "compiler", "instruction_set"),
        slice_images=None if planned.slices is None else planned.slices.size,
        slices=planned.count,
        pilot=planned.pilot,
        stopping=_stopping(asked, fixed),
        observed=observed,
        coverage=coverage,
        example="image" if evaluator.examples.pair is not None and evaluator.task.labels is not None else "example",
    )


def _settled(session: Session, ready: Prepared, identity: Identity) -> Plan:
    """The plan of all chips. It comes from the journal if that exists, else from rank 0."""
    asked, evaluator = ready.asked, ready.evaluator

    def settle() -> dict:
        made = plan(asked, evaluator, several=ready.alone is None)
        return {"slice_images": made.slices and made.slices.most, "pilot": made.pilot}

    if not session.keeps:
        settled = settle()
    else:
        header = configuration(
            evaluator.model,
            identity,
            evaluator.examples,
            evaluator.task,
            asked,
            ready.hardware,
            evaluator.channels_last,
        )
        goal = asked.goal and asdict(asked.goal)
        common = {"runs": asked.runs, "target": goal, "slice_images": asked.slice_images}
        settled = session.open(header, common | header["recorded"], settle)
    most = settled["slice_images"]
    if most is None:
        return Plan(None)
    if asked.slice_images not in ("auto", most):
        fail(
            "resume", "must be of the same configuration", f"a file with slice_images {most}, {asked.slice_images} now"
        )
    return Plan(Slices(asked.seed, len(evaluator.examples), most), settled["pilot"])


def _probability_notes(ready: Prepared) -> list[str]:
    """A note, also as a UserWarning, if the model's outputs on a few images are probabilities instead of logits."""
    model, labels = ready.evaluator.model, ready.evaluator.task.labels
    if labels is None:
        return []
    logits = labels.of_output(ready.probe.output)
    said = probability_note(logits * model.temperature if isinstance(model, Tempered) else logits)
    if said is None:
        return []
    note = f"{said}: EKL, NLL and calibration error are wrong (they take a softmax); the accuracy is right"
    warnings.warn(f"{note}. Remove the model's last activation", stacklevel=3)
    return [note]


def _stopping(asked: Arguments, fixed: Precision | None) -> dict | None:
    """The target and its outcome, for the report."""
    if asked.goal is None:
        return None
    return {
        "target_ci": asked.goal.target,
        "reached": fixed is not None and bool(fixed.reached),
        "pilot_runs": None if fixed is None else fixed.pilot_runs,
        "min_runs": asked.goal.low,
        "max_runs": asked.goal.high,
    }


def _notes(
    model: nn.Module,
    task: Task,
    tallies: Tallies,
    asked: Arguments,
    planned: Plan,
    fixed: Precision | None,
    interrupted: bool,
    statistics: dict,
) -> list[str]:
    """The notes of the report."""
    notes = list(task.notes)
    done = len(tallies)
    if interrupted:
        wanted = f"{asked.runs} chips" if asked.goal is None else f"at most {asked.goal.high} chips"
        notes.append(f"interrupted after {done} of {wanted}")
    elif asked.goal is not None and fixed is not None and not fixed.reached:
        notes.append(f"the target half-width {asked.goal.target:g} is not reached with max_runs = {asked.goal.high}")
    if planned.slices is not None and statistics[task.figures[0].name].conservative:
        few = done < least_exact(planned.count)
        reason = f"below {least_exact(planned.count)} chips" if few else "too few chips differ on the same slice:"
        notes.append(
            f"{done} chips, {done / planned.count:.2f} tilings of {planned.count} slices: {reason} the intervals are "
            "too wide on average"
        )
    if planned.slices is not None and planned.pilot is not None:
        notes.append(
            f"a pilot on this machine chose slices of {planned.slices.size} images; slice_images="
            f"{planned.slices.most} repeats them"
        )
    if isinstance(model, Tempered):
        notes.append(f"EKL, NLL and calibration error are of logits divided by the temperature {model.temperature:g}")
    if quiet := switched_off(model):
        notes.append("layers whose noise is switched off: " + ", ".join(quiet))
    if shared := shared_weights(model):
        notes.append(shared)
    undefined = 0 if task.labels is None else int(tallies["undefined"].sum())
    if undefined:
        notes.append(
            f"{undefined} inferences gave NaN or infinite logits; they count as wrong and do not enter the "
            "calibration error"
        )
    for name, statistic in statistics.items() if planned.count == 1 else ():
        without = done - len(statistic.values)
        if without and name == "ekl":
            notes.append(f"{without} of {done} chips have no correct image, and so no EKL")
        elif without:
            notes.append(f"{without} of {done} chips have no {name}, because its denominator is 0")
    return notes

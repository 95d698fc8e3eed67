"""Where the accuracy goes: effects and layers switched off one by one, on common chips."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nft_ext._common.checks import fail, file_path, integer, items, number, one_of, optional_boolean
from nft_ext._common.progress import Progress
from nft_ext.montecarlo.evaluate import monte_carlo
from nft_ext.montecarlo.execution.evaluated_model import check_model, check_sigma_is_known, on_device
from nft_ext.montecarlo.execution.session import Session, main_rank_makes, read_together
from nft_ext.montecarlo.explanation import Change, Explanation, ExplanationRow, adjusted, change
from nft_ext.montecarlo.report.report import MonteCarloReport
from nft_ext.montecarlo.tasks.built_in import BuiltIn
from nft_ext.montecarlo.tasks.forward import ForwardFunction
from nft_ext.montecarlo.tasks.metric import asked_metrics
from nft_ext.montecarlo.variants import (
    KINDS,
    Variant,
    Variants,
    add_effects,
    add_layers,
    groups_of,
    only_layers,
    variants,
)
from nft_ext.nn import noisy_layers
from nft_ext.nn.conditions import under

FEW = 2  # chips of a variant without noise: all chips are equal, and monte_carlo needs two
SCREENING = 8  # chips per layer of the first look
SCREENING_SEED = 1 << 63  # xor of the seed, so that no chip of the first look enters an interval
REFUSED = ("metrics", "target_ci", "min_runs", "max_runs")


def explain(
    model: nn.Module,
    data,
    *,
    runs: int = 64,
    by: str | Iterable[str] = ("layer", "effect"),
    layers: Any = None,
    most_layers: int | None = None,
    seed: int = 0,
    sigma: float | None = None,
    forward: ForwardFunction | None = None,
    metric: str | BuiltIn | Mapping[str, Any] = "accuracy",
    device=None,
    progress: bool | None = True,
    resume: str | os.PathLike | None = None,
    **options: Any,
) -> Explanation:
    """Says what each effect of the device and each layer's noise costs, with paired intervals.

    The network is evaluated in several variants, all on the chips 0 .. runs-1 of `seed`: the same normals, stuck
    devices and images. Each effect and each layer has two changes of the metric:

    - without: everything on but this one, minus everything on;
    - alone: only this one on, minus nothing on. For an effect, nothing on means the float weights. For a layer's noise
      it means quantized weights without noise.

    They differ where effects overlap. The noise of a layer is all that its device adds to the quantized weight.
    docs/reference/explain.md has the definitions.

    Args:
        model, data: as `monte_carlo` takes them. Contexts and buffers of the model stay as they are.
        runs: chips per variant, >= 2. A variant without noise takes 2.
        by: "layer", "effect" or both.
        layers: None: each noisy layer by itself. A list of names and patterns such as "features.*": only these. A
            mapping from names of groups to names and patterns: the layers of a group are switched together.
        most_layers: the largest number of rows for layers, >= 2. If there are more layers, a first look on 8 chips of
            another seed finds those whose noise alone changes the metric most. The others become one group. None: no
            limit.
        seed: 64 bits.
        sigma: overrides the sigma of every layer; None keeps them.
        forward: forward(model, batch) -> output, as for `monte_carlo`.
        metric: one metric of `monte_carlo`: a name, an `nft.montecarlo.metric`, or {name: function or metric}.
        device: torch device to evaluate on. A model on another torch device is copied, once.
        progress: True, False, or None for a terminal only.
        resume: a folder with one file per variant, created if missing. A stopped call continues from it.
        options: further arguments of `monte_carlo`: protocol, slice_images, chips_per_pass, batch_size, precision,
            ranks. Slices cost fewer images per chip, and all variants see the same ones.

    Returns:
        The explanation. After a KeyboardInterrupt it holds the finished variants and is marked `interrupted`. Without
        the first three variants the interrupt is raised again.

    Raises:
        TypeError, ValueError: before any chip is evaluated: a bad argument, or a model without noise.
        OSError: a resume file is in use or cannot be written.
    """
    began = time.perf_counter()
    runs = integer("runs", runs, 2)
    seed = integer("seed", seed, 0, 2**64 - 1)
    optional_boolean("progress", progress)
    kinds = [one_of("by", kind, KINDS) for kind in ([by] if isinstance(by, str) else items("by", by, "names"))]
    if not kinds:
        fail("by", f"must name {' or '.join(KINDS)}", "none")
    if most_layers is not None:
        most_layers = integer("most_layers", most_layers, 2)
    if sigma is not None:
        sigma = number("sigma", sigma, 0.0)
    name, metrics = _metric(metric)
    for refused in REFUSED:
        if refused in options:
            fail(refused, "must be left out: every variant has `runs` chips, and `metric` names one metric", "a value")
    check_model(model)
    check_sigma_is_known(model)
    groups = groups_of(layers, noisy_layers(model))
    plan = variants(noisy_layers(model), sigma)
    folder = None if resume is None else file_path("resume", resume)
    if folder is not None and folder.exists() and not folder.is_dir():
        fail("resume", "must be a folder, which holds one journal per variant", str(folder))
    ranks = options.get("ranks")
    model, _ = on_device(model, Session(None, ranks).device(device))
    data = read_together(data, ranks)
    if folder is not None:
        main_rank_makes(folder, ranks)
    shown = progress if Session(None, ranks).main else False
    evaluation = _Evaluation(model, data, name, folder, shown, {"forward": forward, "metrics": metrics, **options})

    screened: list[str] = []
    if "effect" in kinds:
        add_effects(plan)
    if "layer" in kinds:
        if most_layers is not None and len(groups) > most_layers:
            groups, screened = evaluation.screen(plan, groups, most_layers, seed)
        add_layers(plan, groups, noisy_layers(model))
    interrupted = evaluation.run(plan.every, runs, seed)
    return evaluation.explanation(plan, runs, seed, screened, interrupted, time.perf_counter() - began)


class _Evaluation:
    """Evaluates variants and keeps their reports.

    Args:
        model, data: on their torch device.
        metric: name of the metric.
        folder: of journals, or None.
        show: of the progress display.
        options: arguments of `monte_carlo`.
    """

    def __init__(self, model: nn.Module, data, metric: str, folder: Path | None, show: bool | None, options: dict):
        self.model, self.data, self.metric, self.folder, self.show = model, data, metric, folder, show
        self.options = options
        self.reports: dict[str, MonteCarloReport] = {}
        self.inferences = 0

    def run(self, wanted: list[Variant], runs: int, seed: int) -> bool:
        """Evaluates all variants. Returns whether an interrupt ended it early.

        Raises:
            KeyboardInterrupt: before the first three variants were finished.
        """
        total = sum(map(self._chips(runs), wanted))
        self._announce(len(wanted), runs, total)
        try:
            with Progress(total, "explain", "chips", enabled=self.show) as progress:
                for variant in wanted:
                    progress.update(0, note=variant.name)
                    report = self._report(variant, self._chips(runs)(variant), seed, variant.file)
                    if report.interrupted:
                        raise KeyboardInterrupt
                    self.reports[variant.name] = report
                    progress.update(report.runs)
        except KeyboardInterrupt:
            if len(self.reports) < 3:
                raise
            return True
        return False

    def _announce(self, variants: int, runs: int, chips: int) -> None:
        """Shows the work ahead, where progress is shown."""
        if not (self.show or (self.show is None and sys.stderr is not None and sys.stderr.isatty())):
            return
        images, size = len(self.data), self.options.get("slice_images", "auto")
        if self._whole():
            each, work = f"{runs} chips each (2 without noise)", f"{images} images: {chips * images:,} inferences"
        else:
            each, work = f"{runs} chips each", f"slices of {images if size == 'auto' else size} images"
        text = f"explain: {variants} variants, {each}, {chips:,} chips in all x {work}"
        print(text, file=sys.stderr, flush=True)

    def _whole(self) -> bool:
        """Whether every chip sees all images."""
        return self.options.get("protocol", "full") == "full"

    def _chips(self, runs: int):
        """The function that gives the number of chips of a variant."""
        whole = self._whole()
        return lambda variant: min(FEW, runs) if whole and variant.noise_free else runs

    def _report(self, variant: Variant, runs: int, seed: int, file: str) -> MonteCarloReport:
        layers = noisy_layers(self.model)
        resume = None if self.folder is None else self.folder / file
        with under(self.model, {layers[name]: c for name, c in variant.conditions.items()}):
            report = monte_carlo(
                self.model, self.data, runs=runs, seed=seed, resume=resume, progress=False, **self.options
            )
        if report.slice_images is not None:
            self.options["slice_images"] = report.slice_images  # the same slices for every variant
        self.inferences += report.images_evaluated
        return report

    def screen(
        self, plan: Variants, groups: dict[str, list[str]], most: int, seed: int
    ) -> tuple[dict[str, list[str]], list[str]]:
        """Keeps the groups whose noise alone changes the metric most, on a few chips of another seed.

        Returns:
            `most` groups, the last of which holds all others; and the names of those others.
        """
        first = Variants(plan.full, plan.quantized, plan.ideal)
        wanted = {group: only_layers(first, group, members) for group, members in groups.items()}
        seed ^= SCREENING_SEED
        found: dict[str, float] = {}
        options = dict(self.options)  # few chips settle other slices
        with Progress((1 + len(groups)) * SCREENING, "explain: first look", "chips", enabled=self.show) as progress:
            quiet = self._report(plan.quantized, SCREENING, seed, "first-look-" + plan.quantized.file)
            progress.update(SCREENING, note="no noise")
            for group, variant in wanted.items():
                report = self._report(variant, SCREENING, seed, "first-look-" + variant.file)
                difference = self._values(report, SCREENING) - self._values(quiet, SCREENING)
                found[group] = abs(float(np.nan_to_num(difference).mean()))
                progress.update(SCREENING, note=variant.name)
        self.options = options
        kept = sorted(found, key=lambda group: -found[group])[: most - 1]
        rest = [group for group in groups if group not in kept]
        joined = {group: members for group, members in groups.items() if group in kept}
        others = [name for group in rest for name in groups[group]]
        return joined | {f"the other {len(rest)}": others}, rest

    def _values(self, report: MonteCarloReport, runs: int) -> np.ndarray:
        """[runs] the metric of every chip. Without noise all chips have the value of the first."""
        values = report.statistics[self.metric].per_run
        return values if len(values) == runs else np.full(runs, values[0])

    def explanation(
        self, plan: Variants, runs: int, seed: int, screened: list[str], interrupted: bool, seconds: float
    ) -> Explanation:
        """The explanation of the finished variants."""
        full = self.reports[plan.full.name]
        sliced = full.slice_images is not None

        def compared(one: Variant, other: Variant) -> Change | None:
            if one.name not in self.reports or other.name not in self.reports:
                return None
            values = [self._values(self.reports[v.name], runs) for v in (one, other)]
            exact = one.noise_free and other.noise_free and not sliced
            return change(*values, exact=exact, same=one is other)

        rows = [
            ExplanationRow(c.kind, c.name, c.text, compared(c.without, plan.full), compared(c.alone, c.nothing))
            for c in plan.comparisons
        ]
        notes = list(full.notes)
        if interrupted:
            notes.append(f"interrupted after {len(self.reports)} of {len(plan.every)} variants")
        quantizer, noise = compared(plan.quantized, plan.ideal), compared(plan.full, plan.quantized)
        assert quantizer is not None and noise is not None  # of the first three variants
        return Explanation(
            metric=self.metric,
            runs=runs,
            images=full.images,
            example=full.example,
            images_per_chip=full.slice_images or full.images,
            seed=seed,
            conditions=full.conditions(),
            full=self._level(plan.full, sliced),
            quantized=self._level(plan.quantized, sliced),
            ideal=self._level(plan.ideal, sliced),
            quantizer=quantizer,
            noise=noise,
            rows=adjusted(rows),
            per_chip={name: report.statistics[self.metric].per_run.tolist() for name, report in self.reports.items()},
            screened=screened,
            inferences=self.inferences,
            seconds=seconds,
            interrupted=interrupted,
            notes=notes,
            versions=full.versions,
        )

    def _level(self, variant: Variant, sliced: bool) -> tuple[float, float]:
        statistic = self.reports[variant.name].statistics[self.metric]
        return statistic.mean, 0.0 if variant.noise_free and not sliced else statistic.ci95


def _metric(metric: Any) -> tuple[str, dict[str, Any]]:
    """The metric's name, and `metrics` for monte_carlo.

    Raises:
        TypeError, ValueError: it is not one metric.
    """
    if not isinstance(metric, (str, BuiltIn, Mapping)):
        rule = "must be the name of one metric of monte_carlo, a metric(...), or {name: function}"
        fail("metric", rule, type(metric).__name__, TypeError)
    if isinstance(metric, Mapping) and len(metric) != 1:
        fail("metric", "must be one metric", f"{len(metric)} metrics")
    found = asked_metrics(metric)
    return next(iter(found)), found

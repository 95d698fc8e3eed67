"""The report of a Monte Carlo evaluation: figures with intervals, and the conditions of the evaluation."""

from __future__ import annotations

import math
import os
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from nft_ext._common.checked_json import intact, with_checksum
from nft_ext._common.checks import fail
from nft_ext._common.files import finite_or_none, write_csv, write_json
from nft_ext._common.reading import read_json
from nft_ext.montecarlo.report.metrics import Metrics
from nft_ext.montecarlo.report.report_plot import plot_report
from nft_ext.montecarlo.report.statistic_json import statistic_entry, statistic_of
from nft_ext.montecarlo.report.text_table import report_table
from nft_ext.montecarlo.statistics.intervals import unseen_share
from nft_ext.montecarlo.statistics.run_statistic import RunStatistic
from nft_ext.montecarlo.statistics.slice_statistic import SliceStatistic

FORMAT = "nft_ext.monte_carlo/1"
CONVENTIONS = {
    "max": "of the maximal conductance",
    "spacing": "of the level spacing",
    "own": "of the device's own level",
    "measured standard deviation": "times the measured standard deviation",
}
NON_GAUSSIAN = ("clip", "censor", "truncate", "stuck")


@dataclass(frozen=True, eq=False)
class MonteCarloReport:
    """The outcome of `monte_carlo`. `str(report)` is a table of one screen.

    Attributes:
        statistics: metric name -> RunStatistic, or SliceStatistic under "stratified", in the order asked for. The first
            metric is the one of plots and of `target_ci`. `metrics` is the same mapping; the properties `accuracy`,
            `ekl` and `nll` read it.
        ece: expected calibration error (top label, 15 bins of equal width), pooled over chips and images; NaN without
            a metric of class labels.
        runs: number of chips evaluated. Run r is chip r of `seed`, key domain "evaluation".
        images: number of test images, or of other examples.
        classes: number of the model's classes; None without a metric of class labels.
        seed: seed of the chips.
        nvm: one entry per distinct device: {"device": NVMDevice.describe(), "text", "layers"}, with the sigma used.
        protocol, precision, chips_per_pass, batch_size, hardware: settings of the evaluation.
        seconds: wall time.
        interrupted: True if the evaluation stopped early.
        notes: remarks that a reader of the figures needs.
        versions: name -> version.
        slice_images: largest number of images in a chip's slice; None if every chip saw all images.
        slices: slices per tiling.
        pilot: the measurements behind slice_images="auto" (variances, costs in seconds), else None.
        stopping: target_ci, reached (bool), pilot_runs, min_runs, max_runs; None without a target.
        observed: what one small pass ran: never_ran (noisy layers whose forward did not run), share (their part of the
            noisy weights), read (noisy layers whose weight was read past the layer), matrices (parameters of other
            modules that were multiplied without noise). None in reports of version 0.2.
        coverage: which weights are on crossbars, as `Coverage.summary` has it: share (of matrix weights on crossbars),
            mac_share (of multiply-accumulates, None if unknown), crossbar_weights, weights, digital (the biggest
            groups of digital matrices, each with its reason), digital_not_listed. None in reports of version 0.2.
        example: what one entry of the data is called in texts.

    Raises:
        ValueError: `statistics` is empty.
    """

    statistics: dict[str, RunStatistic | SliceStatistic]
    ece: float
    runs: int
    images: int
    classes: int | None
    seed: int
    nvm: list[dict[str, Any]]
    protocol: str
    precision: str
    chips_per_pass: int
    batch_size: int
    hardware: str
    seconds: float
    interrupted: bool = False
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    slice_images: int | None = None
    slices: int = 1
    pilot: dict[str, Any] | None = None
    stopping: dict[str, Any] | None = None
    observed: dict[str, Any] | None = None
    coverage: dict[str, Any] | None = None
    example: str = "image"

    def __post_init__(self) -> None:
        if not self.statistics:
            fail("statistics", "must hold at least one metric", "none")
        object.__setattr__(self, "statistics", Metrics(self.statistics))

    @property
    def metrics(self) -> Metrics[RunStatistic | SliceStatistic]:
        """Metric name -> its statistic, with `.per_run`, `.mean`, `.std` and `.ci95`."""
        return Metrics(self.statistics)

    @property
    def first(self) -> str:
        """Name of the first metric, which plots show and `target_ci` is about."""
        return next(iter(self.statistics))

    def _statistic(self, name: str) -> RunStatistic | SliceStatistic:
        if name not in self.statistics:
            fail(
                "metrics",
                f"must include {name!r} in the call of monte_carlo",
                ", ".join(self.statistics),
                kind=AttributeError,
            )
        return self.statistics[name]

    @property
    def accuracy(self) -> RunStatistic | SliceStatistic:
        """Share of correct images per chip."""
        return self._statistic("accuracy")

    @property
    def ekl(self) -> RunStatistic | SliceStatistic:
        """sum(-log p_label * correct) / sum(correct) per chip, on the raw logits; NaN without a correct image."""
        return self._statistic("ekl")

    @property
    def nll(self) -> RunStatistic | SliceStatistic:
        """Mean of -log p_label over all images, per chip, in nats."""
        return self._statistic("nll")

    @property
    def images_evaluated(self) -> int:
        """Number of noisy inferences behind the figures, without padding and pilots."""
        tilings, rest = divmod(self.runs, self.slices)
        return tilings * self.images + rest * self.images // self.slices

    @property
    def tilings(self) -> float:
        """Average number of chips per image, runs / slices."""
        return self.runs / self.slices

    @property
    def equivalent_full_runs(self) -> float:
        """Number of chips on all images that give the first metric's mean the same variance, std^2 / standard error^2.

        Equal to `runs` under "full". Under "stratified" it is as exact as the estimated std; NaN without one.
        """
        statistic = self.statistics[self.first]
        if isinstance(statistic, RunStatistic):
            return float(self.runs)
        return (statistic.std / statistic.standard_error) ** 2 if statistic.standard_error > 0 else math.nan

    @property
    def unseen_chips(self) -> float:
        """At most this share of all chips is unlike every evaluated chip, with 95 % confidence.

        It is 1 - 0.05^(1/runs). No interval of the report contains the effect of such chips.
        """
        return unseen_share(self.runs)

    @property
    def sigma(self) -> float | list[float]:
        """The sigma used; a sorted list of distinct values if layers differ."""
        return sigma_of(self.nvm)

    def conditions(self) -> str:
        """Device, sigma with its unit, M and K, in words. One part per distinct device."""
        return conditions_of(self.nvm)

    def table(self) -> str:
        """The report as a text table of one screen."""
        return report_table(self)

    __str__ = table

    def plot(self, path: str | os.PathLike) -> None:
        """Writes a figure with the first metric of every chip.

        Args:
            path: the file; its suffix selects PNG, PDF or SVG.

        Raises:
            ImportError: matplotlib is not installed. The message has the command that installs it.
        """
        plot_report(self, path)

    def to_csv(self, path: str | os.PathLike) -> None:
        """Writes one row per chip: run, seed, sigma, then the metrics."""
        sigma = " ".join(map(repr, self.sigma)) if isinstance(self.sigma, list) else self.sigma
        columns = [s.per_run.tolist() for s in self.statistics.values()]
        rows = [[run, self.seed, sigma, *map(repr, row)] for run, row in enumerate(zip(*columns))]
        write_csv(path, [["run", "seed", "sigma", *self.statistics], *rows])

    def to_dict(self) -> dict[str, Any]:
        """The whole report as JSON values: floats exactly, NaN and infinities as None."""
        content: dict[str, Any] = {"format": FORMAT, "conditions": self.conditions()}
        content |= {f.name: getattr(self, f.name) for f in fields(self) if f.name != "statistics"}
        computed = ("images_evaluated", "tilings", "equivalent_full_runs", "unseen_chips")
        content |= {name: getattr(self, name) for name in computed}
        content["metrics"] = {name: statistic_entry(s) for name, s in self.statistics.items()}
        return finite_or_none(content)

    def to_json(self, path: str | os.PathLike) -> None:
        """Writes `to_dict()` and a checksum to a file, atomically."""
        write_json(path, with_checksum(self.to_dict()), strict=True)

    @classmethod
    def from_json(cls, path: str | os.PathLike) -> MonteCarloReport:
        """Reads a file that `to_json` wrote.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is damaged or of another kind.
        """
        content = read_json("path", path, "a whole report written by to_json")
        found = content.get("format")
        if found != FORMAT:
            fail("path", f"must be a report of format {FORMAT}", f"{path}: format {found}")
        if not intact(content):
            fail("path", "must be a report as to_json wrote it; it does not match its checksum", str(path))
        try:
            statistics = {name: statistic_of(_none_to_nan(entry)) for name, entry in content["metrics"].items()}
            # Fields that reports of earlier versions lack have a default.
            rest: dict[str, Any] = {
                f.name: content[f.name]
                for f in fields(cls)
                if f.name in content or (f.default is f.default_factory is MISSING and f.name != "statistics")
            }
            return cls(statistics=statistics, **(rest | {"ece": _none_to_nan(rest["ece"])}))
        except KeyError as error:
            fail("path", "must be a whole report written by to_json", f"{path}: no entry {error}")
        except (TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
            fail("path", "must be a whole report written by to_json", f"{path}: a damaged entry ({error})")


def conditions_of(nvm: list[dict[str, Any]]) -> str:
    """Device, sigma with its unit, M and K. One part per distinct device; `nvm` as a report has it."""
    parts = []
    for group in nvm:
        device = group["device"]
        convention = device["relative_to"]
        text = f"{device['name']}, sigma = {device['sigma']:g} {CONVENTIONS[convention]}"
        text += f", M = {device['weight_bits']}, K = {device['device_bits']}"
        if device.get("mapping", "sign") != "sign":
            text += f", {device['mapping']} mapping"
        text += "".join(f", {key} {device[key]}" for key in NON_GAUSSIAN if key in device)
        parts.append(text if len(nvm) == 1 else f"{text} ({len(group['layers'])} layers)")
    return "; ".join(parts)


def sigma_of(nvm: list[dict[str, Any]]) -> float | list[float]:
    """The sigma used; a sorted list of distinct values if layers differ."""
    values = sorted({group["device"]["sigma"] for group in nvm})
    return values[0] if len(values) == 1 else values


def _none_to_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _none_to_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_none_to_nan(v) for v in value]
    return math.nan if value is None else value

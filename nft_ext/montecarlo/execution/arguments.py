"""The arguments of `monte_carlo`, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass

from nft_ext._common.bfloat16 import PRECISIONS
from nft_ext._common.checks import fail, integer, number, one_of
from nft_ext.montecarlo.statistics.stopping import PILOT_RUNS, Goal
from nft_ext.montecarlo.tasks.built_in import BuiltIn, is_share
from nft_ext.montecarlo.tasks.forward import ForwardFunction, checked_forward
from nft_ext.montecarlo.tasks.metric import MetricFunction, asked_metrics
from nft_ext.ops.keys import noise_key

MAX_RUNS = 2**31  # a draw has 32 bits, and the last pass is padded with draws beyond `runs`
PROTOCOLS = ("full", "stratified")


@dataclass(frozen=True)
class Arguments:
    """The checked arguments of `monte_carlo`. `goal` is None without target_ci."""

    runs: int
    seed: int
    sigma: float | None
    protocol: str
    slice_images: int | str
    goal: Goal | None
    metrics: dict[str, BuiltIn | MetricFunction]
    forward: ForwardFunction | None
    chips_per_pass: int | str
    batch_size: int | str
    precision: str

    @property
    def most_runs(self) -> int:
        """The largest number of chips that the evaluation may need."""
        return self.runs if self.goal is None else self.goal.high


def checked(
    *,
    forward,
    runs,
    seed,
    sigma,
    protocol,
    slice_images,
    target_ci,
    min_runs,
    max_runs,
    metrics,
    chips_per_pass,
    batch_size,
    precision,
) -> Arguments:
    """Checks and normalises the arguments.

    Raises:
        ValueError: a bad argument; the message names the argument, the rule and the value.
    """
    runs = integer("runs", runs, 2, MAX_RUNS)
    if batch_size != "auto":
        batch_size = integer("batch_size", batch_size, 1)
    goal, known_metrics = None, asked_metrics(metrics)
    for name, value in (("min_runs", min_runs), ("max_runs", max_runs)):
        integer(name, value, 1)  # the type, also without a target
    if target_ci is not None:
        target = number("target_ci", target_ci)
        first = next(iter(known_metrics.values()))
        share = isinstance(first, BuiltIn) and is_share(first.name)
        if target <= 0 or (share and target >= 1):
            unit = "a fraction, > 0 and < 1" if share else "a number > 0, in the unit of the first metric"
            fail("target_ci", f"must be a half-width as {unit}", target)
        high = integer("max_runs", max_runs, PILOT_RUNS, MAX_RUNS)
        goal = Goal(target, integer("min_runs", min_runs, PILOT_RUNS, high), high)
    if chips_per_pass != "auto":
        chips_per_pass = min(runs if goal is None else goal.high, integer("chips_per_pass", chips_per_pass, 1))
    if sigma is not None:
        sigma = number("sigma", sigma, 0.0)
    noise_key(seed=seed, draws=[0], domain="evaluation")  # checks the seed
    one_of("protocol", protocol, PROTOCOLS)
    one_of("precision", precision, PRECISIONS)
    if slice_images != "auto":
        slice_images = integer("slice_images", slice_images, 1)
        if protocol == "full":
            fail(
                "slice_images",
                "must be 'auto' under protocol 'full', where every chip sees every image",
                slice_images,
            )
    return Arguments(
        runs,
        int(seed),
        sigma,
        protocol,
        slice_images,
        goal,
        known_metrics,
        checked_forward(forward),
        chips_per_pass,
        batch_size,
        precision,
    )

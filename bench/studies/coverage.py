"""How often do 95 % intervals of evaluations contain the truth? python -m bench.studies.coverage [--out FILE]

Each setting has 1,000 evaluations, with the slices, estimators, intervals and stopping rule of nft_ext/montecarlo. A
population with known figures replaces the network.

`coverage` is the share of evaluations that are true. An evaluation is true if both of these hold:

- Its interval contains the mean accuracy over all chips of the kinds that it drew.
- The share of chips of all other kinds is at most its "up to x %" (`unseen_share`).

With one kind of chips this is the usual coverage. With several kinds it judges what a report claims: an interval for
kinds of chips that were seen, and a bound on the others. `coverage_of_all` judges the interval alone, by the mean over
all chips: it is low where a kind is too rare to be drawn.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.harness import machine
from bench.studies.populations import Collapsed, Mixture, Recorded, Synthetic
from nft_ext._common.files import write_json
from nft_ext.montecarlo.statistics.intervals import unseen_share
from nft_ext.montecarlo.statistics.precision import precision_of
from nft_ext.montecarlo.statistics.slice_estimate import SliceEstimate, between_chips, credible_estimate
from nft_ext.montecarlo.statistics.slices import Slices
from nft_ext.montecarlo.statistics.stopping import Goal, until

LEAST = 0.93
EVALUATIONS = 1000
Population = Synthetic | Mixture | Recorded


@dataclass(frozen=True)
class Setting:
    """`runs` chips with slices of at most n images; with a target half-width, as many as needed up to `most`."""

    name: str
    population: Population
    n: int
    runs: int | None = None
    target: float | None = None
    most: int = 5000


@dataclass
class Outcome:
    """Intervals and figures of one evaluation, and the kinds of its chips."""

    runs: int
    accuracy: tuple[float, float]
    mean: float
    half_width: float
    standard_error: float
    between: float
    ekl: tuple[float, float]
    conservative: bool
    rough: bool
    kinds: np.ndarray


class _Evaluation:
    """One evaluation. It draws chips on request, like a collector."""

    def __init__(self, population: Population, n: int, number: int):
        self.population, self.random = population, np.random.default_rng(number)
        self.slices = Slices(number, population.images, n)
        self.right, self.loss, self.sizes, self.kinds = (np.empty(0) for _ in range(4))

    def more(self, first: int, last: int) -> None:
        images, counted = (t.numpy() for t in self.slices.of(list(range(first, last))))
        right, loss, kinds = self.population.sums(self.random, images, counted)
        self.right, self.loss = np.append(self.right, right), np.append(self.loss, loss)
        self.sizes, self.kinds = np.append(self.sizes, counted.sum(axis=1)), np.append(self.kinds, kinds)

    def estimate(self) -> SliceEstimate:
        return credible_estimate(self.right, self.sizes, self.slices.count, share=True)


def evaluate(setting: Setting, number: int) -> Outcome:
    """Evaluation `number` of a setting."""
    evaluation = _Evaluation(setting.population, setting.n, number)
    count = evaluation.slices.count
    if setting.target is None:
        evaluation.more(0, setting.runs)
        precision = precision_of(evaluation.estimate(), share=True)
    else:
        goal = Goal(setting.target, 64, setting.most)
        precision = until(goal, count, evaluation.more, evaluation.estimate)
    found = evaluation.estimate()
    mean = float(found.mean)
    with np.errstate(invalid="ignore"):  # 0 / 0 where no image is right at all
        ekl = credible_estimate(evaluation.loss, evaluation.right, count, share=False)
    of_ekl = precision_of(ekl, share=False)
    between = between_chips(found, evaluation.right, evaluation.sizes, count, setting.population.images)
    return Outcome(
        len(evaluation.right),
        (mean - precision.below, mean + precision.above),
        mean,
        precision.half_width,
        precision.standard_error,
        float(between),
        (float(ekl.mean) - of_ekl.below, float(ekl.mean) + of_ekl.above),
        precision.conservative,
        precision.rough,
        np.unique(evaluation.kinds.astype(int)),
    )


def study(setting: Setting, evaluations: int = EVALUATIONS) -> dict:
    """Coverage and figures of `evaluations` evaluations of one setting."""
    started = time.perf_counter()
    outcomes = [evaluate(setting, number) for number in range(evaluations)]
    truth = setting.population.truth
    count = Slices(0, setting.population.images, setting.n).count
    of_seen = [setting.population.truth_of(o.kinds) for o in outcomes]
    held = np.mean(
        [_holds(o.accuracy, t["accuracy"]) and t["unseen"] <= unseen_share(o.runs) for o, t in zip(outcomes, of_seen)]
    )
    between = np.mean([o.between for o in outcomes])
    runs = np.array([o.runs for o in outcomes])
    means = np.array([o.mean for o in outcomes])
    # With less than two tilings, or few pairs of chips that differ, the intervals are too wide by design.
    conservative = float(np.mean([o.conservative for o in outcomes]))
    result = {
        "name": setting.name,
        "population": "recorded" if isinstance(setting.population, Recorded) else asdict(setting.population),
        "images": setting.population.images,
        "n": setting.n,
        "slices": count,
        "accuracy": truth["accuracy"],
        "chip_std": truth["std"],
        "target_ci": setting.target,
        "runs_mean": float(runs.mean()),
        "runs_most": int(runs.max()),
        "tilings_mean": float(runs.mean()) / count,
        "conservative_share": conservative,
        "rough_share": float(np.mean([o.rough for o in outcomes])),
        "coverage": float(held),
        "coverage_of_all": float(np.mean([_holds(o.accuracy, truth["accuracy"]) for o in outcomes])),
        "all_kinds_seen": float(np.mean([t["unseen"] == 0 for t in of_seen])),
        "mean_error": float(means.mean() - truth["accuracy"]),
        "half_width_mean": float(np.mean([o.half_width for o in outcomes])),
        "std_of_means": float(means.std(ddof=1)),
        "half_width_least": float(np.min([o.half_width for o in outcomes])),
        "std_estimate": None if np.isnan(between) else float(np.sqrt(max(0.0, between))),
        "evaluations": evaluations,
    }
    if "ekl" in truth and setting.target is None:
        result["ekl_coverage"] = float(np.mean([_holds(o.ekl, t["ekl"]) for o, t in zip(outcomes, of_seen)]))
    result["holds"] = bool(held >= LEAST)
    return result | {"seconds": time.perf_counter() - started}


def _holds(interval: tuple[float, float], value: float) -> bool:
    # Both come from sums of many values; their rounding is not a miss.
    return interval[0] - 1e-12 <= value <= interval[1] + 1e-12


def synthetic_settings() -> list[Setting]:
    """Accuracies of 60 to 98 %, equal to very different chips, whole and incomplete tilings, with or without target."""
    strong, weak = Synthetic(1000, 0.8, 0.3), Synthetic(1000, 0.6, 0.1)
    high, high_strong = Synthetic(1000, 0.98, 0.3), Synthetic(1000, 0.98, 0.6)
    equal, few, odd = Synthetic(1000, 0.9, 0.0), Synthetic(360, 0.9, 0.3), Synthetic(997, 0.85, 0.2)
    large, skewed = Synthetic(2000, 0.9, 0.3), Synthetic(1000, 0.85, 0.4, skewed=True)
    rare = Synthetic(10_000, 0.977, 0.33, skewed=True)
    return [
        Setting("10 tilings", strong, 50, runs=200),
        Setting("little chip variance, 5 tilings", weak, 17, runs=295),
        Setting("98 %, 10 tilings", high, 50, runs=200),
        Setting("98 %, chips differ much, 5 tilings", high_strong, 50, runs=100),
        Setting("equal chips, 2 tilings", equal, 10, runs=200),
        Setting("360 images, 20 tilings", few, 36, runs=200),
        Setting("unequal slices, incomplete third tiling", odd, 30, runs=97),
        Setting("skewed chips, 10 tilings", skewed, 50, runs=200),
        Setting("one tiling and 64 chips", large, 10, runs=264),
        Setting("98 %, 1.7 tilings", high, 10, runs=170),
        Setting("1.25 tilings", large, 25, runs=100),
        Setting("half a tiling", large, 10, runs=100),
        Setting("98 %, 1.5 tilings", high, 10, runs=150),
        Setting("whole sets", few, 360, runs=64),
        Setting("target, slices", strong, 50, target=0.008),
        Setting("target, little chip variance", weak, 50, target=0.008),
        Setting("target, 98 %", high, 50, target=0.0015),
        Setting("target, 98 %, chips differ much", high_strong, 50, target=0.003),
        Setting("target, unequal slices", odd, 30, target=0.008),
        Setting("target met soon after the pilot", few, 36, target=0.012),
        Setting("target, skewed chips", skewed, 50, target=0.012),
        Setting("target, one tiling and 64 chips decide", large, 20, target=0.005),
        Setting("target, skewed chips that differ little", rare, 14, target=0.00195),
        Setting("target met below one tiling", large, 10, target=0.02),
        Setting("target not reachable", strong, 50, target=0.002, most=200),
        Setting("target, whole sets", few, 360, target=0.005),
    ]


def extreme_settings() -> list[Setting]:
    """Accuracies near 0 and 1, rare bad chips, bimodal and collapsed chips, two images."""
    three, odd = Synthetic(1000, 0.999, 0.3), Synthetic(997, 0.995, 0.2)
    good = Synthetic(1000, 0.9, 0.2)
    dead = Mixture(((0.99, good), (0.01, Collapsed(1000))))
    two, bad = (Mixture(((1 - share, good), (share, Synthetic(1000, 0.5, 0.2)))) for share in (0.02, 0.03))
    bimodal = Mixture(((0.7, Synthetic(1000, 0.95, 0.2)), (0.3, Synthetic(1000, 0.6, 0.2))))
    collapsed = Mixture(((0.9, good), (0.1, Collapsed(1000))))
    large = Mixture(((0.97, Synthetic(2000, 0.97, 0.2)), (0.03, Synthetic(2000, 0.5, 0.2))))
    pair = Synthetic(2, 0.8, 0.3)
    # Nine of ten images are right. Chips are equal, or each turns one image of 2,000 around.
    clean = np.arange(1000) % 10 > 0
    without, hardly = Recorded(clean[None]), Recorded(clean ^ (np.random.default_rng(1).random((3000, 1000)) < 5e-4))
    found = [
        Setting("99.9 %, slices of 10", three, 10, runs=200),
        Setting("99.9 %, 64 slices of 10", three, 10, runs=64),
        Setting("target, 99.9 %, slices of 10", three, 10, target=0.001),
        Setting("target, 99.9 %, whole sets", Synthetic(360, 0.999, 0.3), 360, target=0.001),
    ]
    for accuracy in (0.995, 0.997, 0.99935):
        population, name = Synthetic(1000, accuracy, 0.3), f"{100 * accuracy:g} %, slices of 10"
        found.append(Setting(name, population, 10, runs=264))
        found.append(Setting(f"target, {name}", population, 10, target=0.001))
    return found + [
        Setting("0.3 %, slices of 10", Synthetic(1000, 0.003, 0.3), 10, runs=264),
        Setting("target, 0.3 %, slices of 10", Synthetic(1000, 0.003, 0.3), 10, target=0.001),
        Setting("0.3 %, whole sets", Synthetic(360, 0.003, 0.3), 360, runs=64),
        Setting("1 % dead chips", dead, 50, runs=200),
        Setting("1 % dead chips, 300", dead, 50, runs=300),
        Setting("1 % dead chips, whole sets", dead, 1000, runs=64),
        Setting("target, 1 % dead chips", dead, 50, target=0.01),
        Setting("2 % bad chips", two, 50, runs=200),
        Setting("target, 2 % bad chips", two, 50, target=0.01),
        Setting("3 % bad chips", bad, 50, runs=200),
        Setting("target, 3 % bad chips", bad, 50, target=0.01),
        Setting("3 % bad chips, whole sets", bad, 1000, runs=64),
        Setting("3 % bad chips, one tiling and 64 chips", large, 10, runs=264),
        Setting("bimodal chips", bimodal, 50, runs=200),
        Setting("target, bimodal chips", bimodal, 50, target=0.02),
        Setting("10 % collapsed chips", collapsed, 50, runs=200),
        Setting("target, 10 % collapsed chips", collapsed, 50, target=0.02),
        Setting("99.5 %, unequal slices", odd, 30, runs=97),
        Setting("target, 99.5 %, unequal slices", odd, 30, target=0.001),
        Setting("no noise, 10 tilings", without, 50, runs=200),
        Setting("no noise, incomplete third tiling", without, 10, runs=250),
        Setting("target, no noise", without, 10, target=0.005),
        Setting("chips hardly differ", hardly, 50, runs=200),
        Setting("target, chips hardly differ", hardly, 10, target=0.0005),
        Setting("two images, one per chip", pair, 1, runs=200),
        Setting("two images, whole sets", pair, 2, runs=64),
        Setting("target, two images, one per chip", pair, 1, target=0.03),
    ]


def recorded_settings(correct: np.ndarray) -> list[Setting]:
    """The settings for a real network's matrix bool [C, I]."""
    population = Recorded(correct)
    half = 0.3 * population.truth["std"]
    sizes = (population.images // 20, population.images // 10, population.images // 4)
    settings = [Setting(f"real network, n = {n}", population, n, runs=200) for n in sizes]
    settings += [Setting("real network, 1.5 tilings", population, 5, runs=108)]
    settings += [
        Setting("real network, one tiling and 64 chips", population, 2, runs=(population.images + 1) // 2 + 64)
    ]
    settings += [Setting("real network, whole sets", population, population.images, runs=200)]
    settings += [Setting(f"real network, target, n = {n}", population, n, target=half / 2) for n in (5, *sizes)]
    return settings + [Setting("real network, target, whole sets", population, population.images, target=half / 2)]


def line(result: dict) -> str:
    """One row of the table."""
    mark = "" if result["holds"] else "  TOO LOW"
    cautious = " (conservative)" if result["conservative_share"] > 0.5 else ""
    ekl = f"  EKL {100 * result['ekl_coverage']:.2f} %" if "ekl_coverage" in result else ""
    return (
        f"{result['name']:42s} accuracy {100 * result['accuracy']:.2f} %, chip std {100 * result['chip_std']:.2f}, "
        f"n {result['n']}, R {result['runs_mean']:.0f}, tilings {result['tilings_mean']:.2f}: "
        f"{100 * result['coverage']:.2f} % ({100 * result['coverage_of_all']:.2f} % of all){cautious}{ekl}{mark}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="evaluations per setting")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes (default 1)")
    parser.add_argument(
        "--recorded", type=Path, metavar="NPZ", help="resample this matrix of bench.studies.record_chips"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="TEXT",
        help="run only settings whose names contain one of these; --out keeps its other results",
    )
    parser.add_argument("--out", type=machine.output, metavar="JSON")
    arguments = parser.parse_args()
    settings = extreme_settings() + synthetic_settings()
    if arguments.recorded is not None:
        with np.load(arguments.recorded) as file:
            chips, images = file["shape"]
            settings = recorded_settings(np.unpackbits(file["bits"], axis=1, count=images)[:chips].astype(bool))
    names = [setting.name for setting in settings]
    if arguments.only is not None:
        settings = [setting for setting in settings if any(text in setting.name for text in arguments.only)]
        if not settings:
            parser.error(
                f"--only: must contain a part of a setting's name ({'; '.join(names)}); got {' '.join(arguments.only)}"
            )
    kept = []
    if arguments.out is not None and arguments.only is not None and arguments.out.exists():
        kept = json.loads(arguments.out.read_text())["results"]  # before the work: a damaged file ends the study here
    results = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(study, settings, [arguments.evaluations] * len(settings)):
            results.append(result)
            print(line(result), flush=True)
            if arguments.out is not None:  # after every setting, so that a stopped study keeps its work
                found = {result["name"]: result for result in kept + results}
                ordered = [found[name] for name in names if name in found]
                write_json(arguments.out, {"least": LEAST, "results": ordered})
    return 0 if all(result["holds"] for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())

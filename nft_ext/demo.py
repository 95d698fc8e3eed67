"""The demo: a small VGG-8 is trained by five methods on real digits, then measured over sigma by Monte Carlo.

It is not the paper's protocol: one network per sigma, full width, 200 epochs, 200 chips.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch

from nft_ext import data, methods, models
from nft_ext._common.checks import fail
from nft_ext._common.files import check_writable_target, make_writable_folder, write_atomically, write_json
from nft_ext.device import NVMDevice
from nft_ext.methods.base import Method
from nft_ext.montecarlo import MonteCarloReport, plot_sweep, sweep, sweep_table
from nft_ext.nn.conversion import convert
from nft_ext.ops.build_info import info
from nft_ext.training import fit

METHODS = ("vanilla", "noise", "control", "ovf", "irs")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the demo trains and measures.

    Attributes:
        dataset: name of the data set.
        width: channels relative to VGG-8.
        epochs: training epochs per method.
        runs: chips per sigma.
        slice_images: test images per chip (protocol "stratified"); None: all.
        sigma: sigma of the training, relative to the maximal conductance.
        sigmas: sigmas of the measurements.
        beta_ovf, beta_irs: the paper's values for VGG-8 on MNIST.
        batch_size, lr, seed: of the training.
        every: measure on every n-th test image (1: all).
        methods: names of the training methods.
    """

    dataset: str
    width: float
    epochs: int
    runs: int
    slice_images: int | None = None
    sigma: float = 0.3
    sigmas: tuple[float, ...] = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
    beta_ovf: float = 1e-3
    beta_irs: float = 1e-2
    batch_size: int = 64
    lr: float = 1e-3
    seed: int = 0
    every: int = 1
    methods: tuple[str, ...] = METHODS

    @property
    def protocol(self) -> dict[str, Any]:
        """Arguments of `sweep`."""
        return {} if self.slice_images is None else {"protocol": "stratified", "slice_images": self.slice_images}

    def replace(self, **changes: Any) -> Settings:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def method(self, name: str) -> Method:
        """The training method `name` with these settings."""
        options = {"sigma": self.sigma, "beta": self.beta_ovf if name == "ovf" else self.beta_irs}
        return methods.build(name, **{k: v for k, v in options.items() if k in methods.options_of(name)})


SETTINGS = {
    # Each of 60 chips sees a tenth of the 360 test images: the cost of 6 chips on all images.
    "digits": Settings("digits", width=0.25, epochs=8, runs=60, slice_images=36),
    "mnist": Settings("mnist", width=0.125, epochs=2, runs=20, batch_size=128, every=5),
}


class Demo:
    """Trains, measures and writes the results after each method.

    It writes METHOD.safetensors (the trained network), METHOD.csv (its epochs), results.json, table.txt and
    accuracy.png into the folder `out`.
    """

    def __init__(self, settings: Settings, data_dir: str | Path | None, out: Path) -> None:
        unknown = [name for name in settings.methods if name not in METHODS]
        if unknown:
            fail("methods", f"must be among {', '.join(METHODS)}", ", ".join(unknown))
        self.methods = [settings.method(name) for name in settings.methods]  # bad options fail here, before any work
        self.settings, self.out = settings, Path(out)
        self.train, test = data.load(settings.dataset, data_dir)
        self.test = test if settings.every == 1 else test.subset(range(0, len(test), settings.every))
        make_writable_folder("out", self.out)
        for name in ("results.json", "table.txt", "accuracy.png", *(f"{n}.safetensors" for n in settings.methods)):
            check_writable_target("out", self.out / name)
        self.curves: dict[str, list[MonteCarloReport]] = {}
        self.training: dict[str, dict[str, Any]] = {}
        self.started = time.monotonic()

    def run(self) -> bool:
        """Runs all methods. Returns False after an interrupt, else True."""
        s = self.settings
        train, validation = data.split_validation(self.train, 0.1, seed=s.seed)
        nvm = NVMDevice(sigma=s.sigma)
        print(
            f"VGG-8 at width {s.width:g} on {s.dataset}: {len(train)} training, {len(validation)} validation, "
            f"{len(self.test)} test images; {s.epochs} epochs per method."
        )
        print(
            f"Device: {nvm}. Noisy methods are trained at sigma {s.sigma:g}. Every network is measured at every sigma "
            f"on {s.runs} chips."
        )
        print(
            "This is a demo: the paper trains one network per sigma, at full width, for 200 epochs.\n",
            flush=True,
        )
        complete = True
        try:
            for number, method in enumerate(self.methods, start=1):
                print(f"[{number}/{len(self.methods)}] {method.name}", flush=True)
                torch.manual_seed(s.seed)  # the same initial weights for every method
                model = models.vgg8(self.train.num_classes, self.train.channels, s.width)
                history = fit(
                    model,
                    method,
                    train,
                    validation,
                    epochs=s.epochs,
                    batch_size=s.batch_size,
                    lr=s.lr,
                    seed=s.seed,
                    channels_last=True,
                    nvm=nvm,
                    log=self.out / f"{method.name}.csv",
                    checkpoint=self.out / f"{method.name}.safetensors",
                    meta={"dataset": s.dataset},
                )
                if history.interrupted:
                    complete = False
                    break
                self.training[method.name] = {
                    "config": method.config(),
                    "seconds": history.seconds,
                    "best": history.best,
                }
                noisy = convert(history.model, nvm)
                found = sweep({method.name: noisy}, self.test, s.sigmas, runs=s.runs, seed=s.seed, **s.protocol)
                self.curves |= found.reports
                self.write()
                if found.interrupted:
                    complete = False
                    break
        except KeyboardInterrupt:
            complete = False
        self.show(complete)
        return complete

    def write(self) -> None:
        """Writes results.json, the table and the plot of the methods that are done."""
        content = {
            "settings": dataclasses.asdict(self.settings),
            "note": "trained at one sigma and measured at all; the paper trains one network per sigma",
            "machine": info(),
            "seconds": time.monotonic() - self.started,
            "training": self.training,
            "sweeps": {name: [report.to_dict() for report in reports] for name, reports in self.curves.items()},
        }
        write_json(self.out / "results.json", content)
        whole = {name: reports for name, reports in self.curves.items() if len(reports) == len(self.settings.sigmas)}
        if whole:
            write_atomically(self.out / "table.txt", (sweep_table(whole) + "\n").encode())
            s = self.settings
            title = f"VGG-8 (width {s.width:g}) on {s.dataset}, trained at sigma {s.sigma:g}"
            try:
                plot_sweep(whole, self.out / "accuracy.png", title)
            except ImportError as error:  # the numbers must not depend on matplotlib
                print(f"note: no plot: {error}")

    def show(self, complete: bool) -> None:
        """Prints the table, the time and the files."""
        minutes = (time.monotonic() - self.started) / 60
        table = self.out / "table.txt"
        if table.exists() and self.curves:
            print("\n" + table.read_text())
        state = (
            f"done in {minutes:.1f} minutes"
            if complete
            else f"stopped after {minutes:.1f} minutes; finished methods are kept"
        )
        print(
            f"{state}. Results: {self.out}/results.json, table.txt, accuracy.png, and a checkpoint per method.",
            flush=True,
        )

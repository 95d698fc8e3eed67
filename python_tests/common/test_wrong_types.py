"""Every documented argument of every public function refuses a value of another type, before any work, by name.

The annotations say which types an argument takes. A bool is no number, a number is no bool, a string is never read by
its truth, and a float is no count.
"""

import inspect
import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext import data, methods, metrics, models, montecarlo, training

NVM, KEY = nft.NVMDevice(), nft.noise_key()
PLAIN = nn.Sequential(nn.Flatten(), nn.Linear(9, 6))
NOISY = nft.convert(PLAIN, NVM)
CONVERTING = nft.convert(PLAIN, NVM.replace(input_bits=8))
X, LABELS = torch.ones(6, 1, 3, 3), torch.arange(6)
DATA = (X, LABELS)
SET = data.ImageSet("tiny/train", X, LABELS, 6)
MATRIX, KERNEL = torch.ones(4, 9), torch.ones(4, 1, 3, 3)


class Matrix(nn.Module):
    """A class of a user."""


# name: (callable, arguments of a call that works). A context is entered.
CALLS = {
    "NVMDevice": (nft.NVMDevice, {}),
    "NVMDevice.preset": (nft.NVMDevice.preset, {"name": "rram1"}),
    "NVMDevice.from_table": (nft.NVMDevice.from_table, {"path": "no.csv"}),
    "noise": (nft.noise, {"model": NOISY}),
    "convert": (nft.convert, {"model": PLAIN, "nvm": NVM}),
    "coverage": (nft.coverage, {"model": PLAIN}),
    "calibrate": (nft.calibrate, {"model": CONVERTING, "data": X}),
    "program": (nft.program, {"model": NOISY}),
    "restore": (nft.restore, {"model": NOISY}),
    "fuse": (nft.fuse, {"model": NOISY}),
    "MonteCarloGraph": (nft.MonteCarloGraph, {"model": NOISY, "inputs": X}),
    "from_torchvision": (data.from_torchvision, {"dataset": SET}),
    "register": (methods.register, {"kind": methods.Vanilla}),
    "options_of": (methods.options_of, {"name": "vanilla"}),
    "save": (training.save, {"path": "no.safetensors", "model": PLAIN, "meta": {}}),
    "training.load": (training.load, {"path": "no.safetensors"}),
    "noise_key": (nft.noise_key, {}),
    "register_crossbar": (nft.register_crossbar, {"cls": Matrix}),
    "program_weights": (nft.program_weights, {"weight": MATRIX, "nvm": NVM}),
    "noisy_linear": (nft.noisy_linear, {"x": torch.ones(2, 9), "weight": MATRIX, "nvm": NVM, "key": KEY}),
    "noisy_conv2d": (nft.noisy_conv2d, {"x": X, "weight": KERNEL, "nvm": NVM, "key": KEY}),
    "monte_carlo": (nft.monte_carlo, {"model": NOISY, "data": DATA, "runs": 2, "progress": False}),
    "over_chips": (nft.over_chips, {"model": NOISY, "fn": lambda model: 1.0, "runs": 2, "progress": False}),
    "estimate_cost": (nft.estimate_cost, {"model": NOISY, "data": DATA, "runs": 2}),
    "sweep": (nft.sweep, {"models": NOISY, "data": DATA, "sigmas": [0.1], "runs": 2, "progress": False}),
    "explain": (nft.explain, {"model": NOISY, "data": DATA, "runs": 2, "by": "layer", "progress": False}),
    "fit": (
        nft.fit,
        {"model": PLAIN, "method": methods.Vanilla(), "train": DATA, "validation": DATA, "epochs": 1},
    ),
    "metric": (montecarlo.metric, {"name": "miou"}),
    "montecarlo.fit_temperature": (montecarlo.fit_temperature, {"model": NOISY, "data": DATA}),
    "metrics.fit_temperature": (metrics.fit_temperature, {"logits": torch.eye(6), "labels": LABELS}),
    "tempered": (metrics.tempered, {"model": NOISY, "temperature": 2.0}),
    "clopper_pearson": (metrics.clopper_pearson, {"count": 1, "trials": 2}),
    "holm": (metrics.holm, {"p": [0.1]}),
    "fisher_exact": (metrics.fisher_exact, {"count_a": 1, "trials_a": 2, "count_b": 1, "trials_b": 2}),
    "convergence": (metrics.convergence, {"accuracy": np.ones(3)}),
    "compare_methods": (metrics.compare_methods, {"a": np.arange(3.0), "b": np.ones(3), "shared_seeds": True}),
    "equivalence": (
        metrics.equivalence,
        {"a": np.arange(3.0), "b": np.ones(3), "margin": 1.0, "shared_seeds": True},
    ),
    "over_seeds": (metrics.over_seeds, {"values": np.ones(3)}),
    "paired": (metrics.paired, {"a": np.arange(3.0), "b": np.ones(3)}),
    "CropFlip": (data.CropFlip, {}),
    "ImageSet": (data.ImageSet, {"name": "tiny", "images": X, "labels": LABELS, "num_classes": 6}),
    "data.load": (data.load, {"name": "mnist"}),
    "fetch": (data.fetch, {"name": "mnist", "data_dir": "nowhere"}),
    "split_validation": (data.split_validation, {"train": SET}),
    "augment_for": (data.augment_for, {"train": SET}),
    "models.build": (models.build, {"name": "vgg8", "num_classes": 2, "in_channels": 1, "width": 0.125}),
    "vgg8": (models.vgg8, {"width": 0.125}),
    "resnet18": (models.resnet18, {"width": 0.125}),
    "NoiseInjection": (methods.NoiseInjection, {"sigma": 0.1}),
    "ScaledLogits": (methods.ScaledLogits, {"sigma": 0.1}),
    "OVF": (methods.OVF, {"sigma": 0.1, "beta": 0.1}),
    "IRS": (methods.IRS, {"sigma": 0.1, "beta": 0.1}),
    "Censored": (methods.Censored, {"sigma": 0.1}),
    "CorrectNet": (methods.CorrectNet, {}),
    "methods.build": (methods.build, {"name": "vanilla"}),
    "paper_beta": (methods.paper_beta, {"method": "ovf", "panel": "vgg8-mnist"}),
    "control_of": (methods.control_of, {"method": methods.OVF(sigma=0.1, beta=0.1)}),
    "snapshot_points_of": (methods.snapshot_points_of, {"model": models.vgg8(width=0.125)}),
    "Recipe": (training.Recipe, {}),
    "Recipe.paper": (training.Recipe.paper, {"model": "vgg8", "dataset": "mnist"}),
    "search_beta": (
        training.search_beta,
        {"model": PLAIN, "method": methods.OVF(sigma=0.1, beta=0.1), "train": DATA, "validation": DATA, "epochs": 1},
    ),
    "load_model": (training.load_model, {"path": "no.safetensors"}),
}
POOL = [True, np.True_, 0, 1, 2.0, 1.5, np.float32(1.5), math.nan, 1j, "off", "0.3", b"x", [0.3], (), object()]
# Messages call the name of a thing by what it names, as the shell's options do.
SAID = {
    "data.load": "dataset",
    "fetch": "dataset",
    "models.build": "model",
    "methods.build": "method",
    "options_of": "method",
}
# Not called here: classes of results, which the package makes itself; layers, whose arguments are torch's; contexts and
# lists of layers, which python_tests/nn tests; figures, which python_tests/montecarlo tests.
ELSEWHERE = re.findall(
    r"\w+",
    """
    ChipsReport CostEstimate MonteCarloReport Convergence Equivalence MethodDifference OverSeeds Paired Temperature
    Tempered Change Explanation ExplanationRow
    Cost Curve Quantile RanksError RunStatistic SliceStatistic Sweep Worst BetaSearch History NonFiniteLoss Method
    Vanilla Coverage Precision Calibration
    info names NoisyConv2d NoisyLinear noisy_layers chips checkpoint_contexts plot_sweep sweep_table
    """,
)
# What an alternative of an annotation accepts, among POOL. A type that is not here accepts none of them.
ACCEPTS = {
    "bool": lambda v: isinstance(v, bool),
    "int": lambda v: type(v) is int,
    "float": lambda v: isinstance(v, (int, float, np.floating)) and not isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "PathLike": lambda v: isinstance(v, str),
    "Path": lambda v: isinstance(v, str),
    "device": lambda v: isinstance(v, (int, str)) and not isinstance(v, bool),  # torch takes a number for an index
    "ndarray": lambda v: isinstance(v, (list, int, float, np.floating)) and not isinstance(v, bool),
    "Iterable": lambda v: isinstance(v, (str, bytes, list, tuple)),
    "Sequence": lambda v: isinstance(v, (str, bytes, list, tuple)),
    "tuple": lambda v: isinstance(v, (str, bytes, list, tuple)),
    "Gammas": lambda v: not isinstance(v, (bool, str)),
    "Patterns": lambda v: True,
    "Any": lambda v: True,
}


def cases():
    for name, (function, _) in CALLS.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD or parameter.annotation is parameter.empty:
                continue
            kinds = re.sub(r"\[[^]]*\]", "", str(parameter.annotation).strip("'")).split("|")
            accepts = [ACCEPTS.get(kind.strip().rpartition(".")[2]) for kind in kinds]
            wrong = [value for value in POOL if not any(accept and accept(value) for accept in accepts)]
            if wrong:
                yield pytest.param(name, parameter.name, wrong, id=f"{name}-{parameter.name}")


@pytest.mark.parametrize(("name", "argument", "wrong"), list(cases()))
def test_a_value_of_another_type_is_refused_by_name(name, argument, wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function, arguments = CALLS[name]
    said = SAID[name] if argument == "name" and name in SAID else argument
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"\b{said}\b"):
            if hasattr(result := function(**arguments | {argument: value}), "__enter__"):
                result.__enter__()
            pytest.fail(f"{name}({argument}={value!r}) was accepted")


def test_every_public_function_is_tested_here():
    modules = (nft, data, methods, metrics, models, montecarlo, training)
    public = {
        (m.__name__.rpartition(".")[2], name) for m in modules for name in m.__all__ if callable(getattr(m, name))
    }
    left = {name for module, name in public if name not in CALLS and f"{module}.{name}" not in CALLS}
    assert left == set(ELSEWHERE)


def test_numbers_of_numpy_are_numbers(tmp_path):
    """They give the same configuration as Python's, also in files."""
    mine, theirs = np.float64(0.25), 0.25
    assert json.dumps(methods.OVF(np.float32(mine), mine, feedbacks=np.int64(2)).config()) == json.dumps(
        methods.OVF(theirs, theirs, feedbacks=2).config()
    )
    assert repr(training.Recipe(epochs=np.int32(3), lr=np.float32(0.5))) == repr(training.Recipe(epochs=3, lr=0.5))
    assert nft.NVMDevice(weight_bits=np.uint8(4), sigma=np.float16(0.25)) == nft.NVMDevice(weight_bits=4, sigma=0.25)
    files = {"checkpoint": tmp_path / "best.safetensors", "state": tmp_path / "now.state"}
    method = methods.NoiseInjection(np.float32(mine))
    counts = {"seed": np.int64(3), "validation_chips": np.int64(1), "epochs": np.int64(1), "batch_size": np.int64(3)}
    nft.fit(PLAIN, method, DATA, DATA, progress=False, **counts, **files)
    assert training.load(files["checkpoint"])[1]["seed"] == 3

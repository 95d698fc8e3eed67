"""Every report stores the account of the network's weights, and captions name it where a matrix is digital."""

import shutil
import warnings

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.montecarlo import MonteCarloReport
from nft_ext.montecarlo.report.curves import common_conditions
from nft_ext.montecarlo.report.digital_part import digital_part
from nft_ext.montecarlo.report.report_plot import _report_title
from support.paths import FILES

NVM = nft.NVMDevice(sigma=0.2)
generator = torch.Generator().manual_seed(4)
DATA = torch.randn(20, 6, generator=generator), torch.randint(3, (20,), generator=generator)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(6))

    def forward(self, x):
        return x @ self.weight


def evaluate(*layers, exclude=None):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        noisy = nft.convert(nn.Sequential(*layers), NVM, exclude=exclude)
    return nft.monte_carlo(noisy, DATA, runs=2, progress=False)


@pytest.fixture(scope="module")
def whole():
    return evaluate(nn.Linear(6, 3))


@pytest.fixture(scope="module")
def part():
    return evaluate(Own(), nn.Linear(6, 3))


def test_a_report_stores_shares_and_exceptions(part, tmp_path):
    part.to_json(tmp_path / "report.json")
    read = MonteCarloReport.from_json(tmp_path / "report.json")
    assert read.coverage["share"] == read.coverage["mac_share"] == 18 / 54
    assert read.coverage["weights"] == 54 and read.coverage["crossbar_weights"] == 18
    assert read.coverage["digital"] == [
        {
            "name": "0.weight",
            "count": 1,
            "module": "Own",
            "shape": [6, 6],
            "cells": 36,
            "macs": 8 * 36,
            "reason": "unknown class",
        }
    ]
    assert read.table() == part.table()


def test_the_text_names_the_share_and_the_exceptions(whole, part):
    assert "\n  weights   100 % of matrix weights on crossbars, 100 % of multiply-accumulates\n" in whole.table()
    assert (
        "\n  weights   33.3 % of matrix weights on crossbars, 33.3 % of multiply-accumulates; digital:" in part.table()
    )


def test_captions_name_a_share_below_100_percent_only(whole, part):
    assert "crossbars" not in _report_title(whole) and "crossbars" not in common_conditions([whole, whole])
    assert " ".join(_report_title(part).split()).endswith("; 33.3 % of matrix weights on crossbars")
    assert common_conditions([part, part]).endswith("; 33.3 % of matrix weights on crossbars")
    assert digital_part([whole, part]) == "; 33.3 % to 100 % of matrix weights on crossbars"


def test_plots_take_the_longer_captions(part, tmp_path):
    part.plot(tmp_path / "plot.svg")
    assert "33.3 % of matrix weights" in (tmp_path / "plot.svg").read_text()


def test_an_excluded_layer_counts_as_digital():
    report = evaluate(nn.Linear(6, 6), nn.Linear(6, 3), exclude="0")
    assert report.coverage["share"] == 18 / 54 and report.coverage["digital"][0]["reason"] == "excluded"


def test_reports_of_0_2_have_no_account(tmp_path):
    old = MonteCarloReport.from_json(shutil.copy(FILES / "0.2" / "report.json", tmp_path / "report.json"))
    assert old.coverage is None and "weights " not in old.table() and digital_part([old]) == ""

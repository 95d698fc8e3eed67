"""The sums kept per chip give the metrics that all the logits would give."""

import math

import numpy as np
import pytest
import torch

from nft_ext.montecarlo.statistics.estimates import run_statistics
from nft_ext.montecarlo.statistics.label_tallies import label_figure, label_tallies, pooled_ece

CHIPS, IMAGES, CLASSES = 3, 40, 5
FIGURES = [label_figure(name) for name in ("accuracy", "ekl", "nll")]


@pytest.fixture
def logits():
    return 3 * torch.randn(CHIPS, IMAGES, CLASSES, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels():
    return torch.randint(CLASSES, (IMAGES,), generator=torch.Generator().manual_seed(2))


def image_by_image(logits, labels):
    """Accuracy, EKL, NLL of one chip, from their definitions, an image at a time."""
    right, losses = [], []
    for row, label in zip(logits.double().numpy(), labels.tolist()):
        p = np.exp(row) / np.exp(row).sum()
        right.append(row.argmax() == label)
        losses.append(-math.log(p[label]))
    right, losses = np.array(right), np.array(losses)
    return right.mean(), (losses * right).sum() / right.sum(), losses.mean()


def test_per_run_metrics_follow_their_definitions(logits, labels):
    statistics = run_statistics(FIGURES, label_tallies(logits, labels))
    for chip in range(CHIPS):
        accuracy, ekl, nll = image_by_image(logits[chip], labels)
        assert statistics["accuracy"].per_run[chip] == accuracy
        assert statistics["ekl"].per_run[chip] == pytest.approx(ekl, rel=1e-12)
        assert statistics["nll"].per_run[chip] == pytest.approx(nll, rel=1e-12)


def test_pooled_ekl_is_that_of_all_chips_and_images_together(logits, labels):
    statistics = run_statistics(FIGURES, label_tallies(logits, labels))
    _, ekl, _ = image_by_image(logits.reshape(-1, CLASSES), labels.repeat(CHIPS))
    assert statistics["ekl"].pooled == pytest.approx(ekl, rel=1e-12)
    assert statistics["ekl"].pooled != pytest.approx(statistics["ekl"].mean, rel=1e-6)


def test_batches_add_up(logits, labels):
    whole = label_tallies(logits, labels)
    parts = label_tallies(logits[:, :7], labels[:7]) + label_tallies(logits[:, 7:], labels[7:])
    for name, value in whole.sums.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-13, atol=0)


def test_a_run_with_nothing_right_has_no_ekl(logits, labels):
    logits[1] = torch.nn.functional.one_hot((labels + 1) % CLASSES, CLASSES)
    statistics = run_statistics(FIGURES, label_tallies(logits, labels))
    assert statistics["accuracy"].per_run[1] == 0
    assert np.isnan(statistics["ekl"].per_run).tolist() == [False, True, False]
    assert statistics["ekl"].mean == pytest.approx(np.nanmean(statistics["ekl"].per_run))
    assert len(statistics["ekl"].values) == 2


def test_calibration_error_by_hand():
    # Two classes; confidences 0.9, 0.9 (one right), 0.6 (right): bins 13 and 8 of 15.
    p = torch.tensor([0.9, 0.9, 0.6], dtype=torch.float64)
    logits = torch.stack([p, 1 - p], dim=1).log()[None]
    tallies = label_tallies(logits, torch.tensor([0, 1, 0]))
    assert tallies["bin_images"][0].nonzero().flatten().tolist() == [8, 13]
    assert pooled_ece(tallies) == pytest.approx((abs(1 - 1.8) + abs(1 - 0.6)) / 3, rel=1e-12)


def test_one_class_is_always_right_and_sure():
    tallies = label_tallies(torch.randn(2, 4, 1), torch.zeros(4, dtype=torch.int64))
    statistics = run_statistics(FIGURES, tallies)
    assert statistics["accuracy"].per_run.tolist() == [1, 1]
    assert statistics["ekl"].per_run.tolist() == [0, 0]
    assert pooled_ece(tallies) == 0


def test_a_nan_logit_counts_as_wrong_even_where_argmax_would_pick_the_label():
    logits = torch.tensor([[[math.nan, 0.0], [5.0, 0.0]]])
    tallies = label_tallies(logits, torch.tensor([0, 0]))
    assert tallies["correct"].tolist() == [1] and tallies["undefined"].tolist() == [1]
    assert math.isfinite(float(tallies["loss_correct"])) and math.isfinite(pooled_ece(tallies))


def test_a_class_ruled_out_by_minus_infinity_is_no_error():
    tallies = label_tallies(torch.tensor([[[2.0, -math.inf]]]), torch.tensor([0]))
    assert tallies["correct"].tolist() == [1] and tallies["undefined"].tolist() == [0]
    assert tallies["loss_correct"].tolist() == [0]


def test_padding_chips_are_dropped(logits, labels):
    kept = label_tallies(logits, labels).chips(2)
    assert torch.equal(kept["correct"], label_tallies(logits[:2], labels)["correct"])
    assert kept["bin_images"].shape == (2, 15)

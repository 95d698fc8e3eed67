"""Eq. 1-3 against arithmetic done by hand."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from nft_ext.methods.losses import (
    checked_gammas,
    gammas_noisiest_first_in_weight,
    gammas_shallowest_first_in_weight,
    total_output,
)


def test_total_output_is_equation_1_to_3():
    backbone = torch.tensor([[4.0, 8.0]])
    feedbacks = [torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0, 2.0]]), torch.tensor([[0.0, 4.0]])]
    # a = 1/4; class 0: (4 - 0.5*(0.01*1 + 0.1*2 + 1*0)) / 4; class 1: (8 - 0.5*(0 + 0.1*2 + 1*4)) / 4
    expected = torch.tensor([[(4 - 0.5 * 0.21) / 4, (8 - 0.5 * 4.2) / 4]])
    torch.testing.assert_close(total_output(backbone, feedbacks, 0.5, (0.01, 0.1, 1.0)), expected)


def test_one_feedback_halves_the_logits():
    output = total_output(torch.tensor([[2.0, -2.0]]), [torch.tensor([[1.0, 1.0]])], 0.1, (1.0,))
    torch.testing.assert_close(output, torch.tensor([[0.95, -1.05]]))


def test_cross_entropy_of_a_total_output_by_hand():
    output = total_output(torch.tensor([[2.0, 0.0]]), [torch.tensor([[1.0, 3.0]])], 1.0, (1.0,))  # [0.5, -1.5]
    loss = cross_entropy(output, torch.tensor([0]))
    assert float(loss) == pytest.approx(math.log(1 + math.exp(-2.0)), rel=1e-6)


def test_ovf_weighs_the_noisiest_most_and_irs_the_shallowest():
    assert gammas_noisiest_first_in_weight(3) == pytest.approx((0.01, 0.1, 1.0))
    assert gammas_shallowest_first_in_weight(4) == pytest.approx((1.0, 0.1, 0.01, 0.001))


def test_a_feedback_of_another_shape_is_refused():
    """Two-dimensional classifiers on a dense output [B, C, d1] would broadcast along the wrong axes."""
    with pytest.raises(ValueError, match=r"feedbacks\[0\]: must have the shape of the backbone's logits, \[2, 2, 2\]"):
        total_output(torch.zeros(2, 2, 2), [torch.zeros(2, 2)], 1.0, (1.0,))


def test_each_feedback_needs_its_gamma():
    with pytest.raises(ValueError):
        total_output(torch.zeros(1, 2), [torch.zeros(1, 2)] * 2, 1.0, (1.0,))


@pytest.mark.parametrize("gammas", [(), (1.0, -0.1), (math.nan,), ("1",)])
def test_bad_gammas_are_refused(gammas):
    with pytest.raises(ValueError, match="gammas"):
        checked_gammas(gammas)

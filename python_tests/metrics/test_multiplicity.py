"""Holm's adjustment: by hand, and the chance of a false claim among many comparisons."""

import math

import numpy as np
import pytest
from scipy import stats

from nft_ext.metrics import holm


def test_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01, then 2 x 0.03, then no less
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_what_was_not_tested_does_not_count():
    found = holm([0.01, math.nan, 0.04])
    assert math.isnan(found[1]) and found[0] == pytest.approx(0.02) and found[2] == pytest.approx(0.04)


def test_one_false_claim_or_more_in_at_most_one_of_twenty_families():
    """5,000 families of 12 true null hypotheses that share a common term: at most 5 %, + 3 standard errors of 0.3 %."""
    generator = np.random.default_rng(0)
    z = (generator.normal(size=(5000, 12)) + generator.normal(size=(5000, 1))) / math.sqrt(2)
    false = sum(min(holm(p)) < 0.05 for p in (2 * stats.norm.sf(np.abs(z))).tolist())
    assert false / 5000 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 5000)


@pytest.mark.parametrize("wrong", [[1.5], [-0.1], [True], ["0.1"], [None]])
def test_what_is_no_p_value_is_refused(wrong):
    with pytest.raises(ValueError, match="^p: must hold numbers in"):
        holm(wrong)

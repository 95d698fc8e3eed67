"""Collector: any range of draws, in passes of one size, and which draws an interrupt leaves over."""

import pytest
import torch

from nft_ext.montecarlo.execution.collector import Collector
from nft_ext.montecarlo.statistics.label_tallies import images_of, label_tallies


def of_draws(draws, done):
    """One image per chip; its loss is the draw's number."""
    logits = torch.zeros(len(draws), 1, 2)
    tallies = label_tallies(logits, torch.zeros(1, dtype=torch.int64))
    tallies.sums["loss"] = torch.tensor(draws, dtype=torch.float64)
    done(1.0)
    return tallies


def collector(per_pass, tallies_of=of_draws):
    return Collector(tallies_of, per_pass, "test", False)


@pytest.mark.parametrize("first, last, per_pass", [(0, 7, 1), (0, 7, 3), (5, 12, 3), (64, 65, 4)])
def test_a_range_gives_its_draws_in_order(first, last, per_pass):
    tallies = collector(per_pass).run(first, last)
    assert tallies["loss"].tolist() == list(range(first, last)) and len(tallies) == last - first
    assert images_of(tallies).tolist() == [1.0] * (last - first)


def test_an_empty_range_gives_no_chip():
    assert len(collector(2).run(3, 3)) == 0


def test_passes_have_one_size_and_the_surplus_is_dropped():
    passes = []
    tallies = collector(3, lambda draws, done: passes.append(draws) or of_draws(draws, done)).run(4, 9)
    assert passes == [[4, 5, 6], [7, 8, 9]] and tallies["loss"].tolist() == [4, 5, 6, 7, 8]


def interrupted_at(draw):
    def tallies_of(draws, done):
        if draw in draws:
            raise KeyboardInterrupt
        return of_draws(draws, done)

    return tallies_of


def test_an_interrupt_leaves_the_finished_prefix_and_ends_all_later_calls():
    interrupted = collector(2, interrupted_at(5))
    assert interrupted.run(0, 2)["loss"].tolist() == [0, 1] and not interrupted.interrupted
    assert interrupted.run(2, 9)["loss"].tolist() == [2, 3] and interrupted.interrupted
    assert len(interrupted.run(9, 12)) == 0


def test_an_interrupt_before_any_chip_leaves_none():
    interrupted = collector(2, interrupted_at(0))
    assert len(interrupted.run(0, 4)) == 0 and interrupted.interrupted

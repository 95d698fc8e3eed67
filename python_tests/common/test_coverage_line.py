"""The account of weights in one line: counts and shares as text."""

import math

import pytest

from nft_ext._common.coverage_line import coverage_line, is_complete, number, percent


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (9_994, "9,994"),
        (10_000, "10.0 k"),
        (28_311_552, "28.3 M"),
        (999_600, "1.00 M"),
        (123_456_789, "123 M"),
        (7_000_000_000, "7.00 G"),
    ],
)
def test_counts_have_three_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    "share, text",
    [
        (0, "0 %"),
        (1, "100 %"),
        (0.0004, "< 0.1 %"),
        (0.992, "99.2 %"),
        (0.99996, "> 99.9 %"),
        (math.nan, "-"),
    ],
)
def test_only_everything_is_100_percent(share, text):
    assert percent(share) == text


def summary(**changes):
    group = {"name": "h.*.fc.weight", "count": 12, "module": "Conv1D", "cells": 28_311_552, "reason": "unknown class"}
    plain = {"share": 0.004, "mac_share": None, "digital": [group], "digital_not_listed": 0, "sizes_unknown": 0}
    return plain | changes


def test_the_line_names_the_biggest_exceptions():
    said = "0.4 % of matrix weights on crossbars; digital: h.*.fc.weight (12 x Conv1D, 28.3 M: unknown class)"
    assert coverage_line(summary()) == said
    many = summary(digital=5 * summary()["digital"], digital_not_listed=7, mac_share=0.5)
    line = coverage_line(many, most=1)
    assert line.startswith("0.4 % of matrix weights on crossbars, 50.0 % of multiply-accumulates; digital: h.*.fc")
    assert line.endswith(" and 55 more")


def test_the_line_of_a_model_that_is_all_on_crossbars_has_no_exceptions():
    everything = summary(share=1.0, mac_share=1.0, digital=[])
    assert coverage_line(everything) == "100 % of matrix weights on crossbars, 100 % of multiply-accumulates"
    assert is_complete(everything) and is_complete(everything | {"mac_share": None})
    assert not is_complete(everything | {"mac_share": 0.5}) and not is_complete(summary())

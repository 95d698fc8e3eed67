"""The checks that every module shares: their rule, and the hint at a near name."""

import pytest

from nft_ext._common.checks import did_you_mean, one_of


def test_a_value_among_the_names_comes_back():
    assert one_of("side", "left", {"left": 1, "right": 2}) == "left"


@pytest.mark.parametrize(
    "value, message",
    [
        ("lefft", "side: must be one of left, right (did you mean 'left'?); got lefft"),
        ("top", "side: must be one of left, right; got top"),
        (["left"], "side: must be one of left, right (did you mean 'left'?); got ['left']"),
        (None, "side: must be one of left, right; got None"),
    ],
)
def test_a_refusal_names_all_and_the_nearest(value, message):
    with pytest.raises(ValueError) as refused:
        one_of("side", value, ("left", "right"))
    assert str(refused.value) == message


def test_a_note_follows_the_names():
    with pytest.raises(
        ValueError,
        match=r"^set: must be one of mnist, cifar10 \(ask for others\) \(did you mean 'mnist'\?\); got mnst$",
    ):
        one_of("set", "mnst", ("mnist", "cifar10"), " (ask for others)")


def test_several_near_names():
    assert did_you_mean("layer3", ("layer1", "layer2", "head"), most=3) in (
        " (did you mean 'layer1' or 'layer2'?)",
        " (did you mean 'layer2' or 'layer1'?)",
    )
    assert did_you_mean("layer3", ("layer1", "layer2", "head")) in (
        " (did you mean 'layer1'?)",
        " (did you mean 'layer2'?)",
    )

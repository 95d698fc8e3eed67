"""Targets that do not fit a classifier's logits are refused before torch's cross_entropy can misread them."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from nft_ext._common.targets import checked_target, probability_note

B, C, T = 6, 4, 5


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
@pytest.mark.parametrize("places", [(), (T,), (2, 3)])
def test_class_indices_mean_what_they_mean_to_torch(kind, places):
    logits, target = torch.randn(B, C, *places), torch.randint(0, C, (B, *places))
    found = checked_target(logits, target.to(kind))
    assert torch.equal(found, target)
    assert torch.isfinite(cross_entropy(logits, found))


def test_ignored_positions_and_class_probabilities_pass():
    target = torch.tensor([0, -100, C - 1])
    assert torch.equal(checked_target(torch.randn(3, C), target), target)
    for kind, places in ((torch.float32, ()), (torch.float64, (T,)), (torch.bfloat16, ())):
        shares = torch.rand(B, C, *places).softmax(dim=1).to(kind)
        assert checked_target(torch.randn(B, C, *places), shares) is shares


@pytest.mark.parametrize(
    ("shape", "target", "rule"),
    [
        ((B, 1), torch.randn(B, 1), "model: .*C >= 2 classes; give criterion= for a regression"),
        ((B, 1), torch.zeros(B, dtype=torch.long), "model: .*C >= 2"),
        ((B,), torch.randn(B), r"model: must return logits \[B, C\]"),
        ((B, C), torch.randn(B, C), "class probabilities, >= 0 with sum 1.*regression"),
        ((B, C), torch.full((B, C), torch.nan), "class probabilities"),
        ((B, C), torch.rand(B), r"must be|must hold integers"),
        ((B, C), torch.zeros(B, dtype=torch.bool), "must hold integers.*bool"),
        ((B, C), torch.zeros(B, C, dtype=torch.long), r"must be class indices \[6\]"),
        ((B, C), torch.zeros(B, 1, dtype=torch.long), r"must be class indices \[6\]"),
        ((B, C), torch.zeros(B + 1, dtype=torch.long), r"must be class indices \[6\]"),
        ((B, T, C), torch.zeros(B, T, dtype=torch.long), r"must fit logits \[B, classes, ...\]. Return logits.movedim"),
        ((B, T, T), torch.zeros(B, T, dtype=torch.long), r"Return logits \[B \* positions, C\] and flatten"),
        ((B, C), torch.tensor([0, 1, 2, 3, C, 0]), "must lie in 0..3.*got 4"),
        ((B, C), torch.tensor([0, 1, 2, 3, -1, -100]), "must lie in 0..3.*got -1"),
        ((B, C), torch.full((B,), -100), "at least one label that is not ignored"),
    ],
)
def test_everything_else_is_refused_with_what_to_do(shape, target, rule):
    with pytest.raises(ValueError, match=rule):
        checked_target(torch.randn(shape), target)


def test_a_target_that_is_no_tensor():
    with pytest.raises(TypeError, match=r"target: must be a tensor.*list"):
        checked_target(torch.randn(2, C), [0, 1])


@pytest.mark.parametrize(
    ("activation", "said"),
    [
        (nn.Softmax(dim=1), "each row sums to 1"),
        (nn.Sigmoid(), "after a sigmoid"),
        (nn.LogSoftmax(dim=1), None),  # a second log_softmax changes nothing
        (nn.ReLU(), None),
        (nn.Identity(), None),
    ],
)
def test_outputs_that_are_probabilities_are_recognised(activation, said):
    note = probability_note(activation(torch.randn(8, C)))
    assert note is None if said is None else said in note


def test_the_warning_comes_once_per_model():
    model, target = nn.Sequential(nn.Linear(3, C), nn.Softmax(dim=1)), torch.zeros(8, dtype=torch.long)
    logits = model(torch.randn(8, 3))
    with pytest.warns(UserWarning, match="remove the model's last activation"):
        checked_target(logits, target, model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checked_target(logits, target, model)


def test_values_that_cannot_be_read_are_left_to_torch():
    """A meta tensor has no values, as a tensor inside vmap or a traced graph; shapes and dtypes are still checked."""
    logits, target = torch.randn(B, C, device="meta"), torch.full((B,), C, device="meta")
    assert checked_target(logits, target, nn.Identity()) is target
    assert checked_target(logits, torch.randn(B, C, device="meta")).shape == (B, C)
    with pytest.raises(ValueError, match="must hold integers"):
        checked_target(logits, target.bool())

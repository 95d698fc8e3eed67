"""The control of every method with feedback; the paper's beta."""

import json

import pytest
import torch
from torch.nn.functional import cross_entropy

import nft_ext as nft
from nft_ext import methods
from nft_ext.nn.step_key import StepKey
from support.paths import SHARED

REFERENCE = SHARED / "reference" / "paper_results.json"
VGG8 = nft.models.vgg8(width=0.125)
RESNET18 = nft.models.resnet18(width=0.125)


@pytest.mark.parametrize(
    "method, model, expected",
    [
        (methods.OVF(0.3, 1e-3), None, methods.ScaledLogits(0.3, 3)),
        (methods.OVF(0.3, 1e-3, feedbacks=5, a_b=0.4), None, methods.ScaledLogits(0.3, 5, 0.4)),
        (methods.IRS(0.3, 1e-3), VGG8, methods.ScaledLogits(0.3, 3)),
        (methods.IRS(0.3, 1e-3), RESNET18, methods.ScaledLogits(0.3, 4)),
        (methods.IRS(0.3, 1e-3, feedbacks=2), None, methods.ScaledLogits(0.3, 2)),
        (methods.IRS(0.3, 1e-3, points=["a", "b"]), None, methods.ScaledLogits(0.3, 2)),
        (
            methods.CorrectNet(methods.OVF(0.3, 1e-3), 1e-4),
            None,
            methods.CorrectNet(methods.ScaledLogits(0.3, 3), 1e-4),
        ),
    ],
    ids=str,
)
def test_a_control_keeps_sigma_and_the_factor_on_the_logits(method, model, expected):
    assert methods.control_of(method, model) == expected


def test_irs_whose_number_of_feedbacks_follows_from_the_model_asks_for_it():
    with pytest.raises(ValueError, match="model: must be given to the control of an irs"):
        methods.control_of(methods.IRS(0.3, 1e-3))


@pytest.mark.parametrize(
    "method",
    [
        methods.Vanilla(),
        methods.NoiseInjection(0.1),
        methods.ScaledLogits(0.1),
        methods.CorrectNet(methods.NoiseInjection(0.1)),
    ],
    ids=lambda m: m.name,
)
def test_what_has_no_feedback_has_no_control(method):
    with pytest.raises(ValueError, match=r"method: must have feedback \(ovf, irs\) to have a control"):
        methods.control_of(method)


@pytest.mark.parametrize(
    "method",
    [
        methods.OVF(0.2, 0.0, feedbacks=2),
        methods.OVF(0.2, 0.0, a_b=0.7),
        methods.IRS(0.2, 0.0),
        methods.IRS(0.2, 0.5, a_f=0.0),
    ],
    ids=str,
)
def test_a_control_is_its_method_without_feedback_chip_for_chip(method):
    x, target = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])
    losses = []
    for each in (method, methods.control_of(method, VGG8)):
        prepared = each.prepare(VGG8).eval()
        torch.manual_seed(5)  # the backbone's forward comes first, on the same chip
        losses.append(each.loss(prepared, x, target))
    torch.testing.assert_close(*losses)


def test_an_own_factor_scales_the_controls_logits():
    prepared = methods.ScaledLogits(0.2, a_b=0.7).prepare(VGG8).eval()
    x, target = torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(5)
    loss = methods.ScaledLogits(0.2, a_b=0.7).loss(prepared, x, target)
    torch.manual_seed(5)
    with StepKey(prepared).forward():
        torch.testing.assert_close(loss, cross_entropy(0.7 * prepared(x), target))


def test_the_papers_beta():
    assert methods.paper_beta("ovf", "vgg8-mnist") == 1e-3
    assert methods.paper_beta("irs", "resnet18-tinyimagenet") == 1e-2


@pytest.mark.skipif(not REFERENCE.exists(), reason="the paper's results are not beside this checkout")
def test_every_beta_is_that_of_the_reference():
    assert json.loads(REFERENCE.read_text())["beta"] == methods.BETAS


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("ofv", "vgg8-mnist"), r"method: must be one of ovf, irs \(did you mean 'ovf'\?\); got ofv"),
        (("ovf", "vgg8-minst"), r"panel: must be one of .*\(did you mean 'vgg8-mnist'\?\); got vgg8-minst"),
    ],
)
def test_unknown_names_are_refused_with_near_ones(arguments, words):
    with pytest.raises(ValueError, match=words):
        methods.paper_beta(*arguments)

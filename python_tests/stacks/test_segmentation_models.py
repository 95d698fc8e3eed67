"""Networks of segmentation_models_pytorch with random weights: every check of support/stack_checks.py."""

import pytest
import torch

from support.stack_checks import CHECKS, Case, Network

smp = pytest.importorskip(
    "segmentation_models_pytorch", reason="segmentation_models_pytorch is not installed, or torchvision does not import"
)

pytestmark = pytest.mark.stacks


def case(kind, encoder="mobilenet_v2", share=0.99, **options):
    return Case(
        lambda: kind(encoder, encoder_weights=None, classes=2, **options),
        lambda: (torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)),),
        share,
    )


SMALL = dict(encoder_depth=3, decoder_channels=(16, 8, 8))
CASES = {
    "Unet": case(smp.Unet, **SMALL),
    "UnetPlusPlus": case(smp.UnetPlusPlus, **SMALL),
    "FPN": case(smp.FPN, decoder_pyramid_channels=16, decoder_segmentation_channels=32),
    "DeepLabV3+": case(smp.DeepLabV3Plus, decoder_channels=16),
    "Segformer": case(smp.Segformer, decoder_segmentation_channels=16),
    "Linknet of ResNet-18": case(smp.Linknet, "resnet18", encoder_depth=3),
}


@pytest.fixture(scope="module", params=CASES)
def network(request):
    return Network(CASES[request.param])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_networks(network, check):
    check(network)

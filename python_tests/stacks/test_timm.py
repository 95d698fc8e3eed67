"""Networks of timm with random weights: every check of support/stack_checks.py."""

import pytest
import torch

from support.stack_checks import CHECKS, Case, Network

timm = pytest.importorskip("timm", reason="timm is not installed, or torchvision does not import")

pytestmark = pytest.mark.stacks


def case(name, size=32, share=0.99, one_by_one=False, **options):
    options = {"num_classes": 5, **options}
    return Case(
        lambda: timm.create_model(name, **options),
        lambda: (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)),),
        share,
        one_by_one=one_by_one,
    )


SMALL = dict(embed_dim=32, depth=2, num_heads=4, patch_size=8, img_size=32)
CASES = {
    "VisionTransformer": case("vit_tiny_patch16_224", **SMALL),
    "Deit, distilled": case("deit_tiny_distilled_patch16_224", **SMALL),
    # These attentions read qkv.weight with a bias of their own.
    "EVA-02": case("eva02_base_patch14_224", **SMALL),
    "EVA": case("eva_large_patch14_196", **SMALL),
    "BEiT": case("beit_base_patch16_224", **SMALL),
    "Swin": case("swin_tiny_patch4_window7_224", embed_dim=16, depths=(1, 1), num_heads=(2, 2), img_size=32,
                 window_size=4),
    "Swin v2": case("swinv2_tiny_window8_256", one_by_one=True, embed_dim=16, depths=(1, 1), num_heads=(2, 2),
                    img_size=32, window_size=4),
    "ConvNeXt": case("convnext_atto", dims=(8, 16, 24, 32), depths=(1, 1, 1, 1)),
    "ResNet": case("test_resnet"),
    "EfficientNet": case("test_efficientnet"),
    "MobileNetV3, Conv2dSame": case("tf_mobilenetv3_small_minimal_100"),
    "NFNet, ScaledStdConv2d": case("test_nfnet"),
    "ByobNet": case("test_byobnet"),
    "MaxViT": case("test_maxvit", size=64, img_size=64),
    "MambaOut": case("test_mambaout"),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def network(request):
    return Network(CASES[request.param])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_networks(network, check):
    check(network)

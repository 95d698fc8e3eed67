"""Networks of monai for images and volumes, with random weights: every check of support/stack_checks.py."""

import pytest
import torch

from support.stack_checks import CHECKS, Case, Network

monai = pytest.importorskip("monai", reason="monai is not installed")
nets = pytest.importorskip("monai.networks.nets")

pytestmark = pytest.mark.stacks


def volume(size=16, dims=3):
    return (torch.randn(2, 1, *(size,) * dims, generator=torch.Generator().manual_seed(1)),)


def unet():
    return nets.UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(4, 8, 16), strides=(2, 2), num_res_units=1
    )


def unetr():
    return nets.UNETR(
        in_channels=1, out_channels=2, img_size=16, feature_size=4, hidden_size=16, mlp_dim=24, num_heads=2
    )


def swin_unetr():
    return nets.SwinUNETR(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        feature_size=12,
        depths=(1, 1, 1, 1),
        num_heads=(1, 2, 2, 2),
        norm_name="batch",
    )


def segresnet():
    return nets.SegResNet(spatial_dims=3, init_filters=8, in_channels=1, out_channels=2, blocks_down=(1, 1),
                          blocks_up=(1,))  # fmt: skip


def densenet():
    return nets.DenseNet(
        spatial_dims=2, in_channels=1, out_channels=3, init_features=8, growth_rate=4, block_config=(2, 2)
    )


CASES = {
    "UNet": Case(unet, volume),
    "UNETR": Case(unetr, volume),
    "SwinUNETR": Case(swin_unetr, lambda: volume(64, 2)),
    "SegResNet": Case(segresnet, volume),
    "DenseNet": Case(densenet, lambda: volume(32, 2)),
}


@pytest.fixture(scope="module", params=CASES)
def network(request):
    return Network(CASES[request.param])


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_networks(network, check):
    check(network)

"""The paper's feedback weights beta, by network and data set."""

from __future__ import annotations

from nft_ext._common.checks import one_of

# arXiv 2305.14561: one beta per method, network and data set.
BETAS: dict[str, dict[str, float]] = {
    "ovf": {
        "vgg8-mnist": 1e-3,
        "vgg8-cifar10": 1e-3,
        "resnet18-mnist": 1e-4,
        "resnet18-cifar10": 1e-1,
        "resnet18-cifar100": 1e-1,
        "resnet18-tinyimagenet": 1e-2,
    },
    "irs": {
        "vgg8-mnist": 1e-2,
        "vgg8-cifar10": 1e-1,
        "resnet18-mnist": 1e-1,
        "resnet18-cifar10": 1e-3,
        "resnet18-cifar100": 1e-3,
        "resnet18-tinyimagenet": 1e-2,
    },
}


def paper_beta(method: str, panel: str) -> float:
    """The paper's beta of "ovf" or "irs" for a panel "NETWORK-DATASET", for example "vgg8-mnist".

    Raises:
        ValueError: the method or the panel is unknown. The message suggests near names.
    """
    betas = BETAS[one_of("method", method, BETAS)]
    return betas[one_of("panel", panel, betas)]

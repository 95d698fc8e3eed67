"""The weights that a network starts with: torch's own, or those of the published code of arXiv 2305.14561."""

from __future__ import annotations

from torch import nn

INITS = ("default", "published")


def initialised(model: nn.Module, init: str) -> nn.Module:
    """`model` itself, with the start `init`. It draws from torch's generator.

    "default" leaves the weights as torch's constructors drew them. "published" draws the weights of all convolutions
    and linear layers from N(0, 2 / fan_out) and sets their biases to 0, as the published code does. fan_out is
    out * kh * kw of a convolution and out of a linear layer. Noise scales with max|W|, so the start decides results.

    Args:
        model: a plain module.
        init: one of `INITS`.
    """
    if init == "published":
        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
    return model


def init_of(model: nn.Module) -> str:
    """The start of a network of `nft_ext.models`, also inside a wrapper; "default" for any other model."""
    found = (getattr(module, "init", None) for module in model.modules())
    return next((init for init in found if isinstance(init, str) and init in INITS), "default")

"""The device model: how far a programmed conductance lies from its target."""

from nft_ext.device.model import PRESETS, NVMDevice

__all__ = ["PRESETS", "NVMDevice"]

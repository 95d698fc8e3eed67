"""Every kind of device model, weights of awkward values, and one hash over all their chips."""

import hashlib

import torch

import nft_ext as nft

KEY = torch.cat([nft.noise_key(2**63 + 12345, [3, 2**32 - 1]), nft.noise_key(7, 0, domain="selection")])
STREAM = 0xFEDCBA98
MEASURED = dict(level_mean=(0.1, 1.2, 1.9, 3.3), level_std=(0.05, 0.2, 0.1, 0.3), sigma=1.0)
DEVICES = {
    "gaussian": nft.NVMDevice(),
    "gaussian pair": nft.NVMDevice(mapping="differential"),
    "spacing, 16 bits": nft.NVMDevice(16, 4, relative_to="spacing"),
    "own": nft.NVMDevice(6, 3, relative_to="own"),
    "1 bit": nft.NVMDevice(1, 1),
    "15 bits": nft.NVMDevice(15, 5),
    "preset": nft.NVMDevice.preset("fefet6", sigma=0.1),
    "preset by weight": nft.NVMDevice.preset("rram4", sigma=0.1, state_rule="weight"),
    "measured": nft.NVMDevice(**MEASURED),
    "devices": nft.NVMDevice(sampling="per_device"),
    "devices, pair": nft.NVMDevice(sampling="per_device", mapping="differential"),
    "devices, preset": nft.NVMDevice.preset("fefet2", sigma=0.1, sampling="per_device"),
    "devices, measured": nft.NVMDevice(sampling="per_device", mapping="differential", **MEASURED),
    "one device": nft.NVMDevice(8, 8, sampling="per_device"),
    "16 devices": nft.NVMDevice(16, 1, sampling="per_device"),
    "clipped": nft.NVMDevice(clip=(0, 1)),
    "censored": nft.NVMDevice(censor=0.5, mapping="differential"),
    "truncated": nft.NVMDevice(truncate=2),
    "truncated, own": nft.NVMDevice(6, 3, relative_to="own", truncate=5.0),
    "stuck": nft.NVMDevice(stuck=(0.1, 0.2)),
    "everything": nft.NVMDevice(clip=(-0.1, 1.1), truncate=1.5, stuck=(0.05, 0.05), mapping="differential", **MEASURED),
}


def weights(*shape, seed=0):
    """Normal numbers with zeros, negative zeros and negatives far below half a step among them."""
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    flat = w.view(-1)
    flat[::11], flat[3::17], flat[5::19] = 0.0, -0.0, -1e-9
    return w


def chips_of(nvm, weight, key=KEY, **options):
    return nft.program_weights(weight, nvm, stream=STREAM, key=key, **options)


def digest():
    """One hash over what every device model gives, on the instruction set in use."""
    total = hashlib.sha256()
    for nvm in DEVICES.values():
        total.update(chips_of(nvm, weights(20_001)).numpy().tobytes())
        total.update(chips_of(nvm, weights(501), dtype=torch.bfloat16).view(torch.int16).numpy().tobytes())
    return total.hexdigest()

"""Devices and weights of random scale, layout and type."""

import random

import torch

import nft_ext as nft

STREAM = 9


def device(scale, rows=5, **fields):
    return nft.NVMDevice(sigma=0.1, scale=scale, array_rows=rows if scale == "tile" else None, **fields)


def random_case(seed):
    """(weight, nvm, key, spec, layout, groups)"""
    choose = random.Random(seed)
    few, some = (lambda: choose.randint(1, 9)), lambda: choose.choice([1, 2, 16, choose.randint(1, 150)])
    layout, groups, shape = choose.choice(
        [
            ("oi", 1, (some(), some())),
            ("oi", 1, (few(), few(), 3, 3)),
            ("io", 1, (some(), some())),
            ("io", groups := few(), (groups * few(), few(), choose.choice([1, 3, 7]), 2)),
            ("eoi", 1, (few(), some(), few())),
            ("eio", 1, (few(), few(), some())),
        ]
    )
    scale = choose.choice(["layer", "output", "tile"])
    bits, device_bits = choose.choice([(8, 2), (8, 4), (4, 2), (6, 1), (10, 2), (16, 4), (1, 1)])
    nvm = device(
        scale,
        choose.choice([1, 5, 16, 100, 1000]),
        weight_bits=bits,
        device_bits=device_bits,
        relative_to=choose.choice(["max", "own"]),
        sampling=choose.choice(["auto", "per_device"]),
        mapping=choose.choice(["sign", "differential"]),
        clip=choose.choice([None, None, (0, 1)]),
    )
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) ** 3 * 10 ** choose.uniform(-3, 1)
    if choose.random() < 0.4:
        weight[torch.rand(shape[0], generator=generator) < 0.4] = 0
    weight = weight.to(choose.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    key = nft.noise_key(seed, range(choose.choice([1, 1, 2, 9])))
    return weight, nvm, key, nvm.operator_spec(choose.random() < 0.85, layout, groups)

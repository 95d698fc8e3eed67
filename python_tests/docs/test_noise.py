"""docs/reference/noise.md lets a reader replay a chip: the code on the page gives the extension's bits."""

import math
import re

import numpy as np
import pytest
import torch

import nft_ext as nft
from nft_ext.ops.keys import DOMAINS
from support.paths import ROOT

PAGE = ROOT / "docs" / "reference" / "noise.md"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page():
    """The names that the page's Python blocks define, with nothing but NumPy at hand."""
    code = blocks("python")
    assert len(code) == 2
    assert set(re.findall(r"^\s*(?:import|from) (\w+)", "\n".join(code), re.MULTILINE)) == {"numpy"}
    names = {}
    for block in code:
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def weights(*shape, scale=0.1, seed=0):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    w.view(-1)[::5] = 0.0
    w.view(-1)[3::7] *= 1e-4
    return w


def same_bits(a, b):
    return a.dtype == b.dtype == np.float32 and a.shape == b.shape and a.tobytes() == b.tobytes()


CHIPS = [  # seed, domain, stream, draw, sigma, M, K
    (2024, "evaluation", 7, 3, 0.1, 8, 2),
    (2**64 - 1, "training", 2**32 - 1, 2**32 - 1, 0.4, 8, 2),
    (2**40 + 1, "selection", 123456789, 0, 0.05, 6, 3),
    (0, "evaluation", 0, 0, 0.2, 4, 1),
    (5, "permutation", 1, 2**31, 0.013, 16, 4),
]


@pytest.mark.parametrize("seed, domain, stream, draw, sigma, M, K", CHIPS)
@pytest.mark.parametrize("shape", [(1,), (5,), (40, 30), (16, 8, 3, 3), (257, 129)])
def test_the_page_replays_a_chip(page, shape, seed, domain, stream, draw, sigma, M, K):
    weight = weights(*shape) + 0.01
    nvm = nft.NVMDevice(M, K, sigma)
    key = nft.noise_key(seed, draw, domain=domain)
    for function, device in (("replay", nvm), ("replay_devices", nvm.replace(sampling="per_device"))):
        programmed = nft.program_weights(weight, device, stream=stream, key=key)[0]
        replayed = page[function](weight.numpy(), seed, stream, draw, sigma, domain=DOMAINS[domain], M=M, K=K)
        assert same_bits(replayed, programmed.numpy()), function


def test_the_page_replays_a_layer_of_a_converted_model(page):
    """As a reader would: a chip of a Monte Carlo evaluation, layer by layer."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 3))
    noisy = nft.convert(model, nft.NVMDevice(sigma=0.1))
    chip = nft.program(noisy, seed=9, draw=5)
    for name, layer in nft.noisy_layers(noisy).items():
        replayed = page["replay"](layer.weight.detach().numpy(), 9, layer.stream, 5, 0.1)
        assert same_bits(replayed, chip.get_submodule(name).weight.detach().numpy())


def test_an_all_zero_layer(page):
    assert same_bits(page["replay"](np.zeros((3, 2), np.float32), 1, 2, 3, 0.1), np.zeros((3, 2), np.float32))


def test_the_random_words_are_the_known_answers(page):
    words = page["words"](0, 0, 0, 0, 0, 4)
    assert [f"{w:08x}" for w in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]


def example(page):
    """The worked example of section 7, computed."""
    weight = np.array([0.5, -0.25, 0.0, 1.0], np.float32)
    words = page["words"](2024, 0, 7, 3, 255, 4)
    u = ((words[::2] >> np.uint32(1)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-31)
    radius = np.sqrt(page["minus_two_log"](u))
    z = page["normals"](2024, 0, 7, 3, 255, 4)
    step, code, _ = page["quantized"](weight, 8)
    programmed = page["replay"](weight, 2024, 7, 3, 0.1)

    def show(values):
        return "  ".join(f"{v:>14.9g}" for v in values)

    def pair(values):
        return "  ".join(f"{v:>14.9g}  {'':>14}" for v in values).rstrip()

    return "\n".join(
        [
            "counter     00000000  00ff0000  00000007  00000003   key  000007e8  00000000",
            "words       " + "  ".join(f"{w:>14}" for w in (f"{w:08x}" for w in words)),
            "u           " + pair(u),
            "radius      " + pair(radius),
            "z           " + show(z),
            "W           " + show(weight),
            f"q           {show(code)}        s = {step:.9g}",
            "W_p         " + show(programmed),
        ]
    )


def test_the_worked_example(page):
    assert [block.rstrip("\n") for block in blocks("text")] == [example(page)]


def test_the_page_shows_the_kernels_constants():
    """Every hexadecimal constant of csrc/core/normal.h stands on the page, and the other way round; up to powers of
    two, since the kernel counts the radius in halves.
    """
    source = (ROOT / "csrc" / "core" / "normal.h").read_text()

    def find(text):
        return {math.frexp(float.fromhex(c))[0] for c in re.findall(r"-?0x1\.[0-9a-f]+p[-+]\d+", text)}

    assert find(source) == find(PAGE.read_text()) and len(find(source)) == 15


def test_the_tests_it_names_exist():
    named = re.findall(r"`((?:csrc|python_tests)/\S+?)`", PAGE.read_text())
    assert len(named) > 10 and all((ROOT / path).is_file() for path in named)

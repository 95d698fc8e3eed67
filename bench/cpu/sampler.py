"""Case `sampler`: quantize and program ResNet-18's weights, layer by layer, each result dropped before the next."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

import nft_ext as nft
from bench.harness import baselines, checks
from bench.harness.case import Case, Ready, Variant, Work
from nft_ext.ops import operators

DEVICE = nft.NVMDevice(weight_bits=baselines.WEIGHT_BITS, device_bits=baselines.DEVICE_BITS, sigma=baselines.SIGMA)
NEW = "weights new"
SAMPLING = {"one": DEVICE.replace(sampling="fast"), "device": DEVICE.replace(sampling="per_device")}


@functools.cache
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return nft.models.resnet18().eval()


@functools.cache
def weights() -> list[Tensor]:
    """The 21 crossbars of ResNet-18."""
    return [p.detach() for p in network().parameters() if p.dim() > 1]


@functools.cache
def kept() -> list[tuple[Tensor, float]]:
    """(W_d, step) per weight, which plain PyTorch can keep while weights do not change."""
    return [(baselines.quantized(w, baselines.step_of(w)), float(baselines.step_of(w))) for w in weights()]


def _sample_all(sample: Callable[[int], Tensor]) -> Callable[[], None]:
    def run() -> None:
        for i in range(len(weights())):
            sample(i)

    return run


def _ready(
    sample: Callable[[int], Tensor], noise_free: Callable[[int], Tensor] | None = None, precision: str = "fp32"
) -> Ready:
    def check() -> str | None:
        for i, w in enumerate(weights()):
            expected = kept()[i][0]
            chip = sample(i).reshape(w.shape)
            failure = checks.standard_normal(f"weight {i}", checks.weight_scores(chip, w), precision)
            if failure is None and noise_free is not None:
                failure = checks.equal(
                    f"noise-free weight {i}", noise_free(i).reshape(w.shape), expected.to(chip.dtype)
                )
            if failure:
                return failure
        return None

    return Ready(_sample_all(sample), check)


# ---- ours


def _program(draws: str) -> Ready:
    """The public call, a new chip each time."""
    nvm, numbers = SAMPLING[draws], itertools.count()
    return _ready(
        lambda i: nft.program_weights(weights()[i], nvm, stream=i, draws=next(numbers) % 2**32),
        lambda i: nft.program_weights(weights()[i], nvm, stream=i, enabled=False),
    )


def _program_new(draws: str) -> Ready:
    """As `ours`, but the largest entry of every weight changes before each call, as in training."""
    nvm, numbers = SAMPLING[draws], itertools.count()
    changing = [w.clone() for w in weights()]
    places = [w.view(-1).numpy()[at : at + 1] for w in changing for at in [int(w.abs().argmax())]]
    values = [(place[0], np.nextafter(place[0], 2 * place[0])) for place in places]

    def sample(i: int) -> Tensor:
        number = next(numbers) % 2**20
        places[i][0] = values[i][number // len(changing) % 2]
        return nft.program_weights(changing[i], nvm, stream=i, draws=number)

    def noise_free(i: int) -> Tensor:
        places[i][0] = values[i][0]
        return nft.program_weights(changing[i], nvm, stream=i, enabled=False)

    return _ready(sample, noise_free)


def _program_cached(draws: str, dtype: torch.dtype, precision: str) -> Ready:
    """A layer at inference: max|W| is cached and verified."""
    layers = list(nft.noisy_layers(nft.convert(network(), SAMPLING[draws])).values())

    @torch.no_grad()
    def sample(i: int) -> Tensor:
        return operators.ops.program(*layers[i].crossbar(), dtype)

    def noise_free(i: int) -> Tensor:
        layers[i].set_enabled(False)
        w_d = sample(i)
        layers[i].set_enabled(True)
        return w_d

    return _ready(sample, noise_free, precision)


# ---- plain PyTorch


def _by_hand(draws: str) -> Ready:
    scratch = baselines.Scratch()
    return _ready(lambda i: baselines.sample(weights()[i], draws, scratch))


def _by_hand_cached(draws: str) -> Ready:
    scratch = baselines.Scratch()
    return _ready(lambda i: baselines.sample_cached(*kept()[i], draws, scratch))


def _stacked() -> Ready:
    """randn of [M / K, *shape] and a product, the usual code."""
    return _ready(lambda i: baselines.sample_stacked(weights()[i]))


def _threads() -> Ready:
    """One generator per thread, for orientation: no plain use of torch."""
    sampler = baselines.ThreadedSampler(torch.get_num_threads())
    return _ready(lambda i: sampler(*kept()[i]))


def _compiled(draws: str) -> Ready:
    def program(weight: Tensor) -> Tensor:
        step = baselines.step_of(weight)
        return baselines.noisy(baselines.quantized(weight, step), step, draws)

    # One graph for all sizes: flat weights, dynamic length.
    function = torch.compile(program, dynamic=True, options=baselines.COMPILE_OPTIONS)
    flat = [w.reshape(-1) for w in weights()]
    return _ready(lambda i: function(flat[i]))


def case() -> Case:
    with torch.device("meta"):
        n = sum(p.numel() for p in nft.models.resnet18().parameters() if p.dim() > 1)
    bytes_ = {False: 8.0 * n, True: 6.0 * n}  # cached: codes of two bytes instead of weights

    def work(draws: str, cached: bool = False, out: int = 4) -> Work:
        return Work(normals=n * baselines.NORMALS[draws], bytes=bytes_[cached] - (4 - out) * n)

    variants = []
    for draws in ("one", "device"):
        fresh, keep = work(draws), work(draws, cached=True)
        variants += [
            Variant("nft", draws, functools.partial(_program, draws), fresh),
            Variant("nft", draws, functools.partial(_program_cached, draws, torch.float32, "fp32"), keep, cached=True),
            Variant("torch", draws, functools.partial(_by_hand, draws), fresh),
            Variant("torch", draws, functools.partial(_by_hand_cached, draws), fresh, cached=True),
            Variant("torch", draws, functools.partial(_compiled, draws), fresh, mode="compile"),
        ]
    variants += [
        Variant("nft", "one", functools.partial(_program_new, "one"), work("one"), note=NEW),
        Variant(
            "nft",
            "one",
            functools.partial(_program_cached, "one", torch.bfloat16, "bf16"),
            work("one", True, out=2),
            precision="bf16",
            cached=True,
        ),
        Variant("torch", "device", _stacked, work("device"), note="stacked"),
        Variant("torch", "one", _threads, work("one"), mode="threads", cached=True),
    ]
    return Case(
        "sampler",
        f"ResNet-18, 21 weights, {n / 1e6:.2f} M in all",
        tuple(variants),
        unit="ns/normal",
        alike=("cached",),
    )

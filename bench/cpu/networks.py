"""Cases `resnet18-*`: ResNet-18's forward at 32 x 32 (inference) at 1, 8 and 128 images."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import nft_ext as nft
from bench.cpu.sampler import SAMPLING, network
from bench.harness import autocast, baselines, checks
from bench.harness.case import Case, Ready, Variant, Work

IMAGES = (1, 8, 128)
ROUNDS = {1: 15, 8: 15, 128: 9}
FOLDED = "folded batch-norm"
FUSED = "fused epilogue"
CHANNELS_LAST = "channels last"
CALLS = 32  # their spread shows whether a compiled network has the noise of the eager one


class Batch(NamedTuple):
    """The images, for many images with channels last: the fastest layout for both sides."""

    images: int
    channels_last: bool = False


@functools.cache
def _input(batch: Batch) -> Tensor:
    torch.manual_seed(batch.images)
    x = torch.randn(batch.images, 3, 32, 32)
    return x.contiguous(memory_format=torch.channels_last) if batch.channels_last else x


def _forward(model: Callable[[Tensor], Tensor], batch: Batch, precision: str) -> Callable[[], Tensor]:
    x = _input(batch)

    @torch.no_grad()
    def run() -> Tensor:
        with autocast.context(precision):
            return model(x)

    return run


def _check_noise(model: nn.Module, layers: list[nn.Module], batch: Batch, precision: str) -> str | None:
    return checks.standard_normal(
        f"outputs of {len(layers)} layers", checks.layer_scores(layers, _forward(model, batch, precision)), precision
    )


def _plain(batch: Batch, precision: str) -> Ready:
    return Ready(_forward(network(), batch, precision), lambda: None)


def _ours(batch: Batch, precision: str, draws: str, mode: str) -> Ready:
    model = nft.convert(network(), SAMPLING[draws])
    eager = _forward(model, batch, precision)

    def check() -> str | None:
        expected = _forward(baselines.by_hand(network(), "none"), batch, precision)()
        with nft.noise(model, enabled=False):
            quiet = eager()
        return checks.first(
            checks.close("noise-free logits", quiet, expected, precision),
            _check_noise(model, list(nft.noisy_layers(model).values()), batch, precision),
        )

    return _ready(model, eager, check, batch, precision, mode)


def _fused(batch: Batch, precision: str, draws: str, mode: str) -> Ready:
    """nft.fuse. Right if the unfused network, which is checked too, gives the same logits on the same chip."""
    model = nft.convert(network(), SAMPLING[draws])
    fused = nft.fuse(model)
    run, unfused = _forward(fused, batch, precision), _forward(model, batch, precision)

    def check() -> str | None:
        with nft.chips(model, seed=6), nft.chips(fused, seed=6):
            same = checks.close("logits with fused epilogues", run(), unfused(), precision)
        with nft.noise(fused, enabled=False):
            quiet = checks.close(
                "noise-free logits",
                run(),
                _forward(baselines.by_hand(network(), "none"), batch, precision)(),
                precision,
            )
        return checks.first(same, quiet, _check_noise(model, list(nft.noisy_layers(model).values()), batch, precision))

    return _ready(fused, run, check, batch, precision, mode)


def _by_hand(batch: Batch, precision: str, draws: str, mode: str, cached: bool) -> Ready:
    model = baselines.by_hand(network(), draws, cached=cached, functional=mode == "compile")
    layers = [m for m in model.modules() if isinstance(m, baselines.ByHand)]
    return _ready(
        model,
        _forward(model, batch, precision),
        lambda: _check_noise(model, layers, batch, precision),
        batch,
        precision,
        mode,
    )


def _folded(batch: Batch, precision: str, draws: str, mode: str) -> Ready:
    """Plain PyTorch's counterpart of nft.fuse: batch-norm folded into the noisy weights.

    Right if the network with batch-norms, which is checked too, gives the same logits with the same seed.
    """
    model, whole = (baselines.by_hand(network(), draws, cached=True, functional=mode == "compile") for _ in range(2))
    run, unfolded = _forward(baselines.fold_norms(model), batch, precision), _forward(whole, batch, precision)

    def check() -> str | None:
        torch.manual_seed(5)
        found = run()
        torch.manual_seed(5)
        return checks.close("logits with folded batch-norm", found, unfolded(), precision)

    return _ready(model, run, check, batch, precision, mode)


def _ready(
    model: nn.Module,
    eager: Callable[[], Tensor],
    check: Callable[[], str | None],
    batch: Batch,
    precision: str,
    mode: str,
) -> Ready:
    if mode == "eager":
        return Ready(eager, check)
    run = _forward(baselines.compiled(model), batch, precision)

    def check_compiled() -> str | None:
        # The compiled graph uses torch's generator: equal to eager with the same seed if it draws in the
        # same order, which not every version of torch does. Compiled before the eager check, whose hooks would
        # otherwise be part of the graph.
        torch.manual_seed(5)
        found = run()
        torch.manual_seed(5)
        if checks.close("compiled logits", found, eager(), precision) is None:
            return check()
        return checks.first(_same_without_noise(model, run, eager, precision), _as_noisy(run, eager), check())

    return Ready(run, check_compiled)


def _same_without_noise(
    model: nn.Module, run: Callable[[], Tensor], eager: Callable[[], Tensor], precision: str
) -> str | None:
    with _silenced(model):
        return checks.close("compiled logits without noise", run(), eager(), precision)


@contextlib.contextmanager
def _silenced(model: nn.Module) -> Iterator[None]:
    """Turns all noise off inside. Layers by hand get a step of zero, which scales only their noise."""
    if nft.noisy_layers(model):
        with nft.noise(model, enabled=False):
            yield
        return
    steps = [m.step for m in model.modules() if isinstance(m, baselines.ByHand)]
    kept = [step.clone() for step in steps]
    for step in steps:
        step.zero_()
    try:
        yield
    finally:
        for step, before in zip(steps, kept):
            step.copy_(before)


def _as_noisy(run: Callable[[], Tensor], eager: Callable[[], Tensor]) -> str | None:
    """Checks mean and spread of image 0's logits over calls against eager, within five standard errors.

    Ten logits count as two independent ones for the spread.
    """
    found, expected = (torch.stack([f()[0].double() for _ in range(CALLS)]) for f in (run, eager))
    off = (found.mean(0) - expected.mean(0)).abs() / (expected.std(0) * math.sqrt(2 / CALLS))
    if not float(off.max()) <= checks.ERRORS:
        return f"the mean of a compiled logit is {float(off.max()):.1f} standard errors from eager's"
    ratio = float((found.var(0).mean() / expected.var(0).mean()).sqrt())
    return (
        None
        if abs(ratio - 1) <= checks.ERRORS / math.sqrt(2 * CALLS)
        else f"the spread of compiled logits is {ratio:.2f} of eager's"
    )


@functools.cache
def _counts() -> tuple[int, int, int]:
    """(weights, activations in and out per image, multiply-adds per image) of the network's products."""
    with torch.device("meta"):
        model = nft.models.resnet18().eval()
        found: list[tuple[int, int, int]] = []

        def count(layer: nn.Module, args: tuple, y: Tensor) -> None:
            places = y.numel() // layer.weight.shape[0]
            found.append((layer.weight.numel(), args[0].numel() + y.numel(), places * layer.weight.numel()))

        for layer in model.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.register_forward_hook(count)
        model(torch.empty(1, 3, 32, 32))
    return tuple(map(sum, zip(*found)))


def _case(images: int) -> Case:
    weights, activations, products = _counts()

    def variant(
        family: str,
        draws: str,
        precision: str,
        make: Callable[..., Ready],
        *options,
        note: str = "",
        last: bool = False,
        **facts,
    ) -> Variant:
        work = Work(
            flops=2.0 * products * images,
            normals=baselines.NORMALS[draws] * weights,
            bytes=4.0 * weights + autocast.ELEMENT_BYTES[precision] * activations * images,
        )
        note = ", ".join(filter(None, (note, CHANNELS_LAST if last else "")))
        return Variant(
            family,
            draws,
            functools.partial(make, Batch(images, last), precision, *options),
            work,
            precision,
            note=note,
            **facts,
        )

    variants = []
    for precision in ("fp32", "bf16"):
        variants.append(variant("torch", "none", precision, _plain))
        for draws in ("one", "device"):
            variants.append(variant("nft", draws, precision, _ours, draws, "eager", cached=True))
            variants.append(variant("nft", draws, precision, _fused, draws, "eager", cached=True, note=FUSED))
            variants.append(variant("torch", draws, precision, _by_hand, draws, "eager", True, cached=True))
            folded = functools.partial(variant, "torch", draws, precision, _folded, draws)
            variants.append(folded("eager", cached=True, note=FOLDED))
            if draws == "one" or images == 1:  # only what a target needs: compiling takes long
                variants.append(
                    variant("torch", draws, precision, _by_hand, draws, "compile", True, cached=True, mode="compile")
                )
                variants.append(folded("compile", cached=True, mode="compile", note=FOLDED))
    variants.append(variant("nft", "one", "fp32", _ours, "one", "compile", mode="compile"))
    if images == 1:
        variants.append(variant("nft", "one", "fp32", _fused, "one", "compile", mode="compile", note=FUSED))
    # The usual code: it quantizes in every forward.
    variants.extend(variant("torch", draws, "fp32", _by_hand, draws, "eager", False) for draws in ("one", "device"))
    if images > 1:  # with one image, channels last is slower on both sides
        variants.append(variant("torch", "none", "fp32", _plain, last=True))
        variants.append(variant("nft", "one", "fp32", _ours, "one", "eager", cached=True, last=True))
        variants.append(variant("nft", "one", "fp32", _fused, "one", "eager", cached=True, note=FUSED, last=True))
        for mode in ("eager", "compile"):
            variants.append(
                variant("torch", "one", "fp32", _by_hand, "one", mode, True, cached=True, mode=mode, last=True)
            )
            variants.append(
                variant("torch", "one", "fp32", _folded, "one", mode, cached=True, mode=mode, note=FOLDED, last=True)
            )
    return Case(
        f"resnet18-{images}", f"ResNet-18, {images} x 3 x 32 x 32, forward", tuple(variants), rounds=ROUNDS[images]
    )


def cases() -> list[Case]:
    return [_case(images) for images in IMAGES]

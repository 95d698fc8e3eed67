"""The fused product on the CPU: weights programmed block by block in the cache, for inputs small enough (csrc/cpu/fused.h).

The chips are those of program_weights, so the reference is torch's own product with them in float64. Its error bound is that of
any summation of K products in float32: K units of rounding of the sum of magnitudes, of which a few suffice.
"""

import pytest
import torch
from torch.nn import functional as F

import nft_ext as nft
from nft_ext import operators

ops = operators.ops
NVM = nft.NVMDevice(sigma=0.1)
KEY = nft.noise_key(5, range(3))
STREAM = 11
#      x, weight, stride, padding, dilation, groups
CONVS = {
    "vectors of a row": ((1, 64, 32, 32), (64, 64, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "vectors of a plane": ((2, 64, 4, 8), (136, 64, 1, 1), (1, 1), (0, 0), (1, 1), 1),
    "panels": ((2, 32, 7, 9), (40, 32, 3, 3), (1, 1), (1, 1), (1, 1), 1),
    "strides": ((1, 64, 16, 16), (72, 64, 3, 3), (2, 2), (1, 1), (1, 1), 1),
    "odd": ((3, 9, 11, 10), (37, 9, 5, 6), (3, 2), (2, 4), (2, 1), 1),
    "groups": ((2, 32, 8, 8), (96, 16, 3, 3), (1, 1), (1, 1), (1, 1), 2),
    "rows beside vectors": ((1, 16, 3, 48), (64, 16, 3, 3), (1, 1), (0, 1), (1, 1), 1),
}
LINEARS = {"one vector": ((16, 256), (48, 256)), "images": ((32, 200), (61, 200)), "tail": ((5, 512), (33, 512))}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def library_calls(run):
    """Names of the library's products that `run` calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {e.key for e in profile.key_averages()} & {"aten::convolution", "aten::linear", "aten::addmm", "aten::mm", "aten::matmul"}


def case(name):
    """(noisy product of x, weight, bias and a key, torch's product of x, W_p and bias, x, weight, bias)"""
    if name in LINEARS:
        x, weight = (random(*shape, seed=i) for i, shape in enumerate(LINEARS[name]))
        noisy = lambda x, w, b, key, **o: nft.noisy_linear(x, w, b, nvm=NVM, key=key, stream=STREAM, **o)  # noqa: E731
        return noisy, F.linear, x, weight, random(len(weight), seed=2)
    x, weight, *how = CONVS[name]
    x, weight = random(*x), random(*weight, seed=1)
    noisy = lambda x, w, b, key, **o: nft.noisy_conv2d(x, w, b, *how, nvm=NVM, key=key, stream=STREAM, **o)  # noqa: E731
    return noisy, lambda x, w, b: F.conv2d(x, w, b, *how), x, weight, random(len(weight), seed=2)


def expected(plain, x, weight, bias, key, shared):
    """The product in float64 with the chips' weights, and the bound of a float32 sum's error."""
    chips = nft.program_weights(weight, NVM, stream=STREAM, key=key).double()
    parts = [x] * len(chips) if shared else x.chunk(len(chips))
    b = None if bias is None else bias.double()
    y = torch.cat([plain(part.double(), w, b) for part, w in zip(parts, chips)])
    scale = torch.cat([plain(part.double().abs(), w.abs(), None if b is None else b.abs()) for part, w in zip(parts, chips)])
    return y, 4 * 2**-24 * scale * weight[0].numel() ** 0.5


@pytest.mark.parametrize("name,layout", [*((name, layout) for name in CONVS for layout in ("contiguous", "channels last", "strided")),
                                         *((name, layout) for name in LINEARS for layout in ("contiguous", "strided"))])
def test_it_is_the_product_with_the_chips_weights(name, layout):
    noisy, plain, x, weight, bias = case(name)
    if layout == "channels last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.stack([x, -x], -1)[..., 0]
        assert not x.is_contiguous()
    for b in (bias, None):
        y = noisy(x, weight, b, KEY[:1])
        want, bound = expected(plain, x, weight, b, KEY[:1], True)
        assert y.shape == want.shape and ((y - want).abs() <= bound).all()
    assert not library_calls(lambda: noisy(x, weight, bias, KEY[:1])), "this shape is meant to take the fused product"


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", [*CONVS, *LINEARS])
def test_each_chip_alone_gives_the_same_bits(name, shared):
    noisy, plain, x, weight, bias = case(name)
    inputs = x if shared else torch.cat([x, 2 * x, -x])
    together = noisy(inputs, weight, bias, KEY, shared=shared)
    alone = [noisy(part, weight, bias, key[None]) for key, part in zip(KEY, [x] * 3 if shared else inputs.chunk(3))]
    assert torch.equal(together, torch.cat(alone))
    want, bound = expected(plain, inputs, weight, bias, KEY, shared)
    assert ((together - want).abs() <= bound).all()


@pytest.mark.parametrize("name", [*CONVS, *LINEARS])
def test_threads_do_not_change_a_bit(name):
    noisy, _, x, weight, bias = case(name)
    many = noisy(x, weight, bias, KEY)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert torch.equal(noisy(x, weight, bias, KEY), many)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["rows beside vectors", "vectors of a plane", "panels", "tail"])
def test_images_do_not_change_each_others_bits(name):
    noisy, _, x, weight, bias = case(name)
    whole = noisy(torch.cat([x, -x])[: len(x) + 1], weight, bias, KEY[:1])
    assert torch.equal(whole[: len(x)], noisy(x, weight, bias, KEY[:1]))


def test_codes_and_steps_given_or_found_are_the_same():
    _, _, x, weight, bias = case("panels")
    step = ops.weight_step(weight, 8)
    rest = (torch.from_numpy(NVM.operator_table()), KEY, STREAM, NVM.operator_spec(), [1, 1], [1, 1], [1, 1], 1, True)
    fresh = ops.noisy_conv2d(x, weight, bias, None, None, *rest)
    assert torch.equal(ops.noisy_conv2d(x, weight, bias, None, step, *rest), fresh)
    assert torch.equal(ops.noisy_conv2d(x, weight, bias, ops.quantize(weight, step, 8), step, *rest), fresh)


def test_all_zero_weights_leave_the_bias():
    noisy, _, x, weight, bias = case("panels")
    y = noisy(x, torch.zeros_like(weight), bias, KEY[:1])
    assert torch.equal(y, bias[:, None, None].expand(y.shape[1:]).expand_as(y))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad):
    noisy, _, x, weight, bias = case("panels")
    weight[3, 2, 1, 0] = bad
    with pytest.raises(RuntimeError, match="weight: must be finite"):
        noisy(x, weight, bias, KEY[:1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_reach_only_their_own_results(bad):
    noisy, _, x, weight, bias = case("panels")
    x[1, 0, 3, 3] = bad
    y = noisy(x, weight, bias, KEY[:1])
    finite = y.isfinite()
    assert finite[0].all() and not finite[1, :, 2:5, 2:5].any()
    finite[1, :, 2:5, 2:5] = True
    assert finite.all()


def test_many_images_take_the_librarys_product():
    """Measured to be faster there (docs/decisions.md)."""
    noisy, _, x, weight, bias = case("vectors of a row")
    assert "aten::convolution" in library_calls(lambda: noisy(x.repeat(8, 1, 1, 1), weight, bias, KEY[:1]))


@pytest.mark.parametrize("isa", nft.info()["instruction_sets"])
def test_every_instruction_set_serves_it(isa, tmp_path):
    """In a process of its own, where NFT_EXT_CPU_ISA chooses: the native test compares the kernels, this one their use."""
    import os
    import subprocess
    import sys

    code = ("import torch, sys; sys.path.insert(0, sys.argv[1]); import test_fused as t\n"
            "for name in [*t.CONVS, *t.LINEARS]:\n"
            "    noisy, plain, x, w, b = t.case(name)\n"
            "    want, bound = t.expected(plain, x, w, b, t.KEY, True)\n"
            "    assert ((noisy(x, w, b, t.KEY) - want).abs() <= bound).all(), name\n"
            "print(t.nft.info()['instruction_set'])")
    run = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__)], capture_output=True, text=True,
                         env={**os.environ, "NFT_EXT_CPU_ISA": isa}, timeout=300)
    assert run.returncode == 0 and run.stdout.split()[-1] == isa, run.stderr

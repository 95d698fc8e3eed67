"""The one-pass product on the CPU: weights are programmed band by band in the cache, for small inputs
(csrc/cpu/torch/one_pass.h).

The chips are those of program_weights, so the reference is torch's own product with them in float64. Its
error bound is that of any summation of K products in float32: K units of rounding of the sum of magnitudes, of which a
few suffice.
"""

import pytest
import torch

from nft_ext.ops import operators
from support.one_pass import CONVS, KEY, LINEARS, NVM, STREAM, case, expected

ops = operators.ops


def library_calls(run):
    """Names of the library's products that `run` calls."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    return {e.key for e in profile.key_averages()} & {
        "aten::convolution",
        "aten::linear",
        "aten::addmm",
        "aten::mm",
        "aten::matmul",
    }


@pytest.mark.parametrize(
    "name,layout",
    [
        *((name, layout) for name in CONVS for layout in ("contiguous", "channels last", "strided")),
        *((name, layout) for name in LINEARS for layout in ("contiguous", "strided")),
    ],
)
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
    assert not library_calls(lambda: noisy(x, weight, bias, KEY[:1])), (
        "this shape is meant to take the one-pass product"
    )


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
def test_threads_do_not_change_a_bit(name, threads):
    noisy, _, x, weight, bias = case(name)
    threads(1)
    one = noisy(x, weight, bias, KEY)
    for count in (2, 4):
        threads(count)
        assert torch.equal(noisy(x, weight, bias, KEY), one)


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
    """Measured to be faster there (docs/design/decisions/cpu.md)."""
    noisy, _, x, weight, bias = case("vectors of a row")
    assert "aten::convolution" in library_calls(lambda: noisy(x.repeat(8, 1, 1, 1), weight, bias, KEY[:1]))

"""Noisy products with an epilogue: y = relu((W_p x + bias) * scale + shift + residual), in one operator, for inference.

The definition is nft_ext.reference; tolerances are those of support/products.py: a few times the reference's own error
in that precision. Where only the epilogue differs, results are equal bit for bit to torch's operations on the plain
operator's result.
"""

import pytest
import torch
from torch.library import opcheck

import nft_ext as nft
from nft_ext import reference
from support.epilogues import CASES, CONVS, PARTS, SUBSETS, case, laid_out, parts_for
from support.products import CHIPS, NVM, STREAM, random

ops = torch.ops.nft_ext


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("name, layout", CASES)
def test_it_is_its_definition(name, layout, chips, shared, dtype):
    """|operator - exact| <= 3 |reference in x's dtype - exact| + 4 units in the last place of the largest element."""
    run, definition, x = case(name, dtype, layout, chips, shared)
    plain = run()
    e = parts_for(plain)
    y, own = run(**e), definition(x, *e.values())
    truth = definition(x.double(), *e.values())
    assert y.dtype == dtype and y.shape == truth.shape and y.stride() == plain.stride()
    allowed = 3 * (own.double() - truth).abs().max() + 4 * torch.finfo(dtype).eps * truth.abs().max()
    assert (y.double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("residual_layout", ["contiguous", "channels last", "strided"])
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
@pytest.mark.parametrize("name", CONVS)
def test_every_layout_of_the_residual_gives_the_bits_of_torchs_own_operations(name, layout, residual_layout):
    run, _, _ = case(name, layout=layout, chips=2)
    plain = run()
    e = parts_for(plain, residual_layout)
    assert torch.equal(run(**e), reference.epilogue(plain, *e.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
@pytest.mark.parametrize("name", ["one pass, panels", "library", "linear one pass", "linear library"])
def test_any_part_may_be_left_out(name, subset, dtype):
    """A library product is rounded to bfloat16 before its epilogue. On the CPU the library makes all of these."""
    run, _, _ = case(name, dtype)
    plain = run()
    e = {part: value for part, value in parts_for(plain).items() if part in subset}
    whole = {**dict.fromkeys(PARTS[:3]), "relu": False, **e}
    assert torch.equal(run(**e), reference.epilogue(plain.float(), *whole.values()).to(dtype))


@pytest.mark.parametrize("name", [name for name, layout in CASES if layout == "contiguous" and "one pass" in name])
def test_threads_do_not_change_a_bit(name, threads):
    run, _, _ = case(name, chips=3)
    e = parts_for(run())
    threads(1)
    one = run(**e)
    for count in (2, 4):
        threads(count)
        assert torch.equal(run(**e), one)


@pytest.mark.parametrize("name", ["one pass, panels", "one pass, pixels", "linear one pass"])
def test_where_the_product_is_fused_so_is_the_epilogue(name):
    """No pass of torch's over the result, and none of the library's products."""
    run, _, _ = case(name)
    e = parts_for(run())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run(**e)
    called = {event.key for event in profile.key_averages()}
    assert not called & {
        "aten::convolution",
        "aten::linear",
        "aten::mul",
        "aten::add",
        "aten::relu",
        "aten::mul_",
        "aten::add_",
    }


@pytest.mark.parametrize("name", ["one pass, panels", "library", "linear one pass", "linear library"])
def test_a_nan_passes_the_relu_and_reaches_only_its_own_result(name):
    run, _, _ = case(name)
    e = parts_for(run())
    expected = run(**e)
    e["residual"].view(-1)[3] = torch.nan
    y = run(**e)
    assert y.view(-1)[3].isnan()
    y.view(-1)[3] = expected.view(-1)[3]
    assert torch.equal(y, expected)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (3, 2, 7), (3, 1, 4, 7)])
def test_linear_on_leading_dimensions(shape):
    x, weight, key = random(*shape, seed=1), random(5, 7), nft.noise_key(1)
    plain = nft.noisy_linear(x, weight, nvm=NVM, key=key)
    e = {"scale": random(5, seed=3), "shift": random(5, seed=4), "residual": random(*plain.shape, seed=5), "relu": True}
    expected = (plain * e["scale"] + e["shift"] + e["residual"]).relu()
    assert torch.equal(nft.noisy_linear(x, weight, nvm=NVM, key=key, **e), expected)


def test_no_rows_and_autocast():
    run, _, _ = case("library")
    empty = nft.noisy_conv2d(
        torch.empty(0, 4, 5, 6), random(6, 4, 3, 3), nvm=NVM, key=nft.noise_key(0), scale=random(6), relu=True
    )
    assert empty.shape == (0, 6, 3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        plain = run()
        e = parts_for(plain)
        assert torch.equal(run(**e), reference.epilogue(plain.float(), *e.values()).bfloat16())


# ---- what torch must know


def raw(kind, epilogue=PARTS, chips=2, dtype=torch.float32, layout="contiguous"):
    """Arguments of the raw operator."""
    conv = kind == "conv2d"
    weight = random(6, 2, 3, 3) if conv else random(3, 6)
    x = laid_out(random(4, 4, 5, 6, dtype=dtype), layout) if conv else random(4, 6, dtype=dtype)
    noise = (
        None,
        ops.weight_step(weight, 8),
        torch.from_numpy(NVM.operator_table()),
        nft.noise_key(0, range(chips)),
        STREAM,
        NVM.operator_spec(),
    )
    static = ([1, 2], [1, 2], [1, 1], 2, True) if conv else (True,)
    plain = getattr(ops, f"noisy_{kind}")(x, weight, None, *noise, *static)
    e = parts_for(plain)
    return (
        x,
        weight,
        random(len(weight), seed=2),
        *noise,
        *static,
        *[e[part] if part in epilogue else False if part == "relu" else None for part in PARTS],
    )


@pytest.mark.parametrize("epilogue", [(), ("relu",), ("scale", "shift"), PARTS], ids=["none", "relu", "norm", "all"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_linear(dtype, epilogue):
    opcheck(ops.noisy_linear_fused.default, raw("linear", epilogue, dtype=dtype))


@pytest.mark.parametrize(
    "layout, epilogue",
    [("contiguous", PARTS), ("channels last", PARTS), ("strided", PARTS), ("strided", ("residual",))],
)
def test_opcheck_conv2d(layout, epilogue):
    opcheck(ops.noisy_conv2d_fused.default, raw("conv2d", epilogue, layout=layout))


# ---- bad input


@pytest.mark.parametrize(
    "part, value, message",
    [
        ("scale", torch.ones(5), r"scale: must have the shape \[6\]; got \[5\]"),
        ("scale", torch.ones(6, dtype=torch.float16), "scale: must be float32; got torch.float16"),
        ("shift", torch.ones(6, 1), r"shift: must have the shape \[6\]; got \[6, 1\]"),
        ("shift", 1.0, "shift: must be a torch.Tensor; got float"),
        ("shift", torch.ones(6, device="meta"), "shift: must be on the weight's torch device cpu; got meta"),
        (
            "residual",
            torch.ones(2, 6, 5, 1),
            r"residual: must have the result's shape \[2, 6, 5, 4\]; got \[2, 6, 5, 1\]",
        ),
        (
            "residual",
            torch.ones(2, 6, 5, 4).bfloat16(),
            "residual: must have the result's dtype torch.float32; got torch.bfloat16",
        ),
        (
            "residual",
            torch.ones(2, 6, 5, 4, device="meta"),
            "residual: must be on the weight's torch device cpu; got meta",
        ),
        ("relu", 1, "relu: must be True or False; got 1"),
    ],
)
def test_what_does_not_fit_is_named(part, value, message):
    run, _, _ = case("library")
    with pytest.raises((TypeError, ValueError), match=message):
        run(**{part: value})


@pytest.mark.parametrize("kind", ["linear", "conv2d"])
@pytest.mark.parametrize(
    "position, value, message",
    [
        (-4, torch.ones(4), r"scale: must be \[out\]"),
        (-3, torch.ones(6).double(), "shift: must be float32"),
        (-2, torch.ones(1, 2), "residual: must have the result's shape"),
        (-2, torch.ones(1, 2, dtype=torch.bfloat16), "residual: must have x's dtype"),
    ],
)
def test_the_raw_operators_check_too(kind, position, value, message):
    arguments = list(raw(kind))
    arguments[position] = value
    with pytest.raises(RuntimeError, match=f"nft_ext::noisy_{kind}_fused: {message}"):
        getattr(ops, f"noisy_{kind}_fused")(*arguments)


@pytest.mark.parametrize("which", ["x", "weight", "bias", "scale", "shift", "residual"])
@pytest.mark.parametrize("kind", ["linear", "conv2d"])
def test_a_gradient_is_refused_by_name(kind, which):
    arguments = list(raw(kind))
    position = {"x": 0, "weight": 1, "bias": 2, "scale": -4, "shift": -3, "residual": -2}[which]
    arguments[position] = arguments[position].clone().requires_grad_()
    operator = getattr(ops, f"noisy_{kind}_fused")
    with pytest.raises(RuntimeError, match="must not require a gradient, the operator has no derivative"):
        operator(*arguments)
    with torch.no_grad():
        assert not operator(*arguments).requires_grad


def test_the_public_functions_refuse_a_gradient_too():
    weight = random(5, 7).requires_grad_()
    arguments = dict(nvm=NVM, key=nft.noise_key(0))
    with pytest.raises(RuntimeError, match="must not require a gradient.*got a tensor .5, 7. that does"):
        nft.noisy_linear(random(3, 7), weight, relu=True, **arguments)
    assert nft.noisy_linear(random(3, 7), weight, **arguments).requires_grad  # without an epilogue: as ever
    with torch.no_grad():
        assert (nft.noisy_linear(random(3, 7), weight, relu=True, **arguments) >= 0).all()

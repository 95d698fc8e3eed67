"""The operators on CUDA: the CPU's chips bit for bit, nothing that waits for the device, clear words where tensors are
on the wrong one. Products and gradients: test_products.py; autocast, torch.compile and opcheck: test_compile.py.
"""

import os

import pytest
import torch
from torch import nn

import nft_ext as nft
from nft_ext.ops import build_info, operators
from support import every_device as identity
from support.epilogues import finishes
from support.on_cuda import DTYPES, NVM, STREAM, bar, bits, ops, random, there

pytestmark = [pytest.mark.cuda, pytest.mark.usefixtures("poisoned_memory_and_exact_float32")]


def test_the_library_serves_this_machine():
    assert build_info.cuda_failure is None


# ---- chips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", identity.DEVICES)
def test_chips_are_the_cpus_bit_for_bit(name, dtype):
    nvm, weight = identity.DEVICES[name], identity.weights(37, 11, 3)
    for enabled in (True, False):
        expected = nft.program_weights(weight, nvm, key=identity.KEY, stream=STREAM, enabled=enabled).to(dtype)
        found = nft.program_weights(
            weight.cuda(), nvm, key=identity.KEY.cuda(), stream=STREAM, dtype=dtype, enabled=enabled
        )
        assert found.dtype == dtype and torch.equal(bits(found), bits(expected))


@pytest.mark.parametrize("bits_", [1, 2, 8, 15, 16])
def test_steps_and_codes_are_the_cpus(bits_):
    weight = identity.weights(4001)
    step = ops.weight_step(weight, bits_)
    assert torch.equal(bits(ops.weight_step(weight.cuda(), bits_)), bits(step))
    assert torch.equal(ops.quantize(weight.cuda(), step.cuda(), bits_).cpu(), ops.quantize(weight, step, bits_))


@pytest.mark.parametrize("name", ["gaussian", "preset", "everything"])
def test_weights_past_the_last_block(name):
    """Sizes around what a thread, a warp, a thread block and the whole grid program at once."""
    weight = identity.weights(1_100_003)
    weight[0] = 1.0  # the same step for all
    nvm, key = identity.DEVICES[name], nft.noise_key(3, range(2))
    expected = nft.program_weights(weight, nvm, key=key)
    for n in (
        1,
        2,
        3,
        4,
        5,
        127,
        128,
        129,
        511,
        513,
        1023,
        1024,
        1025,
        270_335,
        270_337,
        1_081_343,
        1_081_345,
        1_100_003,
    ):
        found = nft.program_weights(weight[:n].cuda(), nvm, key=key.cuda())
        assert torch.equal(bits(found), bits(expected[:, :n])), n


@pytest.mark.parametrize("chips", [1, 2, 7, 300])
def test_any_number_of_chips_a_call(chips):
    weight, key = identity.weights(700), nft.noise_key(1, range(chips))
    found, expected = nft.program_weights(weight.cuda(), NVM, key=key.cuda()), nft.program_weights(weight, NVM, key=key)
    assert torch.equal(bits(found), bits(expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["nothing", "codes"])
def test_layers_programmed_in_one_call_are_the_cpus(given, dtype):
    nvms, key = list(identity.DEVICES.values()), identity.KEY
    weights = [identity.weights(n, seed=n) for n in range(1, 40 * len(nvms), 40)]
    streams, specs = list(range(len(nvms))), [n for nvm in nvms for n in nvm.operator_spec()]
    expected = [nft.program_weights(w, nvm, key=key, stream=i) for i, (w, nvm) in enumerate(zip(weights, nvms))]
    on, tables = [w.cuda() for w in weights], [torch.from_numpy(nvm.operator_table()).cuda() for nvm in nvms]
    steps = [] if given == "nothing" else [ops.weight_step(w, nvm.weight_bits) for w, nvm in zip(on, nvms)]
    codes = [ops.quantize(w, s, nvm.weight_bits) for w, s, nvm in zip(on, steps, nvms)] or [None] * len(on)
    found = ops.program_many(on, codes, steps, tables, key.cuda(), streams, specs, [], dtype)
    for chips, want in zip(found, expected, strict=True):
        assert torch.equal(bits(chips), bits(want.to(dtype)))


CONVOLUTIONS = [
    (64, 3, 3, 3),
    (8, 40, 5, 5),
    (16, 24, 1, 1),
    (5, 64, 3, 3),
    (3, 5, 3, 3),
    (40, 512, 3, 3),
    (8, 2, 7, 7),
]


@pytest.mark.parametrize("name", ["gaussian", "preset", "16 bits", "everything"])
@pytest.mark.parametrize("chips", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["nothing", "codes"])
def test_channels_last_holds_the_same_chips(given, dtype, chips, name):
    """In the layout that the fake kernel says: where a layer can be stored so, and in logical order elsewhere."""
    nvm = {
        "gaussian": NVM,
        "preset": nft.NVMDevice.preset("rram4"),
        "16 bits": nft.NVMDevice(16, 4),
        "everything": nft.NVMDevice(clip=(0.0, 1.0), stuck=(0.1, 0.1)),
    }[name]
    weights = [random(*shape, seed=i).cuda() for i, shape in enumerate([*CONVOLUTIONS, (10, 77)])]
    count, key = len(weights), nft.noise_key(4, range(chips), device="cuda")
    steps = [] if given == "nothing" else [ops.weight_step(w, nvm.weight_bits) for w in weights]
    codes = [ops.quantize(w, s, nvm.weight_bits) for w, s in zip(weights, steps)] or [None] * count
    arguments = (
        weights,
        codes,
        steps,
        [torch.from_numpy(nvm.operator_table()).cuda()] * count,
        key,
        list(range(count)),
        nvm.operator_spec() * count,
        [],
        dtype,
    )
    plain, turned = ops.program_many(*arguments), ops.program_many(*arguments, channels_last=True)
    laid_out = operators._programmed
    for w, a, b in zip(weights, plain, turned, strict=True):
        assert torch.equal(bits(a), bits(b.contiguous()))
        assert b.stride() == laid_out(w, chips, nvm.operator_spec(), dtype, True).stride()
    assert (turned[0].stride() != plain[0].stride()) == (name in ("gaussian", "preset")), (
        "the first layer can be stored so"
    )


@pytest.mark.parametrize("chips", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_scaled_rows_are_rounded_once(dtype, chips):
    weights = [random(*shape, seed=i).cuda() for i, shape in enumerate([(64, 3, 3, 3), (8, 40, 5, 5), (40, 512, 3, 3)])]
    scales = [random(len(w), seed=9).cuda() for w in weights]
    key, table = nft.noise_key(4, range(chips), device="cuda"), torch.from_numpy(NVM.operator_table()).cuda()
    arguments = (weights, [None] * 3, [], [table] * 3, key, [0, 1, 2], NVM.operator_spec() * 3)
    plain = ops.program_many(*arguments, [], torch.float32)
    scaled = ops.program_many(*arguments, scales, dtype, channels_last=True)
    for a, b, scale in zip(plain, scaled, scales, strict=True):
        assert torch.equal(bits((a * scale.view(1, -1, 1, 1, 1)).to(dtype)), bits(b.contiguous()))
    with pytest.raises(RuntimeError, match="scales: must be none where a weight is not stored channels last"):
        ops.program_many(*arguments, scales, dtype)


class Block(nn.Module):
    """A residual block, a convolution without ReLU, and one with a bias."""

    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.b, self.nb = nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.s, self.ns = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)

    def forward(self, x):
        y = self.na(self.a(x)).relu()
        return (self.nb(self.b(y)) + self.ns(self.s(x))).relu()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("draws", [[3], [4, 0, 2]], ids=str)
def test_epilogues_inside_the_librarys_convolution(draws, layout, dtype):
    """Fused layers whose weights stand programmed: what ends in a ReLU is cuDNN's in one, the same chips up to
    rounding.
    """
    torch.manual_seed(0)
    block = Block().eval()
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
            m.weight.data.uniform_(-1, 1)
    fused = nft.fuse(nft.convert(block, NVM)).cuda()
    x = random(5, 16, 9, 7).cuda().to(memory_format=layout)
    with torch.no_grad():
        with nft.chips(fused, seed=3, draws=draws):
            exact = fused(x)
        with torch.autocast("cuda", dtype), nft.chips(fused, seed=3, draws=draws, programmed=True):
            found = fused(x)
            # The product that is made last takes the residual and the ReLU; the other has none, and is finished by
            # itself.
            assert [fused.a.scaled, fused.b.scaled, fused.s.scaled] == [True, False, True]
            weights = fused.s.noise_state()[2]
    expected = nft.program_weights(
        fused.s.weight, NVM, seed=3, stream=fused.s.stream, draws=draws
    ) * fused.s.scale.view(-1, 1, 1, 1)
    assert torch.equal(weights.contiguous(), expected.to(dtype))
    assert found.dtype == dtype and found.shape == exact.shape
    torch.testing.assert_close(
        found.float(), exact, rtol=0, atol=(3e-2 if dtype == torch.bfloat16 else 4e-3) * float(exact.abs().max())
    )


@pytest.mark.parametrize("step", [0.0, float("nan")])
def test_channels_last_of_an_irregular_step(step):
    weight = torch.full((8, 4, 3, 3), step, device="cuda")
    (found,) = ops.program_many(
        [weight],
        [None],
        [],
        [torch.from_numpy(NVM.operator_table()).cuda()],
        nft.noise_key(1, device="cuda"),
        [0],
        NVM.operator_spec(),
        [],
        torch.bfloat16,
        channels_last=True,
    )
    assert found.isnan().all() if step != step else not found.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(5, 8), (3, 7), (2, 8, 3, 5), (3, 16, 8, 8), (2, 6, 5, 3), (4, 64, 16, 16)], ids=str)
def test_finish_is_its_definition(shape, dtype):
    y, residual = random(*shape, seed=1, dtype=dtype), random(*shape, seed=2, dtype=dtype)
    scale, shift = random(shape[1], seed=3), random(shape[1], seed=4)
    for layout in (torch.contiguous_format, torch.channels_last)[: len(shape) // 2]:
        for given, relu, expected in finishes(y, scale, shift, residual):
            found = y.cuda().clone(memory_format=layout)
            ops.epilogue_(found, *map(there, given), relu)
            assert torch.equal(found.cpu(), expected)


@pytest.mark.slow
def test_more_weights_than_an_int_counts():
    """2^31 + 5 of them, all alike: the last ones' noise is the CPU's."""
    n, free = 2**31 + 5, torch.cuda.mem_get_info()[0]
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 16 * 2**30 or pages < 24 * 2**30:
        pytest.skip(
            f"needs 16 GiB free on the device and 24 GiB on the host; {free / 2**30:.0f} and {pages / 2**30:.0f} are"
        )
    # Deterministic mode would fill the 12 GiB with NaN first, which shows nothing here.
    torch.use_deterministic_algorithms(False)
    expected = nft.program_weights(torch.ones(1).expand(n), NVM, dtype=torch.bfloat16)[0, -1000:].clone()
    ones, key = torch.ones(1, device="cuda").expand(n), nft.noise_key(device="cuda")
    found = nft.program_weights(ones, NVM, key=key, dtype=torch.bfloat16)
    assert torch.equal(bits(found[0, -1000:]), bits(expected))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_noise_belongs_to_the_logical_element_whatever_the_strides(layout):
    weight = {
        "channels_last": random(4, 3, 5, 7).to(memory_format=torch.channels_last),
        "transposed": random(7, 3, 5, 4).transpose(0, 3),
        "sliced": random(8, 9, 5, 7)[::2, ::3],
    }[layout]
    strided = torch.empty_strided(weight.shape, weight.stride(), device="cuda").copy_(weight)
    found = nft.program_weights(strided, NVM, key=nft.noise_key(device="cuda"))
    assert torch.equal(bits(found), bits(nft.program_weights(weight, NVM)))


def test_a_moved_model_keeps_its_chips():
    model = nft.convert(nft.models.resnet18(width=0.125), NVM)
    expected = nft.program(model, seed=5, draw=3)
    found = nft.program(model.cuda(), seed=5, draw=3)
    for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(a.cpu(), b)


# ---- the device


MIXED = {
    "x": ("x: must be on the weight's torch device cuda:0; got cpu", dict(x="cpu")),
    "bias": ("bias: must be on the weight's torch device cuda:0; got cpu", dict(bias="cpu")),
    "key": ("key: must be on the weight's torch device cuda:0; got cpu", dict(key="cpu")),
    "weight": ("x: must be on the weight's torch device cpu; got cuda:0", dict(weight="cpu", key="cpu")),
}


@pytest.mark.parametrize("wrong", MIXED)
def test_tensors_on_two_devices_are_refused_by_name(wrong):
    message, places = MIXED[wrong]
    on = dict(x="cuda:0", weight="cuda:0", bias="cuda:0", key="cuda:0") | places
    weight, bias, key = random(3, 6).to(on["weight"]), random(3).to(on["bias"]), nft.noise_key(device=on["key"])
    with pytest.raises(ValueError, match=message):
        nft.noisy_linear(random(2, 6).to(on["x"]), weight, bias, nvm=NVM, key=key)


@pytest.mark.parametrize("argument", ["step", "table", "key", "codes"])
def test_raw_operators_refuse_arguments_on_two_devices_by_name(argument):
    weight = random(3, 6).cuda()
    codes, step, table, key, *rest = bar(weight, 1, cached=True)
    tensors = dict(codes=codes, step=step, table=table, key=key)
    tensors[argument] = tensors[argument].cpu()
    with pytest.raises(RuntimeError, match=rf"{argument}.*device|same device"):
        ops.program(weight, tensors["codes"], tensors["step"], tensors["table"], tensors["key"], *rest, torch.float32)


def test_another_device_than_the_current_one():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices; this machine has one")
    weight, key = random(40, 30), nft.noise_key(2, range(2))
    x = random(5, 30)
    with torch.cuda.device(0):
        y = nft.noisy_linear(x.to("cuda:1"), weight.to("cuda:1"), nvm=NVM, key=key.to("cuda:1"))
        assert torch.cuda.current_device() == 0
    assert y.device == torch.device("cuda:1")
    torch.testing.assert_close(y.cpu(), nft.noisy_linear(x, weight, nvm=NVM, key=key), rtol=1e-5, atol=1e-5)


def test_the_current_stream_is_used():
    """The weight changes behind a long wait on another stream. A kernel on the default stream would read the old."""
    old, new = random(500, 300), random(500, 300, seed=1)
    weight, fresh, key = old.cuda(), new.cuda(), nft.noise_key(4, device="cuda")
    x = torch.eye(300, device="cuda")
    nft.noisy_linear(x, weight, nvm=NVM, key=key)
    side = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)  # cycles, a tenth of a second
        weight.copy_(fresh)
        chip = nft.program_weights(weight, NVM, key=key)
        y = nft.noisy_linear(x, weight, nvm=NVM, key=key)
    side.synchronize()
    expected = nft.program_weights(new, NVM, seed=4)
    assert torch.equal(bits(chip), bits(expected))
    torch.testing.assert_close(y.cpu().T, expected[0], rtol=1e-5, atol=1e-6)


def small_net():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(72, 5),
    )
    return nft.convert(plain, NVM).cuda()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_nothing_in_a_forward_or_backward_waits_for_the_device(precision):
    net, x, key = small_net(), random(4, 3, 8, 8).cuda(), nft.noise_key(0, range(2), device="cuda")

    def step():
        with torch.autocast("cuda", precision, enabled=precision != torch.float32):
            y = net(x)
            with nft.noise(net, sigma=0.2):
                y = y + net(x)
        y.float().square().sum().backward()
        net.eval()
        with torch.no_grad(), nft.chips(net, key=key):
            net(x)
        net.train()

    step()  # tables are copied to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_a_training_step_fits_a_cuda_graph():
    """No synchronisation of the library's own either: that would break the capture. Every replay draws new chips."""
    net, x = small_net(), random(4, 3, 8, 8).cuda()

    def step():
        net.zero_grad(set_to_none=True)
        y = net(x)
        y.square().sum().backward()
        return y.detach(), net[0].weight.grad

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, grad = step()
    seen = []
    for _ in range(2):
        graph.replay()
        seen.append((y.clone(), grad.clone()))
    assert all(t.isfinite().all() for pair in seen for t in pair)
    assert not torch.equal(seen[0][0], seen[1][0]) and not torch.equal(seen[0][1], seen[1][1])


# ---- weights that are no numbers


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_give_nan_without_waiting(bad):
    weight = random(9, 70)
    weight[4, 33] = bad
    weight, key = weight.cuda(), nft.noise_key(0, range(2), device="cuda")
    for dtype in DTYPES:
        assert nft.program_weights(weight, NVM, key=key, dtype=dtype).isnan().all()
        assert nft.noisy_linear(random(3, 70).cuda().to(dtype), weight, nvm=NVM, key=key).isnan().all()
        image = random(2, 7, 6, 6).cuda().to(dtype)
        assert nft.noisy_conv2d(image, weight[:, :63].reshape(9, 7, 3, 3), nvm=NVM, key=key).isnan().all()


def test_convert_refuses_weights_that_are_not_finite():
    plain = nn.Sequential(nn.Linear(4, 3)).cuda()
    with torch.no_grad():
        plain[0].weight[1, 2] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        nft.convert(plain, NVM)


def test_an_all_zero_layer_is_exactly_zero():
    zero, key = torch.zeros(33, 5, device="cuda"), nft.noise_key(0, range(2), device="cuda")
    assert not nft.program_weights(zero, NVM, key=key).any()
    assert not nft.noisy_linear(random(3, 5).cuda(), zero, nvm=NVM, key=key).any()

"""The operators on CUDA: the CPU's chips bit for bit, products and gradients as good as the reference's, nothing that waits for
the device, and clear words where tensors are on the wrong one.

Tolerances and shapes are those of test_operators.py. The definitions run on the CPU; memory is filled with NaN, so an element
that no kernel wrote shows.
"""

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.library import opcheck

import nft_ext as nft
from nft_ext import build_info, reference
from nft_ext.keys import draw_key

sys.path.insert(0, str(Path(__file__).resolve().parent))

import test_epilogue as epilogues  # noqa: E402
import test_noise_identity as identity  # noqa: E402
import test_operators as on_cpu  # noqa: E402

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(),
                       reason="torch.cuda.is_available() is False: no CUDA device, or a torch without CUDA"),
]

ops = torch.ops.nft_ext
STREAM, NVM = on_cpu.STREAM, on_cpu.NVM
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CHIPS = on_cpu.CHIPS
random = on_cpu.random
WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS is deterministic, as torch then demands, only with a workspace of fixed size


@pytest.fixture(autouse=True)
def poisoned_memory_and_exact_float32(monkeypatch):
    """torch.empty gives NaN, operations that are not deterministic raise, and float32 products are not done in TF32."""
    monkeypatch.setenv(WORKSPACE, os.environ.get(WORKSPACE, ":4096:8"))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    torch.use_deterministic_algorithms(True)
    assert torch.empty(5, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def there(value):
    return None if value is None else value.detach().cuda()


def bits(t):
    return t.cpu().contiguous().view({4: torch.int32, 2: torch.int16}[t.element_size()])


def bar(weight, chips, nvm=NVM, cached=False):
    """Operator arguments from codes to device, on CUDA."""
    step = ops.weight_step(weight.detach(), nvm.weight_bits)
    codes = ops.quantize(weight.detach(), step, nvm.weight_bits) if cached else None
    table = torch.from_numpy(nvm.operator_table()).cuda()
    return codes, step, table, nft.noise_key(0, range(chips), device="cuda"), 5, nvm.operator_spec()


def assert_as_good_as_reference(operator, definition, x, weight, bias):
    """|CUDA - exact| <= 3 |reference in x's dtype - exact| + four units in the last place of the largest element."""
    exact = on_cpu.with_gradients(definition, x.double(), weight, bias)
    own = on_cpu.with_gradients(definition, x, weight, bias)
    leaves = [None if t is None else there(t).requires_grad_() for t in (x, weight, bias)]
    y = operator(*leaves)
    y.backward(random(*y.shape, seed=9, dtype=y.dtype).cuda())
    found = [y.detach(), *[leaf.grad for leaf in leaves if leaf is not None]]
    for leaf in leaves:
        assert leaf is None or (leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape)
    for name, got, low, truth in zip(("y", "dL/dx", "dL/dW", "dL/db"), found, own, exact):
        assert got.shape == truth.shape, name
        allowed = 3 * (low - truth).abs().max() + 4 * torch.finfo(x.dtype).eps * truth.abs().max()
        assert (got.cpu().double() - truth).abs().max() <= allowed, name


def test_the_library_serves_this_machine():
    assert build_info.cuda_failure is None


# ---- chips


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", identity.DEVICES)
def test_chips_are_the_cpus_bit_for_bit(name, dtype):
    nvm, weight = identity.DEVICES[name], identity.weights(37, 11, 3)
    for enabled in (True, False):
        expected = nft.program_weights(weight, nvm, key=identity.KEY, stream=STREAM, enabled=enabled).to(dtype)
        found = nft.program_weights(weight.cuda(), nvm, key=identity.KEY.cuda(), stream=STREAM, dtype=dtype, enabled=enabled)
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
    for n in (1, 2, 3, 4, 5, 127, 128, 129, 511, 513, 1023, 1024, 1025, 270_335, 270_337, 1_081_343, 1_081_345, 1_100_003):
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


@pytest.mark.slow
def test_more_weights_than_an_int_counts():
    """2^31 + 5 of them, all alike: the last ones' noise is the CPU's."""
    n, free = 2**31 + 5, torch.cuda.mem_get_info()[0]
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if free < 16 * 2**30 or pages < 24 * 2**30:
        pytest.skip(f"needs 16 GiB free on the device and 24 GiB on the host; {free / 2**30:.0f} and {pages / 2**30:.0f} are")
    # Deterministic mode would fill the 12 GiB with NaN first, which shows nothing here.
    torch.use_deterministic_algorithms(False)
    expected = nft.program_weights(torch.ones(1).expand(n), NVM, dtype=torch.bfloat16)[0, -1000:].clone()
    ones, key = torch.ones(1, device="cuda").expand(n), nft.noise_key(device="cuda")
    found = nft.program_weights(ones, NVM, key=key, dtype=torch.bfloat16)
    assert torch.equal(bits(found[0, -1000:]), bits(expected))


@pytest.mark.parametrize("layout", ["channels_last", "transposed", "sliced"])
def test_noise_belongs_to_the_logical_element_whatever_the_strides(layout):
    weight = {"channels_last": random(4, 3, 5, 7).to(memory_format=torch.channels_last),
              "transposed": random(7, 3, 5, 4).transpose(0, 3),
              "sliced": random(8, 9, 5, 7)[::2, ::3]}[layout]
    strided = torch.empty_strided(weight.shape, weight.stride(), device="cuda").copy_(weight)
    found = nft.program_weights(strided, NVM, key=nft.noise_key(device="cuda"))
    assert torch.equal(bits(found), bits(nft.program_weights(weight, NVM)))


def test_a_moved_model_keeps_its_chips():
    model = nft.convert(nft.models.resnet18(width=0.125), NVM)
    expected = nft.program(model, seed=5, draw=3)
    found = nft.program(model.cuda(), seed=5, draw=3)
    for a, b in zip(found.state_dict().values(), expected.state_dict().values(), strict=True):
        assert torch.equal(a.cpu(), b)


# ---- products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("rows, features, out", [(6, 16, 8), (3, 17, 5), (9, 1, 1), (6, 300, 1), (33, 70, 65), (129, 64, 130)])
def test_linear(rows, features, out, chips, shared, dtype):
    key = nft.noise_key(1, range(chips))
    rows = rows if shared else rows * chips
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=NVM, key=key.cuda(), stream=STREAM, shared=shared),
        lambda x, w, b: reference.noisy_linear(x, w, b, *on_cpu.noise_of(NVM, key), shared),
        random(rows, features, seed=2, dtype=dtype), random(out, features), random(out, seed=3))


@pytest.mark.parametrize("device", on_cpu.DEVICES)
def test_linear_on_every_kind_of_device(device):
    key, nvm = nft.noise_key(1, range(2)), on_cpu.DEVICES[device]
    assert_as_good_as_reference(
        lambda x, w, b: nft.noisy_linear(x, w, b, nvm=nvm, key=key.cuda(), stream=STREAM),
        lambda x, w, b: reference.noisy_linear(x, w, b, *on_cpu.noise_of(nvm, key), True),
        random(4, 11, seed=2), random(5, 11), None)


def conv_pair(key, shared, options):
    """(operator on CUDA, definition on the CPU) as functions of x, weight, bias."""
    _, definition = on_cpu.conv_pair(key, shared, options)
    return lambda x, w, b: nft.noisy_conv2d(x, w, b, nvm=NVM, key=key.cuda(), stream=STREAM, shared=shared, **options), definition


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("geometry", on_cpu.GEOMETRIES)
def test_conv2d(geometry, chips, shared, dtype):
    weight, options = on_cpu.convolution(**on_cpu.GEOMETRIES[geometry])
    operator, definition = conv_pair(nft.noise_key(1, range(chips)), shared, options)
    x = random(3, 6, 9, 7, seed=2, dtype=dtype)
    assert_as_good_as_reference(operator, definition, x, weight, random(weight.shape[0], seed=3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("layout", on_cpu.LAYOUTS)
def test_conv2d_in_any_layout(layout, chips, shared, dtype):
    weight, options = on_cpu.convolution(padding=1, stride=(2, 1))
    operator, definition = conv_pair(nft.noise_key(1, range(chips)), shared, options)
    x = on_cpu.LAYOUTS[layout](dtype)
    assert_as_good_as_reference(operator, definition, x, weight, None)
    strided = torch.empty_strided(x.shape, x.stride(), dtype=dtype, device="cuda") if layout != "expanded" else x.cuda()
    y = operator(strided if layout == "expanded" else strided.copy_(x), weight.cuda(), None)
    wanted = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    assert y.is_contiguous(memory_format=wanted)
    torch.testing.assert_close(y, operator(x.cuda().contiguous(), weight.cuda(), None), rtol=0, atol=0.05 * float(y.abs().max()))


@pytest.mark.parametrize("rows, channels, out, side", [(1, 64, 65, 8), (5, 33, 64, 7), (2, 128, 96, 4)])
def test_conv2d_past_one_tile(rows, channels, out, side):
    options = dict(stride=1, padding=1, dilation=1, groups=1)
    operator, definition = conv_pair(nft.noise_key(1, range(2)), True, options)
    for dtype in DTYPES:
        x = random(rows, channels, side, side, seed=2, dtype=dtype)
        assert_as_good_as_reference(operator, definition, x, random(out, channels, 3, 3),
                                    random(out, seed=3))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chips, shared", CHIPS)
@pytest.mark.parametrize("name, layout", [*epilogues.CASES, ("fused, past the bound", "contiguous"), ("fused, past the bound", "channels last")])
def test_epilogues(name, layout, chips, shared, dtype):
    """Few columns go to the fused kernel, many or few rows of a group to the library and one more pass."""
    run, definition, x = epilogues.case(name, dtype, layout, chips, shared, device="cuda")
    plain = run()
    e = epilogues.parts_for(plain, layout)
    y, on_host = run(**e), [value.cpu() if isinstance(value, torch.Tensor) else value for value in e.values()]
    own, truth = definition(x, *on_host), definition(x.double(), *on_host)
    assert y.dtype == dtype and y.shape == truth.shape and y.stride() == plain.stride()
    allowed = 3 * (own.double() - truth).abs().max() + 4 * torch.finfo(dtype).eps * truth.abs().max()
    assert (y.cpu().double() - truth).abs().max() <= allowed


@pytest.mark.parametrize("subset", epilogues.SUBSETS, ids="+".join)
@pytest.mark.parametrize("name", ["fused, panels", "library", "fused, past the bound", "linear fused", "linear library"])
def test_any_part_of_an_epilogue_may_be_left_out(name, subset):
    """Bit for bit torch's operations on the plain operator's result."""
    run, _, _ = epilogues.case(name, device="cuda")
    plain = run()
    e = {part: value for part, value in epilogues.parts_for(plain).items() if part in subset}
    whole = {**dict.fromkeys(epilogues.PARTS[:3]), "relu": False, **e}
    assert torch.equal(run(**e), reference.epilogue(plain, *whole.values()))


@pytest.mark.parametrize("part", ["scale", "shift", "residual"])
def test_an_epilogue_on_another_device_is_refused_by_name(part):
    run, _, _ = epilogues.case("library", device="cuda")
    value = epilogues.parts_for(run())[part].cpu()
    with pytest.raises(ValueError, match=f"{part}: must be on the weight's device cuda:0; got cpu"):
        run(**{part: value})


def test_a_fused_model_is_the_cpus():
    model = nft.convert(nft.models.resnet18(width=0.25).eval(), NVM)
    fused, x = nft.fuse(model), random(2, 3, 32, 32)
    with torch.no_grad(), nft.chips(model, seed=2, draws=range(2)):
        expected = model(x)
    fused.cuda()
    with torch.no_grad(), nft.chips(fused, seed=2, draws=range(2)):
        torch.testing.assert_close(fused(x.cuda()).cpu(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gaussian", "everything"])
def test_the_products_use_the_cpus_chips(name):
    """A product with the identity reads the programmed weights off, forward and backward."""
    nvm, weight, key = identity.DEVICES[name], identity.weights(40, 30), identity.KEY
    programmed = nft.program_weights(weight, nvm, key=key, stream=STREAM)
    y = nft.noisy_linear(torch.eye(30, device="cuda"), weight.cuda(), nvm=nvm, key=key.cuda(), stream=STREAM)
    torch.testing.assert_close(y.cpu().reshape(3, 30, 40).transpose(1, 2), programmed, rtol=1e-6, atol=0)
    x = torch.zeros(40, 30, device="cuda", requires_grad=True)
    nft.noisy_linear(x, weight.cuda(), nvm=nvm, key=key[1:2].cuda(), stream=STREAM).backward(torch.eye(40, device="cuda"))
    torch.testing.assert_close(x.grad.cpu(), programmed[1], rtol=1e-6, atol=0)


def test_gradients_are_the_same_every_time():
    weight, options = on_cpu.convolution(padding=1)
    x, key = random(16, 6, 9, 7).cuda(), nft.noise_key(1, range(3), device="cuda")

    def gradients():
        leaves = [t.detach().requires_grad_() for t in (x, weight.cuda())]
        nft.noisy_conv2d(leaves[0], leaves[1], nvm=NVM, key=key, **options).square().sum().backward()
        return [leaf.grad for leaf in leaves]

    for a, b in zip(gradients(), gradients()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [0])
def test_no_rows(rows):
    key = nft.noise_key(0, range(2), device="cuda")
    y = nft.noisy_linear(torch.empty(rows, 6, device="cuda"), random(3, 6).cuda(), nvm=NVM, key=key)
    assert y.shape == (0, 3) and y.is_cuda


# ---- the device


MIXED = {
    "x": ("x: must be on the weight's device cuda:0; got cpu", dict(x="cpu")),
    "bias": ("bias: must be on the weight's device cuda:0; got cpu", dict(bias="cpu")),
    "key": ("key: must be on the weight's device cuda:0; got cpu", dict(key="cpu")),
    "weight": ("x: must be on the weight's device cpu; got cuda:0", dict(weight="cpu", key="cpu")),
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
    """Behind a long wait on another stream the weight changes; a kernel on the default stream would read the old one."""
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
    plain = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2, groups=2),
                          nn.Flatten(), nn.Linear(72, 5))
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


# ---- autocast, torch.compile, opcheck


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_x_and_nothing_else(dtype):
    layer, x, key = nft.NoisyLinear(24, 7, nvm=NVM).cuda(), random(5, 24).cuda(), nft.noise_key(2, range(2), device="cuda")
    with nft.chips(layer, key=key):
        with torch.autocast("cuda", dtype):
            y = layer(x)
        assert y.dtype == dtype and torch.equal(y, layer(x.to(dtype)))
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


LAYERS = {
    "linear": lambda: (nft.NoisyLinear(6, 3, nvm=NVM), random(4, 5, 6)),
    "conv": lambda: (nft.NoisyConv2d(4, 6, 3, stride=(1, 2), padding=(2, 1), groups=2, nvm=NVM), random(2, 4, 7, 8)),
    "conv channels_last": lambda: (nft.NoisyConv2d(4, 6, 3, nvm=NVM),
                                   random(2, 4, 7, 8).contiguous(memory_format=torch.channels_last)),
}


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", LAYERS)
def test_a_compiled_layer_equals_the_eager_one(name, backend):
    """The same noise under the same torch seed; outputs and gradients alike, with their strides."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    layer, x = LAYERS[name]()
    layer.cuda()
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        torch.manual_seed(3)
        layer.zero_grad()
        leaf = x.cuda().requires_grad_()
        y = run(leaf)
        y.square().sum().backward()
        results.append([y.detach(), leaf.grad, *[p.grad.clone() for p in layer.parameters()]])
        assert results[-1][0].stride() == results[0][0].stride()
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager)


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("sampling, cached", [("fast", False), ("fast", True), ("per_device", False)])
def test_opcheck_program(sampling, cached, needs_grad):
    weight, nvm = random(3, 4).cuda().requires_grad_(needs_grad), NVM.replace(sampling=sampling)
    opcheck(ops.program.default, (weight, *bar(weight, 2, nvm, cached), torch.float16))


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("chips, shared", [(1, True), (2, True), (2, False)])
def test_opcheck_products(chips, shared, needs_grad):
    x, weight, bias = (t.cuda().requires_grad_(needs_grad) for t in (random(4, 6), random(3, 6), random(3)))
    opcheck(ops.noisy_linear.default, (x, weight, bias, *bar(weight, chips), shared))
    geometry = ([1, 2], [1, 2], [1, 1], 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = random(4, 4, 5, 6).cuda().to(memory_format=layout).requires_grad_(needs_grad)
        weight, bias = (t.cuda().requires_grad_(needs_grad) for t in (random(6, 2, 3, 3), random(6)))
        opcheck(ops.noisy_conv2d.default, (x, weight, bias, *bar(weight, chips), *geometry, shared))


@pytest.mark.parametrize("wanted", [1, 2, 4, 7])
@pytest.mark.parametrize("chips, shared", [(1, True), (2, True), (2, False)])
def test_opcheck_backwards(chips, shared, wanted):
    x, weight = random(4, 6).cuda(), random(3, 6).cuda()
    grad = random(4 * chips if shared else 4, 3).cuda()
    opcheck(ops.noisy_linear_backward.default, (grad, x, weight, *bar(weight, chips), shared, wanted))
    noise, geometry = bar(random(6, 2, 3, 3).cuda(), chips), ([1, 2], [1, 2], [1, 1], 2)
    for layout in (torch.contiguous_format, torch.channels_last):
        x, weight = random(4, 4, 5, 6).cuda().to(memory_format=layout), random(6, 2, 3, 3).cuda()
        grad = torch.randn_like(ops.noisy_conv2d(x, weight, None, *noise, *geometry, shared))
        opcheck(ops.noisy_conv2d_backward.default, (grad, x, weight, *noise, *geometry, shared, wanted))


def test_opcheck_the_rest():
    weight = random(3, 4).cuda()
    opcheck(ops.weight_step.default, (weight, 8))
    opcheck(ops.quantize.default, (weight, ops.weight_step(weight, 8), 8))
    opcheck(draw_key, (weight,))


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

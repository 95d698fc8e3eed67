"""The same key gives the same bits: on every instruction set, for any number of threads and chips per call, whatever
the weight's strides, and in the plain definition (nft_ext/reference.py).
"""

import numpy as np
import pytest
import torch

import nft_ext as nft
from nft_ext import _core, reference
from support.every_device import DEVICES, KEY, STREAM, chips_of, weights

ISAS = nft.info()["instruction_sets"]
every_device = pytest.mark.parametrize("name", DEVICES)


def same_bits(a, b):
    """Equal as bits, so that 0 and -0 differ."""
    a, b = (np.ascontiguousarray(v.numpy() if isinstance(v, torch.Tensor) else v) for v in (a, b))
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def defined(nvm, weight, key=KEY):
    return reference.program(weight, torch.from_numpy(nvm.operator_table()), key, STREAM, nvm.operator_spec())


def from_core(nvm, weight, isa="", threads=1, key=KEY):
    bits, device_bits, path, mapping = nvm.operator_spec()[:4]
    flat = weight.reshape(-1).numpy()
    out = _core.program(
        flat,
        _core.step(flat, bits),
        nvm.operator_table(),
        key.numpy(),
        STREAM,
        bits,
        device_bits,
        path,
        mapping,
        isa,
        threads,
    )
    return out.reshape(len(key), *weight.shape)


# ---- against the definition


@every_device
def test_the_operator_gives_the_definitions_bits(name):
    weight = weights(37, 11, 3)
    assert same_bits(chips_of(DEVICES[name], weight), defined(DEVICES[name], weight))


@every_device
@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_definitions_bits(name, isa):
    weight = weights(37, 11, 3)
    assert same_bits(from_core(DEVICES[name], weight, isa), defined(DEVICES[name], weight))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("slice_", [0, 5, 32, 255])
def test_normals(isa, slice_):
    for row in KEY:
        assert same_bits(
            _core.normals(row.numpy(), STREAM, slice_, 5001, isa), reference.normals(row, STREAM, slice_, 5001)
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("bits", [1, 2, 8, 15, 16])
def test_quantizer(isa, bits):
    weight = weights(4001)
    code, sign, steps = reference.quantize(weight, bits)
    step = steps[0]
    assert same_bits(torch.tensor(_core.step(weight.numpy(), bits)), step)
    packed = torch.where(sign < 0, ~code.int(), code.int())
    assert same_bits(_core.quantize(weight.numpy(), float(step), bits, isa), packed)


def test_a_switched_off_noise_gives_the_quantized_weight():
    """W_d = sign * q * s (Eq. 4), whatever the key."""
    weight = weights(501)
    code, sign, step = reference.quantize(weight, 8)
    assert same_bits(chips_of(nft.NVMDevice(), weight, enabled=False), (sign * code * step).expand(3, -1))


def test_an_all_zero_layer_is_exactly_zero():
    for nvm in DEVICES.values():
        assert same_bits(chips_of(nvm, torch.full((300,), -0.0)), torch.zeros(3, 300))


# ---- threads, chips per call, sizes, strides


@every_device
def test_any_number_of_threads(name):
    nvm, weight = DEVICES[name], weights(2501)
    want = from_core(nvm, weight)
    for threads in (2, 3, 4, 16):
        assert same_bits(from_core(nvm, weight, threads=threads), want)


@pytest.mark.parametrize("name", ["gaussian", "preset", "everything"])
def test_any_number_of_torch_threads(name, threads):
    nvm, weight = DEVICES[name], weights(90_001)  # several tasks of 64 chunks
    want = from_core(nvm, weight)
    for count in (1, 2, 3, 4):
        threads(count)
        assert same_bits(chips_of(nvm, weight), want)


@every_device
def test_any_number_of_chips_a_call(name):
    nvm, weight = DEVICES[name], weights(700)
    together = chips_of(nvm, weight)
    for i in range(len(KEY)):
        assert same_bits(chips_of(nvm, weight, key=KEY[i : i + 1])[0], together[i])
    assert same_bits(chips_of(nvm, weight, key=KEY[[2, 0, 2]]), together[[2, 0, 2]])


def test_elements_are_counted_in_row_major_order_whatever_the_strides():
    nvm, weight = nft.NVMDevice(), weights(6, 8, 3, 3)
    want = chips_of(nvm, weight)
    for strided in (
        weight.to(memory_format=torch.channels_last),
        weight.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        weights(6, 8, 3, 6)[..., :3].copy_(weight),
    ):
        assert not strided.is_contiguous() and same_bits(chips_of(nvm, strided), want)
    assert same_bits(chips_of(nvm, weight.reshape(-1)).reshape(want.shape), want)


def test_later_weights_do_not_touch_earlier_ones():
    weight = weights(3000)
    weight[0] = 1.0  # the same step for all
    want = chips_of(nft.NVMDevice(), weight)
    for n in (1, 2, 3, 4, 5, 255, 256, 257, 511, 1025):
        assert same_bits(chips_of(nft.NVMDevice(), weight[:n]), want[:, :n])


@every_device
def test_bfloat16_is_the_float32_result_rounded_once(name):
    nvm, weight = DEVICES[name], weights(1001)
    assert torch.equal(chips_of(nvm, weight, dtype=torch.bfloat16), chips_of(nvm, weight).to(torch.bfloat16))


@pytest.mark.parametrize("name", ["gaussian", "15 bits", "spacing, 16 bits", "everything"])
def test_cached_codes_give_the_same_bits(name):
    nvm, weight = DEVICES[name], weights(1001)
    ops, table = torch.ops.nft_ext, torch.from_numpy(nvm.operator_table())
    step = ops.weight_step(weight, nvm.weight_bits)
    codes = ops.quantize(weight, step, nvm.weight_bits)
    assert codes.dtype == (torch.int16 if nvm.weight_bits <= 15 else torch.int32)
    got = ops.program(weight, codes, step, table, KEY, STREAM, nvm.operator_spec(), torch.float32)
    assert same_bits(got, chips_of(nvm, weight))


@pytest.mark.parametrize("name", ["gaussian", "everything"])
def test_the_products_use_these_weights(name):
    """A product with the identity reads the programmed weights off, bit for bit, forward and backward."""
    nvm, weight = DEVICES[name], weights(40, 30)
    programmed = chips_of(nvm, weight) + 0.0  # a product has no -0
    y = nft.noisy_linear(torch.eye(30), weight, nvm=nvm, key=KEY, stream=STREAM)
    assert same_bits(y.reshape(3, 30, 40).transpose(1, 2), programmed)
    x = torch.zeros(40, 30, requires_grad=True)
    nft.noisy_linear(x, weight, nvm=nvm, key=KEY[1:2], stream=STREAM).backward(torch.eye(40))
    assert same_bits(x.grad + 0.0, programmed[1])


def test_an_unknown_instruction_set_in_a_call():
    with pytest.raises(
        RuntimeError, match="^isa: must be one of the instruction sets this processor can run .*; got neon"
    ):
        _core.normals([0, 0], 0, 0, 4, isa="neon")

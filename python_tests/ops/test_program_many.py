"""All layers of a model in one call: each layer's chips are those of `program`."""

import pytest
import torch

import nft_ext as nft

ops = torch.ops.nft_ext
KEY = nft.noise_key(5, range(3))
NVM = [
    nft.NVMDevice(sigma=0.1),
    nft.NVMDevice.preset("rram4", sigma=0.1),
    nft.NVMDevice(stuck=(0.1, 0.0)),
    nft.NVMDevice(16, 4),
    nft.NVMDevice(6, 3, sampling="per_device"),
]
SHAPES = [(64, 64, 3, 3), (7,), (300, 401), (1,), (0, 4)]


def layers():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in SHAPES]
    tables = [torch.from_numpy(nvm.operator_table()) for nvm in NVM]
    return weights, tables, list(range(40, 40 + len(NVM))), [n for nvm in NVM for n in nvm.operator_spec()]


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("given", ["nothing", "steps", "codes"])
@pytest.mark.parametrize("key", [KEY, KEY[1:2]], ids=["three chips", "one chip"])
def test_each_layer_is_programmed_as_alone(key, given, dtype):
    weights, tables, streams, devices = layers()
    bits = [nvm.weight_bits for nvm in NVM]
    steps = [] if given == "nothing" else [ops.weight_step(w, b) for w, b in zip(weights, bits)]
    codes = (
        [ops.quantize(w, s, b) for w, s, b in zip(weights, steps, bits)] if given == "codes" else [None] * len(weights)
    )
    many = ops.program_many(weights, codes, steps, tables, key, streams, devices, [], dtype)
    for w, table, stream, nvm, found in zip(weights, tables, streams, NVM, many, strict=True):
        assert torch.equal(found, ops.program(w, None, None, table, key, stream, nvm.operator_spec(), dtype))


@pytest.mark.usefixtures("two_threads")
def test_steps_of_all_layers():
    weights, *_ = layers()
    bits = [nvm.weight_bits for nvm in NVM]
    assert torch.equal(
        ops.weight_step_many(weights, bits), torch.stack([ops.weight_step(w, b) for w, b in zip(weights, bits)])
    )


def test_no_layers_give_no_results():
    assert ops.program_many([], [], [], [], KEY, [], [], [], torch.float32) == []


def test_weights_that_are_not_finite_are_refused():
    weights, tables, streams, devices = layers()
    weights[2][5, 5] = float("nan")
    with pytest.raises(RuntimeError, match="program_many: weight: must be finite"):
        ops.program_many(weights, [None] * 5, [], tables, KEY, streams, devices, [], torch.float32)


@pytest.mark.parametrize(
    "change,message",
    [
        (dict(codes=[None]), "codes: must hold one entry per weight; got 1"),
        (dict(tables=[]), "tables: must hold one entry per weight; got 0"),
        (dict(streams=[1, 2]), "streams: must hold one entry per weight; got 2"),
        (dict(specs=[8, 2, 1, 0]), "specs: must hold eight numbers per weight; got 4"),
        (dict(scales=[torch.ones(())]), "scales: must be empty or hold one entry per weight; got 1"),
        (dict(scales=[torch.ones(3)] * 5), r"scales: must be contiguous float32 \[out\], each for its weight"),
        (dict(dtype=torch.float64), "dtype: must be float32 or bfloat16"),
    ],
)
def test_lists_that_do_not_fit_are_refused(change, message):
    weights, tables, streams, devices = layers()
    arguments = dict(
        weights=weights,
        codes=[None] * 5,
        steps=[],
        tables=tables,
        key=KEY,
        streams=streams,
        specs=devices,
        scales=[],
        dtype=torch.float32,
    )
    with pytest.raises(RuntimeError, match=f"program_many: {message}"):
        ops.program_many(*(arguments | change).values())


def test_opcheck():
    weights, tables, streams, devices = layers()
    torch.library.opcheck(
        ops.program_many.default,
        (weights, [None] * 5, [], tables, KEY, streams, devices, [], torch.float32),
        test_utils=("test_schema", "test_faketensor"),
    )

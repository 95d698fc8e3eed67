"""A step per layer, output or tile: which weights share it, in every layout, on every path, bit for bit."""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

import nft_ext as nft
from nft_ext import _core, reference
from nft_ext.ops import operators
from support.paths import ROOT
from support.scales import STREAM, device, random_case

ops = torch.ops.nft_ext
KEY = nft.noise_key(11, range(2))
OUTPUT = nft.NVMDevice(sigma=0.1, scale="output")


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


# ---- an independent derivation, from the definition: a matrix [outputs, inputs] per crossbar

LAYOUTS = {
    # layout, groups, stored shape, the matrices [outputs, inputs] of indices into the flat weight
    "linear": ("oi", 1, (7, 30), lambda i: [i]),
    "conv": ("oi", 1, (6, 4, 3, 3), lambda i: [i.reshape(6, 36)]),
    "depthwise": ("oi", 1, (9, 1, 3, 3), lambda i: [i.reshape(9, 9)]),
    "conv1d": ("io", 1, (30, 7), lambda i: [i.T]),
    "experts": ("eoi", 1, (3, 5, 20), lambda i: list(i)),
    "experts transposed": ("eio", 1, (3, 20, 5), lambda i: [m.T for m in i]),
    "transposed conv": ("io", 1, (8, 5, 3, 3), lambda i: [i.transpose(1, 0, 2, 3).reshape(5, 72)]),
    "grouped transposed conv": (
        "io",
        2,
        (8, 5, 3, 3),
        lambda i: [part.transpose(1, 0, 2, 3).reshape(5, 36) for part in np.split(i, 2)],
    ),
}


def derived(weight, nvm, matrices, per_crossbar):
    """W_p of chip 0, from W_p[o, k] = sign * (s * (mean[q] + std[q] z)) with the s that holds there."""
    w = weight.numpy().reshape(-1)
    z = _core.normals(KEY[0].numpy(), STREAM, 255, w.size)
    mean, std = nvm.tables()
    top = np.float32(2**nvm.weight_bits - 1)
    out = np.full_like(w, np.nan)
    everything = np.concatenate([m.reshape(-1) for m in matrices])
    for matrix in matrices:
        inputs = matrix.shape[1]
        rows = nvm.array_rows if nvm.scale == "tile" else inputs
        for output in matrix:
            for first in range(0, inputs, rows):
                tile = output[first : first + rows]
                shares = tile if nvm.scale != "layer" else matrix.reshape(-1) if per_crossbar else everything
                step = np.abs(w[shares]).max() / top
                if step == 0:
                    out[tile] = 0
                    continue
                q = np.rint(np.abs(w[tile]) / step).astype(int)
                sign = np.where(w[tile] < 0, np.float32(-1), np.float32(1))
                out[tile] = sign * (step * (mean[q] + std[q] * z[tile]))
    return torch.from_numpy(out.reshape(weight.shape))


@pytest.mark.parametrize("scale", ["layer", "output", "tile"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_programmed_weights_follow_the_definition(name, scale):
    layout, groups, shape, matrices_of = LAYOUTS[name]
    nvm = device(scale)
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5)) ** 3
    if shape[0] > 2:
        weight[1] = 0
    matrices = matrices_of(np.arange(weight.numel()).reshape(shape))
    got = nft.program_weights(weight, nvm, key=KEY, stream=STREAM, layout=layout, groups=groups)
    assert same_bits(got[0], derived(weight, nvm, matrices, layout.startswith("e")))
    assert same_bits(got, defined(weight, nvm, KEY, nvm.operator_spec(True, layout, groups)))


# ---- every path against the definition


def defined(weight, nvm, key, spec):
    return reference.program(weight.float(), torch.from_numpy(nvm.operator_table()), key, STREAM, spec)


@pytest.mark.parametrize("seed", range(40))
def test_every_path_gives_the_definitions_bits(seed):
    weight, nvm, key, spec = random_case(seed)
    bits, scaling, table = nvm.weight_bits, spec[4:], torch.from_numpy(nvm.operator_table())
    rest = (table, key, STREAM, spec)
    expected = defined(weight, nvm, key, spec)
    for _ in range(4):  # the cache of max|W| trusts what it has seen
        assert same_bits(ops.program(weight, None, None, *rest, torch.float32), expected)
    step = ops.weight_step(weight, bits, scaling)
    assert step.shape == operators.step_shape(weight, scaling)
    numbers = reference.step_numbers(weight.shape, scaling)
    assert same_bits(step.reshape(-1)[numbers], reference.quantize(weight.float(), bits, scaling)[2])
    codes = ops.quantize(weight, step, bits, scaling)
    assert same_bits(ops.program(weight, codes, step, *rest, torch.float32), expected)
    assert same_bits(ops.program(weight, None, step, *rest, torch.float32), expected)
    assert torch.equal(ops.program(weight, None, None, *rest, torch.bfloat16), expected.bfloat16())
    many = ops.program_many([weight] * 2, [None] * 2, [], [table] * 2, key, [STREAM] * 2, spec * 2, [], torch.float32)
    assert same_bits(many[0], expected) and same_bits(many[1], expected)
    if spec[6] == 0 and weight.dim() == 2:
        x = torch.randn(3, weight.shape[1])
        w_p = ops.program(weight, None, None, *rest, torch.float32)
        y = ops.noisy_linear(x, weight, None, None, None, *rest, True)
        assert torch.allclose(y, torch.cat([x @ chip.T for chip in w_p]), rtol=1e-4, atol=1e-5 * float(w_p.abs().max()))


_HASH = """
import hashlib, torch
import nft_ext
from support.scales import STREAM, random_case
ops, sum = torch.ops.nft_ext, hashlib.sha256()
for seed in range(25):
    weight, nvm, key, spec = random_case(seed)
    table = torch.from_numpy(nvm.operator_table())
    for chips in (key, key[:1]):
        sum.update(ops.program(weight, None, None, table, chips, STREAM, spec, torch.float32).numpy().tobytes())
print(sum.hexdigest())
"""


@pytest.mark.slow
def test_every_instruction_set_gives_the_same_bits():
    found = set()
    for isa in _core.build()["instruction_sets"]:
        env = os.environ | {"NFT_EXT_CPU_ISA": isa}
        env["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "python_tests")])
        found.add(subprocess.run([sys.executable, "-c", _HASH], env=env, capture_output=True, check=True).stdout)
    assert len(found) == 1


@pytest.mark.parametrize("magnitude", [1e-41, 1e-30, 1e-12, 1.0, 1e12, 1e30])
def test_codes_are_those_of_the_division(magnitude):
    """Weights around every change from one code to the next, in rows long enough for a reciprocal."""
    steps = torch.linspace(1.0, 2.0, 40).unsqueeze(1) * magnitude / 255
    edges = (torch.arange(255) + 0.5) * steps
    around = [edges * (1 + ulps * 2.0**-23) for ulps in (-2, -1, 0, 1, 2)]
    weight = torch.cat([steps * 255, *around], 1)
    nvm = nft.NVMDevice(sigma=0.0, scale="output")
    got = nft.program_weights(weight, nvm, key=KEY[:1], stream=STREAM)
    assert same_bits(got, defined(weight, nvm, KEY[:1], nvm.operator_spec()))


def test_long_rows_and_many_weights():
    """Rows that span pieces of work, on one and on several threads."""
    for shape in ((3, 30000), (40, 5000), (90, 1000), (2, 9000)):
        weight = torch.randn(shape)
        for nvm in (OUTPUT, device("tile", 700)):
            expected = defined(weight, nvm, KEY[:1], nvm.operator_spec())
            assert same_bits(nft.program_weights(weight, nvm, key=KEY[:1], stream=STREAM), expected)


# ---- what the scales have in common


def test_scales_share_their_normals():
    """(W_p - sign s mean) / (s std) is z, whatever s: the chips of two scales are paired."""
    weight = torch.randn(20, 50)
    z = {}
    for scale in ("layer", "output", "tile"):
        nvm = device(scale, 16)
        code, sign, step = reference.quantize(weight, 8, nvm.operator_spec()[4:])
        w_p = nft.program_weights(weight, nvm, key=KEY[:1], stream=STREAM)[0]
        mean, std = (torch.from_numpy(t) for t in nvm.tables())
        z[scale] = (sign * w_p / step - mean[code.long()]) / std[code.long()]
    for scale in ("output", "tile"):
        torch.testing.assert_close(z[scale], z["layer"], rtol=0, atol=2e-4)  # codes up to 255 cost eight bits


def test_a_scale_of_one_output_is_that_of_its_layer():
    """One output, or tiles that hold all inputs: other scales give the same bits."""
    row, weight = torch.randn(1, 300), torch.randn(12, 300)
    layer = nft.NVMDevice(sigma=0.1)
    program = lambda w, nvm: nft.program_weights(w, nvm, key=KEY, stream=STREAM)
    assert same_bits(program(row, OUTPUT), program(row, layer))
    assert same_bits(program(weight, device("tile", 300)), program(weight, OUTPUT))


@pytest.mark.parametrize("fields", [{}, dict(sampling="per_device"), dict(mapping="differential"), dict(clip=(0, 1))])
def test_a_row_of_zeros_is_exactly_zero(fields):
    weight = torch.randn(6, 70)
    weight[2], weight[4] = 0.0, -0.0
    w_p = nft.program_weights(weight, device("output", **fields), key=KEY, stream=STREAM)
    assert same_bits(w_p[:, [2, 4]], torch.zeros(2, 2, 70))
    assert (w_p[:, [0, 1, 3, 5]] != 0).any(-1).all()  # clipping gives single zeros, too


def test_weights_that_change_between_calls():
    nvm, weight = OUTPUT, torch.randn(30, 400)
    for _ in range(6):
        weight[::3] *= 1.5
        got = nft.program_weights(weight, nvm, key=KEY[:1], stream=STREAM)
        assert same_bits(got, defined(weight, nvm, KEY[:1], nvm.operator_spec()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape, layout", [((5, 60), "oi"), ((5, 60), "io"), ((2, 9000), "oi")])
def test_weights_that_are_not_finite_are_refused(value, shape, layout):
    weight = torch.randn(shape)
    weight[-1, -1] = value
    with pytest.raises(RuntimeError, match="weight: must be finite"):
        nft.program_weights(weight, OUTPUT, key=KEY, layout=layout)
    with pytest.raises(RuntimeError, match="weight_step: weight: must be finite"):
        ops.weight_step(weight, 8, OUTPUT.operator_scaling(layout))


# ---- the device model


def test_the_device_names_its_scale():
    nvm = nft.NVMDevice(scale="tile", array_rows=64, array_columns=32)
    assert str(nvm).endswith("sign mapping, scale tile, array_rows 64, array_columns 32")
    described = nvm.describe()
    assert (described["scale"], described["array_rows"], described["array_columns"]) == ("tile", 64, 32)
    assert nft.NVMDevice.described(described) == nvm == pickle.loads(pickle.dumps(nvm)) == copy.deepcopy(nvm)
    assert len({nvm, nvm.replace(array_rows=65), nvm.replace(scale="output"), nvm.replace(array_columns=1)}) == 4
    assert nft.NVMDevice.described(nft.NVMDevice().describe()) == nft.NVMDevice()  # as 0.2 wrote it
    assert "scale" not in nft.NVMDevice().describe()


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(scale="row"), "scale: must be one of"),
        (dict(scale="tile"), 'array_rows: must be given with scale="tile"'),
        (dict(array_rows=0), "array_rows: must be"),
        (dict(array_rows=1.5), "array_rows: must be"),
        (dict(array_columns=-1), "array_columns: must be"),
    ],
)
def test_fields_out_of_range_are_refused(fields, message):
    with pytest.raises((TypeError, ValueError), match=message):
        nft.NVMDevice(**fields)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(layout="ko"), "layout: must be one of"),
        (dict(layout="oi", groups=2), 'groups: must be 1 unless layout is "io"; got 2'),
        (dict(layout="io", groups=0), "groups: must be"),
        (dict(layout="io", groups=4), "groups: must divide dimension 0 of the weight, 6"),
        (dict(layout="eoi"), 'weight: must have 3 dimensions or more for layout "eoi"'),
    ],
)
def test_layouts_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nft.program_weights(torch.randn(6, 4), OUTPUT, key=KEY, **arguments)


@pytest.mark.parametrize(
    "scaling, message",
    [
        ([4, 0, 0, 1], r"scaling: needs sharing 0 \(all\), 1 \(group\), 2 \(output\) or 3 \(tile\); got 4"),
        ([2, 0, 2, 1], "scaling: needs an output_dim of the weight; got 2"),
        ([2, 0, 1, 4], "scaling: needs groups that divide .*; got 4"),
        ([3, 0, 0, 1], "scaling: needs tile_rows >= 1 for tiles; got 0"),
        ([2, 0, 0], r"scaling: must be empty or hold .*; got \[2, 0, 0\]"),
    ],
)
def test_raw_operators_refuse_scalings_that_do_not_fit(scaling, message):
    with pytest.raises(RuntimeError, match=message):
        ops.weight_step(torch.randn(6, 4), 8, scaling)


def test_raw_operators_refuse_steps_that_do_not_fit():
    weight, rest = torch.randn(6, 4), (torch.from_numpy(OUTPUT.operator_table()), KEY, STREAM, OUTPUT.operator_spec())
    steps = ops.weight_step(weight, 8, OUTPUT.operator_scaling())
    assert steps.shape == (1, 6)
    for step, message in ((steps[0, :5], "step: must be the contiguous"), (-steps, "step: must be a finite number")):
        with pytest.raises(RuntimeError, match=message):
            ops.program(weight, None, step, *rest, torch.float32)

"""The device model: its tables against sums written by hand, its presets, and every argument it refuses."""

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest

from nft_ext import NVMDevice

# ---- tables: mean[q] = q + sum_j 2^(jK) mu(l_j), std[q] = sqrt(sum_j 4^(jK) sd(l_j)^2), in steps


def by_hand(weight_bits, device_bits, mean_of_level, sd_of_level):
    """The two tables as float64 lists, one device after the other."""
    means, stds = [], []
    for q in range(2**weight_bits):
        mean, variance = 0.0, 0.0
        for j in range(weight_bits // device_bits):
            level = q // 2 ** (j * device_bits) % 2**device_bits
            mean += 2 ** (j * device_bits) * mean_of_level(level)
            variance += (2 ** (j * device_bits) * sd_of_level(level)) ** 2
        means.append(mean)
        stds.append(math.sqrt(variance))
    return means, stds


def expect_tables(nvm, means, stds):
    mean, std = nvm.tables()
    assert mean.dtype == std.dtype == np.float32 and mean.shape == std.shape == (2**nvm.weight_bits,)
    np.testing.assert_allclose(mean, means, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(std, stds, rtol=1e-7)


@pytest.mark.parametrize("weight_bits, device_bits", [(8, 2), (8, 1), (8, 4), (8, 8), (6, 3), (1, 1), (15, 5), (16, 4)])
@pytest.mark.parametrize(
    "relative_to, sd_of_level",
    [
        ("max", lambda level, top: 0.1 * top),
        ("spacing", lambda level, top: 0.1),
        ("own", lambda level, top: 0.1 * level),
    ],
)
def test_tables_of_the_three_readings_of_sigma(weight_bits, device_bits, relative_to, sd_of_level):
    nvm = NVMDevice(weight_bits, device_bits, 0.1, relative_to=relative_to)
    top = 2**device_bits - 1
    expect_tables(nvm, *by_hand(weight_bits, device_bits, float, lambda level: sd_of_level(level, top)))
    assert (nvm.tables()[0] == np.arange(2**weight_bits)).all()


def test_eight_bits_on_two_bit_devices_spread_by_0_7776_sigma():
    """The paper's numbers, section 2 of the design: relative to max|W| = 255 steps."""
    assert NVMDevice(sigma=1e-3).tables()[1][7] / 255 == pytest.approx(0.7776e-3, rel=1e-4)
    assert NVMDevice(sigma=1e-3, relative_to="spacing").tables()[1][7] / 255 == pytest.approx(0.2592e-3, rel=1e-4)


def test_tables_of_measured_levels():
    mean, std = (0.1, 1.2, 1.9, 3.3), (0.05, 0.2, 0.0, 0.3)
    nvm = NVMDevice(level_mean=mean, level_std=std, sigma=2.0)
    expect_tables(nvm, *by_hand(8, 2, lambda level: mean[level], lambda level: 2 * std[level]))


def test_a_differential_pair_adds_the_idle_array_at_level_0():
    """Its variance adds; its mean shift subtracts."""
    mean, std = (0.1, 1.2, 1.9, 3.3), (0.05, 0.2, 0.1, 0.3)
    means, stds = by_hand(8, 2, lambda level: mean[level], lambda level: std[level])
    pair = NVMDevice(level_mean=mean, level_std=std, sigma=1.0, mapping="differential")
    expect_tables(pair, [m - means[0] for m in means], [math.hypot(s, stds[0]) for s in stds])


def test_the_operators_table_of_the_per_device_path():
    inf = math.inf
    plain = NVMDevice(sigma=0.1, sampling="per_device").operator_table()
    np.testing.assert_allclose(plain, [0, 1, 2, 3, 0.3, 0.3, 0.3, 0.3, inf, -inf, inf, 0, 0, 0], rtol=1e-7)
    limited = NVMDevice(sigma=0.1, clip=(-0.5, 1), censor=1.5, stuck=(0.1, 0.2)).operator_table()
    np.testing.assert_allclose(limited[8:], [1.5, -1.5, 3, 0.1, 0.3, 0], rtol=1e-6)
    truncated = NVMDevice(sigma=0.1, truncate=1.0).operator_table()
    assert truncated[-1] == pytest.approx(0.341344746, rel=1e-6)  # Phi(1) - 1/2
    assert plain.dtype == np.float32 and len(NVMDevice().operator_table()) == 512


def test_only_gaussian_devices_have_two_moments():
    for options in (dict(clip=(0, 1)), dict(censor=1), dict(truncate=2), dict(stuck=(0.1, 0))):
        nvm = NVMDevice(**options)
        assert not nvm.gaussian and nvm.path == "per_device"
        with pytest.raises(ValueError, match="^tables: exist for Gaussian devices only"):
            nvm.tables()
    assert NVMDevice().path == NVMDevice(sampling="fast").path == "fast"
    assert NVMDevice(sampling="per_device").path == "per_device" and NVMDevice(sampling="per_device").gaussian


# ---- presets: [1, s, s, 1] * sigma / sqrt(0.4 s^2 + 0.6), in units of the maximal conductance


@pytest.mark.parametrize("name, s", [("rram1", 1), ("fefet2", 2), ("rram4", 4), ("fefet6", 6)])
def test_presets(name, s):
    nvm = NVMDevice.preset(name, sigma=0.2)
    outer = 0.2 * 3 / math.sqrt(0.4 * s**2 + 0.6)
    assert nvm.level_table()[1] == pytest.approx([outer, s * outer, s * outer, outer])
    expect_tables(nvm, *by_hand(8, 2, float, lambda level: s * outer if level in (1, 2) else outer))
    assert nvm.name == name and nvm.describe()["name"] == name and nvm.sigma == 0.2


def test_rram1_is_the_plain_gaussian_device():
    assert (NVMDevice.preset("rram1", sigma=0.2).tables()[1] == NVMDevice(sigma=0.2).tables()[1]).all()


@pytest.mark.parametrize("mapping", ["sign", "differential"])
def test_state_rule_weight_takes_the_inner_factor_for_codes_64_to_191(mapping):
    nvm = NVMDevice.preset("fefet2", sigma=0.1, state_rule="weight", mapping=mapping)
    outer = 0.1 * 3 * math.sqrt(1 + 16 + 256 + 4096) / math.sqrt(0.4 * 4 + 0.6)
    idle = outer if mapping == "differential" else 0
    std = [math.hypot(2 * outer if 64 <= q <= 191 else outer, idle) for q in range(256)]
    expect_tables(nvm, range(256), std)


# ---- measured tables


def write(tmp_path, text, name="device.csv"):
    path = tmp_path / name
    path.write_bytes(text) if isinstance(text, bytes) else path.write_text(text)
    return path


LEVELS = "level,mean,std\n0,0.1,0.05\n1,1.2,0.2\n2,1.9,0.0\n3,3.3,0.3\n"


def test_a_table_in_level_units(tmp_path):
    nvm = NVMDevice.from_table(write(tmp_path, LEVELS, "chip7.csv"))
    assert (nvm.level_mean, nvm.level_std) == ((0.1, 1.2, 1.9, 3.3), (0.05, 0.2, 0.0, 0.3))
    assert (nvm.name, nvm.device_bits, nvm.weight_bits, nvm.sigma) == ("chip7", 2, 8, 1.0)
    assert nvm.describe()["relative_to"] == "measured standard deviation"


def test_sigma_is_a_factor_on_the_measured_deviations(tmp_path):
    path = write(tmp_path, LEVELS)
    as_measured, doubled = NVMDevice.from_table(path), NVMDevice.from_table(path, sigma=2.0)
    assert (doubled.tables()[0] == as_measured.tables()[0]).all()
    assert (doubled.tables()[1] == 2 * as_measured.tables()[1]).all()


def test_a_table_in_microsiemens(tmp_path):
    text = "level,mean,std\n0,10,1.5\n1,22,1\n2,32,2\n3,40,0\n"
    nvm = NVMDevice.from_table(write(tmp_path, text), unit="microsiemens", g_min=10, g_max=40)
    assert nvm.level_mean == pytest.approx((0, 1.2, 2.2, 3)) and nvm.level_std == pytest.approx((0.15, 0.1, 0.2, 0))


def test_tables_as_spreadsheets_write_them(tmp_path):
    """Any order of rows and columns, more columns, spaces, comments, a byte order mark, Windows line ends."""
    text = "# lot 12\r\n std, level ,note,mean\r\n0.2,1,b,1.2\r\n0.05,0,a,0.1\r\n"
    nvm = NVMDevice.from_table(write(tmp_path, b"\xef\xbb\xbf" + text.encode()), weight_bits=4, device_bits=1)
    assert (nvm.device_bits, nvm.level_mean, nvm.level_std) == (1, (0.1, 1.2), (0.05, 0.2))


@pytest.mark.parametrize(
    "text, message",
    [
        ("level,mean,std\n", r"must list the levels 0 .. 2\^K - 1, K >= 1; got \[\]"),
        ("level,mean,std\n0,0,0.1\n", r"must list the levels 0 .. 2\^K - 1, K >= 1; got \[0\]"),
        ("level,mean,std\n0,0,0.1\n1,1,0.1\n2,2,0.1\n", r"must list the levels 0 .. 2\^K - 1, K >= 1; got \[0, 1, 2\]"),
        ("level,mean,std\n1,0,0.1\n2,1,0.1\n", r"must list the levels 0 .. 2\^K - 1, K >= 1; got \[1, 2\]"),
        (
            "level,mean,std\n0,2,0.1\n1,18,1\n2,34,1\n3,49,1\n",
            "must have means in level units, near 0 .. 3 .*microsiemens.* got 2, 18, 34, 49",
        ),
        (
            "level,mean,std\n0,2e-6,1e-7\n1,5e-5,1e-6\n",
            "must have means in level units, near 0 .. 1 .* got 2e-06, 5e-05",
        ),
        ("level,mean,std\n0,1,0.1\n1,0,0.1\n", "must have means in level units, near 0 .. 1 .* got 1, 0"),
    ],
)
def test_a_table_of_other_levels_or_units_is_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match="device.csv.*" + message):
        NVMDevice.from_table(write(tmp_path, text))


def test_other_errors_of_from_table(tmp_path):
    path = write(tmp_path, LEVELS)
    with pytest.raises(
        FileNotFoundError, match="^path: must be a CSV file with the columns level, mean, std; got .*no.csv"
    ):
        NVMDevice.from_table(tmp_path / "no.csv")
    with pytest.raises(
        ValueError, match="^unit: must be one of level, microsiemens .did you mean .microsiemens.*; got siemens"
    ):
        NVMDevice.from_table(path, unit="siemens")
    for g_min, g_max in ((None, 40), (10, None), (40, 10), (10, 10), (math.nan, 40)):
        with pytest.raises(ValueError, match="^g_min, g_max: must be given with g_min < g_max"):
            NVMDevice.from_table(path, unit="microsiemens", g_min=g_min, g_max=g_max)
    with pytest.raises(ValueError, match="^g_min, g_max: must be left out if unit is level; got .10, None."):
        NVMDevice.from_table(path, g_min=10)
    with pytest.raises(
        ValueError, match="^g_min, g_max: must be the conductances of level 0 and level 3, .* got 10, 40 and so -0.99, "
    ):
        NVMDevice.from_table(path, unit="microsiemens", g_min=10, g_max=40)
    with pytest.raises(ValueError, match=r"^level_mean: must have 2\^device_bits = 16 entries; got 4"):
        NVMDevice.from_table(path, device_bits=4)
    with pytest.raises(ValueError, match="^weight_bits: must be a multiple of device_bits = 2; got 7"):
        NVMDevice.from_table(path, weight_bits=7)


# ---- what is refused, by name, rule and value

FOUR = (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(weight_bits=0), "weight_bits: must be an integer in 1..16; got 0"),
        (dict(weight_bits=17), "weight_bits: must be an integer in 1..16; got 17"),
        (dict(weight_bits=8.0), "weight_bits: must be an integer in 1..16; got 8.0"),
        (dict(weight_bits=True), "weight_bits: must be an integer in 1..16; got True"),
        (dict(device_bits=0), "device_bits: must be an integer in 1..16; got 0"),
        (dict(device_bits="2"), "device_bits: must be an integer in 1..16; got '2'"),
        (dict(weight_bits=8, device_bits=3), "weight_bits: must be a multiple of device_bits = 3; got 8"),
        (dict(weight_bits=2, device_bits=4), "weight_bits: must be a multiple of device_bits = 4; got 2"),
        (dict(sigma=-0.1), "sigma: must be a finite number >= 0; got -0.1"),
        (dict(sigma=math.nan), "sigma: must be a finite number >= 0; got nan"),
        (dict(sigma=math.inf), "sigma: must be a finite number >= 0; got inf"),
        (dict(sigma="0.1"), "sigma: must be a finite number >= 0; got '0.1'"),
        (dict(relative_to="mean"), "relative_to: must be one of max, spacing, own; got mean"),
        (dict(sampling="slow"), "sampling: must be one of auto, fast, per_device; got slow"),
        (dict(mapping="offset"), "mapping: must be one of sign, differential; got offset"),
        (dict(state_rule="code"), "state_rule: must be one of device, weight; got code"),
        (dict(clip=1.0), "clip: must be two numbers; got 1.0"),
        (dict(clip=(0, 1, 2)), "clip: must be two numbers; got (0, 1, 2)"),
        (dict(clip=(1, 0)), "clip: must be (low, high) with low < high; got (1, 0)"),
        (dict(clip=(0, math.nan)), "clip[1]: must be a finite number; got nan"),
        (dict(clip=("a", 1)), "clip[0]: must be a finite number; got a"),
        (dict(censor=math.inf), "censor: must be a finite number; got inf"),
        (dict(truncate=0), "truncate: must be a finite number >= 0.01 and <= 5; got 0.0"),
        (dict(truncate=5.1), "truncate: must be a finite number >= 0.01 and <= 5; got 5.1"),
        (dict(censor=1, truncate=1), "truncate: cannot be combined with censor; got 1.0"),
        (dict(stuck=0.1), "stuck: must be two numbers; got 0.1"),
        (dict(stuck=(-0.1, 0)), "stuck: must be two probabilities with p_off + p_on <= 1; got (-0.1, 0)"),
        (dict(stuck=(0.6, 0.5)), "stuck: must be two probabilities with p_off + p_on <= 1; got (0.6, 0.5)"),
        (dict(stuck=(0, None)), "stuck[1]: must be a finite number; got None"),
        (dict(level_scale=(1, 1)), "level_scale: must have 2^device_bits = 4 entries; got 2"),
        (dict(level_scale=1.0), "level_scale: must be 2^device_bits = 4 numbers; got 1.0"),
        (dict(level_scale=(1, 1, -1, 1)), "level_scale[2]: must be a finite number >= 0; got -1.0"),
        (dict(level_scale=(1, 1, 1, "x")), "level_scale[3]: must be a finite number >= 0; got x"),
        (dict(level_mean=(0, 1, 2), level_std=FOUR), "level_mean: must have 2^device_bits = 4 entries; got 3"),
        (dict(level_mean=(0, 1, 2, math.nan), level_std=FOUR), "level_mean[3]: must be a finite number; got nan"),
        (dict(level_mean=FOUR, level_std=(0, 0, 0, -1)), "level_std[3]: must be a finite number >= 0; got -1.0"),
        (dict(level_std=FOUR), "level_std: must be given together with level_mean; got (1.0, 1.0, 1.0, 1.0)"),
        (dict(level_mean=FOUR), "level_std: must be given together with level_mean; got None"),
        (
            dict(level_mean=FOUR, level_std=FOUR, level_scale=FOUR),
            "level_scale: must be left out if level_std is given",
        ),
        (dict(sampling="fast", clip=(0, 1)), 'sampling: must be "auto" or "per_device" with clip, censor'),
        (dict(state_rule="weight"), 'state_rule: must be "device", except for a Gaussian two-bit preset'),
        (
            dict(state_rule="weight", level_scale=FOUR, censor=1),
            'state_rule: must be "device", except for a Gaussian',
        ),
        (
            dict(state_rule="weight", level_scale=(1, 1), device_bits=1),
            'state_rule: must be "device", except for a Gaussian',
        ),
        (
            dict(state_rule="weight", level_scale=FOUR, relative_to="own"),
            'state_rule: must be "device", except for a Gaussian',
        ),
        (
            dict(state_rule="weight", level_scale=FOUR, sampling="per_device"),
            'sampling: must be "auto" or "fast" with state_rule',
        ),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError) as error:
        NVMDevice(**options)
    assert str(error.value).startswith(message)


def test_refused_by_preset():
    with pytest.raises(
        ValueError, match="^name: must be one of rram1, fefet2, rram4, fefet6 .did you mean 'rram4'.*; got rram2"
    ):
        NVMDevice.preset("rram2")
    with pytest.raises(ValueError, match="^device_bits: must be 2 for the preset rram4; got 4"):
        NVMDevice.preset("rram4", device_bits=4)


def test_a_sigma_beyond_the_papers_range_is_a_warning():
    with pytest.warns(UserWarning, match="^sigma: the paper's range ends at 0.4; got 0.5"):
        NVMDevice(sigma=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NVMDevice(sigma=0.4)
        NVMDevice(sigma=0.9, relative_to="spacing")
        NVMDevice(sigma=1.0, level_mean=(0, 1, 2, 3), level_std=FOUR)


# ---- frozen, hashable, described


def test_frozen_equal_and_hashable():
    nvm = NVMDevice(sigma=0.2, clip=[0, 1], stuck=[0, 0.1], level_scale=np.ones(4))
    assert nvm == NVMDevice(sigma=0.2, clip=(0.0, 1.0), stuck=(0.0, 0.1), level_scale=FOUR)
    assert hash(nvm) == hash(nvm.replace()) and nvm == nvm.replace() and nvm != nvm.replace(sigma=0.1)
    assert len({nvm, nvm.replace(), nvm.replace(mapping="differential")}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        nvm.sigma = 0.1


def test_replace_checks_again():
    nvm = NVMDevice(sigma=0.2)
    assert nvm.replace(sigma=0.3, weight_bits=4) == NVMDevice(weight_bits=4, sigma=0.3)
    with pytest.raises(ValueError, match="^sigma: must be a finite number >= 0; got -1.0"):
        nvm.replace(sigma=-1)
    assert NVMDevice.preset("fefet6", sigma=0.1).replace(sigma=0.2) == NVMDevice.preset("fefet6", sigma=0.2)


@pytest.mark.parametrize(
    "device",
    [
        NVMDevice(),
        NVMDevice(4, 1, 0.3, relative_to="own", mapping="differential"),
        NVMDevice.preset("fefet2", state_rule="weight"),
        NVMDevice(level_mean=(0, 1.1), level_std=(0.1, 0.2), device_bits=1, name="mine"),
        NVMDevice(sampling="per_device"),
        NVMDevice(clip=(0, 1), censor=1.5, stuck=(0.01, 0.02)),
        NVMDevice(truncate=2.0),
    ],
    ids=str,
)
def test_a_description_read_back_is_the_same_device(device):
    assert NVMDevice.described(json.loads(json.dumps(device.describe()))) == device


def test_what_describes_no_device_is_refused():
    with pytest.raises(ValueError, match="^sigma: "):
        NVMDevice.described({"sigma": -1})
    with pytest.raises(ValueError, match="^description: must be one of weight_bits, .*, name; got colour"):
        NVMDevice.described({"colour": "blue"})
    with pytest.raises(TypeError, match="^description: must be a mapping, as `describe` returns it; got list"):
        NVMDevice.described([0.1])


def test_describe_is_json_and_says_what_a_report_must():
    plain = {
        "name": "gaussian",
        "weight_bits": 8,
        "device_bits": 2,
        "sigma": 0.1,
        "relative_to": "max",
        "mapping": "sign",
        "sampling": "fast",
    }
    assert NVMDevice().describe() == plain
    limits = dict(clip=(0.0, 1.0), censor=1.0, stuck=(0.01, 0.0))
    assert NVMDevice(**limits).describe() == plain | {
        "sampling": "per_device",
        "clip": [0, 1],
        "censor": 1,
        "stuck": [0.01, 0],
    }
    assert json.loads(json.dumps(NVMDevice.preset("rram4").describe()))["name"] == "rram4"


def test_one_line_of_text():
    assert str(NVMDevice(sigma=0.1)) == "gaussian: sigma 0.1 relative to max, M 8, K 2, sign mapping"
    assert str(NVMDevice(truncate=2.0)).endswith("sign mapping, truncate 2.0")

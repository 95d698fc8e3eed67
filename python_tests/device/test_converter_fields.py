"""Converters as fields of the device model: checks, descriptions, older files."""

import pickle

import pytest

import nft_ext as nft


@pytest.mark.parametrize("field", ["input_bits", "output_bits"])
def test_converters_have_2_to_16_bits(field):
    assert getattr(nft.NVMDevice(**{field: 16}), field) == 16
    for value in (1, 17, 4.5, True):
        with pytest.raises(ValueError, match=rf"{field}: must be an integer in 2\.\.16"):
            nft.NVMDevice(**{field: value})


def test_a_dynamic_range_needs_a_converter():
    with pytest.raises(ValueError, match='input_range: must be "static" without input_bits'):
        nft.NVMDevice(input_range="dynamic")
    with pytest.raises(ValueError, match="input_range: must be one of static, dynamic"):
        nft.NVMDevice(input_bits=8, input_range="fixed")


def test_descriptions_name_converters_and_older_ones_have_none():
    nvm = nft.NVMDevice(input_bits=8, output_bits=6, array_rows=64, input_range="dynamic")
    assert nft.NVMDevice.described(nvm.describe()) == nvm and pickle.loads(pickle.dumps(nvm)) == nvm
    assert "array_rows 64, input_bits 8, output_bits 6, input_range dynamic" in str(nvm)
    ideal = nft.NVMDevice()
    assert not ideal.has_converters and not {"input_bits", "output_bits", "input_range"} & set(ideal.describe())
    assert nft.NVMDevice.described({"name": "gaussian", "sigma": 0.2}) == nft.NVMDevice(sigma=0.2)
    older = nft.NVMDevice.__new__(nft.NVMDevice)  # a pickle of 0.2
    state = ideal.__getstate__()
    older.__dict__.update({name: state[name] for name in state if name not in ("input_bits", "output_bits")})
    assert older == ideal and older.input_bits is None

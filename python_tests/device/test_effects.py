"""The effects of a device model: switched off one by one, on the same codes and normals."""

import dataclasses

import numpy as np
import pytest
import torch

import nft_ext as nft
from nft_ext.device.effects import EFFECTS, NO_EFFECTS, effects_of, is_exact, with_only, without
from support.every_device import DEVICES, STREAM, weights

KEY = nft.noise_key(5, range(3))
BY_NAME = {effect.name: effect for effect in EFFECTS}


def programmed(nvm, enabled=True):
    return nft.program_weights(weights(4000), nvm, stream=STREAM, key=KEY, enabled=enabled)


def test_every_field_of_a_device_belongs_to_an_effect_or_is_listed_as_none():
    fields = {field.name for field in dataclasses.fields(nft.NVMDevice)}
    held = [name for effect in EFFECTS for name in effect.fields]
    assert len(held) == len(set(held)) and not set(held) & set(NO_EFFECTS)
    assert fields <= {*held, *NO_EFFECTS}, "a new field: is it an effect?"


@pytest.mark.parametrize("name", DEVICES)
def test_an_effect_that_is_switched_off_is_gone_and_the_others_stay(name):
    nvm = DEVICES[name]
    present = effects_of(nvm)
    for effect in present:
        rest = without(nvm, effect)
        gone = {effect.name} | ({"level dependence"} if effect.name == "programming noise" else set())
        assert {e.name for e in effects_of(rest)} == {e.name for e in present} - gone
        assert rest.path == nvm.path, "the other sampler draws other normals"
        assert {e.name for e in effects_of(with_only(nvm, effect))} <= {effect.name}


@pytest.mark.parametrize("name", DEVICES)
def test_without_all_effects_the_programmed_weight_is_the_quantized_weight(name):
    nvm = DEVICES[name]
    plain = without(nvm, *EFFECTS)
    assert is_exact(plain) and plain.path == nvm.path
    assert not is_exact(nvm)
    assert programmed(plain).equal(programmed(nvm, enabled=False))


def test_modifiers_of_the_noise_do_nothing_without_it():
    for nvm in (nft.NVMDevice(censor=0.5), nft.NVMDevice(truncate=2), nft.NVMDevice(clip=(0, 1))):
        (effect,) = [e for e in effects_of(nvm) if e.name != "programming noise"]
        assert is_exact(with_only(nvm, effect))
        assert programmed(with_only(nvm, effect)).equal(programmed(nvm, enabled=False))
    clipped = nft.NVMDevice(clip=(0.2, 1))  # moves devices at level 0, without any noise
    assert not is_exact(with_only(clipped, BY_NAME["clipping"]))


def test_chips_with_and_without_stuck_devices_differ_where_a_device_is_stuck_only():
    nvm = nft.NVMDevice(weight_bits=2, device_bits=2, stuck=(0.02, 0.03), mapping="sign")
    with_faults, free = programmed(nvm), programmed(without(nvm, BY_NAME["stuck devices"]))
    share = float((with_faults != free).double().mean())
    count = with_faults.numel()
    assert share == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / count))  # 1 in 16,000 by chance


@pytest.mark.parametrize("sampling", ["fast", "per_device"])
def test_the_idle_array_adds_noise_of_its_own_to_the_same_chip(sampling):
    nvm = nft.NVMDevice(sigma=0.1, mapping="differential", sampling=sampling)
    pair, single = programmed(nvm), programmed(without(nvm, BY_NAME["idle array"]))
    quantized = programmed(nvm, enabled=False)
    a, b = (pair - quantized).flatten(), (single - quantized).flatten()
    correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
    assert correlation == pytest.approx(1.0 if sampling == "fast" else 0.5**0.5, abs=0.03)
    assert float(a.var() / b.var()) == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize(
    "nvm",
    [
        nft.NVMDevice.preset("fefet6", sigma=0.1),
        nft.NVMDevice.preset("rram4", sigma=0.1, state_rule="weight"),
        nft.NVMDevice(relative_to="own", sigma=0.1),
        DEVICES["measured"],
    ],
    ids=str,
)
def test_without_level_dependence_all_levels_have_the_root_mean_square_deviation(nvm):
    mean, spread = nvm.level_table()
    even_mean, even = without(nvm, BY_NAME["level dependence"]).level_table()
    assert np.array_equal(mean, even_mean)
    assert even == pytest.approx(np.full(4, np.sqrt(np.mean(spread**2))), rel=1e-12)

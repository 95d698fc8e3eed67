"""The variants of a noisy network that `explain` evaluates: some effects off, or the noise of some layers off."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from nft_ext._common.checks import did_you_mean, fail, items, text
from nft_ext.device import NVMDevice
from nft_ext.device.effects import EFFECTS, effects_of, is_exact, with_only, without
from nft_ext.nn import NoisyLayer
from nft_ext.nn.conditions import Condition

KINDS = ("layer", "effect")
QUANTIZER = "quantizer"
Layers = Mapping[str, NoisyLayer]
Conditions = dict[str, Condition]  # by the layer's name


@dataclass(frozen=True)
class Variant:
    """The network with every layer under a condition of its own.

    Attributes:
        name: says what is on, for progress and files.
        conditions: by the layer's name.
    """

    name: str
    conditions: Conditions

    @property
    def noise_free(self) -> bool:
        """Whether all chips are equal."""
        return not any(condition.noisy for condition in self.conditions.values())

    @property
    def file(self) -> str:
        """The name of its journal."""
        plain = "".join(c if c.isalnum() or c in "-_." else "_" for c in self.name)[:60]
        return f"{plain}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}.jsonl"


@dataclass(frozen=True)
class Comparison:
    """What is compared: one effect, or the noise of one layer or group of layers.

    Attributes:
        kind: "effect" or "layer".
        name: of the effect, layer or group.
        text: its numbers in words, or the layers of a group.
        without: the variant with everything on but this.
        alone: the variant with nothing on but this.
        nothing: the variant that `alone` is compared with.
    """

    kind: str
    name: str
    text: str
    without: Variant
    alone: Variant
    nothing: Variant


@dataclass
class Variants:
    """All variants of one explanation, each once, in the order of evaluation.

    Attributes:
        full: everything as it is.
        quantized: no noise.
        ideal: no noise, and float weights.
        comparisons: what is compared.
        every: all of them.
    """

    full: Variant
    quantized: Variant
    ideal: Variant
    comparisons: list[Comparison] = field(default_factory=list)
    every: list[Variant] = field(default_factory=list)

    def add(self, name: str, conditions: Conditions) -> Variant:
        """The variant under these conditions; an earlier one if it computes the same."""
        full = self.full.conditions or conditions
        made = Variant(name, {layer: _plain(c, full[layer].nvm) for layer, c in conditions.items()})
        for other in self.every:
            if other.conditions == made.conditions:
                return other
        self.every.append(made)
        return made


def variants(layers: Layers, sigma: float | None) -> Variants:
    """The variants that every explanation has.

    Args:
        layers: the noisy layers.
        sigma: overrides the sigma of every layer; None keeps them.

    Raises:
        ValueError: no layer has noise.
    """
    full = {name: Condition(_at(layer.nvm, sigma), layer.noise_enabled) for name, layer in layers.items()}
    nothing = Variant("", {})
    found = Variants(nothing, nothing, nothing)
    found.full = found.add("everything", full)
    if found.full.noise_free:
        fail("model", "must have noise in at least one layer", "no noise: sigma 0, or noise switched off")
    found.quantized = found.add("no noise", {name: _off(c) for name, c in full.items()})
    found.ideal = found.add("float weights", {name: _float(_off(c)) for name, c in full.items()})
    return found


def add_effects(found: Variants) -> None:
    """Adds what compares the effects: the quantizer, then those of the devices."""
    full = found.full.conditions
    devices = list(dict.fromkeys(c.nvm for c in full.values()))
    bits = sorted({nvm.weight_bits for nvm in devices})
    unquantized = found.add("no quantizer", {name: _float(c) for name, c in full.items()})
    said = f"{bits[0]} bits" if len(bits) == 1 else f"{bits[0]} to {bits[-1]} bits"
    found.comparisons.append(Comparison("effect", QUANTIZER, said, unquantized, found.quantized, found.ideal))
    noisy = list(dict.fromkeys(c.nvm for c in full.values() if c.noisy))
    for effect in EFFECTS:
        having = [nvm for nvm in noisy if effect in effects_of(nvm)]
        if not having:
            continue
        texts = list(dict.fromkeys(map(effect.text, having)))

        def changed(change: Callable[[NVMDevice], NVMDevice]) -> Conditions:
            return {name: c._replace(nvm=change(c.nvm)) for name, c in full.items()}

        rest = found.add(f"all but {effect.name}", changed(lambda nvm, e=effect: without(nvm, e)))
        only = changed(lambda nvm, e=effect: with_only(nvm, e))
        alone = found.add(f"only {effect.name}", {name: _float(c) for name, c in only.items()})
        said = texts[0] if len(texts) == 1 else f"{len(texts)} settings"
        found.comparisons.append(Comparison("effect", effect.name, said, rest, alone, found.ideal))


def add_layers(found: Variants, groups: Mapping[str, list[str]], layers: Layers) -> None:
    """Adds what compares the noise of layers, or of groups of layers. Those without noise are left out."""
    full = found.full.conditions
    for group, members in groups.items():
        if not any(full[name].noisy for name in members):
            continue
        rest = found.add(f"all but {group}", {n: _off(c) if n in members else c for n, c in full.items()})
        alone = members == [group]
        said = (
            type(layers[group]).__name__.removeprefix("Noisy")
            if alone
            else f"{len(members)} layer{'s' if len(members) > 1 else ''}"
        )
        comparison = Comparison("layer", group, said, rest, only_layers(found, group, members), found.quantized)
        found.comparisons.append(comparison)


def only_layers(found: Variants, group: str, members: list[str]) -> Variant:
    """The variant with noise in these layers only."""
    full = found.full.conditions
    return found.add(f"only {group}", {n: c if n in members else _off(c) for n, c in full.items()})


def groups_of(layers: Any, known: Iterable[str]) -> dict[str, list[str]]:
    """Name of a group -> its layers.

    Args:
        layers: None for each layer by itself; patterns, for each layer that matches by itself; or group -> patterns.
        known: names of the noisy layers.

    Raises:
        TypeError, ValueError: another type, or a pattern without a layer; a layer in two groups.
    """
    known = list(known)
    if layers is None:
        return {name: [name] for name in known}
    if not isinstance(layers, Mapping):
        return {name: [name] for name in _matching(layers, known)}
    groups = {text("layers", group): _matching(patterns, known) for group, patterns in layers.items()}
    if not groups:
        fail("layers", "must name at least one layer or group", "none")
    taken: dict[str, str] = {}
    for group, members in groups.items():
        for name in members:
            if taken.setdefault(name, group) != group:
                fail("layers", "must hold each layer in one group", f"{name} in {taken[name]} and {group}")
    return groups


def _matching(patterns: Any, known: list[str]) -> list[str]:
    """The layers that match, in the model's order."""
    patterns = [patterns] if isinstance(patterns, str) else items("layers", patterns, "names or patterns of layers")
    if not patterns:
        fail("layers", "must name at least one layer or group", "none")
    found: set[str] = set()
    for pattern in patterns:
        text("layers", pattern)
        hits = {name for name in known if fnmatch.fnmatchcase(name, pattern) or name.startswith(pattern + ".")}
        if not hits:
            fail("layers", f"must match a noisy layer of the model{did_you_mean(pattern, known, most=3)}", pattern)
        found |= hits
    return [name for name in known if name in found]


def _at(nvm: NVMDevice, sigma: float | None) -> NVMDevice:
    return nvm if sigma is None else nvm.replace(sigma=sigma)


def _off(condition: Condition) -> Condition:
    return condition._replace(noisy=False)


def _float(condition: Condition) -> Condition:
    return condition._replace(quantized=False)


def _plain(condition: Condition, nvm: NVMDevice) -> Condition:
    """An equal condition for equal results: noise that changes no weight is off. The device then plays no part."""
    return condition if condition.noisy and not is_exact(condition.nvm) else condition._replace(nvm=nvm, noisy=False)
